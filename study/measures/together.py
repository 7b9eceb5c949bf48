"""Recall of one model that learnt with several codebooks: it is asked by each, and an item has the mean of its probabilities.

What must hold: items of the history are left out, as in every item list of the study.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from study.data.datasets import TestCase
from study.measures.evaluation import recall
from study.measures.item_search import Found

_NEVER: Final = 1_000_000


def recall_together(by_each: Sequence[Sequence[Found]], cases: Sequence[TestCase]) -> dict[str, Any]:
    """``by_each``: of each codebook what was found for each case. Recall with intervals, of each alone and together."""
    names = [f"codebook {number + 1}" for number in range(len(by_each))]
    found = {name: _ranks([one], cases) for name, one in zip(names, by_each, strict=True)} | {
        "together": _ranks(by_each, cases)
    }
    numbers = np.array([case.case for case in cases for _ in case.relevant])
    return {"recalls": {name: recall(numbers, ranks) for name, ranks in found.items()}}


def _ranks(by_each: Sequence[Sequence[Found]], cases: Sequence[TestCase]) -> npt.NDArray[np.int64]:
    """Rank of each relevant item of each case, counted from 1; ties go to the smaller row."""
    ranks: list[int] = []
    for number, case in enumerate(cases):
        rows = np.concatenate([found[number][0] for found in by_each])
        shares = np.exp(np.concatenate([found[number][1] for found in by_each]))
        items, place = np.unique(rows, return_inverse=True)
        sums = np.bincount(place, weights=shares, minlength=len(items))
        kept = ~np.isin(items, case.history)
        order = np.lexsort((items[kept], -sums[kept]))
        listed = {int(item): rank for rank, item in enumerate(items[kept][order], start=1)}
        ranks += [listed.get(item, _NEVER) for item in case.relevant]
    return np.array(ranks, dtype=np.int64)
