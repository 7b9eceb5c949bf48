"""The monitor's state beside the Faust app: what an event changes, and what the timer does about it."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Any, Final

import numpy as np
import structlog
from faust.types.tuples import TP
from numpy.typing import NDArray

from models.sids.layout import MAXIMUM_LAYERS, MAXIMUM_SIZE, Layout
from streamer.events.records import TOKEN_COUNT, UNDECODABLE, TokenCount, token_count_key
from streamer.events.topics import MONITOR_TABLE
from streamer.monitor.dashboard import SAMPLES, Judged, MonitorView, Sample
from streamer.monitor.faust_app import MonitorApp
from streamer.monitor.journal import Journal, JournalUnavailable
from streamer.monitor.look import Judge, Memory, Outcome
from streamer.monitor.metrics import (
    BAD_COUNTS,
    CROWDED_SHARE,
    DEVIATION,
    ENTROPY,
    FIRING,
    FOREIGN_COUNTS,
    GINI,
    HEAD_TOKENS,
    LOOK_SECONDS,
)
from streamer.monitor.token_state import (
    LiveCensus,
    TokenState,
    WindowShape,
    apply_count,
    decode_state,
    divided_anew,
    encode_state,
)
from streamer.process.health import Health, Part
from streamer.process.metrics import EVENTS, LAG_RECORDS, LAYOUT_GENERATION
from streamer.settings import Settings
from streamer.shards.partitions import EVERY, numbers_of

log = structlog.get_logger(__name__)
PROCESS: Final = "monitor"
# After a take-over the counts that waited are read first, but judgement does not wait for ever behind a busy stream.
_CATCH_UP_SECONDS: Final = 20.0


class Monitor:
    """State beside the app: the live census, the memory of what was published, and whether this process is the active one."""

    def __init__(
        self, settings: Settings, layout: Layout, baseline_census: NDArray[np.int64], app: MonitorApp, health: Health
    ) -> None:
        self.settings = settings.monitor
        self._judge = Judge(settings.monitor, layout, baseline_census)
        self._baseline_census = baseline_census
        self.memory: Memory | None = None
        self.shape = WindowShape.of(settings.monitor.bucket_seconds, settings.monitor.buckets)
        self.census = LiveCensus(layout.layers, layout.size, self.shape)
        self._samples: deque[Sample] = deque(maxlen=SAMPLES)
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
        self._divided_anew: set[tuple[str, str]] = set()  # told once each
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
            # Without its shard: a recovery addresses every token by its number.
            key = token_count_key(count.codebook, count.layer, count.token)
            found, seconds = self._table.get(key), event.message.timestamp
            known = None if found is None else decode_state(found)
            state = apply_count(
                known,
                count,
                None if seconds is None else round(seconds * 1000),
                self.shape,
                now=int(time.time() * 1000),
            )
            if state is not None:
                self._tell_of_shards(known, count)
                self._table[key] = encode_state(state)
                self._show(count, state)

    def _tell_of_shards(self, known: TokenState | None, count: TokenCount) -> None:
        for before in divided_anew(known, count):
            change = before, count.partitions or EVERY
            if change not in self._divided_anew:
                self._divided_anew.add(change)
                log.warning(
                    "partitions_divided_anew",
                    counts_of=change[1] or "all partitions",
                    in_the_place_of=before or "all partitions",
                    next="the indexers that counted those before must not run any more: both would take turns",
                )

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
            await self._judge_counts(events)
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
        published = await asyncio.to_thread(self._journal.take_over)
        self.memory = self._judge.remember(published.layouts, published.alerts)
        self._taken_over_in = generation
        self._taken_over_at = time.monotonic()
        self._counts_end = published.counts_end
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

    async def _judge_counts(self, events: int) -> None:
        assert self.memory is not None
        started, now = time.monotonic(), int(time.time() * 1000)
        growth = self.census.growth(now)
        outcome = self._judge.look(self.memory, self.census.counts, growth, window_seconds=self.shape.seconds, now=now)
        if not outcome.empty:
            await asyncio.to_thread(self._journal.publish, outcome)
        self.memory = outcome.memory
        LOOK_SECONDS.observe(time.monotonic() - started)
        self._tell(outcome, events)
        if outcome.drift is not None:
            self._samples.append(Sample.of(outcome.drift))

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
                CROWDED_SHARE.labels(layer.layer).set(layer.crowded_share)
        if events:
            log.info("counts", events=events, items=int(self.census.counts[0].sum()), as_of=self.census.as_of)

    def view(self, now: int) -> MonitorView:
        """What the dashboard shows at ``now``, in milliseconds."""
        memory = self.memory
        return MonitorView(
            codebook=self._layout.codebook_id,
            counts=self.census.counts,
            as_of=self.census.as_of,
            growth=self.census.growth(now),
            window_seconds=self.shape.seconds,
            baseline_census=self._baseline_census,
            baseline=self._judge.baseline_metrics,
            samples=list(self._samples),
            judged=None
            if memory is None
            else Judged(memory.layout, memory.issued, tuple(memory.firing.values()), memory.drift),
        )

    def close(self) -> None:
        self._journal.close()


def checked_count(value: bytes | None) -> TokenCount | None:
    """The count in a record's value; ``None`` if there is none that the census and the table can hold."""
    try:
        count: TokenCount = TOKEN_COUNT.decode(value or b"")
        numbers_of(count.partitions or EVERY)
    except (*UNDECODABLE, ValueError):
        return None
    # The census is an array of int64: a larger count would end the app, and again after every recovery.
    usable = 0 <= count.n < 1 << 62 and 0 <= count.as_of < 1 << 62
    return count if usable and 1 <= count.layer <= MAXIMUM_LAYERS and 0 <= count.token < MAXIMUM_SIZE else None
