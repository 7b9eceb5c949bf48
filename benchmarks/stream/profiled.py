"""Runs a process of sidstream and tells where its processor time went: `python -m benchmarks profiled NAME PATH`.

A sampling profiler: for each millisecond of processor time that the process used, every thread of Python is seen where it is, and
what its own clock has gone on since is counted for each function on its stack. A wait costs nothing; calls into C belong to the
function that makes them. Threads that are not Python's (the Kafka client's) are read from `/proc`. What came before the first
batch, the start of the process, is left out. PATH gets JSON when the process ends. Linux alone has the clocks for it.
"""

from __future__ import annotations

import json
import runpy
import signal
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final

from benchmarks.common.clock import Task, threads_of

_OWN: Final = Path("/proc/self")
_ROOT: Final = Path(__file__).parents[2]
_EVERY_SECONDS: Final = 0.001


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


class Sampler:
    """For the main thread, which takes the samples."""

    def __init__(self) -> None:
        self._seconds: defaultdict[CodeType, float] = defaultdict(float)
        self._clocks: dict[int, tuple[int, float]] = {}
        self._first: tuple[float, dict[str, Task]] | None = None
        self._last = 0.0, dict[str, Task]()

    def counted(self, turn: Callable[..., Any]) -> Callable[..., Any]:
        """``turn``, whose first call begins what is counted; the last one ends it."""

        def marked(*arguments: Any) -> Any:
            if self._first is None:
                self._start()
            try:
                return turn(*arguments)
            finally:
                self._last = time.process_time(), threads_of(_OWN)  # threads of a client are gone at the process' end

        return marked

    def result(self) -> Profile:
        """What was counted; ends the counting."""
        signal.setitimer(signal.ITIMER_PROF, 0)
        threading.setprofile(None)  # type: ignore[arg-type]
        began, before = self._first or (0.0, {})
        ended, after = self._last
        found: defaultdict[str, float] = defaultdict(float)
        for thread, task in after.items():
            if task.name.startswith("rdk:"):
                used = before[thread].seconds if thread in before else 0.0
                found[task.name.rstrip("0123456789-")] += task.seconds - used
        functions: defaultdict[str, float] = defaultdict(float)
        for code, seconds in self._seconds.items():
            functions[_name(code)] += seconds
        return Profile(dict(functions), dict(found), ended - began)

    def _start(self) -> None:
        self._first = time.process_time(), threads_of(_OWN)
        for thread in sys._current_frames():
            self._spent(thread)
        threading.setprofile(_leave_samples_to_main)
        signal.signal(signal.SIGPROF, self._sample)
        signal.setitimer(signal.ITIMER_PROF, _EVERY_SECONDS, _EVERY_SECONDS)

    def _sample(self, _signal: int, interrupted: FrameType | None) -> None:
        frames: dict[int, FrameType | None] = dict(sys._current_frames())
        frames[threading.get_ident()] = interrupted
        for thread, frame in frames.items():
            spent = self._spent(thread)
            on_stack = set()
            while frame is not None and spent:
                on_stack.add(frame.f_code)
                frame = frame.f_back
            for code in on_stack:
                self._seconds[code] += spent

    def _spent(self, thread: int) -> float:
        """Seconds of a thread's clock since it was asked for the last time."""
        clock, last = self._clocks.get(thread) or (time.pthread_getcpuclockid(thread), 0.0)
        try:
            now = time.clock_gettime(clock)
        except OSError:
            return 0.0  # it has ended meanwhile
        self._clocks[thread] = clock, now
        return now - last


def _leave_samples_to_main(_frame: FrameType, _event: str, _argument: Any) -> None:
    """First thing in a new thread: signals go to the main thread, also when it waits."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPROF})
    sys.setprofile(None)


def main() -> None:
    process, path = sys.argv[1:]
    sampler = Sampler()
    owner, name = turn_of(process)
    setattr(owner, name, sampler.counted(getattr(owner, name)))
    sys.argv = ["sidstream", process]
    try:
        runpy.run_module("sidstream", run_name="__main__")
    finally:
        Path(path).write_text(json.dumps(asdict(sampler.result())))


if __name__ == "__main__":
    main()
