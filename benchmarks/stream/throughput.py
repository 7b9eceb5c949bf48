"""Items a second from a backlog to retrievable, into an empty index and into a large one, against a transactional copy.

Each round publishes while nothing runs, and then lets the pipeline catch up. A round into an empty index has topics and an index
of its own. A rate is counted from the first items seen to the last, with everything running; the processor time of an item over
all of them, less what a process takes to start. The copy moves the records of the same round, raw, with the same client settings,
in plain Python.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from confluent_kafka import Consumer, Producer, TopicPartition

from benchmarks.common.reporting import Result, Target
from benchmarks.stream.profiled import Profile
from benchmarks.stream.running_pipeline import COPY_TOPIC, Items, Running, apart, status
from benchmarks.stream.stages import STAGES, floors_us, stage_rows
from store.reading.reader import IndexReader
from streamer.client.publisher import ItemPublisher
from streamer.kafka.clients import consumer_configuration, producer_configuration
from streamer.kafka.gather import drain, produce
from streamer.settings import Settings

INTO_EMPTY: Final = Target.ratio_at_least(1.1)
INTO_LARGE: Final = Target.ratio_at_least(0.9)
TARGET_PROCESSOR_US: Final = 25.0


@dataclass(frozen=True)
class Round:
    """Items a second, published and retrievable, beside the ``copy``'s; µs of processor time an item of each process."""

    publishing: float
    retrievable: float
    copy: float
    processor_us: dict[str, float]

    @property
    def pipeline_us(self) -> float:
        """Assigner and indexer together."""
        return self.processor_us.get("assigner", 0.0) + self.processor_us.get("indexer", 0.0)

    def __str__(self) -> str:
        processes = ", ".join(f"{name} {us:.1f}" for name, us in sorted(self.processor_us.items()))
        return (
            f"published {self.publishing:,.0f} items/s, retrievable {self.retrievable:,.0f} items/s, copy {self.copy:,.0f} "
            f"items/s; µs/item: {processes}"
        )


def throughput_rows(
    running: Running, items: Items, count: int, rounds: int, into: int, *, stages: bool
) -> list[Result]:
    """``into``: live items of the large index; ``stages``: also a row for each stage of an item's way, from a profiler."""
    status(f"warming up the broker ({count // 2:,} items) …")
    running.make_index()
    started = running.start_seconds("assigner")
    status(f"  {backlog(running, items, count // 2, started)}")
    concurrent(running, items, count // 2)
    empty, large = [], []
    for number in range(rounds):
        status(f"{count:,} items into an empty index, round {number + 1} of {rounds} …")
        empty.append(backlog(apart(running, f"round{number}."), items, count, started))
        status(f"  {empty[-1]}")
    # The rounds that follow grow the index themselves: the one in the middle, whose figures count, starts at ``into``.
    missing = into - live_items(running.settings) - count * ((rounds - 1) // 2)
    if missing > 0:
        status(f"{missing:,} items on the way to {into:,} …")
        concurrent(running, items, missing)
    for number in range(rounds):
        status(f"{count:,} items into {live_items(running.settings):,}, round {number + 1} of {rounds} …")
        large.append(backlog(running, items, count, started))
        status(f"  {large[-1]}")
    status(f"publishing {count:,} items while the pipeline runs …")
    together = concurrent(running, items, count)
    one, other = _median(empty), _median(large)
    update_bytes, codes_bytes = (_bytes_an_item(running.settings, topic) for topic in _ways(running.settings))
    batches = math.ceil(count / running.settings.assigner.batch_size)
    commits = math.ceil(count / running.settings.indexer.batch_size)
    floor = f"{update_bytes:,.0f} B in, {codes_bytes:,.0f} B out and in; {batches} transactions of 4 round trips, {commits} syncs"
    rows = [
        Result("publishing alone", one.publishing, "items/s", floor=f"{update_bytes:,.0f} B"),
        Result(
            f"backlog → retrievable, {count:,} into an empty index",
            one.retrievable,
            "items/s",
            "plain copy",
            one.copy,
            INTO_EMPTY,
            floor=floor,
        ),
        Result(
            f"backlog → retrievable, {count:,} into {into:,}",
            other.retrievable,
            "items/s",
            "plain copy",
            other.copy,
            INTO_LARGE,
            floor=floor,
        ),
        Result(
            "publish → retrievable, producer running too", together, "items/s", "plain copy", other.copy, floor=floor
        ),
    ]
    floors = floors_us(round(update_bytes), round(codes_bytes))
    least = floors["GEMM"] + 2 * floors["update"] + 4 * floors["codes"]
    said = f"{least:.1f} µs: {floors['GEMM']:.1f} products, the rest each byte copied in and out of each process"
    for name, found in (("an empty index", one), (f"{into:,}", other)):
        rows += [
            Result(f"processor time of the {process}, into {name}", us, "µs/item")
            for process, us in sorted(found.processor_us.items())
        ]
        rows.append(
            Result(
                f"processor time of assigner and indexer, into {name}",
                found.pipeline_us,
                "µs/item",
                target=Target.value_at_most(TARGET_PROCESSOR_US),
                floor=said,
            )
        )
    if stages:
        status("where an item's processor time goes, from a profiler …")
        world = apart(running, "profiled.")
        seen = backlog(world, items, count, started, profiled=True)
        status(f"  {seen}")
        for process in STAGES:
            profile = Profile.read(world.profile_of(process))
            rows += stage_rows(process, profile, count, one.processor_us.get(process, 0.0), floors)
    return rows


def _ways(settings: Settings) -> tuple[str, str]:
    return settings.topics.item_updates, settings.topics.item_codes


def _median(rounds: Sequence[Round]) -> Round:
    return sorted(rounds, key=lambda one: one.retrievable / one.copy)[(len(rounds) - 1) // 2]  # of two, the slower


def backlog(running: Running, items: Items, count: int, started: float, *, profiled: bool = False) -> Round:
    """Publish while nothing runs, then let the pipeline catch up; then copy the same records. ``started``: seconds of processor
    time that an assigner takes to start.
    """
    running.make_index()
    published = publish(running.settings, items, count)
    with IndexReader(running.settings.index) as reader:
        before = _live(reader)
        running.start("indexer", profiled=profiled)
        used = running.processor_seconds() | {"assigner": started}
        running.start("assigner", profiled=profiled, wait=False)
        running.wait(lambda: _live(reader) > before, "the first items are there")
        first, since = _live(reader), time.perf_counter()
        running.wait(lambda: _live(reader) == before + count, f"{count:,} items are there")
        rate = (before + count - first) / (time.perf_counter() - since)
    spent = {name: 1e6 * (now - used[name]) / count for name, now in running.processor_seconds().items()}
    running.stop()
    return Round(count / published, rate, copy(running.settings, running.settings.topics.item_updates, count), spent)


def concurrent(running: Running, items: Items, count: int) -> float:
    """Publish while the pipeline runs: items a second from the first `produce()` to the last item retrievable."""
    running.start("indexer")
    running.start("assigner")
    with IndexReader(running.settings.index) as reader:
        before, since = _live(reader), time.perf_counter()
        publish(running.settings, items, count)
        running.wait(lambda: _live(reader) == before + count, f"{count:,} items are there")
        rate = count / (time.perf_counter() - since)
    running.stop()
    return rate


def publish(settings: Settings, items: Items, count: int) -> float:
    """Publish new items as fast as they go; seconds."""
    ids = items.ids(count)
    since = time.perf_counter()
    with ItemPublisher(settings) as publisher:
        for row, item_id in enumerate(ids):
            publisher.update(item_id, items.embedding(row))
    return time.perf_counter() - since


def live_items(settings: Settings) -> int:
    with IndexReader(settings.index) as reader:
        return _live(reader)


def _live(reader: IndexReader) -> int:
    with reader.snapshot() as snapshot:
        return snapshot.item_count


def _bytes_an_item(settings: Settings, topic: str) -> float:
    """Bytes of key and value of a record, on average over some of them."""
    consumer = Consumer(consumer_configuration(settings.kafka, group="benchmark-bytes"))
    consumer.assign([TopicPartition(topic, 0, 0)])
    sizes: list[int] = []
    while len(sizes) < 1_000:
        sizes += [len(record) + len(record.key() or b"") for record in drain(consumer, 1_000, 1.0)]
    consumer.close()
    return float(np.mean(sizes))


def copy(settings: Settings, source: str, count: int) -> float:
    """The baseline: a transactional copy of the last ``count`` records of a topic; items a second after the first batch."""
    group, size = "benchmark-copy", settings.assigner.batch_size
    consumer = Consumer(consumer_configuration(settings.kafka, group=group, instance="0"))
    producer = Producer(producer_configuration(settings.kafka, transactional_id=group, linger_ms=0))
    producer.init_transactions(10)
    partitions = list(consumer.list_topics(source, timeout=10).topics[source].partitions)
    ends = [consumer.get_watermark_offsets(TopicPartition(source, partition))[1] for partition in partitions]
    # A little more than the share, as keys do not spread evenly and transaction markers take offsets.
    start = [max(0, end - count * 21 // 20 // len(partitions)) for end in ends]
    consumer.assign([TopicPartition(source, partition, offset) for partition, offset in enumerate(start)])
    since, copied, done = 0.0, 0, 0
    # Where all of the topic is to be copied, the first batch, which is not timed, is missing in the end.
    while done < count:
        records = drain(consumer, size, 0.1)
        if not records:
            continue
        producer.begin_transaction()
        last = {record.partition(): record.offset() + 1 for record in records}
        offsets = [TopicPartition(source, partition, offset) for partition, offset in last.items()]
        producer.send_offsets_to_transaction(offsets, consumer.consumer_group_metadata())
        for record in records:
            produce(producer, COPY_TOPIC, key=record.key(), value=record.value(), partition=record.partition())
        producer.commit_transaction()
        done += len(records)
        if not since:
            since = time.perf_counter()
            continue
        copied += len(records)
    seconds = time.perf_counter() - since
    consumer.close()
    return copied / seconds
