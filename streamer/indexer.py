"""The indexer: codes and layouts into LMDB, exactly once, and the census' absolute counts out to the monitor.

Every partition is assigned, not subscribed: each host holds the whole index. The next offsets lie in the LMDB
transaction of the data, so a ``kill -9`` loses nothing and repeats nothing. Counts are absolute and carry how many
records they include (``as_of``): publishing one again changes nothing, so after a start the whole census is published.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from typing import Final

import numpy as np
import structlog
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Message, Producer, TopicPartition

from models.bundle import Bundle
from models.layout import Layout
from store.failpoints import Failpoint, reach
from store.index import IndexWriter
from streamer.codes_intake import IndexerError, codes_batch, layout_of, layout_record, next_offsets
from streamer.health import Health, Part
from streamer.indexer_metrics import COMMIT_SECONDS, ITEMS, StorageMetrics
from streamer.input_progress import InputProgress
from streamer.kafka import consumer_configuration, drain, produce, producer_configuration
from streamer.log_reading import partitions_of, watermarks
from streamer.metrics import BATCH_EVENTS, BATCH_SECONDS, EVENTS, FRESHNESS_SECONDS, LAYOUT_GENERATION, observe_ages
from streamer.process import collect_garbage_rarely, run_process
from streamer.reachability import BrokerProbe, ClientCutOffError
from streamer.records import TOKEN_COUNT, TokenCount, token_count_key
from streamer.settings import Settings
from streamer.summary import BatchSummary
from streamer.topics import TOMBSTONE_RETENTION_MS, await_topics

log = structlog.get_logger(__name__)

PROCESS: Final = "indexer"
_IDLE_WAIT_SECONDS: Final = 0.1
_BROKER_SECONDS: Final = 10.0
_LIFE_SIGN_SECONDS: Final = 3_600.0


class CensusPublisher:
    """Publishes absolute counts of changed tokens, coalesced; the whole census first, and again after a lost delivery."""

    def __init__(
        self, producer: Producer, topic: str, writer: IndexWriter, codebook_id: str, *, interval_seconds: float
    ) -> None:
        self._producer = producer
        self._topic = topic
        self._codebook_id = codebook_id
        self._writer = writer
        self._interval_seconds = interval_seconds
        self._changed: dict[tuple[int, int], int] = {}
        self._published_at = float("-inf")
        self._everything = True

    def add(self, changed: Iterable[tuple[int, int, int]]) -> None:
        """Remember new absolute counts: (layer index, token, count)."""
        for layer_index, token, count in changed:
            self._changed[layer_index, token] = count

    def publish_if_due(self, as_of: int) -> None:
        now = time.monotonic()
        if now - self._published_at < self._interval_seconds:
            self._producer.poll(0)
            return
        self._published_at = now
        self.publish(as_of)

    def publish(self, as_of: int) -> None:
        """Send what changed. ``as_of`` is the number of ``item-codes`` records that the counts include."""
        if self._everything:
            self._everything = False
            census = self._writer.census()
            self._changed = {(layer, token): int(n) for (layer, token), n in np.ndenumerate(census)}
        if not self._changed:
            return
        codebook = self._codebook_id
        for (layer_index, token), n in self._changed.items():
            count = TokenCount(codebook=codebook, layer=layer_index + 1, token=token, n=n, as_of=as_of)
            produce(
                self._producer,
                self._topic,
                key=token_count_key(codebook, layer_index + 1, token),
                value=TOKEN_COUNT.encode(count),
                on_delivery=self._on_delivery,
            )
        self._changed = {}
        self._producer.poll(0)
        reach(Failpoint.COUNTS_SENT)

    def flush(self) -> None:
        self._producer.flush(_BROKER_SECONDS)

    def _on_delivery(self, error: KafkaError | None, _record: Message) -> None:
        if error is not None and not self._everything:
            log.warning("counts_not_delivered", reason=error.str(), next="the whole census is published again")
            self._everything = True


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
        if not await_topics(settings.kafka, [topics.item_codes, topics.layouts, topics.token_counts], stop, health):
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
