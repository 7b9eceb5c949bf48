"""The indexer: codes, attributes and layouts into LMDB, exactly once, and the census' absolute counts out to the monitor.

Every partition that this host holds is assigned, not subscribed: all of them, or a shard (``indexer.partitions``). The next
offsets lie in the LMDB transaction of the data, so a ``kill -9`` loses nothing and repeats nothing. Counts are absolute and carry
how many records they include (``as_of``): publishing one again changes nothing, so the whole census is published after a start,
and again once the ends of the start are reached (``census_publisher`` says why).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Final

import structlog
from confluent_kafka import Consumer, Message, Producer, TopicPartition

from models.sids.layout import Layout
from store.files.read_ahead import read_ahead
from store.writing.writer import IndexWriter
from streamer.deployments.own import OwnPipeline, await_own
from streamer.events.layouts import layout_of
from streamer.events.topics import TOMBSTONE_RETENTION_MS
from streamer.indexer.attributes import AttributesReader, attributes_batch
from streamer.indexer.batch_sizes import gather
from streamer.indexer.census_publisher import CensusPublisher
from streamer.indexer.codes import IndexerError, codes_batch, layout_record, next_offsets
from streamer.indexer.held import held_of_added, held_places
from streamer.indexer.item_limit import ItemLimit
from streamer.indexer.letters import Letters
from streamer.indexer.log_watch import LogMismatchError, LogWatch, require_reachable
from streamer.indexer.metrics import COMMIT_SECONDS, ITEMS, SPLIT_KEYS, STALE_UPDATES, StorageMetrics
from streamer.kafka.admin import await_answer, await_topics
from streamer.kafka.clients import consumer_configuration, producer_configuration
from streamer.kafka.errors import ConsumerBrokenError, FatalKafkaError
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
from streamer.process.yielding import Yielding
from streamer.settings import Settings
from streamer.tracing.batches import traces_of

log = structlog.get_logger(__name__)
PROCESS: Final = "indexer"
_CLIENT_GROUP: Final = "sidstream-indexer"
_IDLE_WAIT_SECONDS: Final = 0.1
_LIFE_SIGN_SECONDS: Final = 3_600.0


class Indexer:
    """Reads ``item-codes``, ``item-attributes`` and ``layouts`` from the offsets that the index holds, and applies them batch by
    batch."""

    def __init__(
        self,
        settings: Settings,
        writer: IndexWriter,
        layout: Layout,
        health: Health,
        *,
        beside: bool = False,
        batch_interval_ms: Callable[[], float] | None = None,
    ) -> None:
        """``layout``: any layout of the index's codebook, for its id, layers and size; ``beside``: queries are answered from
        another index, and this one yields until it has caught up; ``batch_interval_ms``: asked after each batch for the least
        time from its begin to that of the next, else the settings' own counts.
        """
        self._settings = settings
        self._writer = writer
        self._codebook = layout
        self._positions = writer.offsets()
        self._health = health
        self._codes_topic = settings.topics.item_codes
        self._layouts_topic = settings.topics.layouts
        self._attributes_topic = settings.topics.item_attributes
        self._attributes = AttributesReader(settings.attributes)
        group = settings.in_cluster(_CLIENT_GROUP)
        self._codes_traces = traces_of("index", self._codes_topic, group=group)
        self._attributes_traces = traces_of("index", self._attributes_topic, group=group)
        self._token_counts_topic = settings.topics.token_counts
        self._input = InputProgress(PROCESS, health, f"the ends of {self._codes_topic} are not read yet")
        generations = settings.generations
        share = generations.catching_up_share if beside else 1.0
        batch = generations.catching_up_batch if beside else settings.indexer.batch_size
        self._yielding = Yielding(share, batch, lambda: self._input.has_caught_up)
        self._batch_interval_ms = batch_interval_ms or (lambda: settings.indexer.minimum_batch_interval_ms)
        self._storage = StorageMetrics(writer)
        self._summary = BatchSummary()
        # How far a partition is known to hold no record that was not applied: markers of transactions take offsets, too.
        self._ends: dict[tuple[str, int], int] = {}
        self._split_keys: int | None = None
        self._committed_at = time.monotonic()
        # Once in a process, where the first batch is far behind: after a start the file may be cold.
        self._read_ahead = False

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
                group=settings.in_cluster(_CLIENT_GROUP),  # asked for by the client; never used for offsets
                health=self._health,
                enable_partition_eof=True,
                auto_offset_reset="error",  # offsets that are gone are records that are lost: never passed over in silence
            )
        )
        producer = Producer(producer_configuration(settings.kafka, health=self._health))
        publisher = self._publisher = CensusPublisher(
            producer,
            settings.topics.token_counts,
            self._writer,
            self._codebook.codebook_id,
            interval_seconds=settings.indexer.counts_interval_seconds,
            partitions=settings.indexer.partitions,
        )
        self._letters = Letters(
            producer, self._health, self._codebook.codebook_id, (self._codes_traces, self._attributes_traces)
        )
        self._limit = ItemLimit(settings, self._writer, self._letters)
        self._broker = BrokerProbe((consumer, producer), settings.kafka, self._health)
        try:
            # It may have gone away since it was asked for its topics.
            if not await_answer(lambda: self._assign(consumer), stop, self._health):
                return
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
            ClusterAwayError: the cluster does not answer.
            LogMismatchError: a topic is not the log that the index was read from.
            IndexerError: the index is so old that deletions may have been compacted away.
        """
        self._logs = LogWatch(self._settings, self._writer)
        self._announced = False  # the whole census, once the ends are reached
        self._ends = {}
        with self._writer.snapshot() as snapshot:
            age_ms = time.time() * 1000 - snapshot.last_commit_at
            self._show_items(snapshot.item_count, snapshot.split_keys)
            if (live := snapshot.live_layout()) is not None:
                LAYOUT_GENERATION.labels(PROCESS).set(live.generation)
        if self._positions and age_ms > TOMBSTONE_RETENTION_MS:
            raise IndexerError(
                f"the index was last written {age_ms / 86_400_000:.0f} days ago; deletions "
                f"older than {TOMBSTONE_RETENTION_MS // 86_400_000} days are compacted away and would be missed. "
                f"Delete {self._settings.index} (it is a cache) and start again"
            )
        places = held_places(self._settings, partial(partitions_of, consumer))
        self._note_partitions(consumer)
        assignment, ends = self._starts(consumer, places)
        consumer.assign(assignment)
        self._input.assign(ends, self._positions)
        self._storage.show()

    def _add_partitions(self, consumer: Consumer, added: Sequence[tuple[str, int]]) -> None:
        """Partitions that a topic got while we run are read from their beginning; the others go on where they are."""
        for topic in {topic for topic, _ in added}:
            partitions_of(consumer, topic)  # the client hears of them, too
        self._note_partitions(consumer)
        held = held_of_added(self._settings, added)
        assignment, ends = self._starts(consumer, [place for place in held if place not in self._positions])
        consumer.incremental_assign(assignment)
        self._input.add(ends)
        self._announced = False

    def _note_partitions(self, consumer: Consumer) -> None:
        self._writer.remember_partition_count(len(partitions_of(consumer, self._codes_topic)))

    def _starts(
        self, consumer: Consumer, places: Iterable[tuple[str, int]]
    ) -> tuple[list[TopicPartition], dict[tuple[str, int], int]]:
        """Where to begin in each partition, and its end now. A partition that is new to us is noted in the index at once, so
        that its records cannot be lost unnoticed before the first was read."""
        assignment, ends, fresh = [], {}, {}
        for topic, partition in places:
            low, high = watermarks(consumer, topic, partition)
            offset = self._positions.get((topic, partition))
            if offset is None:
                offset = fresh[topic, partition] = low
            require_reachable(self._settings, (topic, partition), offset, low, high)
            log.info("partition_assigned", topic=topic, partition=partition, offset=offset, end=high)
            assignment.append(TopicPartition(topic, partition, offset))
            ends[topic, partition] = high
        if fresh:
            self._writer.apply(codes_batch([], self._codebook), fresh)
            self._positions |= fresh
        return assignment, ends

    def _one_batch(self, consumer: Consumer, publisher: CensusPublisher) -> None:
        self._health.progress()
        if added := self._logs.look(self._reached()):
            self._add_partitions(consumer, added)
        records = self._gather(consumer)
        if not records:
            self._summary.idle()
            self._show_life()
            self._show_progress(consumer, {})
            publisher.publish_if_due(self._as_of())
            return
        started = time.monotonic()  # of the work, not of the wait for it
        codes = [record for record in records if record.topic() == self._codes_topic]
        done: dict[tuple[str, int], int] = {}
        if codes:
            done |= self._apply_codes(codes, publisher)
        alone = [record for record in records if record.topic() == self._attributes_topic]
        if alone:
            done |= self._apply_attributes(alone)
        for record in records:
            if record.topic() == self._layouts_topic:
                self._put_layout(record)
                done |= next_offsets([record])
        self._committed_at = time.monotonic()
        self._show_progress(consumer, done)
        publisher.publish_if_due(self._as_of())

        seconds = time.monotonic() - started
        EVENTS.labels(PROCESS).inc(len(records))
        BATCH_EVENTS.labels(PROCESS).observe(len(records))
        BATCH_SECONDS.labels(PROCESS).observe(seconds)
        self._summary.add(len(records), seconds)
        rest = max(self._batch_interval_ms() / 1000 - (time.monotonic() - started), self._yielding.rest(seconds))
        if rest > 0:
            time.sleep(rest)

    def _apply_codes(self, records: Sequence[Message], publisher: CensusPublisher) -> dict[tuple[str, int], int]:
        """Stores records of ``item-codes``; where they lead to."""
        offsets = next_offsets(records)
        trace = self._codes_traces.begin(records)
        with trace.current():
            batch = codes_batch(self._limit.admit(records), self._codebook)
            with self._health.working(f"an index batch of {len(records)} events"), COMMIT_SECONDS.time():
                outcome = self._writer.apply(batch, offsets)
        trace.end()
        self._positions |= offsets
        publisher.add(outcome.changed_tokens)
        self._show_items(outcome.items, outcome.split_keys)
        STALE_UPDATES.inc(outcome.stale)
        observe_ages(FRESHNESS_SECONDS.labels(PROCESS), records, trace.traced)
        return offsets

    def _apply_attributes(self, records: Sequence[Message]) -> dict[tuple[str, int], int]:
        """Stores records of ``item-attributes``; where they lead to."""
        offsets = next_offsets(records)
        trace = self._attributes_traces.begin(records)
        with trace.current():
            read = self._attributes.read(records)
            if read.refused:
                self._letters.send(self._settings.topics.item_attributes_dead_letters, read.refused)
            batch = attributes_batch(self._limit.admit_attributes(read.updates))
            with self._health.working(f"attributes of {len(records)} events"), COMMIT_SECONDS.time():
                self._writer.apply_attributes(batch, offsets)
        trace.end()
        self._positions |= offsets
        observe_ages(FRESHNESS_SECONDS.labels(PROCESS), records, trace.traced)
        return offsets

    def _gather(self, consumer: Consumer) -> list[Message]:
        own = self._settings.indexer
        try:
            records = gather(
                consumer,
                self._yielding.batch_size(own.batch_size),
                self._yielding.batch_size(own.catching_up_batch_size),
                lambda: self._input.waiting(consumer),
                wait_seconds=_IDLE_WAIT_SECONDS,
                on_end=self._on_end,
                on_progress=self._health.progress,
            )
        except ConsumerBrokenError:
            raise
        except FatalKafkaError as error:
            if "_AUTO_OFFSET_RESET" not in str(error):
                raise
            raise LogMismatchError(
                f"the log no longer has what comes next ({error}): it was made anew, or its records were removed. Delete "
                f"{self._settings.index} (it is a cache) and start again; if items are missing then, send them again"
            ) from error
        if len(records) > own.batch_size and not self._read_ahead:
            self._read_ahead = True
            read_ahead(self._writer.path, on_progress=self._health.progress)
        return records

    def _show_items(self, items: int, split_keys: int) -> None:
        ITEMS.set(items)
        SPLIT_KEYS.set(split_keys)
        self._limit.show(items)
        if split_keys and not self._split_keys:
            log.warning(
                "split_keys",
                keys=split_keys,
                next="item ids have records in more than one partition: `sidstream verify` names some, the runbook says why",
            )
        self._split_keys = split_keys

    def _show_progress(self, consumer: Consumer, next_offsets: Mapping[tuple[str, int], int]) -> None:
        self._input.advance(next_offsets)
        if self._input.caught_up and not self._announced:
            self._announced = True
            self._publisher.publish_everything()
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
        """How many offsets of ``item-codes`` the index includes: where all partitions are read, the same on every host."""
        return sum(offset for (topic, _), offset in self._reached().items() if topic == self._codes_topic)

    def _reached(self) -> dict[tuple[str, int], int]:
        """The offset before which nothing is left to read, of each partition."""
        return {place: max(offset, self._ends.get(place, 0)) for place, offset in self._positions.items()}

    def _on_end(self, end: Message) -> None:
        place = (end.topic(), end.partition())
        self._ends[place] = end.offset()
        self._input.end_reached(place, end.offset())


def run_indexer(loaded: Settings) -> None:
    """Run the process until it is told to stop."""

    def work(stop: threading.Event, health: Health) -> None:
        with await_own(loaded, PROCESS, stop, health) as own:
            if own is not None:
                _index(own, stop, health)

    run_process(PROCESS, loaded, work)


def _index(pipeline: OwnPipeline, stop: threading.Event, health: Health) -> None:
    settings, layout = pipeline.settings, pipeline.bundle.layout
    topics, own = settings.topics, settings.indexer
    needed = [
        topics.item_codes,
        topics.item_attributes,
        topics.item_attributes_dead_letters,
        topics.layouts,
        topics.token_counts,
    ]
    if not await_topics(settings, needed, stop, health):
        return
    with IndexWriter.open(
        settings.index,
        codebook_id=layout.codebook_id,
        layers=layout.layers,
        size=layout.size,
        map_size=own.map_bytes,
        order=own.order,
        partitions=own.partitions,
        on_progress=health.progress,  # of an upgrade
    ) as writer:
        writer.put_layout(layout, {})
        collect_garbage_rarely()
        Indexer(
            settings,
            writer,
            layout,
            health,
            beside=pipeline.is_beside(),
            batch_interval_ms=lambda: pipeline.batch_interval_ms(own.minimum_batch_interval_ms),
        ).run(stop)
