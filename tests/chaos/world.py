"""The world of a chaos run: a broker of its own, real processes, producers, and the faults done to them.

What must hold: a process that ended is started again at once, as a supervisor would; one that ends by itself is remembered
with its status and last log lines; every fault's recovery is timed by what a user sees (probe items, answers, drift).
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from chaos import faults
from chaos.disk import small_disk
from chaos.faults import Fault, Step
from chaos.producers import Producers
from chaos.watches import Watches
from processes import SidstreamProcess, free_port

from models.bundle import Bundle
from models.codebook import Codebook
from models.errors import SidstreamError
from store.failpoints import FAILPOINT_VARIABLE, Failpoint
from streamer.broker import LocalBroker
from streamer.settings import Settings, load_settings
from streamer.status import read_status
from streamer.topics import create, topic_specs

CORE: Final = ("assigner", "indexer", "monitor", "retriever")
_DEATH_SECONDS: Final = 45.0  # of a failpoint that chance chose: a layout may not come at all
_SURE_DEATH_SECONDS: Final = 120.0  # a retriever loads its model first
_CLOCK: Final = Path(__file__).parent / "clock"
_KILLED: Final = -signal.SIGKILL


@dataclass(frozen=True)
class Occurrence:
    """A fault that was done, when it was over (``time.monotonic``), and whether a process was killed by it."""

    fault: Fault
    at: float
    kills: int


class World:
    """A context manager. ``settings`` name its broker and directories; ``producers`` publish from the start."""

    def __init__(
        self,
        directory: Path,
        bundle: Path,
        *,
        seed: int,
        ids: int = 5_000,
        events_per_second: float = 1_000,
        queries_per_second: float = 8,
    ) -> None:
        self._directory = directory
        self._bundle = bundle
        self._seed = seed
        self._load = (ids, events_per_second, queries_per_second)
        self._stack = ExitStack()
        self._clock = directory / "clock-offset"
        self.occurrences: list[Occurrence] = []
        self.ended_by_themselves: list[tuple[str, int, str]] = []
        self.starts: Counter[str] = Counter()
        self.processes: dict[str, SidstreamProcess] = {}
        self._ports: dict[str, int] = {}
        self.began = 0.0

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.disk = stack.enter_context(small_disk(self._directory / "disk"))
            self.broker = stack.enter_context(LocalBroker(self._directory / "broker"))
            self.settings = self._make_settings()
            create(self.settings.kafka, topic_specs(self.settings))
            stack.callback(self._end_processes)
            for name in CORE:
                self.processes[name] = self._process(name, name)
                self._start(name)
            ids, events, queries = self._load
            codebook = Codebook.load(Bundle.open(self._bundle).codebook_path)
            self.producers = Producers(
                self.settings,
                codebook,
                seed=self._seed,
                ids=ids,
                events_per_second=events,
                queries_per_second=queries,
            )
            self.seen = Watches(self.settings, self.producers)
            stack.callback(self.seen.stop)
            self.seen.start()
            self.began = time.monotonic()
            self.producers.start()
            self._stack = stack.pop_all()
        return self

    def _make_settings(self) -> Settings:
        return load_settings(
            bundle=self._bundle,
            index=self.disk.path / "index",
            kafka={"bootstrap_servers": self.broker.bootstrap_servers},
            # Larger batches: more in a transaction when a kill comes, and less of the cores for the broker.
            assigner={"minimum_batch_interval_ms": 20},
            indexer={"map_bytes": 1 << 20, "counts_interval_seconds": 0.2},
            retriever={"layout": "live"},
            monitor={
                "interval_seconds": 0.2,
                "drift_interval_seconds": 0.5,
                "bucket_seconds": 1.0,
                "minimum_items": 300,
                "minimum_interval_seconds": 1.0,
                "minimum_share_factor": 1.5,
                "layout_growth_share": 0.001,
            },
        )

    def _process(self, name: str, command: str) -> SidstreamProcess:
        settings = self.settings
        if name != command:
            section = getattr(settings, command).model_copy(update={"instance": name})
            settings = settings.model_copy(update={command: section})
        port = self._ports[name] = free_port()
        settings = settings.model_copy(update={"metrics": settings.metrics.model_copy(update={"port": port})})
        environment = {
            "SIDSTREAM_CHAOS_CLOCK": str(self._clock),
            "PYTHONPATH": os.pathsep.join(filter(None, (str(_CLOCK), os.environ.get("PYTHONPATH")))),
        }
        return SidstreamProcess(settings, command, self._directory, name=name, environment=environment)

    # -- processes ---------------------------------------------------------------------------------------------------

    def _start(self, name: str, failpoint: str = "") -> None:
        self.processes[name].start({FAILPOINT_VARIABLE: failpoint})
        self.starts[name] += 1

    def supervise(self) -> None:
        """Start again what has ended by itself, and remember it."""
        for name, process in self.processes.items():
            if not process.running():
                status = process.wait()
                # A failpoint that was armed for later has been passed now.
                if status != _KILLED:
                    self.ended_by_themselves.append((name, status, process.log()[-1_500:]))
                self._start(name)

    def _end_processes(self) -> None:
        for process in self.processes.values():
            if process.running():
                os.killpg(process.pid, signal.SIGKILL)

    def stop_processes(self) -> None:
        """SIGTERM to each; all of them have to end by themselves, with status 0."""
        for name in self.processes:
            self._await_listening(name)
        for name, process in self.processes.items():
            status = process.stop()
            assert status == 0, f"{name} ended with status {status}:\n{process.log()}"

    def await_all(self, seconds: float) -> None:
        """Wait until items, answers and drift were seen once."""
        deadline = time.monotonic() + seconds
        while not self.seen.everything:
            self.supervise()
            assert time.monotonic() < deadline, f"not everything runs after {seconds:g} s:\n{self.logs()}"
            time.sleep(0.1)

    # -- faults ------------------------------------------------------------------------------------------------------

    def run(self, steps: Iterable[Step]) -> None:
        """Do the faults of a script one after the other."""
        for step in steps:
            deadline = time.monotonic() + step.wait
            while (left := deadline - time.monotonic()) > 0:
                self.supervise()
                time.sleep(min(left, 0.05))
            self.do(step.fault)

    def do(self, fault: Fault) -> None:
        """Do one fault; returns when it is over, with everything running again."""
        began, kills = time.monotonic(), 0
        self.supervise()
        match fault:
            case faults.Kill(name):
                self._kill(name)
                self._start(name)
                kills = 1
            case faults.KillAt(name, visits, sure):
                kills = self._kill_at(name, visits, _SURE_DEATH_SECONDS if sure else _DEATH_SECONDS)
                assert kills > len(visits) or not sure, f"{name} did not die at {visits[kills - 1]}\n{self.logs()}"
            case faults.Terminate(name):
                self._await_listening(name)
                status = self.processes[name].stop()
                assert status == 0, f"{name} ended with status {status}:\n{self.processes[name].log()}"
                self._start(name)
            case faults.Pause(name, seconds):
                with self._stopped(self.processes[name].pid):
                    time.sleep(seconds)
            case faults.AddWorker(command):
                if (name := f"{command}-2") not in self.processes:
                    self.processes[name] = self._process(name, command)
                    self._start(name)
            case faults.RemoveWorker(command):
                if f"{command}-2" in self.processes:
                    self._await_listening(f"{command}-2")
                    process = self.processes.pop(f"{command}-2")
                    assert process.stop() == 0, process.log()
            case faults.BrokerKill():
                os.kill(self.broker.pid, signal.SIGKILL)
                while self.broker.running:
                    time.sleep(0.01)
                self.broker.start()
                kills = 1
            case faults.BrokerPause(seconds):
                with self._stopped(self.broker.pid):
                    time.sleep(seconds)
            case faults.DuplicateTail(events):
                self.producers.resend_tail(events)
            case faults.MapFull(items):
                self.producers.fill(items)
            case faults.DiskFull(seconds):
                with self.disk.full(self.processes["indexer"].pid):
                    time.sleep(seconds)
            case faults.Switch(items):
                self.producers.crowd(items)
            case faults.ClockJump(seconds, lasting):
                self._clock.write_text(str(seconds))
                time.sleep(lasting)
                self._clock.write_text("0")
        self.supervise()
        # A pause is over when it ends; a kill when it is done.
        over = time.monotonic() if not kills else began
        self.occurrences.append(Occurrence(fault, over, kills))

    def _kill(self, name: str) -> None:
        process = self.processes[name]
        if process.running():
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def _await_listening(self, name: str) -> None:
        """A process that still imports its modules hears no SIGTERM: Python's default ends it."""
        deadline = time.monotonic() + _SURE_DEATH_SECONDS
        while time.monotonic() < deadline:
            self.supervise()
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", self._ports[name]), timeout=1).close()
                return
            time.sleep(0.05)
        raise AssertionError(f"{name} does not start:\n{self.processes[name].log()}")

    def _kill_at(self, name: str, visits: Sequence[tuple[Failpoint, int]], seconds: float) -> int:
        """Kill it, start it armed, wait until it has died there, and so on; how many kills there were. A passing that does
        not come within ``seconds`` is given up."""
        self._kill(name)
        for kills, (failpoint, passing) in enumerate(visits, start=1):
            self._start(name, f"{failpoint}={passing}")
            process = self.processes[name]
            deadline = time.monotonic() + seconds
            while process.running() and time.monotonic() < deadline:
                time.sleep(0.02)
            # One that lives on, or ended by itself, is for ``supervise``.
            if process.running() or process.wait() != _KILLED:
                return kills
        self._start(name)
        return 1 + len(visits)

    @contextmanager
    def _stopped(self, pid: int) -> Iterator[None]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def await_recovery(self, seconds: float) -> None:
        """Wait until everything that was hurt goes on; what does not in time is told in the report."""
        deadline = time.monotonic() + seconds
        waiting = self.occurrences
        while (waiting := [hurt for hurt in waiting if self.recovery(hurt) is None]) and time.monotonic() < deadline:
            self.supervise()
            time.sleep(0.2)

    # -- after the faults ----------------------------------------------------------------------------------------------

    def drain(self, seconds: float) -> None:
        """Stop the producers and wait until every process has read everything."""
        self.producers.stop()
        deadline = time.monotonic() + seconds
        while True:
            self.supervise()
            try:
                behind = [lag for lag in read_status(self.settings).lags if lag.records != 0]
            except SidstreamError as error:
                behind = [error]
            if not behind:
                break
            assert time.monotonic() < deadline, f"not drained within {seconds:g} s: {behind}\n{self.logs()}"
            time.sleep(0.3)
        time.sleep(3 * self.settings.indexer.counts_interval_seconds)

    def logs(self) -> str:
        """The last lines of every process, for a failing test."""
        return "\n".join(f"--- {name} ---\n{process.log()}" for name, process in self.processes.items())

    def recovery(self, occurrence: Occurrence) -> float | None:
        """Seconds until what a user sees of the part that was hurt goes on."""
        name = getattr(occurrence.fault, "process", "")
        match occurrence.fault:
            case faults.BrokerKill() | faults.BrokerPause() | faults.ClockJump():
                watches = [self.seen.items, self.seen.answers]
            case _ if name == "retriever":
                watches = [self.seen.answers]
            case _ if name == "monitor":
                watches = [self.seen.drift]
            case _:
                watches = [self.seen.items]
        found = [watch.recovery(occurrence.at) for watch in watches]
        return None if None in found else max(seconds for seconds in found if seconds is not None)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None and self.producers.is_alive():
            with suppress(BaseException):
                self.producers.stop()
        self._stack.close()
