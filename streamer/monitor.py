"""The monitor: absolute counts in, layouts, alerts and drift out. A Faust app around pure judgement.

What must hold: an event changes the table or nothing, however often it comes; the timer publishes before it remembers; only
the monitor that holds the partition and the journal publishes. Consequently ``kill -9`` at any point loses nothing.
"""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import structlog
from faust.types.tuples import TP
from numpy.typing import NDArray

from models.bundle import Bundle
from models.layout import MAXIMUM_LAYERS, MAXIMUM_SIZE, Layout
from streamer import dashboard
from streamer.evaluation import Evaluator, Memory, Outcome
from streamer.faust_app import PASSING_ERRORS, MonitorApp, check_login, new_app, raw_schema
from streamer.health import Health, Part
from streamer.journal import Journal, JournalUnavailable
from streamer.metrics import EVENTS, LAG_RECORDS, LAYOUT_GENERATION
from streamer.monitor_metrics import (
    BAD_COUNTS,
    DEVIATION,
    ENTROPY,
    FIRING,
    FOREIGN_COUNTS,
    GINI,
    HEAD_SHARE,
    HEAD_TOKENS,
    LOOK_SECONDS,
)
from streamer.process import run_process
from streamer.records import TOKEN_COUNT, TokenCount, token_count_key
from streamer.rolling_window import LiveCensus, TokenState, WindowShape, apply_count, decode_state, encode_state
from streamer.settings import Settings
from streamer.topics import MONITOR_TABLE, await_topics, monitor_changelog

log = structlog.get_logger(__name__)

PROCESS: Final = "monitor"
# After a take-over the counts that waited are read first, but judgement does not wait for ever behind a busy stream.
_CATCH_UP_SECONDS: Final = 20.0
_POLL_SECONDS: Final = 0.1
_RETRY_SECONDS: Final = 1.0


class Monitor:
    """State beside the app: the live census, the memory of what was published, and whether this process is the active one."""

    def __init__(
        self, settings: Settings, layout: Layout, baseline_census: NDArray[np.int64], app: MonitorApp, health: Health
    ) -> None:
        self.settings = settings.monitor
        self.evaluator = Evaluator(settings.monitor, layout, baseline_census)
        self.baseline_census = baseline_census
        self.memory: Memory | None = None
        self.shape = WindowShape.of(settings.monitor.bucket_seconds, settings.monitor.buckets)
        self.census = LiveCensus(layout.layers, layout.size, self.shape)
        self.history: list[dashboard.Sample] = []
        self._layout = layout
        self._app = app
        self._health = health
        self._journal = Journal(settings, health)
        self._partition = TP(settings.topics.token_counts, 0)
        self._taken_over_in: int | None = None  # the consumer group's generation
        self._taken_over_at = 0.0
        self._counts_end: int | None = None
        self._position = 0
        self._handled = self._handled_before = self._bad = 0
        self._looked_at: float | None = None
        self._table: Any = app.Table(
            MONITOR_TABLE,
            partitions=1,
            # Bytes: Faust's recovery skips a record that it cannot decode, with nothing but a warning.
            key_type=bytes,
            value_type=bytes,
            help="newest absolute count and rolling window of each token",
        )
        self._table.on_recover(self._fill_census)

    async def follow(self, stream: Any) -> None:
        """The agent: each event replaces a token's count, or changes nothing."""
        async for event in stream.events():
            self._handled += 1
            self._position = event.message.offset + 1
            count = checked_count(event.value)
            if count is None:
                self._bad += 1  # told once a look, not once an event
                continue
            key = token_count_key(count.codebook, count.layer, count.token)
            known = self._table.get(key)
            state = apply_count(
                None if known is None else decode_state(known), count, int(event.message.timestamp * 1000), self.shape
            )
            if state is not None:
                self._table[key] = encode_state(state)
                self._show(count, state)

    def _show(self, count: TokenCount, state: TokenState) -> None:
        # Counts of other codebooks stay in the table: they may be the bundle's after the next restart, and their events
        # will not come again.
        if count.codebook != self._layout.codebook_id or count.layer > self._layout.layers:
            FOREIGN_COUNTS.inc()
        elif count.token >= self._layout.size:
            self._bad += 1
        else:
            self.census.put(count.layer - 1, count.token, state)

    async def _fill_census(self) -> None:
        """After a recovery: address every token by its number, as a Faust table must not be iterated."""
        self.census.clear()
        codebook, layers, size = self._layout.codebook_id, self._layout.layers, self._layout.size
        for layer_index in range(layers):
            for token in range(size):
                value = self._table.get(token_count_key(codebook, layer_index + 1, token))
                if value is not None:
                    self.census.put(layer_index, token, decode_state(value))
        log.info("table_recovered", items=int(self.census.counts[0].sum()), as_of=self.census.as_of)

    async def look(self) -> None:
        """The timer: judge the counts, publish, remember. A standby does nothing."""
        with self._health.working("a look at the counts"):  # it waits for the broker, with deadlines of its own
            await self._look()
        self._looked_at = time.monotonic()

    @property
    def looks(self) -> bool:
        """Whether the timer does what it should; it begins once the table is recovered."""
        return self._looked_at is None or time.monotonic() - self._looked_at < self.settings.interval_seconds + 1.0

    async def _look(self) -> None:
        events, self._handled_before = self._handled - self._handled_before, self._handled
        EVENTS.labels(PROCESS).inc(events)
        if self._bad:
            BAD_COUNTS.inc(self._bad)
            log.warning("bad_counts_skipped", records=self._bad, topic=self._partition.topic)
            self._bad = 0
        self._journal.notice()
        if not self._health.is_well(Part.BROKER) and not await asyncio.to_thread(self._journal.answers):
            return
        if not self.active:
            self._taken_over_in = None
            if self._app.rebalancing:
                self._health.set_unready(Part.INPUT, "the consumer group rebalances")
            else:  # a standby is where it should be
                self._health.set_ready(Part.BROKER)
                self._health.set_ready(Part.INPUT)
            return
        try:
            if not self._journal.is_open or self._taken_over_in != self._app.consumer_generation_id:
                await self._take_over()
            if await self._still_catching_up(events):
                self._health.set_ready(Part.BROKER)
                self._health.set_unready(Part.INPUT, f"reading the counts up to offset {self._counts_end}")
                return
            await self._judge(events)
        except JournalUnavailable as reason:
            log.warning("publishing_repeated", reason=str(reason))
            # A commit whose answer was lost may have happened: only the topics know.
            self._taken_over_in = None
            self._health.set_unready(Part.BROKER, str(reason))
        else:
            self._health.set_ready(Part.BROKER)
            self._health.set_ready(Part.INPUT)
            await self._show_lag(events)

    @property
    def active(self) -> bool:
        """Whether this process holds the partition and its table is recovered."""
        return bool(
            not self._app.rebalancing
            and self._app.tables.actives_ready
            and self._partition in self._app.consumer.assignment()
        )

    async def _take_over(self) -> None:
        generation = self._app.consumer_generation_id
        history = await asyncio.to_thread(self._journal.take_over)
        self.memory = self.evaluator.remember(history.layouts, history.alerts)
        self._taken_over_in = generation
        self._taken_over_at = time.monotonic()
        self._counts_end = history.counts_end
        log.info(
            "active",
            generation=self.memory.layout.generation,
            head_tokens=len(self.memory.layout.head_tokens),
            firing=len(self.memory.firing),
        )

    async def _still_catching_up(self, events: int) -> bool:
        """True while counts that were published before the take-over are still coming in."""
        if self._counts_end is None:
            return False
        if self._position < self._counts_end and time.monotonic() - self._taken_over_at < _CATCH_UP_SECONDS:
            # A transaction's marker and a compacted record take offsets that no event ever comes from.
            fetched = await self._app.consumer.position(self._partition)
            if events or fetched is None or fetched < self._counts_end:
                return True
        self._counts_end = None
        return False

    async def _show_lag(self, events: int) -> None:
        end = self._app.consumer.highwater(self._partition)
        # Between events only the fetched position knows of offsets that no event ever comes from.
        position = self._position if events else await self._app.consumer.position(self._partition)
        if end is not None and position is not None:
            LAG_RECORDS.labels(PROCESS, self._partition.topic).set(max(0, end - position))

    async def _judge(self, events: int) -> None:
        assert self.memory is not None
        started, now = time.monotonic(), int(time.time() * 1000)
        growth = self.census.growth(now)
        outcome = self.evaluator.evaluate(
            self.memory, self.census.counts, growth, window_seconds=self.shape.seconds, now=now
        )
        if not outcome.empty:
            await asyncio.to_thread(self._journal.publish, outcome)
        self.memory = outcome.memory
        LOOK_SECONDS.observe(time.monotonic() - started)
        self._tell(outcome, events)
        if outcome.drift is not None:
            self.history = [*self.history[-dashboard.SAMPLES :], dashboard.sample(outcome.drift)]

    def _tell(self, outcome: Outcome, events: int) -> None:
        memory = outcome.memory
        LAYOUT_GENERATION.labels(PROCESS).set(memory.layout.generation)
        HEAD_TOKENS.set(len(memory.layout.head_tokens))
        for severity in ("info", "warning", "critical"):
            FIRING.labels(severity).set(sum(alert.severity == severity for alert in memory.firing.values()))
        if outcome.layout is not None:
            log.info("layout_issued", generation=outcome.layout.generation, cause=outcome.layout.cause)
        if outcome.alerts:
            log.info("alerts", **{alert.key: f"{alert.state} ({alert.severity})" for alert in outcome.alerts})
        if outcome.drift is not None:
            for layer in outcome.drift.layers:
                ENTROPY.labels(layer.layer).set(layer.entropy)
                GINI.labels(layer.layer).set(layer.gini)
                DEVIATION.labels(layer.layer).set(layer.standard_deviation)
                HEAD_SHARE.labels(layer.layer).set(layer.head_share)
        if events:
            log.info("counts", events=events, items=int(self.census.counts[0].sum()), as_of=self.census.as_of)

    def close(self) -> None:
        self._journal.close()


def checked_count(value: bytes | None) -> TokenCount | None:
    """The count in a record's value; ``None`` if there is none that the census and the table can hold."""
    try:
        count: TokenCount = TOKEN_COUNT.decode(value or b"")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    # The census is an array of int64: a larger count would end the app, and again after every recovery.
    usable = 0 <= count.n < 1 << 62 and 0 <= count.as_of < 1 << 62
    return count if usable and 1 <= count.layer <= MAXIMUM_LAYERS and 0 <= count.token < MAXIMUM_SIZE else None


def build_app(
    settings: Settings,
    layout: Layout,
    baseline_census: NDArray[np.int64],
    *,
    data_directory: Path,
    health: Health | None = None,
) -> tuple[MonitorApp, Monitor]:
    """The Faust app and the monitor inside it, not connected yet. ``baseline_census``: int64 (L, M) of the bundle."""
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
        dashboard.add_pages(app, monitor)
    return app, monitor


async def _run(
    settings: Settings, layout: Layout, baseline: NDArray[np.int64], stop: threading.Event, health: Health
) -> None:
    await check_login(settings.kafka)
    with tempfile.TemporaryDirectory(prefix="sidstream-monitor-") as folder:
        app, monitor = build_app(settings, layout, baseline, data_directory=Path(folder), health=health)
        health.set_unready(Part.INPUT, "the table of counts is being recovered")
        starting = asyncio.ensure_future(app.start())
        try:
            while not stop.is_set() and not app.should_stop and app.crash_reason is None:
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
    settings: Settings, layout: Layout, baseline: NDArray[np.int64], stop: threading.Event, health: Health
) -> None:
    """Run monitors one after the other until ``stop`` is set: a broker that goes away is waited for.

    Raises:
        MissingTopicsError: a topic is not there.
        FatalKafkaError: the broker refuses, or another monitor took over.
    """
    health.set_ready(Part.START)
    while await_topics(settings.kafka, _topics(settings), stop, health):
        try:
            asyncio.run(_run(settings, layout, baseline, stop, health))
        except PASSING_ERRORS as error:
            # Whatever was not acknowledged comes again: a new app starts from the topics.
            log.warning("monitor_starts_again", reason=f"{type(error).__name__}: {error}")
            health.set_unready(Part.BROKER, str(error))
            stop.wait(_RETRY_SECONDS)


def run_monitor(settings: Settings) -> None:
    """Run the process until it is told to stop."""

    def work(stop: threading.Event, health: Health) -> None:
        bundle = Bundle.open(settings.bundle)
        baseline = np.array(bundle.manifest.census, dtype=np.int64)
        monitor_until_stopped(settings, bundle.layout, baseline, stop, health)

    run_process(PROCESS, settings, work)


def _topics(settings: Settings) -> list[str]:
    topics = settings.topics
    changelog = monitor_changelog(settings.monitor.app_id, MONITOR_TABLE)
    return [topics.token_counts, topics.layouts, topics.alerts, topics.drift, changelog]
