"""How often two items stand in one history, and what an item is known by from that: its co-occurrence vector.

What must hold: the vectors come from the histories that are given and from nothing else; an item that stands in no history
has none (zeros), and gets the one that its embedding speaks for (``models.dense.arrivals``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

DIMENSIONS: Final = 64
_OVERSAMPLED: Final = 32  # further columns of the random basis (Halko et al. 2011)
_ITERATIONS: Final = 6  # of subspace iteration; more change nothing
_NO_LENGTH: Final = 1e-6


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
        keys = [np.empty(0, dtype=np.int64)]
        for history in histories:
            row = np.asarray(history, dtype=np.int64)
            first, second = np.nonzero(~np.eye(len(row), dtype=bool))
            keys.append(row[first] * items + row[second])
        pairs, counts = np.unique(np.concatenate(keys), return_counts=True)
        flat = np.concatenate([keys[0], *(np.asarray(history, dtype=np.int64) for history in histories)])
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


def co_occurrence_vectors(
    pairs: CoOccurrence, dimensions: int = DIMENSIONS, *, seed: int = 0
) -> npt.NDArray[np.float32]:
    """Unit vectors float32 (N, ``dimensions``): the leading eigenvectors of the items' positive pointwise mutual
    information (Levy and Goldberg 2014: what word2vec factorises). Zeros for an item without neighbours.
    """
    import torch

    items = len(pairs.popularity)
    row = np.repeat(np.arange(items), np.diff(pairs.starts))
    degree = np.bincount(row, weights=pairs.counts, minlength=items)
    information = np.log(pairs.counts * pairs.counts.sum() / (degree[row] * degree[pairs.items]))
    values = torch.from_numpy(np.maximum(information, 0).astype(np.float32))
    matrix = torch.sparse_coo_tensor(
        torch.from_numpy(np.stack((row, pairs.items))), values, (items, items), check_invariants=False
    ).coalesce()
    generator = torch.Generator().manual_seed(seed)
    basis = torch.randn(items, min(items, dimensions + _OVERSAMPLED), generator=generator)
    for _ in range(_ITERATIONS):
        basis, _ = torch.linalg.qr(torch.sparse.mm(matrix, basis))
    projected = basis.T @ torch.sparse.mm(matrix, basis)
    eigenvalues, vectors = torch.linalg.eigh((projected + projected.T) / 2)
    leading = torch.argsort(eigenvalues, descending=True)[:dimensions]
    found = np.zeros((items, dimensions), dtype=np.float32)
    found[:, : len(leading)] = (basis @ vectors[:, leading] * eigenvalues[leading].clamp(min=0).sqrt()).numpy()
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    return np.where(lengths > _NO_LENGTH, found / np.maximum(lengths, _NO_LENGTH), 0).astype(np.float32)
