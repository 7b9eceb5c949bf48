"""Dense layers with ReLU between them, as NumPy arrays: what carries an embedding into a codebook's latent space and
back. Frozen and checked, so that a codebook's id can cover the weights; needs no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.errors import SidstreamError

_BLOCK_ROWS: Final = 256  # the widest layer's output of a block stays in the processor's cache


class DenseNetworkError(SidstreamError):
    """Weights that make no network."""


@dataclass(frozen=True, eq=False)
class DenseNetwork:
    """x → W x + b for each layer, ReLU after every layer but the last.

    layers: pairs of weight float32 (outputs, inputs) and bias float32 (outputs,), copied and made read-only.
    Raises ``DenseNetworkError`` for other types, for shapes that do not follow each other, and for NaN or infinity.
    """

    layers: tuple[tuple[NDArray[np.float32], NDArray[np.float32]], ...]

    def __post_init__(self) -> None:
        if not self.layers:
            raise DenseNetworkError("a dense network needs at least one layer, not 0")
        frozen: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []
        for number, (weight, bias) in enumerate(self.layers):
            inputs = frozen[-1][1].shape[0] if frozen else weight.shape[-1]
            if weight.ndim != 2 or weight.shape[1] != inputs or bias.shape != weight.shape[:1] or 0 in weight.shape:
                raise DenseNetworkError(
                    f"dense layer {number}: a weight of shape {weight.shape} and a bias of shape {bias.shape} do not "
                    f"belong together or do not take the {inputs} numbers of the layer before"
                )
            if weight.dtype != np.float32 or bias.dtype != np.float32:
                raise DenseNetworkError(f"dense layer {number}: must be float32, not {weight.dtype} and {bias.dtype}")
            if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
                raise DenseNetworkError(f"dense layer {number} has NaN or infinite weights")
            frozen.append((_read_only(weight), _read_only(bias)))
        object.__setattr__(self, "layers", tuple(frozen))

    @property
    def inputs(self) -> int:
        """Numbers that a row has when it goes in."""
        return int(self.layers[0][0].shape[1])

    @property
    def outputs(self) -> int:
        """Numbers that a row has when it comes out."""
        return int(self.layers[-1][0].shape[0])

    def __call__(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Rows float32 (N, inputs) → float32 (N, outputs)."""
        results = np.empty((len(rows), self.outputs), dtype=np.float32)
        for start in range(0, len(rows), _BLOCK_ROWS):
            values = rows[start : start + _BLOCK_ROWS]
            for number, (weight, bias) in enumerate(self.layers):
                if number:
                    values = np.maximum(values, 0)
                values = values @ weight.T + bias
            results[start : start + _BLOCK_ROWS] = values
        return results

    def tensors(self, prefix: str) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Names (``prefix.0.weight``, ``prefix.0.bias``, …) and arrays, in the order of the layers."""
        for number, (weight, bias) in enumerate(self.layers):
            yield f"{prefix}.{number}.weight", weight
            yield f"{prefix}.{number}.bias", bias

    @classmethod
    def from_tensors(cls, tensors: Sequence[NDArray[np.float32]]) -> DenseNetwork:
        """Weight, bias, weight, bias, … as ``tensors`` gives them."""
        return cls(tuple(zip(tensors[::2], tensors[1::2], strict=True)))


def _read_only(array: NDArray[np.float32]) -> NDArray[np.float32]:
    copy = np.array(array, dtype=np.float32, order="C", copy=True)
    copy.flags.writeable = False
    return copy
