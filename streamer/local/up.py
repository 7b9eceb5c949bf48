"""The whole pipeline on one machine: an embedded broker unless one is given, the topics, and every process supervised.

Which assigners and indexers run is what the record ``serving`` says: it is written at the first start, and followed.
"""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import structlog

from models.bundles.bundle import Bundle
from models.bundles.manifest import MANIFEST_FILE, BundleError
from models.bundles.store import BundleStore
from models.errors import SidstreamError
from store.errors import IndexLockedError
from store.files.environment import writer_of
from streamer.deployments.follow import ServingFollower
from streamer.deployments.served import find_serving
from streamer.events.serving import Pipeline as ServedPipeline
from streamer.events.serving import Serving
from streamer.events.topics import topic_specs
from streamer.kafka.admin import create
from streamer.local.broker import LocalBroker
from streamer.local.kafka_distribution import FetchProgress
from streamer.local.preloaded import AVAILABLE, Preloading
from streamer.local.priority import give_way, may_change, take_part
from streamer.local.supervisor import Supervisor
from streamer.operations.generations.adopt import adopt
from streamer.process.ports import require_free_port
from streamer.settings import Settings

log = structlog.get_logger(__name__)
_LAST_PORT: Final = 65_535
_ORPHAN_SECONDS: Final = 5.0  # processes whose `up` was killed see it within a second, and end
_LOOK_SECONDS: Final = 0.1
_OF_A_CODEBOOK: Final = ("assigner", "indexer")
_PROCESSES: Final = (*_OF_A_CODEBOOK, "monitor")  # and then the retrievers, and the gateway


def require_answering(bundle: Bundle, settings: Settings) -> None:
    """What every retriever would refuse after its start. Raises ``BundleError`` for a bundle with nothing that answers."""
    manifest = bundle.manifest
    if manifest.language_model is None and (manifest.dense is None or not settings.retriever.dense):
        raise BundleError(
            f"the bundle {bundle.directory} has no language model yet, and no dense part that would answer meanwhile: run "
            "`sidstream train` on it, or start without a retriever with `--retrievers 0`"
        )


class StartStopped(Exception):
    """Told to stop while still starting: what had been started has ended."""


def _take(ours: dict[int, str], port: int, setting: str) -> None:
    """Notes that ``setting`` takes ``port``. Raises ``SidstreamError`` where another setting of ours has it."""
    if (other := ours.setdefault(port, setting)) != setting:
        raise SidstreamError(f"{other} and {setting} both take port {port}: choose another one for either")


class Pipeline:
    """Start on entering, end everything on leaving; ``settings`` then names the broker that runs."""

    def __init__(
        self,
        settings: Settings,
        *,
        embedded_broker: bool,
        retrievers: int = 1,
        gateway: bool = False,
        log_directory: Path | None = None,
        fetch_progress: FetchProgress | None = None,
        preload: bool = True,
        stop: threading.Event | None = None,
    ) -> None:
        """``gateway``: serve HTTP too.
        ``preload``: keep a process that has imported everything, from which the others are forked, where that can be.
        ``stop``: once it is set, nothing more is started, and entering raises ``StartStopped``."""
        self.settings = settings
        self._embedded_broker = embedded_broker
        self._retrievers = retrievers
        self._gateway = gateway
        self._log_directory = log_directory
        self._fetch_progress = fetch_progress
        self._preload = preload and AVAILABLE
        self._stop = stop or threading.Event()
        self._stack = ExitStack()
        self._broker: LocalBroker | None = None
        self._ports: dict[str, int] = {}
        self._gives_way = may_change()
        self._behind: dict[str, int] = {}  # process ids of those with a low priority
        self._follower: ServingFollower | None = None
        self.supervisor = Supervisor({}, log_directory)

    def __enter__(self) -> Self:
        self._require_free_ports()
        self._require_free_indexes()
        preloading = Preloading(retriever=self._retrievers > 0) if self._preload else None
        with ExitStack() as stack:
            if self._embedded_broker:
                self._start_broker(stack)
            self._go_on()
            serving = self._prepare()
            self._go_on()
            self._follower = stack.enter_context(ServingFollower(self.settings, "up"))
            environment = {"SIDSTREAM_KAFKA__BOOTSTRAP_SERVERS": self.settings.kafka.bootstrap_servers}
            self.supervisor = Supervisor(
                environment, self._log_directory, self.settings.shutdown_seconds, preloading=preloading
            )
            stack.callback(lambda: self.supervisor.stop())
            first, *more = serving.pipelines
            self._start_pipeline(first, vital=True)
            self._start("monitor", "monitor", {})
            for number in range(self._retrievers):
                instance = {"SIDSTREAM_RETRIEVER__INSTANCE": str(number)} if number else {}
                self._start(f"retriever-{number}" if number else "retriever", "retriever", instance)
            if self._gateway:
                self._start("gateway", "gateway", {})
            for pipeline in more:
                self._start_pipeline(pipeline)
            self._go_on()
            self._stack = stack.pop_all()
        return self

    def _go_on(self) -> None:
        """Raises ``StartStopped`` once we are told to stop: what was started is ended again by whoever has started it."""
        if self._stop.is_set():
            raise StartStopped

    def _prepare(self) -> Serving:
        """Topics, and what answers written down: by the settings' bundle, as long as nobody has deployed another one.

        Raises:
            BundleError: what is to answer cannot.
        """
        settings = self.settings
        before = find_serving(settings)
        # The first pipeline's topic, if that was not retired.
        others = before is not None and all(pipeline.suffix for pipeline in before.pipelines)
        create(
            settings.kafka,
            [spec for spec in topic_specs(settings) if not (others and spec.name == settings.topics.item_codes)],
        )
        serving = adopt(settings, again=True)
        store = BundleStore(settings.bundles)
        if self._retrievers:
            require_answering(store.open(serving.bundle), settings)
        if (settings.bundle / MANIFEST_FILE).is_file():
            own = Bundle.open(settings.bundle)
            if serving.pipeline_of(own.id) is None:
                log.warning(
                    "bundle_not_deployed",
                    bundle=str(settings.bundle),
                    answers=serving.bundle,
                    next=f"what was deployed goes on answering; `sidstream deploy {settings.bundle}` puts this one beside it",
                )
        return serving

    def _start_pipeline(self, pipeline: ServedPipeline, *, vital: bool = False) -> None:
        for command in _OF_A_CODEBOOK:
            self._start(command + pipeline.suffix, command, {"SIDSTREAM_PIPELINE": pipeline.codebook}, vital=vital)

    def _follow(self, serving: Serving) -> None:
        """Start and end the processes of pipelines that have come and gone."""
        wanted = {command + one.suffix for one in serving.pipelines for command in _OF_A_CODEBOOK}
        there = self.supervisor.names
        for name in there:
            if name.split("-")[0] in _OF_A_CODEBOOK and name not in wanted and not self.supervisor.is_ending(name):
                log.info("pipeline_ends", name=name)
                self.supervisor.end(name)
                self._ports.pop(name, None)
        for pipeline in serving.pipelines:
            # One that is about to end, and is wanted again, is started once it has.
            if not any(command + pipeline.suffix in there for command in _OF_A_CODEBOOK):
                log.info("pipeline_starts", codebook=pipeline.codebook)
                self._start_pipeline(pipeline)

    def _prioritise(self, serving: Serving) -> None:
        """Processes of a codebook from which nobody is answered, nor was before a change, come after all others."""
        bundles = (serving.bundle, serving.canary, serving.previous)
        answering = {serving.codebook_of(bundle) for bundle in bundles if bundle is not None}
        for pipeline in serving.pipelines:
            for name in (command + pipeline.suffix for command in _OF_A_CODEBOOK):
                pid = self.supervisor.pid(name) if name in self.supervisor.names else None
                if pid is None:
                    continue
                if pipeline.codebook not in answering:
                    if self._behind.get(name) != pid and give_way(pid):
                        self._behind[name] = pid
                elif self._behind.pop(name, None) == pid:
                    take_part(pid)

    def _start(self, name: str, command: str, environment: dict[str, str], *, vital: bool = True) -> None:
        self._go_on()
        if port := self.settings.metrics.port:
            taken = self._ports.values()
            self._ports[name] = next(number for number in range(len(taken) + 1) if number not in taken)
            environment = {**environment, "SIDSTREAM_METRICS__PORT": str(port + self._ports[name])}
        self.supervisor.start(name, [command], environment, vital=vital)

    def _require_free_ports(self) -> None:
        """Before anything runs: what another pipeline of this machine serves on is told once, not by every process in turn."""
        metrics, monitor, gateway, broker = (
            self.settings.metrics,
            self.settings.monitor,
            self.settings.gateway,
            self.settings.broker,
        )
        ours: dict[int, str] = {}
        if self._embedded_broker and broker.port:
            _take(ours, broker.port, "broker.port")  # the broker says by itself whether it is free
        if metrics.port:
            # One machine, one port each: the settings' own and those above it, in the order of starting.
            last = metrics.port + len(_PROCESSES) + self._retrievers + self._gateway - 1
            if last > _LAST_PORT:
                raise SidstreamError(
                    f"metrics.port is {metrics.port}, and `up` takes those to {last}, one a process, where ports end with "
                    f"{_LAST_PORT}: choose a metrics.port of {_LAST_PORT - last + metrics.port} or less"
                )
            for port in range(metrics.port, last + 1):
                _take(ours, port, f"metrics.port ({metrics.port} to {last})")
                purpose = f"metrics (`up` takes {metrics.port} to {last}, one a process)"
                require_free_port(metrics.host, port, setting="metrics.port", purpose=purpose)
        if monitor.web_port:
            _take(ours, monitor.web_port, "monitor.web_port")
            require_free_port(
                monitor.web_host, monitor.web_port, setting="monitor.web_port", purpose="the monitor's dashboard"
            )
        if self._gateway:
            _take(ours, gateway.port, "gateway.port")
            require_free_port(
                gateway.host, gateway.port, setting="gateway.port", purpose="the gateway", may_be_off=False
            )

    def _require_free_indexes(self) -> None:
        """Another `up`, or an indexer by itself, would have its place taken by ours, again and again.

        Raises:
            IndexLockedError: an index is written, and is so still after the time in which a killed `up`'s processes end.
        """
        give_up = time.monotonic() + _ORPHAN_SECONDS
        for index in (self.settings.index, *sorted(self.settings.indexes.glob("*/"))):
            while (writer := writer_of(index)) is not None:
                if time.monotonic() > give_up:
                    raise IndexLockedError(
                        f"the index {index} is written by process {writer}: another `up` runs here, or an indexer. Stop it, or "
                        "give this pipeline an index of its own"
                    )
                if self._stop.wait(_LOOK_SECONDS):
                    raise StartStopped

    def _start_broker(self, stack: ExitStack) -> None:
        own = self.settings.broker
        broker = LocalBroker(
            own.directory, port=own.port, heap=own.heap, short_lived=own.short_lived, progress=self._fetch_progress
        )
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
            self.attend()

    def attend(self) -> None:
        """One look of ``watch``, for whoever has a loop of its own; raises the same."""
        if self._broker is not None and not self._broker.running:
            log.warning("process_died", name="broker", log=str(self._broker.log_file))
            self._broker.start()  # on the same port; the others wait for it
        if self._follower is not None and self._follower.current is not None:
            self._follow(self._follower.current)
        self.supervisor.check()
        if self._gives_way and self._follower is not None and self._follower.current is not None:
            self._prioritise(self._follower.current)

    def kill(self) -> None:
        """End every process and the embedded broker with SIGKILL, from any thread: a second signal asks for it."""
        self.supervisor.kill()
        if self._broker is not None:
            self._broker.kill()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()
