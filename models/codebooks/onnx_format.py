"""The format of a codebook's ONNX graph: names, version and block size that the export writes and the encoder expects."""

from __future__ import annotations

from typing import Final

from models.errors import SidstreamError

FORMAT_VERSION: Final = 1
METADATA_PREFIX: Final = "sidstream."
INPUT_NAME: Final = "embeddings"
OUTPUT_NAME: Final = "codes"
# Rows of one call of the graph. At M = 256, 64 rows reach 0.91 of a bare GEMM's speed, 256 rows 0.95 and 16 rows 0.81;
# but a single item pays for a whole block: 0.4 ms with 64 rows, 1.6 ms with 256.
BLOCK_ROWS: Final = 64


class EncoderError(SidstreamError):
    """A graph that is not a codebook's, or embeddings that it cannot take."""
