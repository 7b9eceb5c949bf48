"""The pipeline on a real broker: items a second from `item-updates` to retrievable, and how fresh the index is.

Broker, assigner and indexer run as they do for a user, each in a process of its own; the benchmark publishes and reads
the index. Item ids are random, as they are in life. Baselines come from the same broker in the same minutes:

- throughput: a transactional copy of the same records, raw, with the same client settings, into another topic;
- freshness (`benchmarks.freshness`): a bare `produce()` → `poll()` of the same records at the same rate.

A rate is counted from the first items seen to the last, with everything running: the start of processes is not in it.
The first runs are thrown away, as a broker's first half minute is compilation.

With the defaults that takes three to five minutes on two idle cores, and longer on a busy machine; `--rounds 1 --items 50000
--seconds 5` is a look of about a minute, too short for figures to keep.

The cost per item at L = 3, M = 256, D = 384, on two cores that other work kept busy too (1,601 bytes in and 98 on, key and
value together). Each figure is processor time in µs:

- assigner alone on 300,000 items: 13.1-13.8, of it 6.7 the ONNX graph, 3.2 decoding, checks and encoding, 1.2 the client's
  threads, and the rest taking and giving records;
- in the pipeline: assigner 17-18, indexer 8.5-12 (more as the index grows from 300,000 to 1.2 million items), broker
  4.3-5.7, together 30-36: with these, two idle cores could not do more than 55,000 to 67,000 items/s;
- the LMDB transaction alone, batches of 8,000 random ids: 4.4 at 0.4 million items, 7.9 at a million.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from confluent_kafka import Consumer, Producer, TopicPartition

from benchmarks.freshness import RATES, freshness_rows, warm_up
from benchmarks.reporting import Result, Target, benchmark_arguments, report
from benchmarks.running_pipeline import COPY_TOPIC, DIMENSION, LAYERS, SIZE, Items, Running, pipeline, status
from store.checks.verification import verify
from store.reading.reader import IndexReader
from streamer.client.publisher import ItemPublisher
from streamer.kafka.clients import consumer_configuration, producer_configuration
from streamer.kafka.gather import drain, produce
from streamer.settings import Settings

TARGET_ITEMS_PER_SECOND: Final = 40_000


@dataclass(frozen=True)
class Throughput:
    """Items a second, and microseconds of processor time an item of each process."""

    publishing: float
    retrievable: float
    processor_us: dict[str, float]


def backlog(running: Running, reader: IndexReader, items: Items, count: int) -> Throughput:
    """Publish while nothing runs, then let the pipeline catch up."""
    published = publish(running.settings, items, count)
    before = live_items(reader)
    running.start("indexer")
    used = running.processor_seconds()
    running.start("assigner")
    running.wait(lambda: live_items(reader) > before, "the first items are there")
    first, since = live_items(reader), time.perf_counter()
    running.wait(lambda: live_items(reader) == before + count, f"{count:,} items are there")
    rate = (before + count - first) / (time.perf_counter() - since)
    spent = {
        name: 1e6 * (seconds - used.get(name, 0.0)) / count for name, seconds in running.processor_seconds().items()
    }
    running.stop()
    return Throughput(count / published, rate, spent)


def concurrent(running: Running, reader: IndexReader, items: Items, count: int) -> float:
    """Publish while the pipeline runs: items a second from the first `produce()` to the last item retrievable."""
    running.start("indexer")
    running.start("assigner")
    before, since = live_items(reader), time.perf_counter()
    publish(running.settings, items, count)
    running.wait(lambda: live_items(reader) == before + count, f"{count:,} items are there")
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


def live_items(reader: IndexReader) -> int:
    with reader.snapshot() as snapshot:
        return snapshot.item_count


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
    since, copied = 0.0, 0
    while copied < count:
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
        if not since:
            since = time.perf_counter()
            continue
        copied += len(records)
    seconds = time.perf_counter() - since
    consumer.close()
    return copied / seconds


def measure(directory: Path, items_count: int, rounds: int, rates: Sequence[float], seconds: float) -> list[Result]:
    items = Items()
    with pipeline(directory) as settings:
        running = Running(settings, directory)
        running.start("indexer")
        running.stop()
        with IndexReader(settings.index) as reader:
            status(f"warming up the broker ({items_count // 2:,} items) …")
            throughput_warm_up(running, reader, items, items_count // 2)
            found, copies = [], []
            for number in range(rounds):
                status(f"backlog of {items_count:,} items, round {number + 1} of {rounds} …")
                found.append(backlog(running, reader, items, items_count))
                copies.append(copy(settings, settings.topics.item_updates, items_count))
                status(f"  {_summary(found[-1])}; copy {copies[-1]:,.0f} items/s")
            status(f"publishing {items_count:,} items while the pipeline runs …")
            together = concurrent(running, reader, items, items_count)
            running.start("indexer")
            running.start("assigner")
            warm_up(running, items)
            fresh = [row for rate in rates for row in freshness_rows(running, items, rate, seconds)]
            running.stop()
            with reader.snapshot() as snapshot:
                faults = verify(snapshot)
        if faults:
            raise SystemExit(f"the index disagrees with itself: {faults}")
    median = sorted(found, key=lambda one: one.retrievable)[(len(found) - 1) // 2]  # of two, the slower
    copied = float(np.median(copies))
    retrievable = Target.value_at_least(TARGET_ITEMS_PER_SECOND)
    return [
        Result("publishing alone", median.publishing, "items/s"),
        Result("backlog → retrievable", median.retrievable, "items/s", "plain copy", copied, retrievable),
        Result("publish → retrievable, producer running too", together, "items/s", "plain copy", copied),
        *(Result(f"processor time of the {name}", us, "µs/item") for name, us in sorted(median.processor_us.items())),
        *fresh,
    ]


def throughput_warm_up(running: Running, reader: IndexReader, items: Items, count: int) -> None:
    """A backlog, a live run and a copy: everything that is measured later has run once."""
    status(f"  {_summary(backlog(running, reader, items, count))}")
    concurrent(running, reader, items, count)
    copy(running.settings, running.settings.topics.item_updates, count)


def _summary(one: Throughput) -> str:
    processes = ", ".join(f"{name} {us:.1f}" for name, us in sorted(one.processor_us.items()))
    return f"published {one.publishing:,.0f} items/s, retrievable {one.retrievable:,.0f} items/s; µs/item: {processes}"


def main() -> int:
    parser = benchmark_arguments(__doc__)
    parser.add_argument("--items", type=int, default=300_000, help="items of a round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, the median counts (default: %(default)s)")
    parser.add_argument(
        "--rates", type=float, nargs="+", default=RATES, help="items/s of the freshness runs (default: %(default)s)"
    )
    parser.add_argument("--seconds", type=float, default=20, help="length of each freshness run (default: %(default)s)")
    parser.add_argument("--directory", type=Path, help="where to put the temporary files (default: the system's)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory, prefix="sidstream-benchmark-") as directory:
        results = measure(Path(directory), arguments.items, arguments.rounds, arguments.rates, arguments.seconds)
    return report(f"The pipeline, {DIMENSION} numbers an item, {LAYERS} × {SIZE} codewords", results, arguments.json)


if __name__ == "__main__":
    raise SystemExit(main())
