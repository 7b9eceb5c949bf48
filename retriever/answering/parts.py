"""A shard's part of an answer: what it is asked in each round, and what it says so that the parts add up (``retriever.merging``).

What must hold: whatever is divided by, a SID's weight or a sum over the catalogue, is that of all shards in the last round; what
a shard is told by a client is held against the bundle before it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import numpy as np
from msgspec import UNSET

from models.errors import SidstreamError
from models.sids.layout import Layout
from retriever.answering.asked import Asked, Found, Numbers
from retriever.answering.mixing import Mixer
from retriever.answering.ranking import counted_weights
from retriever.dense.leg import Sums
from retriever.search.search_parts import ScoredSid
from store.reading.snapshot import Snapshot
from store.records.encoding import StoredItem
from store.topology.layout_trie import SnapshotTrie
from streamer.events.records import AnswerError, Query
from streamer.settings import Settings
from streamer.shards.partitions import EVERY
from streamer.shards.parts import ASK_ANEW, AnsweredPart, AskedPart, DenseSums, HistoryItem, PartSid

ELSEWHERE: Final = 2**32 - 1  # as the number of an item that another shard holds: no index gives it


class ShardError(SidstreamError):
    """The index, ``indexer.partitions`` and ``retriever.shards`` do not fit together."""


def require_own_shard(held: str, settings: Settings) -> None:
    """Return if an index of the partitions ``held`` is the one that these settings mean.

    Raises:
        ShardError: it is not; what to set.
    """
    wanted, shards = settings.indexer.partitions, settings.retriever.shards
    if held != wanted:
        raise ShardError(
            f"the index holds {_named(held)} and this host is to hold {_named(wanted)}: set indexer.partitions (it is the "
            "retriever's, too) to what the index holds, or name another index"
        )
    if held and shards == 1:
        raise ShardError(
            f"the index holds {_named(held)} alone, and retriever.shards is 1: set it to the number of shards, here and for "
            "every client"
        )
    if not held and shards > 1:
        raise ShardError(
            f"retriever.shards is {shards}, and the index holds all partitions: set retriever.shards to 1, or give each host a "
            "part of them (indexer.partitions) and an index of its own"
        )
    if held and settings.retriever.ranking != "own_probability":
        raise ShardError(
            f"retriever.ranking is {settings.retriever.ranking!r}, and the items of a SID lie in several shards, so that none "
            "can order them: set it to 'own_probability', or hold all partitions on each host"
        )


def _named(held: str) -> str:
    return f"the partitions {held}" if held else "all partitions"


def of_another_bundle(part: AskedPart, bundle: str, layout: int) -> AnswerError | None:
    """Why what was found before cannot be used: a bundle was exchanged, or a layout issued, between two rounds."""
    if part.step == "history" or (part.bundle in ("", bundle) and part.layout in (UNSET, layout)):
        return None
    return AnswerError(
        kind=ASK_ANEW,
        message=f"what the query says was found by the bundle {part.bundle} under layout {part.layout or 0}, and this shard "
        f"answers by {bundle} under {layout} by now: ask it again from its first round",
    )


def given_history(part: AskedPart, known: Sequence[StoredItem]) -> list[StoredItem]:
    """The history of a query, oldest first, as all shards together know it; ``known``: those of its items that are here."""
    here = {item.id: item for item in known}
    return [
        here.get(
            item.item_id.encode(),
            StoredItem(ELSEWHERE, item.item_id.encode(), item.codes, 0.0, item.title, 0),
        )
        for item in part.history
    ]


def given_vectors(part: AskedPart) -> tuple[list[bytes], list[bytes]]:
    """Ids and vectors of those items of a given history that have one, oldest first."""
    having = [(item.item_id.encode(), item.vector) for item in part.history if item.vector]
    return [item_id for item_id, _ in having], [vector for _, vector in having if isinstance(vector, bytes)]


def given_sids(part: AskedPart) -> Found | None:
    """The SIDs that were found for a query in all shards; None where none was, or none was searched for."""
    if not part.sids:
        return None
    return Found([ScoredSid(sid.tokens, sid.score, None, sid.weight) for sid in part.sids])


def given_sums(part: AskedPart | msgspec.UnsetType) -> Sums | None:
    """What the mixture divides by, of all shards; None for a query that says nothing of it."""
    if not isinstance(part, AskedPart) or not isinstance(part.sums, DenseSums):
        return None
    near = part.sums.log_near
    return Sums(near if isinstance(near, float) else -np.inf, part.sums.together)


class Shard:
    """The index that this process answers from, as one of several. For one thread."""

    def __init__(self, partitions: str, mixer: Mixer | None, *, history_read: int, title_characters: int) -> None:
        """``partitions``: those that the index holds; ``history_read``: how many items of a history count;
        ``title_characters``: of their titles.
        """
        self.partitions = partitions
        self.partition_count = 0
        self._mixer = mixer
        self._history_read = history_read
        self._title_characters = title_characters

    def part(self, query: Query | None = None) -> AnsweredPart | msgspec.UnsetType:
        """What every answer of a shard says, errors too; nothing for an index that holds all partitions."""
        if self.partitions == EVERY:
            return UNSET
        asked = UNSET if query is None else query.part
        return AnsweredPart(
            partitions=self.partitions,
            partition_count=self.partition_count,
            step=asked.step if isinstance(asked, AskedPart) else UNSET,
            round=asked.round if isinstance(asked, AskedPart) else 0,
        )

    def answered_part(
        self,
        one: Asked,
        found: Found | None,
        order: Sequence[tuple[float, int, int]],
        trie: SnapshotTrie,
        snapshot: Snapshot,
        eligible: Callable[[], Numbers | None],
        beams: int,
    ) -> AnsweredPart | msgspec.UnsetType:
        """What the answer to a query says for the others to add up; ``eligible``: the items by its filter, None for all; asked
        for the sums alone, as it looks at every item.
        """
        part, asked = self.part(one.query), one.query.part
        if not isinstance(part, AnsweredPart) or not isinstance(asked, AskedPart):
            return part
        if asked.step == "history":
            history = self._history(one, snapshot)
            return msgspec.structs.replace(part, history=history, history_read=self._history_read)
        if asked.step == "items":
            return msgspec.structs.replace(part, order=tuple(order))
        sums: DenseSums | msgspec.UnsetType = UNSET
        if self._mixer is not None and one.vector is not None:
            own = self._mixer.sums(one.vector, one.excluded, eligible())
            near = UNSET if np.isneginf(own.log_near) else own.log_near
            sums = DenseSums(log_near=near, together=own.together)
        return msgspec.structs.replace(
            part, sids=UNSET if found is None else _weighed(found.sids, trie), beams=beams, sums=sums
        )

    def _history(self, one: Asked, snapshot: Snapshot) -> tuple[HistoryItem, ...]:
        numbers = np.array([item.number for item in one.history], np.uint32)
        with_vectors = snapshot.vectors(numbers)
        vector_of = dict(zip(with_vectors.ids, with_vectors.values, strict=True)) if self._mixer is not None else {}
        return tuple(
            HistoryItem(
                item_id=item.id.decode(),
                codes=item.codes,
                title=item.title[: self._title_characters],
                vector=vector_of.get(item.id, UNSET),
            )
            for item in one.history
        )


def _weighed(sids: Sequence[ScoredSid], trie: SnapshotTrie) -> tuple[PartSid, ...]:
    """SIDs with the weight that their items count for here."""
    items = trie.items_of([sid.tokens for sid in sids])
    return tuple(
        PartSid(sid.tokens, sid.score, float(counted_weights(own.weights).sum()))
        for sid, own in zip(sids, items, strict=True)
    )


def order_of(
    items: Sequence[StoredItem], scores: Sequence[float], found: Found | None, layout: Layout
) -> tuple[tuple[float, int, int], ...]:
    """By what the items of an answer are ordered among those of other shards (``AnsweredPart.order``)."""
    place = {sid.tokens: place for place, sid in enumerate(() if found is None else found.sids)}
    return tuple(
        (score, place.get(layout.sid_of(item.codes), len(place)), item.updated_at)
        for item, score in zip(items, scores, strict=True)
    )
