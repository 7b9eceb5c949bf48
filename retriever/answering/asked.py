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
from streamer.events.records import AnswerItem, Query
from streamer.filters.grammar import Filter

SearchKind = Literal["beam", "exact"]
Leg = Literal["model", "dense"]
Numbers = npt.NDArray[np.uint32]


@dataclass(slots=True)
class Asked:
    """A query on its way to its answer. ``embedding``: (D,), if it has one; ``reads_something``: whether there is anything in
    its prompt; ``vector``: for the dense leg, if it has one.
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
    """The items of an answer, best first, the legs that ran, why it was not both, what the mixture knows of each item, and the
    numbers of items that the slate holds back.
    """

    items: tuple[AnswerItem, ...] = ()
    legs: tuple[Leg, ...] = ()
    note: str = ""
    mixed: tuple[MixedItem, ...] = ()
    held_back: frozenset[int] = frozenset()
