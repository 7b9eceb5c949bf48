"""The vectors of an index's items in memory, by item number, and all of them held against a query.

What must hold: after any changes the content is that of a table loaded anew (tested); a similarity is the exact cosine of the
kept vectors; items that are not eligible take no part, neither as answers nor in the sum over the catalogue.

Up to ``SCREENED_FROM`` eligible items all are scanned. Beyond, a scan costs more than the search of the model (18 ms for 400
thousand items of 384 numbers, one core): then the 96 leading directions of the vectors are scanned (8 ms), and the exact cosines
are taken of the few thousand best. ``benchmarks/retrieval/dense.py`` says what of the nearest hundred is lost by it (2 of 100
there).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from models.dense.mixture import log_sum, nearest
from models.dense.pairs import RowsTogether
from models.dense.space import DenseSpace
from models.dense.vectors import QuantisedVectors

_NO_ROW: Final = -1
_FIRST_ROWS: Final = 1_024
SCREENED_FROM: Final = 100_000
LEADING: Final = 96  # directions
KEPT: Final = 2_000  # best by the leading directions, of all
KEPT_NEW: Final = 1_000  # and of the new items
_LEARNT_FROM: Final = 20_000  # vectors
_SAMPLED: Final = 1_000  # of what is screened out
_LOADED_AT_A_TIME: Final = 20_000  # bounds what loading takes beside the table itself


@dataclass(frozen=True, eq=False)
class Similarities:
    """Of one query, by row as ``ItemVectors.numbers``: ``cosines`` float32 (n,), -inf for items that are not eligible or were
    screened out. What was screened out counts in the sum over the catalogue alone: ``approximate`` float32 (r,) are its cosines
    in the leading directions, ``sample`` float32 (2, s) the approximate and the exact ones of some of it.
    """

    cosines: npt.NDArray[np.float32]
    approximate: npt.NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    sample: npt.NDArray[np.float32] = field(default_factory=lambda: np.empty((2, 0), np.float32))

    def log_sum(self, sharpness: float) -> float:
        """log Σ exp(λ cos) over all eligible items."""
        exact = log_sum(self.cosines, sharpness)
        if len(self.approximate) == 0:
            return exact
        approximate, true = (log_sum(row, sharpness) for row in self.sample)
        return float(np.logaddexp(exact, log_sum(self.approximate, sharpness) + true - approximate))


class ItemVectors:
    """A table of unit vectors float32 (n, W) of n items, in no order that means anything. For one thread."""

    def __init__(self, space: DenseSpace, *, screened_from: int = SCREENED_FROM) -> None:
        self.space = space
        self._screened_from = screened_from
        self._basis: npt.NDArray[np.float32] | None = None  # (W, LEADING)
        self._leading = np.empty((0, LEADING), dtype=np.float32)
        self._count = 0
        self._vectors = np.empty((_FIRST_ROWS, space.width), dtype=np.float32)
        self._numbers = np.empty(_FIRST_ROWS, dtype=np.uint32)
        self._known = np.empty(_FIRST_ROWS, dtype=np.int32)  # by row: which item of training, -1 for a new one
        self._row_of_known = np.full(len(space.known.hashes), _NO_ROW, dtype=np.int32)
        self._row_of = np.full(_FIRST_ROWS, _NO_ROW, dtype=np.int32)  # by item number

    def __len__(self) -> int:
        return self._count

    @property
    def numbers(self) -> npt.NDArray[np.uint32]:
        """Item numbers (n,) by row."""
        return self._numbers[: self._count]

    @property
    def new(self) -> npt.NDArray[np.bool_]:
        """Which rows (n,) are of items that training did not know."""
        new: npt.NDArray[np.bool_] = self._known[: self._count] < 0
        return new

    @property
    def together(self) -> RowsTogether | None:
        """What was taken together, by row; None if the bundle does not say."""
        pairs = self.space.pairs
        return None if pairs is None else RowsTogether(pairs, self._known[: self._count], self._row_of_known)

    @property
    def vectors(self) -> npt.NDArray[np.float32]:
        """Unit vectors (n, W) by row."""
        return self._vectors[: self._count]

    def rows(self, numbers: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
        """Row of each item number (m,), -1 for an item without a vector."""
        wanted = np.asarray(numbers, dtype=np.int64)
        found = np.full(len(wanted), _NO_ROW, dtype=np.int64)
        within = wanted < len(self._row_of)
        found[within] = self._row_of[wanted[within]]
        return found

    def put(self, numbers: npt.NDArray[np.integer], kept: QuantisedVectors, hashes: npt.NDArray[np.uint64]) -> None:
        """Vectors of items (m,), distinct numbers, that are there already or come; ``hashes``: of their ids."""
        wanted = np.asarray(numbers, dtype=np.int64)
        for start in range(0, len(wanted), _LOADED_AT_A_TIME):
            part = slice(start, start + _LOADED_AT_A_TIME)
            self._put(wanted[part], QuantisedVectors(kept.steps[part], kept.scales[part]), hashes[part])

    def _put(self, numbers: npt.NDArray[np.int64], kept: QuantisedVectors, hashes: npt.NDArray[np.uint64]) -> None:
        if len(numbers) == 0:
            return
        highest = int(numbers.max())
        if highest >= len(self._row_of):
            grown = np.full(max(highest + 1, 2 * len(self._row_of)), _NO_ROW, dtype=np.int32)
            grown[: len(self._row_of)] = self._row_of
            self._row_of = grown
        rows = self._row_of[numbers].astype(np.int64)
        added = np.flatnonzero(rows < 0)
        if self._count + len(added) > len(self._vectors):
            self._grow(self._count + len(added))
        rows[added] = self._count + np.arange(len(added))
        self._known[rows[added]] = _NO_ROW
        self._count += len(added)
        self._row_of[numbers] = rows
        self._numbers[rows] = numbers
        self._vectors[rows] = self.space.items(kept.unit(), hashes)
        self._forget_known(rows)
        known = self.space.known.rows(hashes)
        self._known[rows] = known
        self._row_of_known[known[known >= 0]] = rows[known >= 0]
        if self._basis is not None:
            self._leading[rows] = self._vectors[rows] @ self._basis

    def remove(self, numbers: npt.NDArray[np.integer]) -> None:
        """Items (m,) that left, or lost their vector; what is not there is no fault."""
        for row in np.sort(self.rows(np.unique(numbers)))[::-1].tolist():
            if row < 0:
                break
            last = self._count - 1
            self._row_of[self._numbers[row]] = _NO_ROW
            self._forget_known(np.array([row]))
            if row != last:
                self._vectors[row], self._numbers[row] = self._vectors[last], self._numbers[last]
                self._known[row] = self._known[last]
                # Its item may stand in another row by now: numbers change hands.
                if self._known[row] >= 0 and self._row_of_known[self._known[row]] == last:
                    self._row_of_known[self._known[row]] = row
                if self._basis is not None:
                    self._leading[row] = self._leading[last]
                self._row_of[self._numbers[row]] = row
            self._count = last

    def _forget_known(self, rows: npt.NDArray[np.int64]) -> None:
        """Rows whose item leaves, or is put again: an item of training that stands elsewhere by now stays there."""
        known = self._known[rows]
        mine = (known >= 0) & (self._row_of_known[known] == rows)
        self._row_of_known[known[mine]] = _NO_ROW

    def held_against(
        self,
        queries: npt.NDArray[np.float32],
        needed: Sequence[npt.NDArray[np.int64]],
        excluded: Sequence[npt.NDArray[np.int64]],
        eligible: npt.NDArray[np.uint32] | None = None,
    ) -> list[Similarities]:
        """Of queries (Q, W) of length 1 to all items whose number is ``eligible`` (m,), all if None. One array of rows a query:
        ``excluded`` are not eligible either, ``needed`` are those whose exact cosine is needed whatever the screening says.
        """
        rows = None
        if eligible is not None:
            rows = self.rows(eligible)
            rows = np.sort(rows[rows >= 0])
        if (self._count if rows is None else len(rows)) <= self._screened_from:
            cosines = self._cosines(queries, rows)
            for row, without in zip(cosines, excluded, strict=True):
                row[without] = -np.inf
            return [Similarities(row) for row in cosines]
        allowed = None
        if rows is not None:
            allowed = np.zeros(self._count, dtype=bool)
            allowed[rows] = True
        basis, leading = self._directions()
        approximate = (queries @ basis) @ leading.T
        return [
            self._screened(query, row, wanted, without, allowed)
            for query, row, wanted, without in zip(queries, approximate, needed, excluded, strict=True)
        ]

    def _cosines(self, queries: npt.NDArray[np.float32], rows: npt.NDArray[np.int64] | None) -> npt.NDArray[np.float32]:
        """Exact, (Q, n); -inf for what is not among the ``rows``."""
        if rows is None:
            every: npt.NDArray[np.float32] = queries @ self.vectors.T
            return every
        found = np.full((len(queries), self._count), -np.inf, dtype=np.float32)
        # A narrow filter reads its own rows alone; a wide one all of them, which is quicker than to gather most.
        if len(rows) < self._count // 8:
            found[:, rows] = queries @ self._vectors[rows].T
        else:
            found[:, rows] = (queries @ self.vectors.T)[:, rows]
        return found

    def _screened(
        self,
        query: npt.NDArray[np.float32],
        approximate: npt.NDArray[np.float32],
        needed: npt.NDArray[np.int64],
        excluded: npt.NDArray[np.int64],
        allowed: npt.NDArray[np.bool_] | None,
    ) -> Similarities:
        if len(excluded):
            allowed = np.ones(self._count, dtype=bool) if allowed is None else allowed.copy()
            allowed[excluded] = False
        new = self.new if allowed is None else self.new & allowed
        best = np.concatenate((nearest(approximate, KEPT, allowed), nearest(approximate, KEPT_NEW, new), needed))
        kept = np.zeros(self._count, dtype=bool)
        kept[best] = True
        if allowed is not None:
            kept &= allowed
        rest = np.flatnonzero(~kept if allowed is None else allowed & ~kept)
        sampled = rest[:: max(1, len(rest) // _SAMPLED)]
        exact = np.full(self._count, -np.inf, dtype=np.float32)
        exact[kept] = self.vectors[kept] @ query
        sample = np.stack((approximate[sampled], self.vectors[sampled] @ query))
        return Similarities(exact, approximate[rest], sample)

    def _directions(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """The leading directions (W, LEADING), and the items' coordinates in them (n, LEADING). Learnt once, from vectors spread
        over the table: which ones decides what is screened out, never a cosine.
        """
        if self._basis is None:
            some = self.vectors[:: max(1, self._count // _LEARNT_FROM)].astype(np.float64)
            _, directions = np.linalg.eigh(some.T @ some)
            self._basis = np.ascontiguousarray(directions[:, ::-1][:, :LEADING].astype(np.float32))
            self._leading = np.empty((len(self._vectors), self._basis.shape[1]), dtype=np.float32)
            self._leading[: self._count] = self.vectors @ self._basis
        return self._basis, self._leading[: self._count]

    def _grow(self, least: int) -> None:
        size = max(least, len(self._vectors) + len(self._vectors) // 2)
        for name in ("_vectors", "_numbers", "_known", *(() if self._basis is None else ("_leading",))):
            old = getattr(self, name)
            grown = np.empty((size, *old.shape[1:]), dtype=old.dtype)
            grown[: self._count] = old[: self._count]
            setattr(self, name, grown)
