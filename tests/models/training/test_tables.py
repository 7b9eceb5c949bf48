"""Batches: every row once an epoch, about as many targets in each, tables apart, and the same again after a stop."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.sids.vocabulary import SidVocabulary
from models.training.tables import NOTHING_FOLLOWS, Batches, JoinedTable, Shares, TrainingBatch

torch = pytest.importorskip("torch")


class Rows:
    """A table whose batches hold the numbers of their rows, from ``first`` on."""

    vocabulary = SidVocabulary(text_size=1, user_buckets=0, layers=3, size=2)

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


class Sequences:
    """Rows of one to five targets, each predicted by one token; a row's tokens are its number."""

    def __init__(self, targets: list[int]) -> None:
        self.row_targets = self.lengths = np.asarray(targets)
        self.targets = int(self.row_targets.sum())

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, indices: Any, layer2_dropout: float, random: np.random.Generator) -> TrainingBatch:
        place = np.arange(int(self.lengths[indices].max()))
        is_there = place < self.lengths[indices][:, None]
        token_ids = np.where(is_there, indices[:, None], -1)
        return TrainingBatch(token_ids, np.where(is_there, 7, NOTHING_FOLLOWS))


@given(st.lists(st.integers(1, 5), min_size=1, max_size=40), st.integers(1, 20), st.integers(1, 4), st.integers(1, 3))
def test_parts_of_a_step_are_the_step_whatever_it_is_divided_among(
    targets: list[int], size: int, accumulate: int, world: int
) -> None:
    table = Sequences(targets)
    whole = [batch["token_ids"] for batch in Batches(table, size, seed=2)]
    of_processes = [list(Batches(table, size, seed=2, shares=Shares(accumulate, world, rank))) for rank in range(world)]
    assert {len(parts) for parts in of_processes} == {len(whole) * accumulate}
    for step, expected in enumerate(whole):
        parts = [part for own in of_processes for part in own[step * accumulate : (step + 1) * accumulate]]
        assert sum(float(part["share"]) for part in parts) == pytest.approx(1, abs=1e-6)
        counted = [part for part in parts if part["share"] > 0]
        rows = [row for part in counted for row in part["token_ids"][:, 0].tolist()]
        assert sorted(rows) == sorted(expected[:, 0].tolist())
        for part in counted:
            predicted = int((part["following"] != NOTHING_FOLLOWS).sum())
            total = sum(table.row_targets[row] for row in expected[:, 0].tolist())
            assert float(part["share"]) == pytest.approx(predicted / total, rel=1e-6)
            assert (part["following"][:, -1] != NOTHING_FOLLOWS).any(), "no longer than its longest row"


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
