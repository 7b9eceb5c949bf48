"""The whole pipeline on one machine: an embedded broker unless one is given, the topics, and every process supervised."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import structlog

from streamer.events.topics import topic_specs
from streamer.kafka.admin import create
from streamer.local.broker import LocalBroker
from streamer.local.kafka_distribution import FetchProgress
from streamer.local.supervisor import Supervisor
from streamer.process.ports import require_free_port
from streamer.settings import Settings

log = structlog.get_logger(__name__)
_PROCESSES: Final = ("assigner", "indexer", "monitor")  # and then the retrievers


class Pipeline:
    """Start on entering, end everything on leaving; ``settings`` then names the broker that runs."""

    def __init__(
        self,
        settings: Settings,
        *,
        embedded_broker: bool,
        retrievers: int = 1,
        log_directory: Path | None = None,
        fetch_progress: FetchProgress | None = None,
    ) -> None:
        self.settings = settings
        self._embedded_broker = embedded_broker
        self._retrievers = retrievers
        self._log_directory = log_directory
        self._fetch_progress = fetch_progress
        self._stack = ExitStack()
        self._broker: LocalBroker | None = None
        self._started = 0
        self.supervisor = Supervisor({}, log_directory)

    def __enter__(self) -> Self:
        self._require_free_ports()
        with ExitStack() as stack:
            if self._embedded_broker:
                self._start_broker(stack)
            create(self.settings.kafka, topic_specs(self.settings))
            environment = {"SIDSTREAM_KAFKA__BOOTSTRAP_SERVERS": self.settings.kafka.bootstrap_servers}
            self.supervisor = Supervisor(environment, self._log_directory, self.settings.shutdown_seconds)
            stack.callback(lambda: self.supervisor.stop())
            for name in _PROCESSES:
                self._start(name, name, {})
            for number in range(self._retrievers):
                instance = {"SIDSTREAM_RETRIEVER__INSTANCE": str(number)} if number else {}
                self._start(f"retriever-{number}" if number else "retriever", "retriever", instance)
            self._stack = stack.pop_all()
        return self

    def _start(self, name: str, command: str, environment: dict[str, str]) -> None:
        if port := self.settings.metrics.port:
            environment = {**environment, "SIDSTREAM_METRICS__PORT": str(port + self._started)}
        self._started += 1
        self.supervisor.start(name, [command], environment)

    def _require_free_ports(self) -> None:
        """Before anything runs: what another pipeline of this machine serves on is told once, not by every process in turn."""
        metrics, monitor = self.settings.metrics, self.settings.monitor
        if metrics.port:
            # One machine, one port each: the settings' own and those above it, in the order of starting.
            last = metrics.port + len(_PROCESSES) + self._retrievers - 1
            for port in range(metrics.port, last + 1):
                purpose = f"metrics (`up` takes {metrics.port} to {last}, one a process)"
                require_free_port(metrics.host, port, setting="metrics.port", purpose=purpose)
        if monitor.web_port:
            require_free_port(
                monitor.web_host, monitor.web_port, setting="monitor.web_port", purpose="the monitor's dashboard"
            )

    def _start_broker(self, stack: ExitStack) -> None:
        own = self.settings.broker
        broker = LocalBroker(own.directory, port=own.port, heap=own.heap, progress=self._fetch_progress)
        self._broker = broker
        stack.enter_context(broker)
        kafka: dict[str, Any] = {"bootstrap_servers": broker.bootstrap_servers}
        self.settings = self.settings.model_copy(update={"kafka": self.settings.kafka.model_copy(update=kafka)})

    def watch(self, stop: threading.Event) -> None:
        """Keep the processes running until ``stop`` is set, the embedded broker among them.

        Raises:
            SupervisorError: a process keeps dying.
            BrokerError: the broker died and cannot be started again.
        """
        while not stop.wait(0.2):
            if self._broker is not None and not self._broker.running:
                log.warning("process_died", name="broker", log=str(self._broker.log_file))
                self._broker.start()  # on the same port; the others wait for it
            self.supervisor.check()

    def kill(self) -> None:
        """End every process and the embedded broker with SIGKILL, from any thread: a second signal asks for it."""
        self.supervisor.kill()
        if self._broker is not None:
            self._broker.kill()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()
