"""Whether a codebook's graph gets the int8 screen: where products are most of the work and few rows need them again."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.codebooks.codebook import Codebook
from models.codebooks.onnx_encoder import OnnxEncoder
from models.codebooks.onnx_export import export_onnx
from models.codebooks.onnx_screen import ScreenRanges, screen_ranges

FROM_SIZE: Final = 1024
FROM_DIMENSION: Final = 128
_MOST_UNSURE: Final = 0.1  # such a row costs as much again as without a screen; measured: 1.9 x a GEMM with 6 % of them
_SAMPLE: Final = 2_000


def chosen_screen(codebook: Codebook, rows: NDArray[np.float32], wanted: bool | None) -> ScreenRanges | None:
    """The screen for rows like these float32 (N, D), or None: as ``wanted``, else where it saves time.

    It does from M = 1,024 and 128 dimensions on, unless many codewords are so much alike that the screen cannot tell them
    apart (too few items for so many codewords); that is tried on a sample. A codebook with an encoder has none by itself.
    """
    if wanted is not None:
        return screen_ranges(codebook, rows) if wanted else None
    if codebook.encoder is not None or codebook.size < FROM_SIZE or codebook.dimension < FROM_DIMENSION:
        return None
    ranges = screen_ranges(codebook, rows)
    return ranges if unsure_share(codebook, ranges, rows) <= _MOST_UNSURE else None


def unsure_share(codebook: Codebook, ranges: ScreenRanges, rows: NDArray[np.float32]) -> float:
    """Of up to 2,000 of the rows, the share that such a screen leaves to float32."""
    chosen = np.random.default_rng(1).permutation(len(rows))[:_SAMPLE]
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "encoder.onnx"
        export_onnx(codebook, path, ranges)
        return float(OnnxEncoder(path).unsure(rows[np.sort(chosen)]).mean())
