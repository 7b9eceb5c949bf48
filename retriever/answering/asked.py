"""What a query, a search and an answer are while they are worked on.

What must hold: these are values; who fills what is said at each field.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from retriever.dense.leg import DenseQuery, MixedItem
from retriever.search.search_parts import ScoredSid
from store.records.encoding import StoredItem
from streamer.events.records import AnswerError, AnswerItem, Query
from streamer.filters.grammar import Filter
from streamer.shards.parts import AskedPart

SearchKind = Literal["beam", "exact"]
Leg = Literal["model", "dense"]
Numbers = npt.NDArray[np.uint32]


@dataclass(slots=True)
class Asked:
    """A query on its way to its answer. ``embedding``: (D,), if it has one; ``reads_something``: whether there is anything in
    its prompt; ``vector``: for the dense leg, if it has one; ``refused``: why it cannot be answered now.
    """

    query_id: str
    query: Query
    waited_ms: float = 0.0
    filter: Filter | None = None
    excluded: Numbers = field(default_factory=lambda: np.empty(0, np.uint32))
    embedding: npt.NDArray[np.floating] | None = None
    prompt: list[int] = field(default_factory=list)
    reads_something: bool = True
    vector: DenseQuery | None = None
    history: tuple[StoredItem, ...] = ()
    skipped: tuple[str, ...] = ()
    refused: AnswerError | None = None

    @property
    def part(self) -> AskedPart | None:
        """What is asked of a shard; None for a query that is asked of one index."""
        return self.query.part if isinstance(self.query.part, AskedPart) else None

    @property
    def is_searched(self) -> bool:
        """Whether it is this query's turn to be searched for: over shards that is one round of several."""
        return self.refused is None and (self.part is None or self.part.step == "search")

    @property
    def is_answered(self) -> bool:
        """Whether it is its turn to be answered with items."""
        return self.refused is None and (self.part is None or self.part.step == "items")


@dataclass(frozen=True)
class Found:
    """What a search found: SIDs best first; ``complete``: no better one is missing, as far as an exact search can say;
    ``expansions``: prefixes that an exact search ran.
    """

    sids: Sequence[ScoredSid] = ()
    search: SearchKind = "beam"
    complete: bool = False
    expansions: int = 0


@dataclass(frozen=True)
class Answered:
    """The items of an answer, best first, the legs that ran, why it was not both, what the mixture knows of each item, the
    numbers of items that the slate holds back, and by what the items are ordered among those of other shards.
    """

    items: tuple[AnswerItem, ...] = ()
    legs: tuple[Leg, ...] = ()
    note: str = ""
    mixed: tuple[MixedItem, ...] = ()
    held_back: frozenset[int] = frozenset()
    order: tuple[tuple[float, int, int], ...] = ()
