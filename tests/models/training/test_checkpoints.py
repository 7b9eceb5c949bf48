"""Checkpoints: whole or not there, of the same training or refused, and never many."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from models.errors import SidstreamError
from models.training.checkpoints import Checkpoints, Mark

FACTS = {"epochs": 6.0, "learning rate": 0.003, "training data": "10 targets (ab)", "gamma": None}


def write(checkpoints: Checkpoints, step: int) -> Path:
    """What Trainer does, less the mark."""
    path = checkpoints.directory / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "model.safetensors").write_bytes(b"weights")
    return path


def mark(step: int, best_step: int | None = None) -> Mark:
    return Mark(
        step=step, seconds=1.5, losses=[2.5], validation=None if best_step is None else {"best_step": best_step}
    )


def test_only_a_marked_checkpoint_counts_and_the_one_before_stays_until_then(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, FACTS)
    assert checkpoints.newest() is None
    first = write(checkpoints, 9)
    assert checkpoints.newest() is None, "killed before the mark"
    checkpoints.complete(mark(9))
    write(checkpoints, 10)
    found = checkpoints.newest()
    assert found is not None
    assert found[0] == first
    assert (found[1].step, found[1].seconds, found[1].losses) == (9, 1.5, [2.5])
    checkpoints.complete(mark(10))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-10"]


def test_the_best_weights_stay_while_a_whole_checkpoint_names_them(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, FACTS)
    for step in (4, 8):
        checkpoints.best(tmp_path, step).write_bytes(b"best")
    write(checkpoints, 10)
    checkpoints.complete(mark(10, best_step=8))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best-8.safetensors", "checkpoint-10"]
    checkpoints.remove()
    assert not tmp_path.exists()


def test_a_checkpoint_of_another_training_is_refused_with_what_differs_and_what_to_do(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, FACTS)
    write(checkpoints, 1_200)
    checkpoints.complete(mark(1_200))
    assert Checkpoints(tmp_path, dict(FACTS)).newest() is not None
    other = {**FACTS, "learning rate": 0.001, "training data": "12 targets (cd)", "validation data": "3 targets (ef)"}
    with pytest.raises(SidstreamError) as refused:
        Checkpoints(tmp_path, other, hint="begin anew with --anew").newest()
    assert str(refused.value) == (
        f"{tmp_path} holds a training that stopped after 1,200 steps, and it is another one: learning rate 0.003 there, 0.001 "
        "here; training data 10 targets (ab) there, 12 targets (cd) here; validation data none there, 3 targets (ef) here. Give "
        "what it was given to go on with it, or begin anew with --anew"
    )


def test_a_checkpoint_of_another_version_is_refused(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, FACTS)
    write(checkpoints, 3)
    checkpoints.complete(msgspec.structs.replace(mark(3), version=2))
    with pytest.raises(SidstreamError, match=r"of another sidstream \(checkpoints of version 2, this one has 1\)"):
        checkpoints.newest()


def test_a_damaged_mark_is_told(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, FACTS)
    (write(checkpoints, 3) / "whole.json").write_text("{")
    with pytest.raises(SidstreamError, match=r"checkpoint-3 cannot be read .* begin anew"):
        checkpoints.newest()


def test_they_come_at_intervals_that_grow_with_what_writing_one_takes(tmp_path: Path) -> None:
    now = 0.0
    checkpoints = Checkpoints(tmp_path, FACTS, clock=lambda: now)
    due = []
    for second in range(1, 2_000):
        now += 1.0
        if checkpoints.is_due():
            due.append(second)
            write(checkpoints, second)
            now += 2.0  # of writing
            checkpoints.complete(mark(second))
    assert due[0] == 30
    assert due[1] - due[0] == 100
    assert len(due) == 20
