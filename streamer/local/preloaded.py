"""Processes of ours that are forked from one that has imported everything already: they start in a tenth of a second.

Importing what a retriever decodes with takes ten times as long as loading a small model. The fork server (the standard
library's) imports it once; whatever it forks shares that memory. What must hold: a process that was started so behaves as
``sidstream <arguments>`` started by itself does, its environment, session, log and exit status included; and it ends when
whoever started it, or the fork server, is killed.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Final, Protocol

_STREAM: Final = ("sidstream", "streamer.assigner.process", "streamer.indexer.process", "streamer.monitor.process")
_RETRIEVER: Final = ("retriever.serving.imports",)
_LAST: Final = ("streamer.local.fork_server",)
# What a forked process' exit status is said to be once the server is gone, which alone was told of it.
SERVER_GONE: Final = 255
# Apple's frameworks do not bear forking, and Windows knows none.
AVAILABLE: Final = sys.platform == "linux"


class Running(Protocol):
    """A child process, by what ``subprocess.Popen`` and a forked one have in common."""

    pid: int

    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, sig: int, /) -> None: ...
    def kill(self) -> None: ...


class ForkedProcess:
    """``sidstream <arguments>`` in a session of its own, forked from the server; ``subprocess.Popen``'s ways.

    Waits until the server has imported what it is to import (``Preloading`` says when). ``environment``: all of it; ``log``: a
    file to which standard output and error are added, None for those of whoever started the server.
    """

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], log: Path | None) -> None:
        self._arguments = ["sidstream", *arguments]
        # daemon: ended with whoever started it.
        self._process = multiprocessing.get_context("forkserver").Process(
            target=_run, args=(self._arguments, dict(environment), os.getcwd(), log), daemon=True
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def poll(self) -> int | None:
        """The exit status; negative for the signal that ended it, None while it runs, ``SERVER_GONE`` if nobody knows."""
        status: int | None = self._process.exitcode
        return status

    def wait(self, timeout: float | None = None) -> int:
        """The exit status, once there is one. Raises ``subprocess.TimeoutExpired``."""
        wait([self._process.sentinel], timeout)
        if (status := self.poll()) is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(self._arguments, timeout)
        return status

    def send_signal(self, sig: int, /) -> None:
        """Nothing is sent to a process that has ended."""
        if self.poll() is None:
            os.kill(self.pid, sig)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Preloading:
    """The fork server while it starts, which takes as long as the imports do: nobody needs to wait for it.

    ``retriever``: whether it imports what a retriever needs, too. A program has one fork server; the first call decides.
    """

    def __init__(self, *, retriever: bool = True) -> None:
        self._retriever = retriever
        self._ready = threading.Event()
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([*_STREAM, *(_RETRIEVER if retriever else ()), *_LAST])
        # The server answers its first request once everything is imported.
        self._first = context.Process(target=_nothing, daemon=True)
        self._thread = threading.Thread(target=self._await, name="preloading", daemon=True)
        self._thread.start()

    @property
    def ready(self) -> bool:
        """Whether a process would be forked at once."""
        return self._ready.is_set()

    def again(self) -> Preloading:
        """Another server, for one that is gone."""
        return Preloading(retriever=self._retriever)

    @property
    def under_way(self) -> bool:
        """Whether it will be ready, or may be."""
        return not self.ready and self._thread.is_alive()

    def _await(self) -> None:
        self._first.start()
        self._first.join()
        if self._first.exitcode == 0:
            self._ready.set()


def _nothing() -> None:
    pass


def _run(arguments: list[str], environment: dict[str, str], directory: str, log: Path | None) -> None:
    """In the forked process: become what ``sidstream <arguments>`` would be."""
    from streamer.process.run import SUPERVISOR_VARIABLE

    os.setsid()
    Path("/proc/self/comm").write_text(arguments[1])  # for `top` and `ps`, to which all look alike
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    if log is not None:
        output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.dup2(output, 1)
        os.dup2(output, 2)
    os.environ.clear()
    os.environ.update(environment)
    if SUPERVISOR_VARIABLE in environment:
        os.environ[SUPERVISOR_VARIABLE] = str(os.getppid())  # the server; whoever started it is watched beside it
    os.chdir(directory)
    sys.argv = arguments
    from store.writing.failpoints import arm

    arm()
    importlib.import_module("sidstream").main()  # by its name, as `python -m sidstream` has it: it lies above us
