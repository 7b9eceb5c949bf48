"""The pipeline on a real broker: items a second from `item-updates` to retrievable, and how fresh the index is.

Broker, assigner and indexer run as they do for a user, each in a process of its own; the benchmark publishes and reads
the index. Item ids are random, as they are in life. Baselines come from the same broker in the same minutes:

- throughput: a transactional copy of the same records, raw, with the same client settings, into another topic;
- freshness: a bare `produce()` → `poll()` of the same records at the same rate.

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

import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from confluent_kafka import Consumer, Message, Producer, TopicPartition
from numpy.typing import NDArray
from rich.console import Console

from benchmarks.reporting import Result, Target, benchmark_arguments, report
from models.bundles.bundle import create_bundle
from models.codebooks.codebook import fit_residual_kmeans
from models.sids.census import count_tokens
from models.sids.layout import Layout
from store.checks.verification import verify
from store.reading.reader import IndexReader
from streamer.client.freshness_probe import FreshnessProbe
from streamer.client.publisher import ItemPublisher
from streamer.events.records import ITEM_UPDATE, ItemUpdate
from streamer.events.topics import TopicSpec, topic_specs
from streamer.kafka.admin import create
from streamer.kafka.clients import consumer_configuration, producer_configuration
from streamer.kafka.gather import drain, produce
from streamer.local.broker import LocalBroker
from streamer.settings import Settings, load_settings

DIMENSION, LAYERS, SIZE = 384, 3, 256
TARGET_ITEMS_PER_SECOND: Final = 40_000
TARGET_P99_MS: Final = 100
PATIENCE_SECONDS: Final = 120.0
WARM_UP_SECONDS: Final = 20.0  # of transactions as small as those that are measured
_POLL_SECONDS: Final = 0.02
_PACE_SECONDS: Final = 0.005
_BARE_TOPIC: Final = "benchmark-bare"
_COPY_TOPIC: Final = "benchmark-copy"

status = Console(stderr=True).print


class Items:
    """New items without end: random ids, embeddings from 512 clusters of unequal size."""

    def __init__(self, pool: int = 16_384) -> None:
        self._random = np.random.default_rng(7)
        centres = self._random.normal(size=(512, DIMENSION))
        chosen = (512 * self._random.random(pool) ** 3).astype(int)
        points = centres[chosen] + 0.5 * self._random.normal(size=(pool, DIMENSION))
        self.embeddings: NDArray[np.float32] = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype("<f4")

    def ids(self, count: int) -> list[str]:
        return [f"{number:016x}" for number in self._random.integers(2**63, size=count).tolist()]

    def embedding(self, row: int) -> NDArray[np.float32]:
        found: NDArray[np.float32] = self.embeddings[row % len(self.embeddings)]
        return found


@dataclass
class Running:
    """The processes under measurement, by name, and how much processor time each has used."""

    settings: Settings
    directory: Path
    _processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str) -> None:
        """Start ``sidstream <name>`` and wait until it says that it is ready."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        with (self.directory / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", "sidstream", name],
                env={**os.environ, **self._environment(), "SIDSTREAM_METRICS__PORT": str(port)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.wait(lambda: _ready(port), f"{name} is ready")

    def stop(self) -> None:
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            process.wait(30)
        self._processes.clear()

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """Poll until ``condition`` holds; a process that died or a long wait ends the benchmark with its log."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            dead = [name for name, process in self._processes.items() if process.poll() is not None]
            if dead or time.monotonic() > deadline:
                logs = "\n".join((self.directory / f"{name}.log").read_text()[-3_000:] for name in self._processes)
                raise SystemExit(f"{f'{dead} died' if dead else 'too slow'}, waiting until {what}:\n{logs}")
            time.sleep(_POLL_SECONDS)

    def processor_seconds(self) -> dict[str, float]:
        """User and system time of each process and of the broker so far; empty where there is no /proc."""
        pids = {name: process.pid for name, process in self._processes.items()}
        used: dict[str, float] = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                name, _, fields = stat.read_text().partition("(")[2].rpartition(")")
            except OSError:
                continue  # it has ended meanwhile
            values = fields.split()
            if name == "java" and int(values[1]) == os.getpid():
                pids["broker"] = int(stat.parent.name)
            for process, pid in pids.items():
                if pid == int(stat.parent.name):
                    used[process] = (int(values[11]) + int(values[12])) / os.sysconf("SC_CLK_TCK")
        return used

    def _environment(self) -> dict[str, str]:
        settings = self.settings
        return {
            "SIDSTREAM_KAFKA__BOOTSTRAP_SERVERS": settings.kafka.bootstrap_servers,
            "SIDSTREAM_BUNDLE": str(settings.bundle),
            "SIDSTREAM_INDEX": str(settings.index),
            "OMP_NUM_THREADS": "1",
        }


def _ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@contextmanager
def pipeline(directory: Path) -> Iterator[Settings]:
    """A broker with the topics, and a bundle; the index is empty."""
    items = Items(8_192)
    codebook = fit_residual_kmeans(items.embeddings, layers=LAYERS, size=SIZE, iterations=5)
    census = count_tokens(codebook.encode(items.embeddings), SIZE)
    layout = Layout(generation=1, codebook_id=codebook.id, layers=LAYERS, size=SIZE)
    create_bundle(directory / "bundle", codebook, layout, census=census)
    defaults = load_settings()
    with LocalBroker(directory / "broker", heap=defaults.broker.heap) as broker:
        settings = load_settings(
            bundle=directory / "bundle",
            index=directory / "index",
            kafka={"bootstrap_servers": broker.bootstrap_servers},
        )
        updates, *others = topic_specs(settings)
        copies = [TopicSpec(name, updates.partitions, 1, updates.config) for name in (_BARE_TOPIC, _COPY_TOPIC)]
        create(settings.kafka, [updates, *others, *copies])
        yield settings


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
            produce(producer, _COPY_TOPIC, key=record.key(), value=record.value(), partition=record.partition())
        producer.commit_transaction()
        if not since:
            since = time.perf_counter()
            continue
        copied += len(records)
    seconds = time.perf_counter() - since
    consumer.close()
    return copied / seconds


@dataclass(frozen=True)
class Latency:
    """Milliseconds from `produce()` on."""

    p50: float
    p99: float


def paced(rate: float, seconds: float, send: Callable[[int], None], poll: Callable[[], None]) -> None:
    """Call ``send(n)`` at a steady rate; what a late wake-up has missed is sent at once."""
    since, sent = time.perf_counter(), 0
    while (now := time.perf_counter() - since) < seconds:
        for number in range(sent, int(now * rate)):
            send(number)
        sent = int(now * rate)
        poll()
        time.sleep(_PACE_SECONDS)


def freshness(settings: Settings, reader: IndexReader, items: Items, rate: float, seconds: float) -> Latency:
    """`produce()` → visible to a reader in another process than the indexer; half of the updates are of known items.

    The first second is not measured: in it the new producer connects.
    """
    ids = items.ids(int(rate * seconds) // 2 + 1)
    at = int(time.time() * 1000)
    with FreshnessProbe(reader) as probe, ItemPublisher(settings) as publisher:

        def send(number: int) -> None:
            item_id = ids[number % len(ids)]
            if number >= rate:
                probe.sent(item_id, at + number)
            publisher.update(item_id, items.embedding(number), updated_at=at + number)

        paced(rate, seconds + 1, send, publisher.poll)
        publisher.flush()
        if missing := probe.wait(10):
            raise SystemExit(f"{missing} updates did not become retrievable within 10 s")
        return Latency(probe.percentile_ms(50), probe.percentile_ms(99))


def bare_round_trip(settings: Settings, items: Items, rate: float, seconds: float) -> Latency:
    """The baseline: the same records, produced the same way, polled by a plain consumer; not the first second."""
    consumer = Consumer(consumer_configuration(settings.kafka, group="benchmark-bare"))
    partitions = list(consumer.list_topics(_BARE_TOPIC, timeout=10).topics[_BARE_TOPIC].partitions)
    ends = [consumer.get_watermark_offsets(TopicPartition(_BARE_TOPIC, partition))[1] for partition in partitions]
    consumer.assign([TopicPartition(_BARE_TOPIC, partition, end) for partition, end in enumerate(ends)])
    producer = Producer(producer_configuration(settings.kafka))
    sent_at: dict[bytes, float] = {}
    taken: list[float] = []
    stop = threading.Event()

    def receive() -> None:
        while not stop.is_set():
            records: list[Message] = drain(consumer, 1_000, 0.05)
            now = time.perf_counter()
            taken.extend(now - sent_at[record.key()] for record in records if record.key() in sent_at)

    receiver = threading.Thread(target=receive, name="receiver")
    receiver.start()
    keys = [item_id.encode() for item_id in items.ids(int(rate * (seconds + 1)) + 1)]

    def send(number: int) -> None:
        if number >= rate:
            sent_at[keys[number]] = time.perf_counter()
        value = ITEM_UPDATE.encode(ItemUpdate(embedding=items.embedding(number).tobytes()))
        produce(producer, _BARE_TOPIC, key=keys[number], value=value)

    paced(rate, seconds + 1, send, lambda: producer.poll(0))
    producer.flush(10)
    time.sleep(0.5)
    stop.set()
    receiver.join()
    consumer.close()
    return Latency(float(np.percentile(taken, 50) * 1000), float(np.percentile(taken, 99) * 1000))


def measure(directory: Path, items_count: int, rounds: int, rate: float, seconds: float) -> list[Result]:
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
            status(f"{rate:,.0f} items/s for {seconds:.0f} s …")
            running.start("indexer")
            running.start("assigner")
            freshness(settings, reader, items, rate, WARM_UP_SECONDS)
            bare_first = bare_round_trip(settings, items, rate, seconds / 4)
            fresh = freshness(settings, reader, items, rate, seconds)
            bare_last = bare_round_trip(settings, items, rate, seconds / 4)
            running.stop()
            with reader.snapshot() as snapshot:
                faults = verify(snapshot)
        if faults:
            raise SystemExit(f"the index disagrees with itself: {faults}")
    median = sorted(found, key=lambda one: one.retrievable)[(len(found) - 1) // 2]  # of two, the slower
    copied = float(np.median(copies))
    retrievable = Target.value_at_least(TARGET_ITEMS_PER_SECOND)
    p50, p99 = ((getattr(bare_first, name) + getattr(bare_last, name)) / 2 for name in ("p50", "p99"))
    return [
        Result("publishing alone", median.publishing, "items/s"),
        Result("backlog → retrievable", median.retrievable, "items/s", "plain copy", copied, retrievable),
        Result("publish → retrievable, producer running too", together, "items/s", "plain copy", copied),
        *(Result(f"processor time of the {name}", us, "µs/item") for name, us in sorted(median.processor_us.items())),
        Result(f"freshness p50 at {rate:,.0f} items/s", fresh.p50, "ms", "bare round trip", p50),
        Result(
            f"freshness p99 at {rate:,.0f} items/s",
            fresh.p99,
            "ms",
            "bare round trip",
            p99,
            Target.value_at_most(TARGET_P99_MS),
        ),
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
    parser.add_argument("--rate", type=float, default=2_000, help="items/s of the freshness run (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=20, help="length of the freshness run (default: %(default)s)")
    parser.add_argument("--directory", type=Path, help="where to put the temporary files (default: the system's)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory, prefix="sidstream-benchmark-") as directory:
        results = measure(Path(directory), arguments.items, arguments.rounds, arguments.rate, arguments.seconds)
    return report(f"The pipeline, {DIMENSION} numbers an item, {LAYERS} × {SIZE} codewords", results, arguments.json)


if __name__ == "__main__":
    raise SystemExit(main())
