"""How a batch is cut into calls of a codebook's graph, so that an item's codes do not depend on the items beside it.

A row's scores are sums over its dimensions. A library that adds in one order whatever the number of rows gives a row the same
bits in every call; ONNX Runtime's kernels on x86-64 do (each sum has one accumulator, rows are only tiled). Others may not: a
kernel for a single row, or a matrix unit that takes over from some size on. So nobody is believed: the first calls of an
encoder compare the bits of the row counts that it is going to use, and where one differs every call has the same number of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.codebooks.onnx_format import BLOCK_ROWS, LARGEST_BLOCK, ROW_STEP

# Largest first. What two of them differ in is at most one block of each larger kind and a rest.
MANY_ROW_COUNTS: Final = (LARGEST_BLOCK, *range(BLOCK_ROWS, 0, -ROW_STEP))
ONE_ROW_COUNT: Final = (BLOCK_ROWS,)
_LENGTH: Final = np.float32(1e8)


class Block(NamedTuple):
    """Items [start, stop) of a batch, in a call of ``rows`` rows; rows beyond them are zeros."""

    start: int
    stop: int
    rows: int


def blocks(items: int, row_counts: Sequence[int]) -> Iterator[Block]:
    """The calls for a batch: large blocks while they are full, then blocks of 64, then one for the rest with a few rows to spare.

    row_counts: as above, largest first.
    """
    start = 0
    whole = [count for count in row_counts if count >= BLOCK_ROWS] or row_counts[:1]
    while start < items:
        left = items - start
        rows = next((count for count in whole if count <= left), 0) or min(c for c in row_counts if c >= left)
        stop = min(items, start + rows)
        yield Block(start, stop, rows)
        start = stop


def row_counts_of(score: Callable[[NDArray[np.float32]], NDArray[np.float32]], dimension: int) -> tuple[int, ...]:
    """The row counts that give a row the same bits: many, or one if they do not agree on this machine.

    score: rows float32 (N, dimension) → numbers float32 (N, …) that show each row's rounding. Adding in another order
    changes about every second of them, and there are hundreds.
    """
    # Far longer than codewords: beside their norms, the last bits of the products of short rows would be rounded away.
    rows = _LENGTH * np.random.default_rng(0).standard_normal((LARGEST_BLOCK, dimension)).astype(np.float32)
    expected = score(rows)
    for count in MANY_ROW_COUNTS[1:]:
        for start in {0, LARGEST_BLOCK - count} if count <= BLOCK_ROWS // 2 else {0}:
            block = slice(start, start + count)
            if score(rows[block]).tobytes() != expected[block].tobytes():
                return ONE_ROW_COUNT
    return MANY_ROW_COUNTS
