"""The processes of a chaos run under a supervisor: what ends is started again at once, and a death that was planned is
followed by the next one."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from chaos.faults import KillAt
from store.writing.failpoints import FAILPOINT_VARIABLE, Failpoint
from support.patience import PATIENCE_SECONDS
from support.processes import SidstreamProcess

_DEATH_SECONDS: Final = 45.0  # of a failpoint that chance chose: a layout may not come at all
_SURE_DEATH_SECONDS: Final = PATIENCE_SECONDS
_KILLED: Final = -signal.SIGKILL


@dataclass
class _Visits:
    """Failpoints where a process is to die, one start after the other."""

    fault: KillAt
    began: float
    left: deque[tuple[Failpoint, int]]
    kills: int = 1  # the first of them is at no failpoint
    give_up: float = float("inf")


class Supervisor:
    """``visited(fault, began, kills)`` is called when the visits of a ``KillAt`` are over."""

    def __init__(self, visited: Callable[[KillAt, float, int], None]) -> None:
        self._visited = visited
        self._visits: dict[str, _Visits] = {}
        self._ports: dict[str, int] = {}
        self.processes: dict[str, SidstreamProcess] = {}
        self.ended_by_themselves: list[tuple[str, int, str]] = []

    def add(self, name: str, process: SidstreamProcess, port: int) -> None:
        """Start it, and again whenever it ends. ``port``: of its web pages, open when it has been imported."""
        self.processes[name], self._ports[name] = process, port
        self._start(name)

    def look(self) -> None:
        """Start again what has ended; one that ended by itself is remembered. Call it often."""
        for name, process in self.processes.items():
            visits = self._visits.get(name)
            if process.running():
                if visits is not None and time.monotonic() > visits.give_up:
                    self._end_visits(name)
                continue
            status = process.wait()
            if status != _KILLED:
                self.ended_by_themselves.append((name, status, process.log()[-1_500:]))
                self._end_visits(name)
            elif visits is not None:
                visits.left.popleft()
                visits.kills += 1
            # Otherwise a failpoint that was given up has been passed after all.
            self._start(name)

    def kill(self, name: str) -> None:
        """``kill -9``, and at once a new one."""
        assert name not in self._visits, f"{name} is on its visits"
        self._kill(name)
        self._start(name)

    def kill_at(self, fault: KillAt) -> None:
        """Kill it and start it armed; ``look`` does the rest."""
        assert fault.process not in self._visits, f"{fault.process} is on its visits"
        began = time.monotonic()
        self._kill(fault.process)
        self._visits[fault.process] = _Visits(fault, began, deque(fault.visits))
        self._start(fault.process)

    def is_on_visits(self, name: str) -> bool:
        return name in self._visits

    def await_visits(self, *names: str, seconds: float = float("inf")) -> None:
        """Return when the visits of these processes are over (of all, if none is named), or after ``seconds``."""
        deadline = time.monotonic() + seconds
        while any(name in self._visits for name in names or self.processes) and time.monotonic() < deadline:
            self.look()
            time.sleep(0.02)

    def terminate(self, name: str) -> None:
        """SIGTERM: it has to end by itself with status 0; and at once a new one."""
        self._await_listening(name)
        self._terminate(name)
        self._start(name)

    def remove(self, name: str) -> None:
        """SIGTERM, and no new one."""
        self._await_listening(name)
        self._terminate(name)
        del self.processes[name]

    def terminate_all(self) -> None:
        """SIGTERM to each, and no new ones."""
        for name in self.processes:
            self._await_listening(name)
        for name in self.processes:
            self._terminate(name)

    def kill_all(self) -> None:
        """None is started again."""
        for name in self.processes:
            self._kill(name)

    def logs(self) -> str:
        """The last lines of every process, for a failing test."""
        return "\n".join(f"--- {name} ---\n{process.log()}" for name, process in self.processes.items())

    def _start(self, name: str) -> None:
        visits, failpoint = self._visits.get(name), ""
        if visits is not None and not visits.left:
            self._end_visits(name)
        elif visits is not None:
            point, passing = visits.left[0]
            failpoint = f"{point}={passing}"
            visits.give_up = time.monotonic() + (_SURE_DEATH_SECONDS if visits.fault.sure else _DEATH_SECONDS)
        self.processes[name].start({FAILPOINT_VARIABLE: failpoint})

    def _end_visits(self, name: str) -> None:
        visits = self._visits.pop(name, None)
        if visits is None:
            return
        assert not (visits.fault.sure and visits.left), f"{name} did not die at {visits.left[0]}\n{self.logs()}"
        self._visited(visits.fault, visits.began, visits.kills)

    def _kill(self, name: str) -> None:
        process = self.processes[name]
        if process.running():
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def _terminate(self, name: str) -> None:
        process = self.processes[name]
        status = process.stop()
        assert status == 0, f"{name} ended with status {status}:\n{process.log()}"

    def _await_listening(self, name: str) -> None:
        """A process that still imports its modules hears no SIGTERM: Python's default ends it."""
        deadline = time.monotonic() + _SURE_DEATH_SECONDS
        while time.monotonic() < deadline:
            self.look()
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", self._ports[name]), timeout=1).close()
                return
            time.sleep(0.05)
        raise AssertionError(f"{name} does not start:\n{self.processes[name].log()}")
