"""The monitor: absolute counts in, layouts, alerts and drift out. A Faust app around pure judgement.

What must hold: an event changes the table or nothing, however often it comes; the timer publishes before it remembers; only
the monitor that holds the partition and the journal publishes. Consequently ``kill -9`` at any point loses nothing.

It judges the codebook from which queries are answered. When that becomes another one, it begins anew with the other's layout and
census; the table holds the counts of all codebooks already.
"""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import structlog
from numpy.typing import NDArray

from models.bundles.bundle import Bundle
from models.errors import SidstreamError
from models.sids.layout import Layout
from streamer.deployments.follow import following
from streamer.deployments.served import own_settings, serving_pipeline
from streamer.events.serving import Serving
from streamer.events.topics import monitor_changelog
from streamer.kafka.admin import await_topics
from streamer.monitor import dashboard
from streamer.monitor.agent import PROCESS, Monitor
from streamer.monitor.faust_app import PASSING_ERRORS, MonitorApp, new_app, raw_schema
from streamer.monitor.login import check_login
from streamer.process.health import Health, Part
from streamer.process.ports import require_free_port
from streamer.process.run import run_process
from streamer.settings import Settings

log = structlog.get_logger(__name__)

_POLL_SECONDS: Final = 0.1
_RETRY_SECONDS: Final = 1.0


def build_app(
    settings: Settings,
    layout: Layout,
    baseline_census: NDArray[np.int64],
    *,
    data_directory: Path,
    health: Health | None = None,
    serving: Callable[[], Serving | None] = lambda: None,
) -> tuple[MonitorApp, Monitor]:
    """The Faust app and the monitor inside it, not connected yet. ``baseline_census``: int64 (L, M) of the bundle; ``serving``:
    what answers now, for the dashboard."""
    app = new_app(settings, data_directory)
    monitor = Monitor(settings, layout, baseline_census, app, health or Health())
    source = app.topic(
        settings.topics.token_counts,
        schema=raw_schema(),
        partitions=1,
        allow_empty=True,  # a tombstone is no count, but no reason to fall over either
    )
    app.agent(source, name="follow", concurrency=1)(monitor.follow)
    app.timer(settings.monitor.interval_seconds, name="look")(monitor.look)
    if settings.monitor.web_port:
        dashboard.add_pages(app, monitor.view, serving)
    return app, monitor


async def _run(
    settings: Settings,
    layout: Layout,
    baseline: NDArray[np.int64],
    over: Callable[[], bool],
    health: Health,
    serving: Callable[[], Serving | None],
) -> None:
    await check_login(settings.kafka)
    with tempfile.TemporaryDirectory(prefix="sidstream-monitor-") as folder:
        app, monitor = build_app(
            settings, layout, baseline, data_directory=Path(folder), health=health, serving=serving
        )
        health.set_unready(Part.INPUT, "the table of counts is being recovered")
        starting = asyncio.ensure_future(app.start())
        try:
            while not over() and not app.should_stop and app.crash_reason is None:
                if starting.done():
                    starting.result()
                if monitor.looks:
                    health.progress()
                await asyncio.sleep(_POLL_SECONDS)
        finally:
            health.set_unready(Part.INPUT, "the monitor's app is not running")
            await app.stop()
            monitor.close()
            if not starting.done():
                starting.cancel()
        if app.crash_reason is not None:
            raise app.crash_reason


def monitor_until_stopped(
    settings: Settings,
    layout: Layout,
    baseline: NDArray[np.int64],
    stop: threading.Event,
    health: Health,
    other_serves: Callable[[], bool] = lambda: False,
    serving: Callable[[], Serving | None] = lambda: None,
) -> None:
    """Run monitors one after the other until ``stop`` is set, or ``other_serves``: a broker that goes away is waited for.
    ``serving``: what answers now, for the dashboard.

    Raises:
        MissingTopicsError: a topic is not there.
        FatalKafkaError: the broker refuses, or another monitor took over.
        PortInUseError: something else listens on the dashboard's port.
    """
    if port := settings.monitor.web_port:
        # Faust's app would die of it as of a broker that is away, and be started again for ever.
        require_free_port(
            settings.monitor.web_host, port, setting="monitor.web_port", purpose="the monitor's dashboard"
        )
    health.set_ready(Part.START)

    def over() -> bool:
        return stop.is_set() or other_serves()

    while not other_serves() and await_topics(settings, _topics(settings), stop, health):
        try:
            asyncio.run(_run(settings, layout, baseline, over, health, serving))
        except PASSING_ERRORS as error:
            # Whatever was not acknowledged comes again: a new app starts from the topics.
            log.warning("monitor_starts_again", reason=f"{type(error).__name__}: {error}")
            health.set_unready(Part.BROKER, str(error))
            stop.wait(_RETRY_SECONDS)


def run_monitor(settings: Settings) -> None:
    """Run the process until it is told to stop."""

    def work(stop: threading.Event, health: Health) -> None:
        with following(settings, PROCESS, stop, health) as current:
            if current is None:
                return
            judged = _judged(settings, current())
            while not stop.is_set():
                bundle = Bundle.open(judged.bundle)
                other = _Other(settings, bundle.layout.codebook_id, current)
                baseline = np.array(bundle.manifest.census, dtype=np.int64)
                monitor_until_stopped(settings, bundle.layout, baseline, stop, health, other.serves, current)
                judged = other.judged or judged

    run_process(PROCESS, settings, work)


class _Other:
    """Tells when queries are answered from another codebook than the one that is judged, and this machine has its bundle."""

    def __init__(self, settings: Settings, codebook: str, current: Callable[[], Serving | None]) -> None:
        self._settings = settings
        self._codebook = codebook
        self._current = current
        self._asked: int | None = None  # the number of the record that was looked at last
        self.judged: Settings | None = None

    def serves(self) -> bool:
        serving = self._current()
        if self.judged is not None or serving is None or serving.number == self._asked:
            return self.judged is not None
        self._asked = serving.number
        codebook = serving.codebook_of(serving.bundle)
        if codebook == self._codebook:
            return False
        try:
            self.judged = _judged(self._settings, serving)
        except SidstreamError as error:
            log.error(
                "codebook_not_followed", codebook=codebook, reason=str(error), next="the one of before is judged on"
            )
            return False
        log.info("codebook_judged", codebook=codebook, before=self._codebook)
        return True


def _judged(settings: Settings, serving: Serving | None) -> Settings:
    """Of the pipeline that answers. Raises ``BundleError`` if its bundle is not on this machine."""
    codebook = "" if serving is None else serving_pipeline(serving).codebook
    return own_settings(settings.model_copy(update={"pipeline": codebook}), serving)


def _topics(settings: Settings) -> list[str]:
    topics = settings.topics
    return [topics.token_counts, topics.layouts, topics.alerts, topics.drift, monitor_changelog(settings)]
