"""The world of a chaos run: a broker of its own, real processes, producers, and the faults done to them.

What must hold: a process that ended is started again at once, as a supervisor would; one that ends by itself is remembered
with its status and last log lines; every fault's recovery is timed by what a user sees (probe items, answers, drift).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from chaos import faults
from chaos.disk import small_disk
from chaos.faults import Fault, Step
from chaos.producers import Producers
from chaos.supervision import Supervisor
from chaos.watches import Watches
from models.bundles.bundle import Bundle
from models.codebooks.codebook import Codebook
from models.errors import SidstreamError
from streamer.events.topics import topic_specs
from streamer.kafka.admin import create
from streamer.local.broker import LocalBroker
from streamer.operations.status import read_status
from streamer.settings import Settings, load_settings
from support.processes import SidstreamProcess, free_port

CORE: Final = ("assigner", "indexer", "monitor", "retriever")
_CROWD_SECONDS: Final = 20.0  # until another crowd
_CLOCK: Final = Path(__file__).parent / "clock"


# Read here: the tests run without any of our variables.
GROUP_PROTOCOL = os.environ.get("SIDSTREAM_CHAOS_GROUP_PROTOCOL", "classic")


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
        self.supervisor = Supervisor(self._visited)
        self.began = 0.0

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.disk = stack.enter_context(small_disk(self._directory / "disk"))
            self.broker = stack.enter_context(LocalBroker(self._directory / "broker"))
            self.settings = self._make_settings()
            create(self.settings.kafka, topic_specs(self.settings))
            stack.callback(self.supervisor.kill_all)
            for name in CORE:
                self._add(name, name)
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
            kafka={"bootstrap_servers": self.broker.bootstrap_servers, "group_protocol": GROUP_PROTOCOL},
            # Larger batches: more in a transaction when a kill comes, and less of the cores for the broker. After each kill
            # some come full, whose transactions run in a second thread.
            assigner={"minimum_batch_interval_ms": 50, "batch_size": 200},
            indexer={"map_bytes": 1 << 20, "counts_interval_seconds": 0.2},
            retriever={"layout": "live"},
            attributes={"filterable": {"price": "number", "even": "boolean", "seen": "strings"}},
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

    def _add(self, name: str, command: str) -> None:
        settings = self.settings
        if name != command:
            section = getattr(settings, command).model_copy(update={"instance": name})
            settings = settings.model_copy(update={command: section})
        port = free_port()
        settings = settings.model_copy(update={"metrics": settings.metrics.model_copy(update={"port": port})})
        environment = {
            "SIDSTREAM_CHAOS_CLOCK": str(self._clock),
            "PYTHONPATH": os.pathsep.join(filter(None, (str(_CLOCK), os.environ.get("PYTHONPATH")))),
        }
        process = SidstreamProcess(settings, command, self._directory, name=name, environment=environment)
        self.supervisor.add(name, process, port)

    def await_all(self, seconds: float) -> None:
        """Wait until items, answers and drift were seen once."""
        deadline = time.monotonic() + seconds
        while not self.seen.everything:
            self.supervisor.look()
            assert time.monotonic() < deadline, f"not everything runs after {seconds:g} s:\n{self.supervisor.logs()}"
            time.sleep(0.1)

    # -- faults ------------------------------------------------------------------------------------------------------

    def run(self, steps: Iterable[Step]) -> None:
        """Do the faults of a script one after the other."""
        for step in steps:
            deadline = time.monotonic() + step.wait
            while (left := deadline - time.monotonic()) > 0:
                self.supervisor.look()
                time.sleep(min(left, 0.05))
            self.do(step.fault)

    def do(self, fault: Fault) -> None:
        """Do one fault; returns when it is over, with everything running again."""
        supervisor = self.supervisor
        began, kills = time.monotonic(), 0
        supervisor.look()
        match fault:
            case faults.KillAt(name):
                supervisor.kill_at(fault)
                while fault.crowd and supervisor.is_on_visits(name):
                    # Not every crowd switches a layout: the token may be left out of SIDs already.
                    self.producers.crowd(fault.crowd)
                    supervisor.await_visits(name, seconds=_CROWD_SECONDS)
                if not fault.meanwhile:
                    supervisor.await_visits(name)
                return
            case faults.Kill(name):
                supervisor.kill(name)
                kills = 1
            case faults.Terminate(name):
                supervisor.terminate(name)
            case faults.Pause(name, seconds):
                with self._stopped(supervisor.processes[name].pid):
                    time.sleep(seconds)
            case faults.AddWorker(command):
                if (name := f"{command}-2") not in supervisor.processes:
                    self._add(name, command)
            case faults.RemoveWorker(command):
                if (name := f"{command}-2") in supervisor.processes:
                    supervisor.remove(name)
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
                with self.disk.full(supervisor.processes["indexer"].pid):
                    time.sleep(seconds)
            case faults.Switch(items):
                self.producers.crowd(items)
            case faults.ClockJump(seconds, lasting):
                self._clock.write_text(str(seconds))
                time.sleep(lasting)
                self._clock.write_text("0")
        supervisor.look()
        # A pause is over when it ends; a kill when it is done.
        over = time.monotonic() if not kills else began
        self.occurrences.append(Occurrence(fault, over, kills))

    def _visited(self, fault: faults.KillAt, began: float, kills: int) -> None:
        self.occurrences.append(Occurrence(fault, began, kills))

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
        """Wait until all visits are over and everything that was hurt goes on; what does not in time is told in the report."""
        self.supervisor.await_visits()
        deadline = time.monotonic() + seconds
        waiting = self.occurrences
        while (waiting := [hurt for hurt in waiting if self.recovery(hurt) is None]) and time.monotonic() < deadline:
            self.supervisor.look()
            time.sleep(0.2)

    # -- after the faults ----------------------------------------------------------------------------------------------

    def drain(self, seconds: float) -> None:
        """Stop the producers and wait until every process has read everything."""
        self.producers.stop()
        deadline = time.monotonic() + seconds
        while True:
            self.supervisor.look()
            try:
                behind = [lag for lag in read_status(self.settings).lags if lag.records != 0]
            except SidstreamError as error:
                behind = [error]
            if not behind:
                break
            assert time.monotonic() < deadline, f"not drained within {seconds:g} s: {behind}\n{self.supervisor.logs()}"
            time.sleep(0.3)
        time.sleep(3 * self.settings.indexer.counts_interval_seconds)

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
