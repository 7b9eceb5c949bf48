"""The format of a codebook's ONNX graph: names, versions and row counts that the export writes and the encoder expects."""

from __future__ import annotations

from typing import Final

from models.errors import SidstreamError

FORMAT_VERSION: Final = 2
# Of version 1 the number of rows was fixed in the graph (64), and it has no output of scores.
FIXED_ROWS_FORMAT_VERSION: Final = 1
METADATA_PREFIX: Final = "sidstream."
INPUT_NAME: Final = "embeddings"
OUTPUT_NAME: Final = "codes"
SCORES_NAME: Final = "scores"
ROWS: Final = "rows"
# Of graphs with a screen, see models.codebooks.onnx_export.
EXACT_NAME: Final = "exact"
UNSURE_NAME: Final = "unsure"
SCREEN: Final = "int8"
NO_SCREEN: Final = "none"

# Rows of one call of the graph. Of a bare GEMM's speed 256 rows reach 5 points more than 64 at M = 1,024 and 15 more at
# M = 4,096, where the codewords are read from beyond the second cache; a whole batch goes in such blocks.
LARGEST_BLOCK: Final = 256
# What is left of a batch, or a live batch, goes in one or two of these. One item takes 4 rows (0.03 ms at M = 256).
BLOCK_ROWS: Final = 64
ROW_STEP: Final = 4
# With a screen a call has up to 1,024 rows and 2 million scores: its hundreds of small operators cost a microsecond each.
SCREENED_ROWS: Final = 1024
SCREENED_SCORES: Final = 2**21


class EncoderError(SidstreamError):
    """A graph that is not a codebook's, or embeddings that it cannot take."""
