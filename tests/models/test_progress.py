"""Progress of long work: lines with share, speed and time left where there is no terminal, a bar where there is one."""

from __future__ import annotations

import io

from rich.console import Console

from models.progress import WorkProgress


def lines_of(seconds_a_step: float, steps: int) -> list[str]:
    now = 0.0
    console = Console(file=io.StringIO(), width=40)
    with WorkProgress(console, clock=lambda: now) as work:
        task = work.task("training", unit="steps")
        for step in range(1, steps + 1):
            now += seconds_a_step
            task.update(step, steps, note="loss 2.5")
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_without_a_terminal_lines_say_how_far_how_fast_and_how_long_still() -> None:
    lines = lines_of(2.0, 100)
    assert lines[0] == "training: 5 of 100 steps (5%), 0.5 steps/s, about 3 min 10 s left, loss 2.5"
    assert lines[-1] == "training: 100 of 100 steps (100%), 0.5 steps/s, took 3 min 20 s, loss 2.5"


def test_lines_come_at_once_less_often_and_then_every_minute() -> None:
    lines = lines_of(1.0, 7_200)
    assert 120 <= len(lines) <= 125, "two hours"
    assert len(lines_of(0.01, 100)) == 1, "a second: the end alone"


def test_end_is_told_once() -> None:
    console = Console(file=io.StringIO())
    with WorkProgress(console, clock=lambda: 0.0) as work:
        task = work.task("layer [1]", unit="iterations", total=2)
        for done in (1, 2, 2):
            task.update(done)
    assert console.file.getvalue() == "layer [1]: 2 of 2 iterations (100%), took 0 s\n"  # type: ignore[attr-defined]


def test_shares_of_a_whole_are_told_without_a_unit() -> None:
    now = 0.0
    console = Console(file=io.StringIO())
    with WorkProgress(console, clock=lambda: now) as work:
        task = work.task("run", total=1.0)
        now = 30.0
        task.update(0.25, note="epoch 2")
    assert console.file.getvalue() == "run: 25%, about 1 min 30 s left, epoch 2\n"  # type: ignore[attr-defined]


def test_on_a_terminal_it_is_a_bar() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with WorkProgress(console) as work:
        task = work.task("training [a]", unit="steps", total=4)
        task.update(4, note="loss [1]")
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "training [a]" in shown
    assert "4 of 4 steps (100%)" in shown
    assert "loss [1]" in shown
