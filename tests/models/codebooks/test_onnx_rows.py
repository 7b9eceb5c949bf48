"""A batch cut into calls: every item once, few rows to spare, row counts that were compared."""

from __future__ import annotations

import numpy as np
import pytest

from models.codebooks.onnx_rows import MANY_ROW_COUNTS, ONE_ROW_COUNT, blocks, row_counts_of


@pytest.mark.parametrize("row_counts", [MANY_ROW_COUNTS, ONE_ROW_COUNT, (7,)])
def test_every_item_of_a_batch_is_in_one_call_of_an_allowed_size(row_counts: tuple[int, ...]) -> None:
    for items in (*range(0, 330), 511, 8000):
        cut = list(blocks(items, row_counts))
        assert [item for block in cut for item in range(block.start, block.stop)] == list(range(items))
        assert all(block.rows in row_counts and block.stop - block.start <= block.rows for block in cut)


def test_live_batch_takes_at_most_three_rows_more_than_it_has() -> None:
    for items in range(1, 1025):
        cut = list(blocks(items, MANY_ROW_COUNTS))
        assert sum(block.rows for block in cut) <= items + 3
        assert len(cut) <= items // 256 + 4


def test_rows_that_round_alike_in_every_call_may_come_in_many_sizes() -> None:
    weights = np.random.default_rng(0).standard_normal(33).astype(np.float32)
    assert row_counts_of(lambda rows: np.array([sum(row * weights) for row in rows]), 33) == MANY_ROW_COUNTS


@pytest.mark.parametrize("threshold", [5, 20, 65])
def test_kernel_that_adds_in_another_order_from_some_size_on_is_noticed(threshold: int) -> None:
    weights = np.random.default_rng(0).standard_normal(33).astype(np.float32)

    def score(rows: np.ndarray) -> np.ndarray:
        if len(rows) < threshold:
            rows, kernel = rows[:, ::-1], weights[::-1]
        else:
            kernel = weights
        return np.array([sum(row * kernel) for row in rows])

    assert row_counts_of(score, 33) == ONE_ROW_COUNT
