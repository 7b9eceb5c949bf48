"""Runs a process of sidstream and tells where its processor time went: `python -m benchmarks.profiled NAME PATH`.

Functions of Python are timed by cProfile on the processor clock of their own thread, so a wait costs nothing; calls into C belong
to the function that makes them. Threads that are not Python's (the Kafka client's) are read from `/proc`, where there is one.
What came before the first batch, the start of the process, is left out. PATH gets JSON when the process ends.
"""

from __future__ import annotations

import cProfile
import json
import os
import runpy
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import CodeType
from typing import Any, Final

_TASKS: Final = Path("/proc/self/task")
_ROOT: Final = Path(__file__).parents[1]


@dataclass(frozen=True)
class Profile:
    """Seconds of the processor since the first batch. ``functions``: with all that they call, by `path::qualified name`;
    ``threads``: of threads that are not Python's, by name; ``whole``: of the process.
    """

    functions: dict[str, float]
    threads: dict[str, float]
    whole: float

    @classmethod
    def read(cls, path: Path) -> Profile:
        return cls(**json.loads(path.read_text()))


def name_of(function: Any) -> str:
    """How a function is called in ``Profile.functions``."""
    return _name(function.__code__)


def _name(code: CodeType) -> str:
    path = Path(code.co_filename)
    return f"{path.relative_to(_ROOT) if path.is_relative_to(_ROOT) else path}::{code.co_qualname}"


def turn_of(process: str) -> tuple[type, str]:
    """The class of a process, and its method that does one batch."""
    from streamer.exactly_once.loop import TransactionalLoop
    from streamer.indexer.process import Indexer

    return (Indexer if process == "indexer" else TransactionalLoop), "_one_batch"


class _Profiler:
    def __init__(self) -> None:
        self._profiles: list[cProfile.Profile] = []
        self._first: tuple[float, dict[str, tuple[str, float]]] | None = None
        self._last = 0.0, dict[str, tuple[str, float]]()

    def enable(self, *_event: Any) -> None:
        """In the thread that calls it; as ``threading.setprofile`` wants it, too."""
        profile = cProfile.Profile(time.thread_time, builtins=False)
        self._profiles.append(profile)
        profile.enable()

    def disable(self) -> None:
        """In every thread; what was found stays."""
        for profile in self._profiles:
            profile.disable()

    def counted(self, turn: Callable[..., Any]) -> Callable[..., Any]:
        """``turn``, whose first call begins what is counted; the last one ends it."""

        def marked(*arguments: Any) -> Any:
            if self._first is None:
                self._first = time.process_time(), _threads()
            try:
                return turn(*arguments)
            finally:
                self._last = time.process_time(), _threads()  # threads of a client are gone at the process' end

        return marked

    def result(self) -> Profile:
        began, threads = self._first or (0.0, {})
        ended, threads_then = self._last
        functions: dict[str, float] = {}
        for profile in self._profiles:
            for entry in profile.getstats():
                if isinstance(entry.code, CodeType):
                    name = _name(entry.code)
                    functions[name] = functions.get(name, 0.0) + entry.totaltime
        found: dict[str, float] = {}
        for thread, (name, seconds) in threads_then.items():
            if name.startswith("rdk:"):
                kind = name.rstrip("0123456789-")
                found[kind] = found.get(kind, 0.0) + seconds - threads.get(thread, ("", 0.0))[1]
        return Profile(functions, found, ended - began)


def _threads() -> dict[str, tuple[str, float]]:
    """Name and seconds of each thread of this process, by its number; empty where there is no /proc."""
    found = {}
    for task in _TASKS.glob("*"):
        try:
            name, _, fields = (task / "stat").read_text().partition("(")[2].rpartition(")")
        except OSError:
            continue  # it has ended meanwhile
        values = fields.split()
        found[task.name] = name, (int(values[11]) + int(values[12])) / os.sysconf("SC_CLK_TCK")
    return found


def main() -> None:
    process, path = sys.argv[1:]
    profiler = _Profiler()
    owner, name = turn_of(process)
    setattr(owner, name, profiler.counted(getattr(owner, name)))
    threading.setprofile(profiler.enable)
    profiler.enable()
    sys.argv = ["sidstream", process]
    try:
        runpy.run_module("sidstream", run_name="__main__")
    finally:
        profiler.disable()
        Path(path).write_text(json.dumps(asdict(profiler.result())))


if __name__ == "__main__":
    main()
