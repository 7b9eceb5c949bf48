"""What `sidstream train` says of its steps, and to whoever stops it."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from models.commands.training_data import steps_of, stopping_is_no_loss
from models.progress import WorkProgress
from models.training.settings import TrainingProgress


def printed(console: Console) -> list[str]:
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined, no-any-return]


def lines(first: int, last: int, seconds_a_step: float) -> list[str]:
    now = 0.0
    console = Console(file=io.StringIO(), width=40)
    with WorkProgress(console, clock=lambda: now) as work:
        show = steps_of(work)
        now += 100.0  # of tokens and tables
        for step in range(first, last + 1):
            show(TrainingProgress(step, last, 2.5, 1_234.0, 3.25 if step > 50 else None))
            now += seconds_a_step
    return printed(console)


def test_the_first_step_the_last_and_one_in_twenty_seconds_have_a_line_with_speed_losses_and_time_left() -> None:
    found = lines(1, 1_001, 1.0)
    assert found[0] == "training: 1 of 1,001 steps (0%), 1,234 examples/s, loss 2.500"
    assert found[10] == (
        "training: 201 of 1,001 steps (20%), 1.0 steps/s, about 13 min 20 s left, 1,234 examples/s, loss 2.500, validation 3.250"
    )
    assert found[-1].startswith(
        "training: 1,001 of 1,001 steps (100%), 1.0 steps/s, took 16 min 40 s, 1,234 examples/s"
    )
    assert len(found) == 51


def test_a_training_that_goes_on_says_from_where_and_its_speed_is_that_of_the_new_steps() -> None:
    found = lines(901, 1_001, 1.0)
    assert found[0] == "goes on after step 900 of 1,001 (--anew begins from nothing)"
    assert "921 of 1,001 steps (92%), 1.0 steps/s, about 1 min 20 s left" in found[2]


@pytest.mark.parametrize("kept", [True, False])
def test_whoever_stops_a_training_is_told_whether_it_can_go_on(tmp_path: Path, kept: bool) -> None:
    if kept:
        (tmp_path / "checkpoint-7").mkdir()
        (tmp_path / "checkpoint-7" / "whole.json").touch()
    console = Console(file=io.StringIO(), width=40)
    with pytest.raises(KeyboardInterrupt), stopping_is_no_loss(tmp_path, console):
        raise KeyboardInterrupt
    told = printed(console)[0]
    assert told == (
        f"stopped. The same command again goes on from the last checkpoint, in {tmp_path}"
        if kept
        else "stopped before the first checkpoint: nothing that was learnt is kept"
    )
