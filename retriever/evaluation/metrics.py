"""Ranked lists of items, and what is measured of them: recall, NDCG and MRR at k, coverage, lists that are empty.

What must hold: the figures are those of trec_eval (a test holds them against ir-measures). Recall@k of a case is the share of
its relevant items among the first k; NDCG@k takes the gains as they are and log2(rank + 1) as the discount (Järvelin and
Kekäläinen 2002); MRR@k is 1 / rank of the first relevant item, 0 beyond k. A figure is the mean over cases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from retriever.evaluation.cases import EvaluationCase

METRICS: Final = ("recall", "ndcg", "mrr")
_NEVER: Final = np.iinfo(np.int64).max


@dataclass(frozen=True, eq=False)
class RankedLists:
    """``items``: int64 (Q, K) rows of the catalogue, best first, -1 after the end of a list; ``found_by``: (Q, K) what found
    each item, as numbers into ``legs``, if that is known.
    """

    items: npt.NDArray[np.int64]
    found_by: npt.NDArray[np.int64] | None = None
    legs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        assert self.items.ndim == 2
        assert self.found_by is None or self.found_by.shape == self.items.shape

    @classmethod
    def of(cls, lists: Sequence[Sequence[int]], width: int) -> RankedLists:
        """Of lists of rows, cut to ``width``."""
        items = np.full((len(lists), width), -1, dtype=np.int64)
        for number, one in enumerate(lists):
            items[number, : min(width, len(one))] = one[:width]
        return cls(items)

    def coverage(self, at: int, catalogue: int) -> float:
        """Share of the catalogue's items that stand among the first ``at`` of some list."""
        named = np.zeros(catalogue + 1, dtype=bool)  # the last place takes the -1 of short lists
        named[self.items[:, :at]] = True
        return float(named[:-1].mean())

    def unanswered(self) -> npt.NDArray[np.bool_]:
        """(Q,): the lists without any item."""
        return self.items[:, 0] < 0


@dataclass(frozen=True, eq=False)
class Relevant:
    """One row a relevant item of a case: ``case`` (R,) rising numbers of the cases, ``item``, ``gain`` (R,); ``cases``: Q."""

    case: npt.NDArray[np.int64]
    item: npt.NDArray[np.int64]
    gain: npt.NDArray[np.float64]
    cases: int

    @classmethod
    def of(cls, cases: Sequence[EvaluationCase]) -> Relevant:
        """Of cases in their order."""
        counts = np.fromiter((len(case.relevant) for case in cases), dtype=np.int64, count=len(cases))
        return cls(
            np.repeat(np.arange(len(cases)), counts),
            np.fromiter((item for case in cases for item in case.relevant), dtype=np.int64),
            np.fromiter((gain for case in cases for gain in case.gains), dtype=np.float64),
            len(cases),
        )

    def chosen(self, rows: npt.NDArray[np.bool_]) -> Relevant:
        """These rows alone, of as many cases."""
        return Relevant(self.case[rows], self.item[rows], self.gain[rows], self.cases)

    def members(self) -> npt.NDArray[np.bool_]:
        """(Q,): the cases that have a row."""
        return np.bincount(self.case, minlength=self.cases) > 0

    def ranks(self, lists: RankedLists) -> npt.NDArray[np.int64]:
        """Rank of each row's item in its case's list, from 1; the greatest integer for what is not there."""
        hits = lists.items[self.case] == self.item[:, None]
        return np.where(hits.any(axis=1), hits.argmax(axis=1) + 1, _NEVER)


def measure(relevant: Relevant, ranks: npt.NDArray[np.int64], at: Sequence[int]) -> npt.NDArray[np.float64]:
    """Values (len(METRICS) × len(at), Q) of each case, metric by metric and in the order of ``at``; 0 for a case without a row.

    ``ranks``: (R,) of ``relevant``'s rows.
    """
    return np.array(
        [measured for metric in METRICS for measured in (_MEASURES[metric](relevant, ranks, k) for k in at)]
    )


def _recall(relevant: Relevant, ranks: npt.NDArray[np.int64], at: int) -> npt.NDArray[np.float64]:
    found = _summed(relevant, (ranks <= at).astype(np.float64))
    return found / np.maximum(_summed(relevant, np.ones(len(ranks))), 1)


def _ndcg(relevant: Relevant, ranks: npt.NDArray[np.int64], at: int) -> npt.NDArray[np.float64]:
    gained = np.where(ranks <= at, relevant.gain / np.log2(np.minimum(ranks, at) + 1.0), 0)
    # The best list has the greatest gains first: place of each row among those of its case.
    order = np.lexsort((-relevant.gain, relevant.case))
    begins = np.searchsorted(relevant.case, relevant.case)
    place = np.arange(len(order)) - begins + 1  # rows of a case stand together, also after the sort
    best = np.where(place <= at, relevant.gain[order] / np.log2(place + 1.0), 0)
    ideal = _summed(relevant, best)
    return np.divide(_summed(relevant, gained), ideal, out=np.zeros(relevant.cases), where=ideal > 0)


def _mrr(relevant: Relevant, ranks: npt.NDArray[np.int64], at: int) -> npt.NDArray[np.float64]:
    best = np.zeros(relevant.cases)
    np.maximum.at(best, relevant.case, np.where(ranks <= at, 1.0 / ranks, 0))
    return best


def _summed(relevant: Relevant, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.bincount(relevant.case, weights=values, minlength=relevant.cases).astype(np.float64)


_MEASURES: Final = {"recall": _recall, "ndcg": _ndcg, "mrr": _mrr}
