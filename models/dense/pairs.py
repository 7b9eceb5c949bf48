"""What was taken together: how often one item came after another in the histories of training, and what that says of a history.

    P_together(i | history) = Σ_h w(h, i) / rank(h)  /  the same over all eligible items

w(h, i) counts the histories in which i came after h, each d^-1/2 for d places apart, half as much where i came before h, and
divided by the fourth root of i's occurrences; rank(h) is 1 for the newest item of the history. (These four were chosen on the
valid part of amazon_games; docs/study.)

What must hold: an item has at most ``MOST`` neighbours, those that weigh most; what is not eligible takes no part, neither as
an answer nor in the sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from models.dense.pair_counts import PairCounts, Pairs, flattened

MOST: Final = 200  # neighbours an item
DECAY: Final = 0.5  # a pair d places apart counts d^-DECAY
REVERSE: Final = 0.5  # what a pair counts whose other item came before
POPULARITY: Final = -0.25  # a candidate's weight is multiplied by its occurrences to this power
_LEAST_OCCURRENCES: Final = 0.5

Rows = npt.NDArray[np.int64]
LogShares = tuple[Rows, npt.NDArray[np.float64]]
"""Rows (R,) ascending, and natural log P_together of each."""
NOTHING: Final[LogShares] = (np.empty(0, dtype=np.int64), np.empty(0))


@dataclass(frozen=True, eq=False)
class ItemPairs:
    """Neighbours of K items: those of item k lie in ``[starts[k], starts[k + 1])`` of ``items`` int32 (E,), rising, with
    ``weights`` float32 (E,), above 0. ``starts``: int64 (K + 1,).
    """

    starts: Rows
    items: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]

    def neighbours(self, history: npt.NDArray[np.integer]) -> tuple[Rows, npt.NDArray[np.float64]]:
        """Items (R,) ascending that were taken together with those of a history (H,), oldest first, -1 for one that is not
        known; and Σ_h w(h, i) / rank(h) of each.
        """
        newest_first = np.asarray(history, dtype=np.int64)[::-1]
        known = newest_first >= 0
        asked, counts = newest_first[known], 1 / (np.flatnonzero(known) + 1)
        begins, lengths = self.starts[asked], self.starts[asked + 1] - self.starts[asked]
        within = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        places = np.repeat(begins, lengths) + within
        found, at = np.unique(self.items[places], return_inverse=True)
        weights = self.weights[places] * np.repeat(counts, lengths)
        scores = np.bincount(at.ravel(), weights=weights, minlength=len(found)).astype(np.float64)
        return found.astype(np.int64), scores


def count_pairs(histories: Sequence[Sequence[int]], items: int) -> ItemPairs:
    """``histories``: items 0 to N - 1 (``items``: N), oldest first; an item is no neighbour of itself."""
    counted = PairCounts.count(Pairs.of_sequences(histories), items, decay=DECAY)
    occurrences = np.bincount(flattened(histories)[0], minlength=items)
    weights = (counted.after + REVERSE * counted.before) * np.maximum(occurrences, _LEAST_OCCURRENCES)[
        counted.items
    ] ** POPULARITY
    row = np.repeat(np.arange(items), np.diff(counted.starts))
    order = np.lexsort((counted.items, -weights, row))  # of equal ones the smaller item
    place = np.arange(len(order)) - counted.starts[row[order]]
    kept = np.sort(order[place < MOST])
    starts = np.searchsorted(row[kept], np.arange(items + 1))
    return ItemPairs(starts.astype(np.int64), counted.items[kept], weights[kept].astype(np.float32))


def renumbered(pairs: ItemPairs, number_of: npt.NDArray[np.integer], items: int) -> ItemPairs:
    """The same with other numbers: item k becomes ``number_of[k]`` (K,) of ``items``; -1 drops it."""
    row = np.repeat(np.arange(len(pairs.starts) - 1), np.diff(pairs.starts))
    first, second = np.asarray(number_of)[row], np.asarray(number_of)[pairs.items]
    there = np.flatnonzero((first >= 0) & (second >= 0))
    order = there[np.lexsort((second[there], first[there]))]
    starts = np.searchsorted(first[order], np.arange(items + 1))
    return ItemPairs(starts.astype(np.int64), second[order].astype(np.int32), pairs.weights[order])


@dataclass(frozen=True, eq=False)
class RowsTogether:
    """What was taken together, by the rows of a table (n): ``known_of_row`` (n,), -1 for an item that training did not know, and
    ``row_of_known`` (K,), -1 for one that is not in the table.
    """

    pairs: ItemPairs
    known_of_row: npt.NDArray[np.integer]
    row_of_known: npt.NDArray[np.integer]

    @classmethod
    def of_rows(cls, pairs: ItemPairs | None, known_of_row: npt.NDArray[np.integer], known: int) -> RowsTogether | None:
        """Of a table that does not change; None without pairs. ``known``: K."""
        if pairs is None:
            return None
        row_of_known = np.full(known, -1, dtype=np.int64)
        rows = np.flatnonzero(known_of_row >= 0)
        row_of_known[known_of_row[rows]] = rows
        return cls(pairs, known_of_row, row_of_known)

    def neighbours(self, history: npt.NDArray[np.integer] | Sequence[int]) -> tuple[Rows, npt.NDArray[np.float64]]:
        """Rows (R,) of the table, ascending, that were taken together with a history's rows, and how much each weighs."""
        return self.neighbours_of_known(self.known_of_row[np.asarray(history, dtype=np.int64)])

    def neighbours_of_known(self, history: npt.NDArray[np.integer]) -> tuple[Rows, npt.NDArray[np.float64]]:
        """The same of a history's items as training knew them (H,), -1 for one that it did not: in the table or not."""
        known, scores = self.pairs.neighbours(history)
        rows = self.row_of_known[known].astype(np.int64)
        order = np.argsort(rows, kind="stable")[int((rows < 0).sum()) :]
        return rows[order], scores[order]


def log_shares(
    rows: Rows, scores: npt.NDArray[np.float64], eligible: npt.NDArray[np.bool_], total: float = 0.0
) -> LogShares:
    """log P_together of the rows (R,) that are ``eligible`` (R,). ``total``: the sum over all that are eligible, where the table
    does not have all of them.
    """
    rows, scores = rows[eligible], scores[eligible]
    return (rows, np.log(scores / max(float(scores.sum()), total))) if len(rows) else NOTHING
