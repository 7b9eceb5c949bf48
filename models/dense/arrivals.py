"""What an item that stands in no history would be known by from histories: read from its embedding, by kernel ridge regression.

The kernel is exp(τ (cos - 1)), between linear regression (small τ) and nearest neighbours (great τ), and is held against at most
1,024 landmarks, known items drawn at random (Nyström; Williams and Seeger 2001): 1,024 · D multiplications an item, whatever the
catalogue's size.

What must hold: the weights are the closed form (tested against the normal equations); τ and the strength are those of their grids
that serve known items best which the weights were not fitted on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

LANDMARKS: Final = 1_024
SHARPNESSES: Final = (1.0, 2.0, 4.0, 8.0)
STRENGTHS: Final = tuple(10.0**power for power in range(-3, 3))
_MOST_FITTED: Final = 100_000  # known items; more make the landmarks' weights no better, and cost 40 s a million
_HELD_OUT_SHARE: Final = 0.1
_LEAST: Final = 1e-6  # added to the landmarks' own kernel, so that equal landmarks are no fault
_ROWS_AT_A_TIME: Final = 8_192
_NO_LENGTH: Final = 1e-9


@dataclass(frozen=True, eq=False)
class Regression:
    """Embedding (D) → co-occurrence vector (C). ``landmarks``: float32 (m, D) of length 1, None for the linear regression of an
    older sidstream; ``sharpness``: τ; ``matrix``: float32 (m, C), or (D, C) without landmarks; ``strength``: of the penalty;
    ``cosine``: the mean one of predicted and true vectors on the held-out known items.
    """

    landmarks: npt.NDArray[np.float32] | None
    sharpness: float
    matrix: npt.NDArray[np.float32]
    strength: float = 0.0
    cosine: float = 0.0

    def predict(self, embeddings: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """Unit vectors float32 (N, C) of embeddings (N, D) of length 1; zeros for zeros."""
        rows = np.asarray(embeddings, dtype=np.float32)
        found = np.empty((len(rows), self.matrix.shape[1]), dtype=np.float32)
        for start in range(0, len(rows), _ROWS_AT_A_TIME):
            part = rows[start : start + _ROWS_AT_A_TIME]
            features = part if self.landmarks is None else _kernel(part, self.landmarks, self.sharpness)
            found[start : start + _ROWS_AT_A_TIME] = unit(features @ self.matrix)
        found[~rows.any(axis=1)] = 0
        return found


def fit_regression(
    embeddings: npt.NDArray[np.floating],
    vectors: npt.NDArray[np.floating],
    *,
    landmarks: int = LANDMARKS,
    sharpnesses: tuple[float, ...] = SHARPNESSES,
    strengths: tuple[float, ...] = STRENGTHS,
    seed: int = 0,
) -> Regression:
    """Regression of known items' co-occurrence vectors (N, C), zeros for an item that has none, on their embeddings (N, D) of
    length 1. A tenth of the items is held out to choose τ and the strength (by the mean cosine); the weights are then of all.
    """
    rows = np.flatnonzero(np.linalg.norm(vectors, axis=1) > _NO_LENGTH)
    random = np.random.default_rng(seed)
    if len(rows) > _MOST_FITTED:
        rows = np.sort(random.choice(rows, size=_MOST_FITTED, replace=False))
    x, y = np.asarray(embeddings, dtype=np.float32)[rows], np.asarray(vectors, dtype=np.float32)[rows]
    if len(x) == 0:
        return Regression(x, sharpnesses[0], np.zeros((0, vectors.shape[1]), dtype=np.float32))
    held = random.random(len(x)) < _HELD_OUT_SHARE
    held[0] &= len(x) > 1
    if not held.any():
        held[-1] = True
    fitted = ~held if (~held).any() else held
    marks = x[np.sort(random.permutation(len(x))[:landmarks])]
    best: tuple[float, Regression] | None = None
    for sharpness in sharpnesses:
        sums = [_sums(x[group], y[group], marks, sharpness) for group in (fitted, ~fitted)]
        own = _kernel(marks, marks, sharpness).astype(np.float64) + _LEAST * np.eye(len(marks))
        for strength in strengths:
            tried = Regression(marks, sharpness, _weights(sums[:1], own, strength))
            cosine = float((tried.predict(x[held]) * y[held]).sum(axis=1).mean())
            if best is None or cosine > best[0]:
                best = cosine, Regression(marks, sharpness, _weights(sums, own, strength), strength, round(cosine, 4))
    assert best is not None
    return best[1]


def _kernel(
    rows: npt.NDArray[np.float32], landmarks: npt.NDArray[np.float32], sharpness: float
) -> npt.NDArray[np.float32]:
    found: npt.NDArray[np.float32] = rows @ landmarks.T
    found -= 1
    found *= np.float32(sharpness)
    return np.exp(found, out=found)


Sums = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]


def _sums(
    x: npt.NDArray[np.float32], y: npt.NDArray[np.float32], marks: npt.NDArray[np.float32], sharpness: float
) -> Sums:
    """KᵀK (m, m) and KᵀY (m, C) of rows: what the normal equations need of them."""
    square, product = np.zeros((len(marks), len(marks))), np.zeros((len(marks), y.shape[1]))
    for start in range(0, len(x), _ROWS_AT_A_TIME):
        part = _kernel(x[start : start + _ROWS_AT_A_TIME], marks, sharpness).astype(np.float64)
        square += part.T @ part
        product += part.T @ y[start : start + _ROWS_AT_A_TIME]
    return square, product


def _weights(sums: list[Sums], own: npt.NDArray[np.float64], strength: float) -> npt.NDArray[np.float32]:
    """A of least |Y - K A|² + strength · tr(Aᵀ K_mm A)."""
    square, product = (sum(parts[1:], parts[0]) for parts in zip(*sums, strict=True))
    found: npt.NDArray[np.float32] = np.linalg.solve(square + strength * own, product).astype(np.float32)
    return found


def unit(vectors: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """Rows (N, D) of length 1, float32; a row of zeros stays."""
    rows = np.asarray(vectors)
    lengths = np.sqrt((rows.astype(np.float64) ** 2).sum(axis=1, keepdims=True))
    return np.where(lengths > _NO_LENGTH, rows / np.maximum(lengths, _NO_LENGTH), 0).astype(np.float32)
