"""What any way of finding items has to beat, on the same cases: popularity, co-occurrence, nearest neighbours of the embedding,
and co-occurrence together with neighbours.

What must hold: settings are chosen on the validation part alone, by NDCG at the longest list; items of the history are left out
of every list; a list is never shorter than the catalogue allows, as a shop fills it with what is popular; equal scores go to the
more popular item, then to the smaller row; the same data give the same lists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt

from models.dense.pair_counts import PairCounts, flattened
from retriever.evaluation.cases import EvaluationCase, TrainingData
from retriever.evaluation.metrics import RankedLists, Relevant, measure

Scores = npt.NDArray[np.float32]
Progress = Callable[[str, int, int], None]  # what, how many cases are done, of how many

POPULARITY: Final = "popularity"
CO_OCCURRENCE: Final = "co-occurrence"
NEIGHBOURS: Final = "neighbours"
TOGETHER: Final = "co-occurrence and neighbours"
_CASES_AT_ONCE: Final = 256
_TUNING_CASES: Final = 10_000
_TUNING_CASES_WITH_VECTORS: Final = 4_000  # every item of the catalogue is compared with each
_BY_DEFAULT: Final = ", by default: there is no validation part"
_TIE: Final = np.float32(1e-6)  # of the greatest score: what popularity adds, so that it decides between equals alone


@dataclass(frozen=True)
class CoOccurrenceSettings:
    """``decay``: a pair d places apart counts d^-decay; ``reverse``: what a pair counts whose other item came before;
    ``recency``: the r-th newest item of the history counts r^-recency; ``popularity``: scores are multiplied by the candidate's
    occurrences to this power.
    """

    decay: float = 0.5
    reverse: float = 0.5
    recency: float = 1.0
    popularity: float = 0.1


CO_OCCURRENCE_GRID: Final = {
    "popularity": (-0.5, -0.25, -0.1, 0.0, 0.1, 0.25),
    "recency": (0.0, 0.5, 1.0, 2.0, 4.0),
    "reverse": (0.0, 0.5, 1.0),
    "decay": (0.0, 0.5, 1.0, 2.0),
}
RECENCY_GRID: Final = (0.0, 0.5, 1.0, 2.0, 4.0)  # of the items of a history, for the mean of their embeddings
TOGETHER_GRID: Final = (
    0.05,
    0.1,
    0.2,
    0.4,
    0.8,
    1.6,
)  # weight of the cosine beside co-occurrence, the best of which counts 1


@dataclass(frozen=True, eq=False)
class Reference:
    """Lists of one reference. ``settings``: what was chosen, in words; ``tuned_on``: on how many validation cases."""

    name: str
    lists: RankedLists
    settings: str = ""
    tuned_on: int = 0


@dataclass(frozen=True, eq=False)
class ReferenceData:
    """What references know: ``vectors`` float32 (N, D) of the items, of any length but zero; ``query_embeddings`` float32 (Q, D)
    or None, by ``EvaluationCase.query_row``; ``training``.
    """

    training: TrainingData
    vectors: npt.NDArray[np.float32]
    query_embeddings: npt.NDArray[np.float32] | None = None
    _counts: dict[float, PairCounts] = field(default_factory=dict)

    @property
    def items(self) -> int:
        """N."""
        return len(self.vectors)

    def counts(self, decay: float) -> PairCounts:
        """Counted once for each decay."""
        if decay not in self._counts:
            self._counts[decay] = PairCounts.count(self.training.pairs, self.items, decay=decay)
        return self._counts[decay]


def reference_names(data: ReferenceData, cases: Sequence[EvaluationCase]) -> tuple[str, ...]:
    """Those that the data allow: popularity needs differences of it, co-occurrence histories, neighbours need histories or
    embeddings of the queries.
    """
    with_history = any(case.history for case in cases)
    embedded = data.query_embeddings is not None and any(case.query_row >= 0 for case in cases)
    found = [POPULARITY] if len(np.unique(data.training.popularity)) > 1 else []
    found += [CO_OCCURRENCE] if with_history and data.training.has_histories else []
    found += [NEIGHBOURS] if with_history or embedded else []
    return (*found, TOGETHER) if {CO_OCCURRENCE, NEIGHBOURS} <= {*found} else tuple(found)


def references(
    data: ReferenceData,
    cases: Sequence[EvaluationCase],
    validation: Sequence[EvaluationCase],
    width: int,
    progress: Progress | None = None,
) -> list[Reference]:
    """All references that the data allow, each with a list of ``width`` items a case.

    Settings are chosen on up to 10,000 of the ``validation`` cases, with embeddings on 4,000; without any, the defaults stand.
    """
    tell = progress or (lambda _what, _done, _total: None)
    names, unit = reference_names(data, cases), _unit(data.vectors)
    tuning, fewer = (_sample(validation, most) for most in (_TUNING_CASES, _TUNING_CASES_WITH_VECTORS))
    found = [_popularity(data.training, cases, width)] if POPULARITY in names else []

    def add(name: str, settings: str, scores: Callable[[Sequence[EvaluationCase]], Scores], tuned: int | None) -> None:
        words = settings + (_BY_DEFAULT if tuned == 0 else "")
        found.append(Reference(name, _lists(data, cases, width, scores, name, tell), words, tuned or 0))

    if CO_OCCURRENCE in names:
        pairs = best_co_occurrence(data, tuning, width, tell)
        add(CO_OCCURRENCE, said(pairs), lambda part: co_occurrence_scores(data, part, pairs), len(tuning))
    if NEIGHBOURS in names:
        of_history = any(case.history and case.query_row < 0 for case in cases)
        recency = _best_recency(data, unit, fewer, width, tell) if of_history else 1.0
        words = f"of the history's mean, weighted 1 / rank^{recency:g}" if of_history else "of the query's embedding"
        scores = partial(neighbour_scores, data, unit, recency=recency)
        add(NEIGHBOURS, words, scores, len(fewer) if of_history else None)
    if TOGETHER in names:
        weight = _best_together(data, unit, fewer, width, pairs, recency, tell)
        scores = partial(_together, data, unit, settings=pairs, recency=recency, weight=weight)
        add(TOGETHER, f"the cosine weighs {weight:g}", scores, len(fewer))
    return found


def co_occurrence_scores(
    data: ReferenceData, cases: Sequence[EvaluationCase], settings: CoOccurrenceSettings
) -> Scores:
    """Scores (Q, N) of all items, the best of each case 1; 0 for what was never seen with the history."""
    counts = data.counts(settings.decay)
    history, lengths = flattened([case.history for case in cases])
    case = np.repeat(np.arange(len(cases)), lengths)
    weights = _ranks_from_newest(lengths) ** -settings.recency
    which, place = counts.neighbours(history)
    values = weights[which] * (counts.after[place] + settings.reverse * counts.before[place])
    cells = case[which] * data.items + counts.items[place]
    summed = np.bincount(cells, weights=values, minlength=len(cases) * data.items).reshape(len(cases), data.items)
    scores = summed * np.maximum(data.training.popularity, 0.5) ** settings.popularity
    best = scores.max(axis=1, keepdims=True, initial=0)
    return (scores / np.where(best > 0, best, 1)).astype(np.float32)


def neighbour_scores(
    data: ReferenceData, unit: npt.NDArray[np.float32], cases: Sequence[EvaluationCase], recency: float
) -> Scores:
    """Cosines (Q, N) of all items (``unit``: float32 (N, D), rows of length 1) with the query's embedding, or else with the mean
    of the history's unit vectors, weighted 1 / rank^recency from the newest on; 0 for a case with neither.
    """
    history, lengths = flattened([case.history for case in cases])
    case = np.repeat(np.arange(len(cases)), lengths)
    weights = (_ranks_from_newest(lengths) ** -recency).astype(np.float32)
    wanted = np.zeros((len(cases), unit.shape[1]), dtype=np.float32)
    np.add.at(wanted, case, unit[history] * weights[:, None])
    if data.query_embeddings is not None:
        rows = np.fromiter((one.query_row for one in cases), dtype=np.int64, count=len(cases))
        asked = rows >= 0
        wanted[asked] = data.query_embeddings[rows[asked]]
    return _unit(wanted) @ unit.T


def _together(
    data: ReferenceData,
    unit: npt.NDArray[np.float32],
    cases: Sequence[EvaluationCase],
    *,
    settings: CoOccurrenceSettings,
    recency: float,
    weight: float,
) -> Scores:
    return co_occurrence_scores(data, cases, settings) + np.float32(weight) * neighbour_scores(
        data, unit, cases, recency
    )


def _popularity(training: TrainingData, cases: Sequence[EvaluationCase], width: int) -> Reference:
    lists = []
    for case in cases:
        owned = set(case.history)
        first = training.by_popularity[: width + len(owned)].tolist()
        lists.append([item for item in first if item not in owned][:width])
    return Reference(POPULARITY, RankedLists.of(lists, width), training.source)


def _lists(
    data: ReferenceData,
    cases: Sequence[EvaluationCase],
    width: int,
    scores: Callable[[Sequence[EvaluationCase]], Scores],
    name: str,
    tell: Progress,
) -> RankedLists:
    """Best items first, by blocks of cases; what a score does not tell apart goes by popularity."""
    place = np.empty(data.items, dtype=np.float32)  # the most popular item has the greatest
    place[data.training.by_popularity] = np.linspace(1, 0, data.items, dtype=np.float32)
    width = min(width, data.items)
    found = np.full((len(cases), width), -1, dtype=np.int64)
    for start, part in _blocks(cases):
        values = scores(part)
        values += _TIE * place
        _leave_out_histories(values, part)
        best = np.argpartition(values, data.items - width, axis=1)[:, data.items - width :]
        rows = np.arange(len(part))[:, None]
        order = np.lexsort((best, -values[rows, best]), axis=1)
        ranked = best[rows, order]
        found[start : start + len(part)] = np.where(np.isneginf(values[rows, ranked]), -1, ranked)
        tell(name, start + len(part), len(cases))
    return RankedLists(found)


def _leave_out_histories(values: Scores, cases: Sequence[EvaluationCase]) -> None:
    history, lengths = flattened([case.history for case in cases])
    values[np.repeat(np.arange(len(cases)), lengths), history] = -np.inf


def _blocks(cases: Sequence[EvaluationCase]) -> Iterator[tuple[int, Sequence[EvaluationCase]]]:
    for start in range(0, len(cases), _CASES_AT_ONCE):
        yield start, cases[start : start + _CASES_AT_ONCE]


def _sample(validation: Sequence[EvaluationCase], most: int) -> Sequence[EvaluationCase]:
    if len(validation) <= most:
        return validation
    chosen = np.sort(np.random.default_rng(0).choice(len(validation), size=most, replace=False))
    return [validation[number] for number in chosen.tolist()]


def best_co_occurrence(
    data: ReferenceData, tuning: Sequence[EvaluationCase], width: int, tell: Progress
) -> CoOccurrenceSettings:
    """One setting at a time goes through its grid while the others stay, from the defaults on, until nothing helps any more."""
    best = CoOccurrenceSettings()
    if not tuning:
        return best
    blocks = []
    for start, part in _blocks(tuning):
        blocks.append(_Seen.of(data, part))
        tell(f"{CO_OCCURRENCE}: settings", start + len(part), len(tuning))
    qualities: dict[CoOccurrenceSettings, float] = {}

    def quality(settings: CoOccurrenceSettings) -> float:
        if settings not in qualities:
            counts = data.counts(settings.decay)
            qualities[settings] = sum(block.quality(counts, settings, width) for block in blocks)
        return qualities[settings]

    before = None
    while best != before:
        before = best
        for name, values in CO_OCCURRENCE_GRID.items():
            best = max((replace(best, **{name: value}) for value in values), key=quality)
    return best


@dataclass(frozen=True, eq=False)
class _Seen:
    """What was seen with the histories of a block of cases, looked up once for all settings; the same for every decay.

    ``rank`` and ``place``: (E,) of the history's item from the newest on, and of its neighbour among the counts; ``back``: (E,)
    into the C pairs of a case (``case``) and an item (``popularity``: its occurrences), ``owned`` if that is in the
    history; ``at``: (R,) the pair of each row of ``relevant``, if ``among`` them.
    """

    rank: npt.NDArray[np.float32]
    place: npt.NDArray[np.int64]
    back: npt.NDArray[np.int32]
    case: npt.NDArray[np.int64]
    popularity: npt.NDArray[np.float64]
    owned: npt.NDArray[np.bool_]
    relevant: Relevant
    at: npt.NDArray[np.int64]
    among: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, data: ReferenceData, cases: Sequence[EvaluationCase]) -> _Seen:
        counts = data.counts(CoOccurrenceSettings().decay)
        history, lengths = flattened([case.history for case in cases])
        case = np.repeat(np.arange(len(cases)), lengths)
        which, place = counts.neighbours(history)
        pairs, back = np.unique(case[which] * data.items + counts.items[place], return_inverse=True)
        seen_by, item = np.divmod(pairs, data.items)
        relevant = Relevant.of(cases)
        wanted = relevant.case * data.items + relevant.item
        at = np.minimum(np.searchsorted(pairs, wanted), max(0, len(pairs) - 1))
        return cls(
            rank=_ranks_from_newest(lengths)[which].astype(np.float32),
            place=place,
            back=back.ravel().astype(np.int32),
            case=seen_by,
            popularity=np.maximum(data.training.popularity[item], 0.5),
            owned=np.isin(pairs, case * data.items + history),
            relevant=relevant,
            at=at,
            among=pairs[at] == wanted if len(pairs) else np.zeros(len(wanted), dtype=bool),
        )

    def quality(self, counts: PairCounts, settings: CoOccurrenceSettings, width: int) -> float:
        """Sum of the cases' NDCG; an item that was not seen with the history is not found."""
        values = self.rank**-settings.recency * (
            counts.after[self.place] + settings.reverse * counts.before[self.place]
        )
        scores = np.bincount(self.back, weights=values, minlength=len(self.case)) * self.popularity**settings.popularity
        scores[self.owned] = -np.inf
        ranks = np.full(len(self.at), np.iinfo(np.int64).max)
        rows = np.flatnonzero(self.among)
        rows = rows[scores[self.at[rows]] > 0]
        # One relevant item of each case at a time: a comparison for each pair is much less than a sort of them.
        place = np.arange(len(rows)) - np.searchsorted(self.relevant.case[rows], self.relevant.case[rows])
        for number in range(int(place.max(initial=-1)) + 1):
            now = rows[place == number]
            target = np.zeros(self.relevant.cases, dtype=np.int64)
            target[self.relevant.case[now]] = self.at[now]
            wanted = target[self.case]
            equal, pairs = scores == scores[wanted], np.arange(len(scores))
            popular = self.popularity - self.popularity[wanted]
            better = (scores > scores[wanted]) | (equal & ((popular > 0) | ((popular == 0) & (pairs < wanted))))
            ranks[now] = 1 + np.bincount(self.case[better], minlength=self.relevant.cases)[self.relevant.case[now]]
        return float(measure(self.relevant, ranks, (width,))[1].sum())


def _best_recency(
    data: ReferenceData, unit: npt.NDArray[np.float32], tuning: Sequence[EvaluationCase], width: int, tell: Progress
) -> float:
    ways = {recency: partial(neighbour_scores, data, unit, recency=recency) for recency in RECENCY_GRID}
    return _best(ways, data, tuning, width, NEIGHBOURS, tell, otherwise=1.0)


def _best_together(
    data: ReferenceData,
    unit: npt.NDArray[np.float32],
    tuning: Sequence[EvaluationCase],
    width: int,
    pairs: CoOccurrenceSettings,
    recency: float,
    tell: Progress,
) -> float:
    way = partial(_together, data, unit, settings=pairs, recency=recency)
    ways = {weight: partial(way, weight=weight) for weight in TOGETHER_GRID}
    return _best(ways, data, tuning, width, TOGETHER, tell, otherwise=0.2)


def _best(
    ways: Mapping[float, Callable[[Sequence[EvaluationCase]], Scores]],
    data: ReferenceData,
    tuning: Sequence[EvaluationCase],
    width: int,
    name: str,
    tell: Progress,
    *,
    otherwise: float,
) -> float:
    """The way with the best NDCG over the tuning cases."""
    relevant = Relevant.of(tuning)

    def quality(number: int, way: float) -> float:
        def told(what: str, done: int, total: int) -> None:
            tell(f"{what}: settings", number * total + done, len(ways) * total)

        lists = _lists(data, tuning, width, ways[way], name, told)
        return float(measure(relevant, relevant.ranks(lists), (width,))[1].mean())

    qualities = {way: quality(number, way) for number, way in enumerate(ways)} if tuning else {otherwise: 0.0}
    return max(qualities, key=lambda way: qualities[way])


def _ranks_from_newest(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """1 for the newest item of each history, 2 for the one before it; (H,) for histories one after another, oldest first."""
    ends = np.repeat(np.cumsum(lengths), lengths)
    return (ends - np.arange(len(ends))).astype(np.float64)


def _unit(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: npt.NDArray[np.float32] = (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)
    return unit


def said(settings: CoOccurrenceSettings) -> str:
    """Settings in words."""
    return (
        f"distance^-{settings.decay:g}, reverse pairs × {settings.reverse:g}, history weighted 1 / rank^{settings.recency:g}, "
        f"× popularity^{settings.popularity:g}"
    )
