"""The indexer: codes and layouts into LMDB, exactly once, and the census' absolute counts out to the monitor.

Every partition is assigned, not subscribed: each host holds the whole index. The next offsets lie in the LMDB
transaction of the data, so a ``kill -9`` loses nothing and repeats nothing. Counts are absolute and carry how many
records they include (``as_of``): publishing one again changes nothing, so after a start the whole census is published.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from typing import Final

import msgspec
import numpy as np
import structlog
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from models.bundle import Bundle
from models.errors import SidstreamError
from models.layout import Layout
from store.index import CodesBatch, IndexWriter
from streamer.kafka import (
    broker_answers,
    consumer_configuration,
    drain,
    error_text,
    produce,
    producer_configuration,
)
from streamer.metrics import BATCH_SECONDS, EVENTS, ITEMS, Health
from streamer.process import collect_garbage_rarely, run_process
from streamer.records import ITEM_CODES, LAYOUT, TOKEN_COUNT, ItemCodes, LayoutRecord, TokenCount, token_count_key
from streamer.settings import Settings
from streamer.summary import BatchSummary
from streamer.topics import TOMBSTONE_RETENTION_MS, require

log = structlog.get_logger(__name__)

PROCESS: Final = "indexer"
_IDLE_WAIT_SECONDS: Final = 0.1
_BROKER_SECONDS: Final = 10.0
_LIFE_SIGN_SECONDS: Final = 3_600.0
_UNDECODABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class IndexerError(SidstreamError):
    """The topic and the index do not belong together; nothing was written."""


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
        self._behind: set[tuple[str, int]] = set()
        self._summary = BatchSummary()
        self._committed_at = time.monotonic()

    def run(self, stop: threading.Event) -> None:
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
        try:
            self._assign(consumer)
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
        assignment = []
        for topic in (self._codes_topic, self._layouts_topic):
            for partition in _partitions(consumer, topic):
                offset = self._positions.get((topic, partition), OFFSET_BEGINNING)
                low, high = _watermarks(consumer, topic, partition)
                if offset > high:
                    raise IndexerError(
                        f"the index stands at offset {offset} of {topic}/{partition}, which ends at {high}: the topic was "
                        f"made anew. Delete {self._settings.index} (it is a cache) and start again. Make "
                        f"{self._token_counts_topic} and the monitor's changelog anew too, or the monitor waits for counts newer "
                        "than those it knows"
                    )
                log.info("partition_assigned", topic=topic, partition=partition, offset=max(offset, low), end=high)
                assignment.append(TopicPartition(topic, partition, offset))
                self._behind.add((topic, partition))
        with self._writer.snapshot() as snapshot:
            age_ms = time.time() * 1000 - snapshot.last_commit_at
        if self._positions and age_ms > TOMBSTONE_RETENTION_MS:
            raise IndexerError(
                f"the index was last written {age_ms / 86_400_000:.0f} days ago; deletions "
                f"older than {TOMBSTONE_RETENTION_MS // 86_400_000} days are compacted away and would be missed. "
                f"Delete {self._settings.index} (it is a cache) and start again"
            )
        consumer.assign(assignment)

    def _one_batch(self, consumer: Consumer, publisher: CensusPublisher) -> None:
        own = self._settings.indexer
        started = time.monotonic()
        self._health.progress()
        records = drain(consumer, own.batch_size, _IDLE_WAIT_SECONDS, self._on_end)
        if not records:
            self._summary.flush()
            publisher.publish_if_due(self._as_of())
            self._show_life()
            if not self._health.ready and not self._behind and broker_answers(consumer):
                self._health.set_ready()
            return
        codes = [record for record in records if record.topic() == self._codes_topic]
        if codes:
            offsets = _next_offsets(codes)
            outcome = self._writer.apply(self._batch(codes), offsets)
            self._positions |= offsets
            publisher.add(outcome.changed_tokens)
            ITEMS.set(outcome.items)
        for record in records:
            if record.topic() == self._layouts_topic:
                self._put_layout(record)
        publisher.publish_if_due(self._as_of())
        self._committed_at = time.monotonic()
        if not self._behind:
            self._health.set_ready()

        seconds = time.monotonic() - started
        EVENTS.labels(PROCESS).inc(len(records))
        BATCH_SECONDS.labels(PROCESS).observe(seconds)
        self._summary.add(len(records), seconds)
        rest = own.minimum_batch_interval_ms / 1000 - (time.monotonic() - started)
        if rest > 0:
            time.sleep(rest)

    def _show_life(self) -> None:
        """Date an idle index anew: that nothing was written for a week must mean that nobody read for a week."""
        if not self._behind and time.monotonic() - self._committed_at > _LIFE_SIGN_SECONDS:
            self._writer.apply(self._batch([]), {})
            self._committed_at = time.monotonic()

    def _batch(self, records: list[Message]) -> CodesBatch:
        """Columns of a batch of ``item-codes`` records.

        Raises:
            IndexerError: a record of another codebook, or one that no assigner of ours wrote.
        """
        layers, codebook = self._codebook.layers, self._codebook.codebook_id
        decode = ITEM_CODES.decode
        absent = ItemCodes(codebook=codebook, codes=(0,) * layers, title="", weight=0.0, updated_at=0)
        ids, rows, deleted = [], [], []
        for record in records:
            value = record.value()
            try:
                row = absent if value is None else decode(value)
            except _UNDECODABLE as error:
                raise IndexerError(f"{_place(record)} holds no item codes ({error}): who else writes to it?") from None
            if row.codebook != codebook or len(row.codes) != layers:
                raise IndexerError(
                    f"{_place(record)} has codes of codebook {row.codebook} ({len(row.codes)} layers); this index is of "
                    f"{codebook} ({layers} layers). Point this indexer to the bundle of {row.codebook} and to an empty "
                    "index directory, or run the two codebooks under different topics.prefix"
                )
            ids.append(record.key() or b"")
            rows.append(row)
            deleted.append(value is None)
        try:
            codes = np.array([row.codes for row in rows], dtype=np.int64).reshape(-1, layers)
            updated_at = np.array([row.updated_at for row in rows], dtype=np.int64)
        except OverflowError:
            raise IndexerError(
                f"a record from {_place(records[0])} on holds numbers beyond 64 bits: who else writes to it?"
            ) from None
        if codes.size and (codes.min() < 0 or codes.max() >= self._codebook.size):
            bad = int(np.flatnonzero((codes < 0).any(1) | (codes >= self._codebook.size).any(1))[0])
            raise IndexerError(
                f"{_place(records[bad])} has codes {rows[bad].codes} outside 0..{self._codebook.size - 1}"
            )
        return CodesBatch(
            ids=ids,
            codes=codes.astype(np.uint16),
            weights=np.array([row.weight for row in rows], dtype=np.float32),
            titles=[row.title for row in rows],
            updated_at=updated_at,
            deleted=np.array(deleted, dtype=bool),
        )

    def _put_layout(self, record: Message) -> None:
        value = record.value()
        offsets = _next_offsets([record])
        try:
            layout: LayoutRecord | None = None if value is None else LAYOUT.decode(value)
        except _UNDECODABLE as error:
            raise IndexerError(f"{_place(record)} holds no layout ({error}): who else writes to it?") from None
        if layout is None or layout.codebook != self._codebook.codebook_id:
            log.info("layout_skipped", offset=record.offset(), codebook=layout and layout.codebook)
            return
        self._writer.put_layout(
            Layout(
                generation=layout.generation,
                codebook_id=layout.codebook,
                layers=layout.layers,
                size=layout.size,
                head_tokens=layout.head_tokens,
            ),
            offsets,
        )
        log.info("layout_live", generation=layout.generation, head_tokens=len(layout.head_tokens), cause=layout.cause)

    def _as_of(self) -> int:
        """How many ``item-codes`` records the index includes: the sum of next offsets, the same on every host."""
        return sum(offset for (topic, _), offset in self._positions.items() if topic == self._codes_topic)

    def _on_end(self, record: Message) -> None:
        """Ready once every partition was read to its end."""
        if self._behind:
            self._behind.discard((record.topic(), record.partition()))
            if not self._behind:
                log.info("caught_up")
                self._health.set_ready()
            else:
                self._health.set_unready(f"catching up on {len(self._behind)} partitions")


def _next_offsets(records: list[Message]) -> dict[tuple[str, int], int]:
    return {(record.topic(), record.partition()): record.offset() + 1 for record in records}


def _place(record: Message) -> str:
    return f"{record.topic()}/{record.partition()} at offset {record.offset()}"


def _partitions(consumer: Consumer, topic: str) -> list[int]:
    try:
        metadata = consumer.list_topics(topic, timeout=_BROKER_SECONDS)
    except KafkaException as error:
        raise IndexerError(f"cannot read the partitions of {topic}: {error_text(error)}") from error
    return sorted(metadata.topics[topic].partitions)


def _watermarks(consumer: Consumer, topic: str, partition: int) -> tuple[int, int]:
    try:
        low, high = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=_BROKER_SECONDS)
    except KafkaException as error:
        raise IndexerError(f"cannot read the ends of {topic}/{partition}: {error_text(error)}") from error
    return low, high


def run_indexer(settings: Settings) -> None:
    """Run the process until it is told to stop."""

    def work(stop: threading.Event, health: Health) -> None:
        bundle = Bundle.open(settings.bundle)
        layout = bundle.layout
        topics = settings.topics
        require(settings.kafka, [topics.item_codes, topics.layouts, topics.token_counts])
        with IndexWriter.open(
            settings.index, codebook_id=layout.codebook_id, layers=layout.layers, size=layout.size
        ) as writer:
            writer.put_layout(layout, {})
            collect_garbage_rarely()
            Indexer(settings, writer, layout, health).run(stop)

    run_process(PROCESS, settings, work)
