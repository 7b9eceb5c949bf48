"""The vectors of an index's items in memory, by item number, and all of them held against a query.

What must hold: after any changes the content is that of a table loaded anew (tested); a similarity is the exact cosine of the
kept vectors; items that are not eligible take no part, neither as answers nor in the sum over the catalogue.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from models.dense.space import DenseSpace
from models.dense.vectors import QuantisedVectors

_NO_ROW: Final = -1
_FIRST_ROWS: Final = 1_024
_LOADED_AT_A_TIME: Final = 20_000  # bounds what loading takes beside the table itself


@dataclass(frozen=True, eq=False)
class Similarities:
    """Of one query: ``cosines`` float32 (n,), -inf for items that are not eligible; by row, as ``ItemVectors.numbers``."""

    cosines: npt.NDArray[np.float32]


class ItemVectors:
    """A table of unit vectors float32 (n, W) of n items, in no order that means anything. For one thread."""

    def __init__(self, space: DenseSpace) -> None:
        self.space = space
        self._count = 0
        self._vectors = np.empty((_FIRST_ROWS, space.width), dtype=np.float32)
        self._numbers = np.empty(_FIRST_ROWS, dtype=np.uint32)
        self._new = np.empty(_FIRST_ROWS, dtype=bool)
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
        return self._new[: self._count]

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
        self._count += len(added)
        self._row_of[numbers] = rows
        self._numbers[rows] = numbers
        self._vectors[rows] = self.space.items(kept.unit(), hashes)
        self._new[rows] = self.space.is_new(hashes)

    def remove(self, numbers: npt.NDArray[np.integer]) -> None:
        """Items (m,) that left, or lost their vector; what is not there is no fault."""
        for row in np.sort(self.rows(np.unique(numbers)))[::-1].tolist():
            if row < 0:
                break
            last = self._count - 1
            self._row_of[self._numbers[row]] = _NO_ROW
            if row != last:
                self._vectors[row], self._numbers[row] = self._vectors[last], self._numbers[last]
                self._new[row] = self._new[last]
                self._row_of[self._numbers[row]] = row
            self._count = last

    def cosines(
        self, queries: npt.NDArray[np.float32], eligible: npt.NDArray[np.uint32] | None = None
    ) -> npt.NDArray[np.float32]:
        """Of queries (Q, W) of length 1 to all items, (Q, n) by row; -inf for items whose number is not ``eligible`` (m,)."""
        if eligible is None:
            found: npt.NDArray[np.float32] = queries @ self.vectors.T
            return found
        rows = self.rows(eligible)
        rows = np.sort(rows[rows >= 0])
        found = np.full((len(queries), self._count), -np.inf, dtype=np.float32)
        # A narrow filter reads its own rows alone; a wide one all of them, which is quicker than to gather most.
        if len(rows) < self._count // 8:
            found[:, rows] = queries @ self._vectors[rows].T
        else:
            found[:, rows] = (queries @ self.vectors.T)[:, rows]
        return found

    def _grow(self, least: int) -> None:
        size = max(least, len(self._vectors) + len(self._vectors) // 2)
        for name in ("_vectors", "_numbers", "_new"):
            old = getattr(self, name)
            grown = np.empty((size, *old.shape[1:]), dtype=old.dtype)
            grown[: self._count] = old[: self._count]
            setattr(self, name, grown)
