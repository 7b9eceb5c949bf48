"""One answer out of those of several shards: the rounds of a query, and how their parts are put together. Pure.

Why it is exact. A score is a sum of log-probabilities over the whole vocabulary, never over what is live, so a SID has the same
one in every shard that holds an item of it. So the k best SIDs of the whole index are among the k best of their shards: with
searches that find the best (``search="exact"`` within its budget, or beams wide enough to drop nothing that counts) the k best of
what all shards find are the k best of the whole. What *is* divided by, a SID's weight in an item's share and the sums of the
dense leg, adds up: each shard says its own, and the last round divides by those of all. An item of a history is known to one
shard alone, so they are asked for first. docs/scale.md has the theorem, and where it ends: beams that drop prefixes.

What must hold: a part that is missing is said, never passed over; parts of two bundles or layouts are never put together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, Literal

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType

from models.errors import SidstreamError
from streamer.events.records import Answer, AnswerError, AnswerItem, Query
from streamer.shards.partitions import numbers_of, overlap, text_of
from streamer.shards.parts import ASK_ANEW, AnsweredPart, AskedPart, DenseSums, HistoryItem, PartSid, Step

# There is nothing in this shard; that says nothing of the others.
_NOTHING_HERE: Final = ("NothingFound", "NothingEligible")
_LEFT: Final = AnswerError(kind="NothingFound", message="what was found left between two rounds: ask the query again")
# What is kept of a question's time for each round that follows, and the rest before it is asked anew, as shards do not exchange a
# bundle in the same moment.
_ROUND_SECONDS: Final = 2.0
_ANEW_SECONDS: Final = 0.2
_FOLLOWING: Final[dict[Step, Step]] = {"history": "search", "search": "items"}
_ROUNDS_LEFT: Final[dict[Step, int]] = {"history": 2, "search": 1, "items": 0}


class ShardsError(SidstreamError):
    """What the shards say of themselves does not fit together, or with ``retriever.shards``; what to do."""


class Question:
    """A query on its way over the shards.

    Use: send ``record()`` under the query's id, give every answer under that id to ``take``; once ``has_all``, or when time is up
    for the round, ``go_on``: send the next record, if there is one, else ``answer()`` is the answer.
    """

    def __init__(self, query_id: str, query: Query, shards: int) -> None:
        """``shards``: how many there are, ``retriever.shards``."""
        self.query_id = query_id
        self._query = query
        self._shards = shards
        self._round = 0
        self.begun_anew = 0  # as a bundle was exchanged, or a layout issued
        self._begin()

    def _begin(self) -> None:
        self._step: Step = "history" if self._query.history else "search"
        self._asked = AskedPart(step=self._step, round=self._round)
        self._parts: dict[str, Answer] = {}
        self._expected: frozenset[str] | None = None  # of the first round whoever answers is one
        self._found: list[Answer] = []  # of the round of searches
        self._skipped: tuple[str, ...] = ()
        self._faults: dict[str, str] = {}  # partitions → why their shard does not take part
        self._done: Answer | None = None

    @property
    def rounds_left(self) -> int:
        """How many rounds come after this one."""
        return _ROUNDS_LEFT[self._step]

    def record(self) -> Query:
        """What is asked now."""
        return msgspec.structs.replace(self._query, part=self._asked)

    def take(self, answer: Answer) -> None:
        """An answer under the query's id; one of an earlier round changes nothing.

        Raises:
            ShardsError: it comes from a whole index, from more shards than there are, or from two that share a partition.
        """
        part = answer.part
        if not isinstance(part, AnsweredPart):
            raise ShardsError(
                f"retriever.shards is {self._shards}, and a retriever answers whose index holds all partitions: set it to 1 for "
                "clients, or end that retriever"
                + ("" if answer.error is None else f" (its answer was: {answer.error.message})")
            )
        # What could not be read as a query at all has no round.
        of_this_round = part.round == self._round or (part.step is UNSET and answer.error is not None)
        if self._done is not None or not of_this_round:
            return
        if self._expected is not None and part.partitions not in self._expected:
            return
        for other in self._parts:
            if other != part.partitions and overlap(other, part.partitions):
                raise ShardsError(
                    f"one shard holds the partitions {other}, another one {part.partitions}: an item would be answered twice. "
                    "indexer.partitions of the hosts must divide the partitions among them"
                )
        self._parts[part.partitions] = answer
        if len(self._parts) > self._shards:
            raise ShardsError(
                f"retriever.shards is {self._shards}, and {len(self._parts)} shards answer ({self._held()}): set it to the "
                "number of shards"
            )

    @property
    def has_all(self) -> bool:
        """Whether every shard has answered this round.

        Raises:
            ShardsError: fewer shards than there should be hold every partition.
        """
        if self._expected is not None:
            return self._parts.keys() == self._expected
        counted = any(_part_of(one).partition_count for one in self._parts.values())
        covered = counted and not self._missing(self._parts.values())
        if covered and len(self._parts) < self._shards:
            raise ShardsError(
                f"retriever.shards is {self._shards}, and {len(self._parts)} hold every partition ({self._held()}): set it to "
                "the number of shards"
            )
        return covered

    @property
    def has_any(self) -> bool:
        """Whether a shard has answered this round."""
        return bool(self._parts)

    def go_on(self) -> bool:
        """To the next round with the parts that there are, one at least; False if there is none, and ``answer()`` is ready."""
        parts = list(self._parts.values())
        anew = [one for one in parts if one.error is not None and one.error.kind == ASK_ANEW]
        usable = [one for one in parts if one.error is None or one.error.kind in _NOTHING_HERE]
        if anew or len({(one.bundle, one.layout) for one in usable}) > 1:
            self._round += 1
            self.begun_anew += 1
            self._begin()
            return True
        for partitions, one in self._parts.items():
            if one not in usable and one.error is not None:
                self._faults[partitions] = f"{one.error.kind}: {one.error.message}"
        if self._step == "items" or not any(one.error is None for one in parts):
            self._done = self._merged(usable or parts)
            return False
        self._round += 1
        if self._step == "history":
            self._with_history(usable)
        else:
            self._with_sids(usable)
        self._step = _FOLLOWING[self._step]
        self._expected = frozenset(_part_of(one).partitions for one in usable)
        self._parts = {}
        return True

    def answer(self) -> Answer:
        """The answer, once ``go_on`` has said that no round follows."""
        assert self._done is not None
        return self._done

    def _with_history(self, parts: Sequence[Answer]) -> None:
        known: dict[str, HistoryItem] = {item.item_id: item for one in parts for item in _part_of(one).history}
        # A shard names its newest: none of those that are older is among the newest of all.
        newest = max(_part_of(one).history_read for one in parts)
        every = [known[item_id] for item_id in self._query.history if item_id in known]
        self._skipped = tuple(item_id for item_id in self._query.history if item_id not in known)
        self._asked = self._next("search", parts, history=tuple(every[max(0, len(every) - newest) :]))

    def _with_sids(self, parts: Sequence[Answer]) -> None:
        self._found = list(parts)
        self._asked = self._next(
            "items", parts, history=self._asked.history, sids=best_sids(parts), sums=added_sums(parts)
        )

    def _next(
        self,
        step: Step,
        parts: Sequence[Answer],
        *,
        history: tuple[HistoryItem, ...],
        sids: tuple[PartSid, ...] | UnsetType = UNSET,
        sums: DenseSums | UnsetType = UNSET,
    ) -> AskedPart:
        return AskedPart(
            step=step,
            round=self._round,
            bundle=parts[0].bundle or "",
            layout=UNSET if parts[0].layout is None else parts[0].layout,
            history=history,
            sids=sids,
            sums=sums,
        )

    def _held(self) -> str:
        return " and ".join(sorted(self._parts))

    def _missing(self, parts: Iterable[Answer]) -> list[int]:
        """Partitions of no part."""
        every = [_part_of(one) for one in parts]
        count = max((part.partition_count for part in every), default=0)
        held: set[int] = set().union(*(numbers_of(part.partitions) for part in every))
        return sorted(set(range(count)) - held)

    def _merged(self, parts: Sequence[Answer]) -> Answer:
        first = next((one for one in parts if one.error is None), parts[0])
        missing = self._missing(parts)
        items = best_items(parts, self._query.limit)
        notes = [one.note for one in parts if isinstance(one.note, str)]
        if missing:
            notes.append(
                f"a partial answer: no shard that holds the partitions {text_of(missing)} of item-codes answered in time, and "
                "nothing of them is in it" + "".join(f"; {held}: {why}" for held, why in sorted(self._faults.items()))
            )
        times = [one.milliseconds for one in (*self._found, *parts)]
        names = dict.fromkeys(name for each in times for name in each)
        return msgspec.structs.replace(
            first,
            items=items,
            error=None if items else first.error or _LEFT,
            position={place: offset for one in parts for place, offset in one.position.items()},
            skipped_history=self._skipped,
            note="; ".join(dict.fromkeys(notes)) or UNSET,
            milliseconds={name: max(each.get(name, 0.0) for each in times) for name in names},
            **self._search(),
            part=UNSET,
            missing_partitions=tuple(missing) if missing else UNSET,
        )

    def _search(self) -> dict[str, Literal["beam", "exact"] | bool | UnsetType]:
        """How the SIDs were found: exactly where every shard did, and completely where all did."""
        searched = [one for one in self._found if one.search is not UNSET]
        if not searched:
            return {}
        if any(one.search == "beam" for one in searched):
            return {"search": "beam", "search_complete": UNSET}
        return {"search": "exact", "search_complete": all(one.search_complete is True for one in searched)}


class PacedQuestion:
    """A question and its time. Of a shard that is late a round waits for as long as the rounds after it may still be answered in
    time; then it goes on without, and the answer says so.

    Use: at every turn send what is ``due``, if anything is, until it is ``answered``. Times are seconds of one clock.
    """

    def __init__(self, question: Question, began: float, seconds: float) -> None:
        """``seconds``: the time that the question has."""
        self._question = question
        self._deadline = began + seconds
        self._reserve = min(seconds / 4, _ROUND_SECONDS)
        self._send_at: float | None = began  # None while answers are waited for
        self.answered = False

    def take(self, answer: Answer) -> None:
        """An answer under the question's id. Raises ``ShardsError``."""
        self._question.take(answer)

    def due(self, now: float) -> Query | None:
        """What is to be sent now. Raises ``ShardsError``."""
        asked = self._question
        if self._send_at is None and not self.answered:
            late = asked.has_any and now > self._deadline - self._reserve * (asked.rounds_left + 0.5)
            if asked.has_all or late:
                anew = asked.begun_anew
                self.answered = not asked.go_on()
                self._send_at = now + (_ANEW_SECONDS if asked.begun_anew > anew else 0.0)
        if self.answered or self._send_at is None or now < self._send_at:
            return None
        self._send_at = None
        return asked.record()

    def answer(self) -> Answer:
        """Of all shards, once it is ``answered``."""
        return self._question.answer()


def _part_of(answer: Answer) -> AnsweredPart:
    assert isinstance(answer.part, AnsweredPart)
    return answer.part


def best_sids(parts: Sequence[Answer]) -> tuple[PartSid, ...] | UnsetType:
    """The best SIDs of all searches, best first, equal ones in the order of their tokens, each with its weight in all shards;
    absent where nobody searched.
    """
    searched = [part for part in map(_part_of, parts) if not isinstance(part.sids, UnsetType)]
    if not searched:
        return UNSET
    found: dict[tuple[int, ...], PartSid] = {}
    for part in searched:
        for sid in part.sids or ():
            known = found.get(sid.tokens)
            weight = sid.weight + (0.0 if known is None else known.weight)
            # The same but for the last digits of sums in another order.
            found[sid.tokens] = PartSid(sid.tokens, sid.score if known is None else max(known.score, sid.score), weight)
    best = sorted(found.values(), key=lambda sid: (-sid.score, sid.tokens))
    return tuple(best[: max(part.beams for part in searched)])


def added_sums(parts: Sequence[Answer]) -> DenseSums | UnsetType:
    """What the dense leg divides by, of all shards; absent where none has one."""
    sums = [part.sums for part in map(_part_of, parts) if isinstance(part.sums, DenseSums)]
    if not sums:
        return UNSET
    near = [each.log_near for each in sums if isinstance(each.log_near, float)]
    return DenseSums(
        log_near=float(np.logaddexp.reduce(near)) if near else UNSET, together=sum(each.together for each in sums)
    )


def best_items(parts: Sequence[Answer], limit: int) -> tuple[AnswerItem, ...]:
    """The best items of all parts: greatest score first, equal ones by SID, then newest first, then by id; each id once."""
    every = [
        (-score, place, -updated_at, item.item_id, item)
        for one in parts
        for (score, place, updated_at), item in zip(_part_of(one).order, one.items, strict=True)
    ]
    best: dict[str, AnswerItem] = {}
    for *_, item_id, item in sorted(every, key=lambda one: one[:4]):
        best.setdefault(item_id, item)  # twice while a repartitioning moves it from one shard to another
    return tuple(list(best.values())[:limit])
