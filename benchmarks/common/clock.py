"""How long something takes: by the clock, and of a processor."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple


def timed(work: Callable[[], object]) -> float:
    """Seconds that ``work`` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


class Task(NamedTuple):
    """A process or a thread of Linux: its name, its parent's number, and the user and system seconds that it has used."""

    name: str
    parent: int
    seconds: float


def task_of(directory: Path) -> Task:
    """Of ``/proc/PID`` or ``/proc/PID/task/TID``. Raises ``OSError`` for one that has ended."""
    name, _, fields = (directory / "stat").read_text().partition("(")[2].rpartition(")")
    values = fields.split()
    return Task(name, int(values[1]), (int(values[11]) + int(values[12])) / os.sysconf("SC_CLK_TCK"))


def threads_of(process: Path) -> dict[str, Task]:
    """The threads of ``/proc/PID``, or of ``/proc/self``, by their numbers; none where there is no /proc."""
    found = {}
    for directory in process.glob("task/*"):
        with suppress(OSError):  # it has ended meanwhile
            found[directory.name] = task_of(directory)
    return found
