"""How often two items stand in one history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class CoOccurrence:
    """How often two items stand in one history: a symmetric sparse matrix as rows of neighbours.

    ``starts``: (N + 1,); ``items`` and ``counts``: neighbours of item i in ``[starts[i], starts[i + 1])``;
    ``popularity``: (N,) occurrences.
    """

    starts: npt.NDArray[np.int64]
    items: npt.NDArray[np.int64]
    counts: npt.NDArray[np.float64]
    popularity: npt.NDArray[np.int64]

    @classmethod
    def count(cls, histories: Sequence[Sequence[int]], items: int) -> CoOccurrence:
        """Counts all pairs of places within each history."""
        keys = []
        for history in histories:
            row = np.asarray(history, dtype=np.int64)
            first, second = np.nonzero(~np.eye(len(row), dtype=bool))
            keys.append(row[first] * items + row[second])
        pairs, counts = np.unique(np.concatenate(keys), return_counts=True)
        flat = np.concatenate([np.asarray(history, dtype=np.int64) for history in histories])
        return cls(
            starts=np.searchsorted(pairs, np.arange(items + 1) * items),
            items=pairs % items,
            counts=counts.astype(np.float64),
            popularity=np.bincount(flat, minlength=items),
        )

    def scores(self, history: Sequence[int], *, cosine: bool) -> npt.NDArray[np.float64]:
        """Summed counts with the items of a history (N,), each divided by √(occurrences of both) if ``cosine``."""
        total = np.zeros(len(self.popularity))
        for item in history:
            part = slice(self.starts[item], self.starts[item + 1])
            counts = self.counts[part]
            if cosine:
                counts = counts / np.sqrt(self.popularity[self.items[part]] * float(max(1, self.popularity[item])))
            total[self.items[part]] += counts
        return total
