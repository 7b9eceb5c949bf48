"""How often what a bundle answered was chosen: interactions joined with the answers that they name, bundle by bundle.

What must hold: a query counts once, however many interactions and retries it has; the same records give the same figures, in
whatever order they came; memory is bounded by a portion of ``spool``.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from streamer.events.interactions import KINDS, CheckedInteraction
from streamer.events.records import AnswerError, Codec, Version1
from streamer.interactions.letters import check_interactions
from streamer.interactions.reading import InteractionReader, records_in, records_of
from streamer.interactions.spool import Spool, parts_for, read_together
from streamer.settings import Settings
from streamer.shards.parts import AnsweredPart

RANKS: Final = (1, 5, 10)
ANY_KIND: Final = "any"
_Z95: Final = 1.959964


class _Item(msgspec.Struct, frozen=True):
    item_id: str


class _Told(msgspec.Struct, frozen=True, kw_only=True):
    """What is counted of an ``Answer``; nothing else of it is decoded."""

    query_id: str
    items: tuple[_Item, ...] = ()
    bundle: str | None = None
    error: AnswerError | None = None
    part: AnsweredPart | msgspec.UnsetType = msgspec.UNSET
    record_version: Version1 = msgspec.UNSET


_TOLD: Final = Codec(_Told)


class _Answered(msgspec.Struct, frozen=True, array_like=True):
    """An answer, as far as it is counted. ``order``: which of several of one query counts, the greatest. ``partitions``: of a
    shard, whose answer is put together with the others', by the ``scores`` of its items.
    """

    query_id: str
    bundle: str
    items: tuple[str, ...]
    order: tuple[int, int, int]
    partitions: str = ""
    scores: tuple[float, ...] = ()


class BundleHitRates(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a bundle's answers; ``bundle`` is empty for answers that name none.

    ``answered``: queries with an answer that is no error; ``interacted``: those of them that an interaction names. ``hits``: kind
    (or "any") → k → queries with such an interaction of an item among the first k of the answer. Keys of JSON are text.
    """

    bundle: str
    answered: int
    interacted: int
    hits: dict[str, dict[int, int]]

    def rate(self, at: int, kind: str = ANY_KIND) -> float:
        """Share of the queries answered with a hit among the first ``at``; 0 where none was answered."""
        return self.hits[kind][at] / self.answered if self.answered else 0.0

    def interval(self, at: int, kind: str = ANY_KIND) -> tuple[float, float]:
        """95 % interval of ``rate`` (Wilson); 0 to 1 where nothing was answered."""
        n, share = self.answered, self.rate(at, kind)
        if not n:
            return 0.0, 1.0
        middle = share + _Z95**2 / (2 * n)
        half = _Z95 * math.sqrt(share * (1 - share) / n + _Z95**2 / (4 * n * n))
        scale = 1 + _Z95**2 / n
        return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


class HitRates(msgspec.Struct, frozen=True, kw_only=True):
    """Of answers from ``since`` to before ``until`` (milliseconds since the epoch), bundles with the most answers first.

    ``first_answer``: when the first of them was given; where that is long after ``since``, the topic may not have kept those
    before it. ``interactions``: that can be used and name a query; ``unmatched``: those whose query has no answer of that time.
    """

    since: int
    until: int
    first_answer: int | None = None
    bundles: tuple[BundleHitRates, ...]
    interactions: int
    unmatched: int

    def of(self, bundle: str) -> BundleHitRates:
        """Those of one bundle; of one that has not answered, nothing but zeros."""
        found = next((one for one in self.bundles if one.bundle == bundle), None)
        return (
            found
            if found is not None
            else BundleHitRates(bundle=bundle, answered=0, interacted=0, hits=_no_hits(RANKS))
        )


def hit_rates(settings: Settings, since: int, until: int | None = None, *, at: Sequence[int] = RANKS) -> HitRates:
    """Hit rates of every bundle that answered from ``since`` to before ``until`` (now). ``at``: the numbers of first items.

    Counts what has been clicked by now: of the newest answers nobody may have had the time yet. Answers are there for as long as
    the topic ``results`` keeps them (a day, unless it is told otherwise).

    Raises:
        MissingTopicsError: a topic is missing.
        LogReadError: the broker does not answer.
    """
    check_interactions(settings)
    until = time.time_ns() // 1_000_000 if until is None else until
    topics = settings.topics
    parts = parts_for(max(records_in(settings, topics.results), records_in(settings, topics.interactions)))
    with tempfile.TemporaryDirectory(prefix="sidstream-hit-rates-") as directory:
        answers = Spool(Path(directory) / "answers", _Answered, parts)
        naming = Spool(Path(directory) / "interactions", CheckedInteraction, parts)
        first: int | None = None
        for record in records_of(settings, topics.results, since):
            try:
                answer: _Told = _TOLD.decode(record.value() or b"")
            except (msgspec.DecodeError, UnicodeDecodeError):
                continue  # of another program
            heard = record.timestamp()[1]
            part = answer.part if isinstance(answer.part, AnsweredPart) else None
            if part is not None and part.step in ("history", "search"):
                continue  # a round before the one with items
            if answer.error is None and since <= heard < until:
                first = heard if first is None else min(first, heard)
                order = (heard, record.partition(), record.offset())
                items = tuple(item.item_id for item in answer.items[: max(at)])
                told = _Answered(answer.query_id, answer.bundle or "", items, order)
                if part is not None:
                    scores = tuple(score for score, *_ in part.order[: max(at)])
                    told = msgspec.structs.replace(told, partitions=part.partitions, scores=scores)
                answers.add(answer.query_id, told)
        interactions = 0
        for said in InteractionReader(settings).interactions(since):
            if said.query:
                interactions += 1
                naming.add(said.query, said)
        count = _Count(at)
        for some, of_them in read_together(answers, naming):
            count.add(some, of_them)
    return count.result(since, until, first, interactions)


class _Count:
    def __init__(self, at: Sequence[int]) -> None:
        self._at = at
        self._answered: Counter[str] = Counter()
        self._interacted: Counter[str] = Counter()
        self._hits: dict[str, dict[str, dict[int, int]]] = defaultdict(lambda: _no_hits(at))
        self._unmatched = 0

    def add(self, answers: Iterable[_Answered], interactions: Iterable[CheckedInteraction]) -> None:
        """All of some queries."""
        of_shards: dict[str, dict[str, _Answered]] = defaultdict(dict)
        for answer in answers:
            before = of_shards[answer.query_id].get(answer.partitions)
            if before is None or answer.order > before.order:
                of_shards[answer.query_id][answer.partitions] = answer
        of_queries = {query: _together(list(parts.values())) for query, parts in of_shards.items()}
        self._answered.update(answer.bundle for answer in of_queries.values())
        best: dict[str, dict[str, int]] = {}  # query → kind → the best rank of an item of such an interaction
        for said in interactions:
            if said.query not in of_queries:
                self._unmatched += 1
                continue
            ranks, items = best.setdefault(said.query, {}), of_queries[said.query].items
            if said.item in items:
                rank = items.index(said.item) + 1
                for kind in (said.kind, ANY_KIND):
                    ranks[kind] = min(rank, ranks.get(kind, rank))
        for query, ranks in best.items():
            bundle = of_queries[query].bundle
            self._interacted[bundle] += 1
            for kind, rank in ranks.items():
                for k in self._at:
                    self._hits[bundle][kind][k] += rank <= k

    def result(self, since: int, until: int, first: int | None, interactions: int) -> HitRates:
        bundles = tuple(
            BundleHitRates(
                bundle=bundle, answered=answered, interacted=self._interacted[bundle], hits=self._hits[bundle]
            )
            for bundle, answered in sorted(self._answered.items(), key=lambda one: (-one[1], one[0]))
        )
        return HitRates(
            since=since,
            until=until,
            first_answer=first,
            bundles=bundles,
            interactions=interactions,
            unmatched=self._unmatched,
        )


def _together(parts: Sequence[_Answered]) -> _Answered:
    """The answer that was put together of those of shards; of a whole index, its own."""
    newest = max(parts, key=lambda part: part.order)
    if not newest.partitions:
        return newest
    scored = [
        (-score, item)
        for part in parts
        if part.bundle == newest.bundle and part.partitions
        for item, score in zip(part.items, part.scores, strict=False)
    ]
    return msgspec.structs.replace(newest, items=tuple(dict.fromkeys(item for _, item in sorted(scored))))


def _no_hits(at: Sequence[int]) -> dict[str, dict[int, int]]:
    return {kind: dict.fromkeys(at, 0) for kind in (ANY_KIND, *KINDS)}
