"""Batches: every row once an epoch, about as many targets in each, tables apart, and the same again after a stop."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.training.tables import Batches, JoinedTable, TrainingBatch

torch = pytest.importorskip("torch")


class Rows:
    """A table whose batches hold the numbers of their rows, from ``first`` on."""

    def __init__(self, lengths: Any, targets: Any, first: int = 0) -> None:
        self.lengths, self.row_targets = np.asarray(lengths), np.asarray(targets)
        self.targets, self.first = int(self.row_targets.sum()), first

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, indices: Any, layer2_dropout: float, random: np.random.Generator) -> TrainingBatch:
        noise = random.integers(1_000_000, size=len(indices))
        return TrainingBatch(np.stack((indices + self.first, noise), axis=1), np.zeros((len(indices), 2), dtype=int))


def epoch(batches: Batches) -> list[list[list[int]]]:
    return [batch["token_ids"].tolist() for batch in batches]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=60), st.integers(1, 50))
def test_every_row_is_in_one_batch_and_batches_have_about_as_many_targets(targets: list[int], size: int) -> None:
    batches = Batches(Rows(np.arange(len(targets)) % 7 + 1, targets), size)
    found = [[row for row, _ in batch] for batch in epoch(batches)]
    assert sorted(row for batch in found for row in batch) == list(range(len(targets)))
    assert len(found) == len(batches)
    assert all(found)
    assert all(sum(targets[row] for row in batch) < size + 2 * max(targets) for batch in found)


def test_rows_of_two_tables_never_meet_and_all_have_a_part() -> None:
    table = JoinedTable([Rows([5] * 40, [10] * 40), Rows([3] * 100, [1] * 100, first=1_000)])
    assert (len(table), table.targets) == (140, 500)
    found = [[row for row, _ in batch] for batch in epoch(Batches(table, 50))]
    assert sorted(map(len, found)) == [5] * 8 + [50] * 2
    assert all(len({row >= 1_000 for row in batch}) == 1 for batch in found)


def test_epochs_differ_and_the_same_seed_repeats_them() -> None:
    table = Rows(np.arange(50) % 9 + 1, [1] * 50)
    one, other = Batches(table, 8, seed=3), Batches(table, 8, seed=3)
    first, second = epoch(one), epoch(one)
    assert first != second
    assert [epoch(other), epoch(other)] == [first, second]
    assert epoch(Batches(table, 8, seed=4)) != first


@pytest.mark.parametrize("step", [0, 3, 7, 9, 14])
def test_batches_after_a_stop_are_those_that_were_left(step: int) -> None:
    table = Rows(np.arange(50) % 9 + 1, [1] * 50)
    straight = Batches(table, 8, seed=3)
    assert len(straight) == 7
    every = [*epoch(straight), *epoch(straight), *epoch(straight)]
    later = Batches(table, 8, seed=3)
    later.begin_after(step)
    later.set_epoch(step // 7)  # as Trainer says
    left = [*epoch(later)]
    for number in range(step // 7 + 1, 3):
        later.set_epoch(number)
        left += epoch(later)
    assert left == every[step:]
