"""Runs several processes on one machine as one: starts them, restarts what dies, ends all of them together.

A child that dies is started again, at once if it has run for a while, else after a pause that doubles up to half a minute; one
that keeps dying soon after its start is given up, and with it everything, unless it is not vital: then it is tried on. The
children share our process group's terminal but not its Ctrl-C: we pass it on as SIGTERM, in the reverse order of starting:
retriever, monitor, indexer, assigner. Whoever is down the stream hears it first, so that none begins another batch of what its
predecessor commits while it ends; the retriever, whose batch takes longest and whose askers wait, has the whole time. Nobody
needs anybody else to end well, as what is left over waits in the topics: so all end at once within one deadline instead of one
after the other. All of them need the broker to commit: it goes last.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

from models.directories import make_directory
from models.errors import SidstreamError
from streamer.local.preloaded import SERVER_GONE, ForkedProcess, Preloading, Running
from streamer.process.run import SUPERVISOR_VARIABLE

log = structlog.get_logger(__name__)

# A child that is stuck ends itself when its own deadline has passed, and logs in what; SIGKILL is for one that cannot.
KILL_MARGIN_SECONDS: Final = 5.0
_FIRST_PAUSE_SECONDS: Final = 0.5
_LONGEST_PAUSE_SECONDS: Final = 30.0
_SETTLED_SECONDS: Final = 20.0
_MAXIMUM_EARLY_DEATHS: Final = 5
_IMPORTS_FOR_LONG: Final = ("retriever",)


class SupervisorError(SidstreamError):
    """A process keeps dying; the message names it and where its log is."""


@dataclass(slots=True)
class _Child:
    name: str
    arguments: Sequence[str]
    environment: Mapping[str, str]
    process: Running | None = None
    started_at: float = 0.0
    restart_at: float = 0.0
    early_deaths: int = 0
    vital: bool = True
    kill_at: float | None = None
    """It was asked to end: when to insist."""


@dataclass
class Supervisor:
    """Child processes by name, each ``sidstream <arguments>`` in a new session, logging to ``<log_directory>/<name>.log``.

    ``log_directory`` None leaves their log lines on our standard error. ``shutdown_seconds``: the children's own deadline.
    ``preloading``: forks what is started once it is ready; None starts every process by itself.
    """

    environment: Mapping[str, str]
    log_directory: Path | None = None
    shutdown_seconds: float = 20.0
    preloading: Preloading | None = None
    _children: dict[str, _Child] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _ended: bool = False

    def start(
        self,
        name: str,
        arguments: Sequence[str],
        environment: Mapping[str, str] | None = None,
        *,
        vital: bool = True,
    ) -> None:
        """Start a process and keep it running; ``environment`` adds to that of all. ``vital``: that it keeps dying ends all."""
        with self._lock:
            child = self._children[name] = _Child(name, arguments, environment or {}, vital=vital)
            self._spawn(child)

    def end(self, name: str) -> None:
        """Ask one process to end, which is not started again; ``check`` insists when its deadline has passed."""
        with self._lock:
            child = self._children[name]
            if child.kill_at is not None:
                return
            child.kill_at = time.monotonic() + self.shutdown_seconds + KILL_MARGIN_SECONDS
            if child.process is not None and child.process.poll() is None:
                child.process.send_signal(signal.SIGTERM)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the processes that are kept running, or are about to end."""
        return tuple(self._children)

    def is_ending(self, name: str) -> bool:
        """Whether it was asked to end, and is still there."""
        return self._children[name].kill_at is not None

    def pid(self, name: str) -> int | None:
        """The process id of a child that runs."""
        process = self._children[name].process
        return process.pid if process is not None and process.poll() is None else None

    def check(self) -> None:
        """Restart what has died; call it a few times a second.

        Raises:
            SupervisorError: a process died five times soon after its start.
        """
        with self._lock:
            now = time.monotonic()
            for child in list(self._children.values()):
                if child.kill_at is not None:
                    self._see_to_the_end(child, now)
                    continue
                if child.process is not None and (code := child.process.poll()) is not None:
                    child.process = None
                    if code == SERVER_GONE and self.preloading is not None and self.preloading.ready:
                        log.warning("fork_server_died", next="another one is started; what it forked is started again")
                        self.preloading = self.preloading.again()
                    child.early_deaths = child.early_deaths + 1 if now - child.started_at < _SETTLED_SECONDS else 0
                    if child.early_deaths >= _MAXIMUM_EARLY_DEATHS and child.vital:
                        raise SupervisorError(
                            f"{child.name} died {child.early_deaths} times soon after its start (exit status {code})"
                            f"{self._where(child.name)}"
                        )
                    early = child.early_deaths
                    pause = min(_FIRST_PAUSE_SECONDS * 2**early, _LONGEST_PAUSE_SECONDS) if early else 0.0
                    child.restart_at = now + pause
                    log.warning("process_died", name=child.name, exit_status=code, restart_in_s=round(pause, 1))
                if child.process is None and now >= child.restart_at:
                    self._spawn(child)

    def _see_to_the_end(self, child: _Child, now: float) -> None:
        assert child.kill_at is not None
        if child.process is None or child.process.poll() is not None:
            del self._children[child.name]
        elif now > child.kill_at:
            log.warning("process_killed", name=child.name)
            child.process.kill()

    def stop(self) -> None:
        """SIGTERM in reverse order of starting, then wait; SIGKILL for what outlives its deadline."""
        with self._lock:
            running = [child for child in reversed(self._children.values()) if child.process is not None]
            for child in running:
                assert child.process is not None
                if child.process.poll() is None:
                    child.process.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + self.shutdown_seconds + KILL_MARGIN_SECONDS
            for child in running:
                assert child.process is not None
                try:
                    child.process.wait(max(0.0, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    log.warning("process_killed", name=child.name)
                    child.process.kill()
                    child.process.wait()
            self._children.clear()

    def kill(self) -> None:
        """SIGKILL to all, at once and from any thread, whoever else waits for them; starts none again."""
        self._ended = True
        for child in list(self._children.values()):
            if (process := child.process) is not None:
                process.kill()

    def _spawn(self, child: _Child) -> None:
        if self._ended:
            return
        if self.preloading is not None and self.preloading.under_way and child.arguments[0] in _IMPORTS_FOR_LONG:
            return  # it would import the same beside the server: ``check`` comes back to it
        log_file = None
        if self.log_directory is not None:
            make_directory(self.log_directory)
            log_file = self.log_directory / f"{child.name}.log"
        environment = {
            **os.environ,
            **self.environment,
            **child.environment,
            SUPERVISOR_VARIABLE: str(os.getpid()),
        }
        if self.preloading is not None and self.preloading.ready:
            child.process = ForkedProcess(child.arguments, environment, log_file)
        else:
            child.process = _process(child.arguments, environment, log_file)
        child.started_at = time.monotonic()

    def _where(self, name: str) -> str:
        return f"; its log: {self.log_directory / name}.log" if self.log_directory is not None else ""


def _process(arguments: Sequence[str], environment: Mapping[str, str], log_file: Path | None) -> Running:
    """One that imports everything by itself."""
    with log_file.open("ab") if log_file is not None else nullcontext() as output:
        return subprocess.Popen(
            [sys.executable, "-m", "sidstream", *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
