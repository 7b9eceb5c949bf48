"""What an item that stands in no history would be known by from histories: read from its embedding, by ridge regression.

What must hold: the regression is the closed form (tested against the normal equations), and its strength is the one of the
grid that serves known items best which it was not fitted on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

STRENGTHS: Final = tuple(10.0**power for power in range(-3, 5))
_HELD_OUT_SHARE: Final = 0.1
_NO_LENGTH: Final = 1e-9


@dataclass(frozen=True, eq=False)
class Ridge:
    """Embedding (D) → co-occurrence vector (C): ``matrix`` float32 (D, C), chosen ``strength``, and ``cosine``, the mean one
    of predicted and true vectors on the held-out known items.
    """

    matrix: npt.NDArray[np.float32]
    strength: float
    cosine: float

    def predict(self, embeddings: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """Unit vectors float32 (N, C) of embeddings (N, D) of length 1."""
        return unit(np.asarray(embeddings, dtype=np.float32) @ self.matrix)


def fit_ridge(
    embeddings: npt.NDArray[np.floating],
    vectors: npt.NDArray[np.floating],
    *,
    strengths: tuple[float, ...] = STRENGTHS,
    seed: int = 0,
) -> Ridge:
    """Ridge regression of known items' co-occurrence vectors (N, C) on their embeddings (N, D) of length 1.

    A tenth of the items is held out to choose the strength (by the mean cosine); the matrix is then of all.
    """
    known = np.linalg.norm(vectors, axis=1) > _NO_LENGTH
    x = np.asarray(embeddings, dtype=np.float64)[known]
    y = np.asarray(vectors, dtype=np.float64)[known]
    if len(x) == 0:
        return Ridge(np.zeros((embeddings.shape[1], vectors.shape[1]), dtype=np.float32), strengths[-1], 0.0)
    held = np.random.default_rng(seed).random(len(x)) < _HELD_OUT_SHARE
    held[0] &= len(x) > 1
    if not held.any():
        held[-1] = True
    fitted = ~held if (~held).any() else held
    values, basis = np.linalg.eigh(x[fitted].T @ x[fitted])
    turned = basis.T @ (x[fitted].T @ y[fitted])
    cosines = []
    for strength in strengths:
        predicted = unit(x[held] @ (basis @ (turned / (np.maximum(values, 0)[:, None] + strength))))
        cosines.append(float((predicted * y[held]).sum(axis=1).mean()))
    best = int(np.argmax(cosines))
    matrix = np.linalg.solve(x.T @ x + strengths[best] * np.eye(x.shape[1]), x.T @ y)
    return Ridge(matrix.astype(np.float32), strengths[best], round(cosines[best], 4))


def unit(vectors: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """Rows (N, D) of length 1, float32; a row of zeros stays."""
    rows = np.asarray(vectors)
    lengths = np.sqrt((rows.astype(np.float64) ** 2).sum(axis=1, keepdims=True))
    return np.where(lengths > _NO_LENGTH, rows / np.maximum(lengths, _NO_LENGTH), 0).astype(np.float32)
