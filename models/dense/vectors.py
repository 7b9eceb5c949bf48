"""An item's vector as it is kept: a byte a dimension and a scale a row.

What must hold: the same vector gives the same bytes everywhere; what is read back is off by at most half a step a dimension
(``cosine_error_bound``), and the cosine of the kept vectors is exact, not estimated. Measured on both of the study's sets this
loses nothing of recall; product quantisation to 96 bytes loses a twentieth (docs/new-items.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

SCALE_BYTES: Final = 4
_STEPS: Final = 127  # on either side of zero: -128 is not used, so that a vector and its opposite are kept alike
_ROWS_AT_ONCE: Final = 256  # what a row's passes work on stays in the processor's cache
_SCALE: Final = np.dtype("<f4")


@dataclass(frozen=True, eq=False)
class QuantisedVectors:
    """``steps``: int8 (N, D); ``scales``: float32 (N,). Row i stands for ``steps[i] * scales[i]``."""

    steps: npt.NDArray[np.int8]
    scales: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.steps)

    def read(self) -> npt.NDArray[np.float32]:
        """What the rows stand for, float32 (N, D)."""
        return self.steps * self.scales[:, None]

    def unit(self) -> npt.NDArray[np.float32]:
        """The same at length 1, float32 (N, D): the scale falls out. A row of zeros stays."""
        rows = self.steps.astype(np.float32)
        lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows))
        rows /= np.maximum(lengths, 1.0)[:, None]
        return rows

    def encode(self) -> list[bytes]:
        """One value a row: the scale (float32, little-endian), then a byte a dimension; ``bytes_an_item`` of them."""
        width = bytes_an_item(self.steps.shape[1])
        table = np.empty((len(self), width), dtype=np.uint8)
        table[:, :SCALE_BYTES] = self.scales.astype(_SCALE).view(np.uint8).reshape(len(self), SCALE_BYTES)
        table[:, SCALE_BYTES:] = self.steps.view(np.uint8)
        values: list[bytes] = table.view(f"V{width}").ravel().tolist()
        return values

    @classmethod
    def decode(cls, values: Sequence[bytes | memoryview], dimension: int) -> QuantisedVectors:
        """Of ``encode``. Raises ``ValueError`` for a value of another length, or a scale that is no positive number."""
        width = bytes_an_item(dimension)
        for value in values:
            if len(value) != width:
                raise ValueError(f"a vector of {dimension} dimensions has {width} bytes, not {len(value)}")
        table = np.frombuffer(b"".join(values), dtype=np.uint8).reshape(len(values), width)
        scales = np.ascontiguousarray(table[:, :SCALE_BYTES]).view(_SCALE).reshape(-1).astype(np.float32)
        if not (np.isfinite(scales) & (scales >= 0)).all():
            raise ValueError("a vector's scale is NaN, infinite or negative")
        return cls(np.ascontiguousarray(table[:, SCALE_BYTES:]).view(np.int8), scales)


def bytes_an_item(dimension: int) -> int:
    """What one vector takes in the topic and in the index.

    >>> bytes_an_item(384)
    388
    """
    return dimension + SCALE_BYTES


def quantise(vectors: npt.NDArray[np.floating]) -> QuantisedVectors:
    """Rows (N, D) of finite numbers: the largest of a row is 127 steps. A row of zeros is kept as zeros with scale 0."""
    rows = np.ascontiguousarray(vectors, dtype=np.float32)
    steps, scales = np.empty(rows.shape, np.int8), np.empty(len(rows), np.float32)
    scratch = np.empty((min(len(rows), _ROWS_AT_ONCE), rows.shape[1]), np.float32)
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        block = rows[start : start + _ROWS_AT_ONCE]
        numbers, scale = scratch[: len(block)], scales[start : start + len(block)]
        np.divide(np.abs(block, out=numbers).max(axis=1, initial=0.0), np.float32(_STEPS), out=scale)
        np.divide(block, np.where(scale > 0, scale, np.float32(1))[:, None], out=numbers)
        np.clip(np.rint(numbers, out=numbers), -_STEPS, _STEPS, out=numbers)
        steps[start : start + len(block)] = numbers
    return QuantisedVectors(steps, scales)


def cosine_error_bound(vectors: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """By how much the cosine with any other vector can be off at most, (N,): twice the length of the greatest possible error,
    half a step in each dimension, over the row's own length (Cauchy-Schwarz).
    """
    rows = np.asarray(vectors, dtype=np.float64)
    step = np.abs(rows).max(axis=1) / _STEPS
    lengths = np.maximum(np.linalg.norm(rows, axis=1), np.finfo(np.float64).tiny)
    # A little above a half: the division by a rounded scale.
    found: npt.NDArray[np.float64] = 2 * (0.5 + 1e-4) * step * np.sqrt(rows.shape[1]) / lengths
    return found
