"""How far long work is: a bar on a terminal, a line now and then anywhere else.

What must hold: a log of work that takes hours shows every minute or so how much is done, how fast, and how long it
will still take; a person at a terminal sees the same as a bar.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from models.terminal import print_line, shown

_FIRST_LINE_SECONDS: Final = 10.0
# The pause between lines doubles up to it: short work is not silent, long work not noisy.
_LONGEST_WAIT_SECONDS: Final = 60.0
_STEADY_WAIT_SECONDS: Final = 20.0  # of work that people watch and may stop


class WorkTask:
    """One piece of the work; get it from ``WorkProgress.task``."""

    def __init__(
        self, work: WorkProgress, name: str, unit: str, total: float | None, bar: TaskID | None, steadily: bool
    ) -> None:
        self._work, self._name, self._unit, self._total, self._bar = work, name, unit, total, bar
        self._started = work.clock()
        self._pause = _FIRST_LINE_SECONDS
        self._longest_pause = _STEADY_WAIT_SECONDS if steadily else _LONGEST_WAIT_SECONDS
        self._before = 0.0
        self._next_line = self._started if steadily else self._started + self._pause
        self._ended = False

    def update(self, done: float, total: float | None = None, *, note: str = "") -> None:
        """``done`` of ``total`` units (the total given at the start, if None); ``note``: what else is known, such as the
        loss.
        """
        self._total = total if total is not None else self._total
        now = self._work.clock()
        figures = self._figures(done, now - self._started)
        if self._bar is not None:
            text = " · ".join(filter(None, (*figures, note)))
            self._work.bars.update(self._bar, completed=done, total=self._total, figures=shown(text))
            return
        ended = self._total is not None and done >= self._total
        if now >= self._next_line or (ended and not self._ended):
            self._pause = min(2 * self._pause, self._longest_pause)
            self._next_line = now + self._pause
            left = self._left(done, now - self._started)
            self._work.line(f"{self._name}: {', '.join(filter(None, (*figures, left, note)))}")
        self._ended = ended

    def restart(self, done: float) -> None:
        """From now on speed and time left are of what follows ``done``: it was done before, or in another way."""
        self._started, self._before = self._work.clock(), done

    def end(self) -> None:
        """Takes the bar away; a line is not taken back."""
        if self._bar is not None:
            self._work.bars.update(self._bar, visible=False)

    def _figures(self, done: float, seconds: float) -> tuple[str, ...]:
        share = f"{done / self._total:.0%}" if self._total else ""
        if not self._unit:
            return (share,)
        amount = f"{done:,.0f} of {self._total:,.0f} {self._unit}" if self._total else f"{done:,.0f} {self._unit}"
        speed = f"{(done - self._before) / seconds:,.1f} {self._unit}/s" if seconds > 0 and done > self._before else ""
        return amount + (f" ({share})" if share else ""), speed

    def _left(self, done: float, seconds: float) -> str:
        if not self._total or done <= self._before or done >= self._total:
            return f"took {duration(seconds)}" if self._total and done >= self._total else ""
        return f"about {duration(seconds * (self._total - done) / (done - self._before))} left"


class WorkProgress:
    """A context in which long work says how far it is.

    >>> with WorkProgress(Console(quiet=True)) as work:
    ...     task = work.task("training", unit="steps", total=2)
    ...     task.update(1, note="loss 2.301")
    """

    def __init__(self, console: Console, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._console = console
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )

    def task(self, name: str, *, unit: str = "", total: float | None = None, steadily: bool = False) -> WorkTask:
        """A new piece of work; ``unit``: what is counted, nothing for shares of a whole; ``steadily``: with a line for the
        first unit too, and then at least every twenty seconds.
        """
        bar = self.bars.add_task(shown(name), total=total, figures="") if self._console.is_terminal else None
        return WorkTask(self, name, unit, total, bar, steadily)

    def line(self, text: str) -> None:
        """One line, never broken."""
        print_line(self._console, text)

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.bars.stop()


def duration(seconds: float) -> str:
    """
    >>> duration(4.2), duration(125), duration(7_320)
    ('4 s', '2 min 5 s', '2 h 2 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3_600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3_600} h {whole % 3_600 // 60} min"
