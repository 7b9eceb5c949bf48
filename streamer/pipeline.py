"""The whole pipeline on one machine: an embedded broker unless one is given, the topics, and every process supervised."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from streamer.broker import LocalBroker
from streamer.kafka_distribution import FetchProgress
from streamer.settings import Settings
from streamer.supervisor import Supervisor
from streamer.topics import create, topic_specs


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
        self.supervisor = Supervisor({}, log_directory)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            if self._embedded_broker:
                self._start_broker(stack)
            create(self.settings.kafka, topic_specs(self.settings))
            environment = {"SIDSTREAM_KAFKA__BOOTSTRAP_SERVERS": self.settings.kafka.bootstrap_servers}
            self.supervisor = Supervisor(environment, self._log_directory)
            stack.callback(lambda: self.supervisor.stop())
            for name in ("assigner", "indexer", "monitor"):
                self.supervisor.start(name, [name])
            for number in range(self._retrievers):
                instance = {"SIDSTREAM_RETRIEVER__INSTANCE": str(number)} if number else {}
                self.supervisor.start(f"retriever-{number}" if number else "retriever", ["retriever"], instance)
            self._stack = stack.pop_all()
        return self

    def _start_broker(self, stack: ExitStack) -> None:
        own = self.settings.broker
        broker = LocalBroker(own.directory, port=own.port, heap=own.heap, progress=self._fetch_progress)
        stack.enter_context(broker)
        kafka: dict[str, Any] = {"bootstrap_servers": broker.bootstrap_servers}
        self.settings = self.settings.model_copy(update={"kafka": self.settings.kafka.model_copy(update=kafka)})

    def watch(self, stop: threading.Event) -> None:
        """Keep the processes running until ``stop`` is set."""
        while not stop.wait(0.2):
            self.supervisor.check()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()
