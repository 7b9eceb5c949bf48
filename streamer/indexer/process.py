"""The indexer: codes and layouts into LMDB, exactly once, and the census' absolute counts out to the monitor.

Every partition is assigned, not subscribed: each host holds the whole index. The next offsets lie in the LMDB
transaction of the data, so a ``kill -9`` loses nothing and repeats nothing. Counts are absolute and carry how many
records they include (``as_of``): publishing one again changes nothing, so after a start the whole census is published.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Final

import structlog
from confluent_kafka import OFFSET_BEGINNING, Consumer, Message, Producer, TopicPartition

from models.bundles.bundle import Bundle
from models.sids.layout import Layout
from store.writer import IndexWriter
from streamer.events.layouts import layout_of
from streamer.events.topics import TOMBSTONE_RETENTION_MS
from streamer.indexer.census_publisher import CensusPublisher
from streamer.indexer.codes import IndexerError, codes_batch, layout_record, next_offsets
from streamer.indexer.metrics import COMMIT_SECONDS, ITEMS, StorageMetrics
from streamer.kafka.admin import await_topics
from streamer.kafka.clients import consumer_configuration, producer_configuration
from streamer.kafka.gather import drain
from streamer.kafka.input_progress import InputProgress
from streamer.kafka.reachability import BrokerProbe, ClientCutOffError
from streamer.kafka.read_to_end import partitions_of, watermarks
from streamer.process.batch_log import BatchSummary
from streamer.process.health import Health, Part
from streamer.process.metrics import (
    BATCH_EVENTS,
    BATCH_SECONDS,
    EVENTS,
    FRESHNESS_SECONDS,
    LAYOUT_GENERATION,
    observe_ages,
)
from streamer.process.run import collect_garbage_rarely, run_process
from streamer.settings import Settings

log = structlog.get_logger(__name__)
PROCESS: Final = "indexer"
_IDLE_WAIT_SECONDS: Final = 0.1
_LIFE_SIGN_SECONDS: Final = 3_600.0


class Indexer:
    """Reads ``item-codes`` and ``layouts`` from the offsets that the index holds, and applies them batch by batch."""

    def __init__(self, settings: Settings, writer: IndexWriter, layout: Layout, health: Health) -> None:
        """``layout``: any layout of the index's codebook, for its id, layers and size."""
        self._settings = settings
        self._writer = writer
        self._codebook = layout
        self._positions = writer.offsets()
        self._health = health
        self._codes_topic = settings.topics.item_codes
        self._layouts_topic = settings.topics.layouts
        self._token_counts_topic = settings.topics.token_counts
        self._input = InputProgress(PROCESS, health, f"the ends of {self._codes_topic} are not read yet")
        self._storage = StorageMetrics(writer)
        self._summary = BatchSummary()
        self._committed_at = time.monotonic()

    def run(self, stop: threading.Event) -> None:
        self._health.set_ready(Part.START)
        while True:
            try:
                self._run(stop)
                return
            except ClientCutOffError as reason:
                log.warning("clients_replaced", reason=str(reason))

    def _run(self, stop: threading.Event) -> None:
        settings = self._settings
        consumer = Consumer(
            consumer_configuration(
                settings.kafka,
                group=f"{settings.topics.prefix}sidstream-indexer",  # asked for by the client; never used for offsets
                health=self._health,
                enable_partition_eof=True,
            )
        )
        producer = Producer(producer_configuration(settings.kafka, health=self._health))
        publisher = CensusPublisher(
            producer,
            settings.topics.token_counts,
            self._writer,
            self._codebook.codebook_id,
            interval_seconds=settings.indexer.counts_interval_seconds,
        )
        self._broker = BrokerProbe((consumer, producer), settings.kafka, self._health)
        try:
            self._assign(consumer)
            self._broker.answered()
            while not stop.is_set():
                self._one_batch(consumer, publisher)
            publisher.publish(self._as_of())
            publisher.flush()
        finally:
            consumer.close()

    def _assign(self, consumer: Consumer) -> None:
        """Start where the index stands.

        Raises:
            IndexerError: the index is ahead of the topic, or so old that deletions may have been compacted away.
        """
        assignment, ends = [], {}
        for topic in (self._codes_topic, self._layouts_topic):
            for partition in partitions_of(consumer, topic):
                offset = self._positions.get((topic, partition), OFFSET_BEGINNING)
                low, high = watermarks(consumer, topic, partition)
                if offset > high:
                    raise IndexerError(
                        f"the index stands at offset {offset} of {topic}/{partition}, which ends at {high}: the topic was "
                        f"made anew. Delete {self._settings.index} (it is a cache) and start again. Make "
                        f"{self._token_counts_topic} and the monitor's changelog anew too, or the monitor waits for counts newer "
                        "than those it knows"
                    )
                log.info("partition_assigned", topic=topic, partition=partition, offset=max(offset, low), end=high)
                assignment.append(TopicPartition(topic, partition, offset))
                ends[topic, partition] = high
        with self._writer.snapshot() as snapshot:
            age_ms = time.time() * 1000 - snapshot.last_commit_at
            ITEMS.set(snapshot.item_count)
            if (live := snapshot.live_layout()) is not None:
                LAYOUT_GENERATION.labels(PROCESS).set(live.generation)
        if self._positions and age_ms > TOMBSTONE_RETENTION_MS:
            raise IndexerError(
                f"the index was last written {age_ms / 86_400_000:.0f} days ago; deletions "
                f"older than {TOMBSTONE_RETENTION_MS // 86_400_000} days are compacted away and would be missed. "
                f"Delete {self._settings.index} (it is a cache) and start again"
            )
        consumer.assign(assignment)
        self._input.assign(ends, self._positions)
        self._storage.show()

    def _one_batch(self, consumer: Consumer, publisher: CensusPublisher) -> None:
        own = self._settings.indexer
        started = time.monotonic()
        self._health.progress()
        records = drain(consumer, own.batch_size, _IDLE_WAIT_SECONDS, self._on_end)
        if not records:
            self._summary.idle()
            publisher.publish_if_due(self._as_of())
            self._show_life()
            self._show_progress(consumer, {})
            return
        codes = [record for record in records if record.topic() == self._codes_topic]
        done: dict[tuple[str, int], int] = {}
        if codes:
            offsets = next_offsets(codes)
            done |= offsets
            batch = codes_batch(codes, self._codebook)
            with self._health.working(f"an index batch of {len(codes)} events"), COMMIT_SECONDS.time():
                outcome = self._writer.apply(batch, offsets)
            self._positions |= offsets
            publisher.add(outcome.changed_tokens)
            ITEMS.set(outcome.items)
            observe_ages(FRESHNESS_SECONDS.labels(PROCESS), codes)
        for record in records:
            if record.topic() == self._layouts_topic:
                self._put_layout(record)
                done |= next_offsets([record])
        publisher.publish_if_due(self._as_of())
        self._committed_at = time.monotonic()
        self._show_progress(consumer, done)

        seconds = time.monotonic() - started
        EVENTS.labels(PROCESS).inc(len(records))
        BATCH_EVENTS.labels(PROCESS).observe(len(records))
        BATCH_SECONDS.labels(PROCESS).observe(seconds)
        self._summary.add(len(records), seconds)
        rest = own.minimum_batch_interval_ms / 1000 - (time.monotonic() - started)
        if rest > 0:
            time.sleep(rest)

    def _show_progress(self, consumer: Consumer, next_offsets: Mapping[tuple[str, int], int]) -> None:
        self._input.advance(next_offsets)
        self._input.show_lag(consumer)
        self._storage.show()
        self._broker.look()

    def _show_life(self) -> None:
        """Date an idle index anew: that nothing was written for a week must mean that nobody read for a week."""
        if self._input.caught_up and time.monotonic() - self._committed_at > _LIFE_SIGN_SECONDS:
            self._writer.apply(codes_batch([], self._codebook), {})
            self._committed_at = time.monotonic()

    def _put_layout(self, record: Message) -> None:
        layout = layout_record(record, self._codebook.codebook_id)
        if layout is None:
            key = (record.key() or b"").decode(errors="replace")
            log.info("layout_skipped", offset=record.offset(), key=key)
            return
        self._writer.put_layout(layout_of(layout), next_offsets([record]))
        LAYOUT_GENERATION.labels(PROCESS).set(layout.generation)
        log.info("layout_live", generation=layout.generation, head_tokens=len(layout.head_tokens), cause=layout.cause)

    def _as_of(self) -> int:
        """How many ``item-codes`` records the index includes: the sum of next offsets, the same on every host."""
        return sum(offset for (topic, _), offset in self._positions.items() if topic == self._codes_topic)

    def _on_end(self, end: Message) -> None:
        self._input.end_reached((end.topic(), end.partition()), end.offset())


def run_indexer(settings: Settings) -> None:
    """Run the process until it is told to stop."""

    def work(stop: threading.Event, health: Health) -> None:
        bundle = Bundle.open(settings.bundle)
        layout = bundle.layout
        topics = settings.topics
        if not await_topics(settings, [topics.item_codes, topics.layouts, topics.token_counts], stop, health):
            return
        with IndexWriter.open(
            settings.index,
            codebook_id=layout.codebook_id,
            layers=layout.layers,
            size=layout.size,
            map_size=settings.indexer.map_bytes,
        ) as writer:
            writer.put_layout(layout, {})
            collect_garbage_rarely()
            Indexer(settings, writer, layout, health).run(stop)

    run_process(PROCESS, settings, work)
