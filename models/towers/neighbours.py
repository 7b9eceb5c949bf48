"""Nearest neighbours by inner product, exactly, and the recall that they reach."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Final

import numpy as np
from numpy.typing import NDArray

_BLOCK_ROWS: Final = 256


def nearest(queries: NDArray[np.float32], items: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Queries (Q, D), items (N, D) → int64 (Q, count): rows of the items with the largest inner products, best first."""
    count = min(count, len(items))
    found = np.empty((len(queries), count), dtype=np.int64)
    for start in range(0, len(queries), _BLOCK_ROWS):
        scores = queries[start : start + _BLOCK_ROWS] @ items.T
        best = np.argpartition(-scores, count - 1, axis=1)[:, :count]
        order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1, kind="stable")
        found[start : start + _BLOCK_ROWS] = np.take_along_axis(best, order, axis=1)
    return found


def recall_of_nearest(
    queries: NDArray[np.float32], items: NDArray[np.float32], relevant: Sequence[AbstractSet[int]], count: int
) -> float:
    """Mean over queries of the share of their relevant rows (at least one each) that are among the ``count`` nearest."""
    rows = nearest(queries, items, count)
    return float(
        np.mean([len(wanted & set(row.tolist())) / len(wanted) for wanted, row in zip(relevant, rows, strict=True)])
    )
