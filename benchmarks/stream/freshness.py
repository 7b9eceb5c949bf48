"""Freshness: `produce()` of an update → visible to a reader in another process than the indexer, at several rates.

The baseline is a bare round trip: `produce()` → `poll()` of the same records at the same rate through the same broker in the
same minute, without a transaction. Publisher, probe and the bare consumer are processes of their own. Half of the updates are
of items that are there already. Up to 1,000 updates a second are timed, evenly spread among all.

What lies between the two at the least is told beside it: the same round trip through a process that copies every record within a
transaction, with the assigner's settings and nothing of the assigner.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from confluent_kafka import Consumer, Producer, TopicPartition
from numpy.typing import NDArray

from benchmarks.common.own_process import other_process
from benchmarks.common.reporting import Result, Target, benchmark_arguments, report
from benchmarks.index.scale_ingest import ids_of, load
from benchmarks.stream.running_pipeline import (
    BARE_TOPIC,
    COPY_TOPIC,
    DIMENSION,
    HOP_TOPIC,
    SIZE,
    Items,
    Running,
    pipeline,
    status,
)
from models.bundles.bundle import Bundle
from streamer.client.freshness_probe import FreshnessProbe
from streamer.client.publisher import ItemPublisher
from streamer.events.records import ITEM_UPDATE, ItemUpdate
from streamer.kafka.clients import consumer_configuration, producer_configuration
from streamer.kafka.gather import drain, produce
from streamer.process.run import collect_garbage_rarely
from streamer.settings import Settings

RATES: Final = (200.0, 2_000.0, 10_000.0)
_WARM_UP_TURNS: Final = 8  # of transactions as small as those that are measured
_WARM_UPS: Final = 12
_COMPILES_LITTLE: Final = 0.03  # of a core
_PACE_SECONDS: Final = 0.005
_TIMED_PER_SECOND: Final = 1_000
_SETTLE_SECONDS: Final = 1.0
_PAUSE_SECONDS: Final = 0.2  # after a turn: what was sent has arrived, as a rule
_PATIENCE_SECONDS: Final = 30.0


@dataclass(frozen=True)
class Latency:
    """Milliseconds from `produce()` on."""

    p50: float
    p99: float

    @classmethod
    def of(cls, seconds: NDArray[np.float64]) -> Latency:
        return cls(*(float(np.percentile(seconds, percent) * 1000) for percent in (50, 99)))


class Stream(Protocol):
    """One way that updates take, publisher and watcher included."""

    def send(self, number: int, timed: bool) -> None:
        """Publishes update ``number``."""

    def poll(self) -> None:
        """Serves the publishing client."""

    def finish(self) -> NDArray[np.float64]:
        """Seconds that each timed update took, once all have arrived."""


class ThroughThePipeline:
    """`produce()` → visible to a reader in another process than the indexer; half of the updates are of known items."""

    def __init__(self, stack: ExitStack, settings: Settings, items: Items, updates: int, loaded: int) -> None:
        """``loaded``: items that were there before, which are the known ones; 0: those of the first half of the updates."""
        self._ids = items.ids(updates // 2 + 1)
        if loaded:
            known = np.random.default_rng(2).choice(loaded, size=len(self._ids), replace=False)
            pairs = zip(self._ids, ids_of(known), strict=True)
            self._ids = [item_id for new, there in pairs for item_id in (new, there.decode())]
        self._items, self._at = items, int(time.time() * 1000)
        self.probe = stack.enter_context(FreshnessProbe(settings.index))
        self._publisher = stack.enter_context(ItemPublisher(settings))
        self.poll = self._publisher.poll

    def send(self, number: int, timed: bool) -> None:
        item_id = self._ids[number % len(self._ids)]
        if timed:
            self.probe.sent(item_id, self._at + number)
        self._publisher.update(item_id, self._items.embedding(number), updated_at=self._at + number)

    def finish(self) -> NDArray[np.float64]:
        self._publisher.flush()
        if missing := self.probe.wait(_PATIENCE_SECONDS):
            raise SystemExit(f"{missing} updates did not become retrievable within {_PATIENCE_SECONDS} s")
        return self.probe.seconds


class PastThePipeline:
    """The same records, produced the same way into the topic ``sent_to``, polled by a plain consumer in another process."""

    def __init__(
        self, stack: ExitStack, settings: Settings, items: Items, updates: int, sent_to: str, read: str
    ) -> None:
        self._keys = [item_id.encode() for item_id in items.ids(updates)]
        self._items, self._topic = items, sent_to
        self._producer = Producer(producer_configuration(settings.kafka))
        self._receiver = stack.enter_context(other_process(_receive, settings, read))
        self._sent_at: dict[bytes, float] = {}

    def send(self, number: int, timed: bool) -> None:
        key = self._keys[number]
        if timed:
            self._sent_at[key] = time.monotonic()
        value = ITEM_UPDATE.encode(ItemUpdate(embedding=self._items.embedding(number).tobytes()))
        produce(self._producer, self._topic, key=key, value=value)

    def poll(self) -> None:
        self._producer.poll(0)

    def finish(self) -> NDArray[np.float64]:
        self._producer.flush(_PATIENCE_SECONDS)
        time.sleep(_SETTLE_SECONDS)
        self._receiver.send(None)
        received: dict[bytes, float] = self._receiver.recv()
        if missing := self._sent_at.keys() - received.keys():
            raise SystemExit(f"{len(missing)} records past the pipeline did not arrive within {_SETTLE_SECONDS} s")
        return np.array([received[key] - at for key, at in self._sent_at.items()])


def paced(stream: Stream, numbers: range, rate: float, timed_every: int) -> None:
    """Sends updates at a steady rate; what a late wake-up has missed is sent at once. ``timed_every``: 0 times none."""
    since, sent = time.perf_counter(), 0
    while sent < len(numbers):
        due = min(len(numbers), int((time.perf_counter() - since) * rate))
        for number in numbers[sent:due]:
            stream.send(number, timed_every > 0 and number % timed_every == 0)
        sent = due
        stream.poll()
        time.sleep(_PACE_SECONDS)


def measure(running: Running, items: Items, rate: float, seconds: float, loaded: int) -> dict[str, Latency]:
    """Bare, copied within transactions and through the pipeline, by turns of a second, so that what else the machine does meets
    all three alike; the first turn of each is not timed, as in it the clients connect."""
    settings, turns, updates = running.settings, max(2, round(seconds)), round(rate)
    timed_every = max(1, round(rate / _TIMED_PER_SECOND))
    spent, began = 0.0, time.monotonic()
    with ExitStack() as stack:
        copier = stack.enter_context(other_process(_copy, settings))
        pipeline_ = ThroughThePipeline(stack, settings, items, (turns + 1) * updates, loaded)
        past = [
            PastThePipeline(stack, settings, items, (turns + 1) * updates, *topics)
            for topics in ((BARE_TOPIC, BARE_TOPIC), (HOP_TOPIC, COPY_TOPIC))
        ]
        streams: dict[str, Stream] = {"bare": past[0], "copied": past[1], "pipeline": pipeline_}
        shares: dict[str, float] = {}
        for turn in range(turns + 1):
            for name, stream in streams.items():
                used, since = running.processor_seconds(), time.monotonic()
                paced(stream, range(turn * updates, (turn + 1) * updates), rate, timed_every if turn else 0)
                time.sleep(_PAUSE_SECONDS)
                if name == "pipeline" and turn:
                    spent += time.monotonic() - since
                    for process, total in running.processor_seconds().items():
                        shares[process] = shares.get(process, 0.0) + total - used.get(process, 0.0)
        found = {name: Latency.of(stream.finish()) for name, stream in streams.items()}
        copier.send(None)
        copier.recv()
        shares["probe"] = pipeline_.probe.processor_seconds * spent / (time.monotonic() - began)
    status("  " + ", ".join(f"{name} {share / spent:.1%}" for name, share in sorted(shares.items())) + " of a core")
    return found


def _assigned(settings: Settings, topic: str) -> Consumer:
    """A consumer of all of a topic from its end on."""
    consumer = Consumer(consumer_configuration(settings.kafka, group="benchmark-bare"))
    partitions = list(consumer.list_topics(topic, timeout=10).topics[topic].partitions)
    ends = [consumer.get_watermark_offsets(TopicPartition(topic, partition))[1] for partition in partitions]
    consumer.assign([TopicPartition(topic, partition, end) for partition, end in enumerate(ends)])
    return consumer


def _receive(pipe: Connection, settings: Settings, topic: str) -> None:
    collect_garbage_rarely()
    consumer = _assigned(settings, topic)
    received: dict[bytes, float] = {}
    pipe.send("ready")
    while not pipe.poll():
        records = drain(consumer, 1_000, 0.05)
        now = time.monotonic()
        for record in records:
            received[record.key() or b""] = now
    consumer.close()
    pipe.send(received)


def _copy(pipe: Connection, settings: Settings) -> None:
    collect_garbage_rarely()
    consumer = _assigned(settings, HOP_TOPIC)
    producer = Producer(producer_configuration(settings.kafka, transactional_id="benchmark-freshness"))
    producer.init_transactions(10)
    pipe.send("ready")
    while not pipe.poll():
        records = drain(consumer, settings.assigner.batch_size, 0.05)
        if not records:
            continue
        last = {record.partition(): record.offset() + 1 for record in records}
        offsets = [TopicPartition(HOP_TOPIC, partition, offset) for partition, offset in last.items()]
        producer.begin_transaction()
        producer.send_offsets_to_transaction(offsets, consumer.consumer_group_metadata())
        for record in records:
            produce(producer, COPY_TOPIC, key=record.key(), value=record.value(), partition=record.partition())
        producer.commit_transaction()
    consumer.close()
    pipe.send("ended")


def freshness_rows(running: Running, items: Items, rate: float, seconds: float, loaded: int = 0) -> list[Result]:
    """The rows of one rate; the pipeline runs. ``loaded``: items that the index had before (``scale_ingest``)."""
    status(f"{rate:,.0f} items/s for {seconds:.0f} s …")
    found = measure(running, items, rate, seconds, loaded)
    rows = []
    for name, bound in (("p50", 3.0), ("p99", 2.5 if rate == RATES[1] else 3.0)):
        bare, copied, fresh = (getattr(found[stream], name) for stream in ("bare", "copied", "pipeline"))
        title, target = f"freshness {name} at {rate:,.0f} items/s", Target.ratio_at_most(bound)
        title += f", {loaded:,} in the index" if loaded else ""
        rows.append(Result(title, fresh, "ms", "bare round trip", bare, target))
        rows.append(Result(f"exactly-once copy {name} at {rate:,.0f} items/s", copied, "ms", "bare round trip", bare))
    return rows


def warm_up(running: Running, items: Items, rate: float = RATES[1]) -> None:
    """Until the broker has compiled what small transactions need: its compilers take a third of a core meanwhile, in bursts, and
    half of a tail is their doing. A broker that serves has done so days ago."""
    status(f"warming up the broker at {rate:,.0f} items/s …")
    for _ in range(_WARM_UPS):
        used, since = running.compiler_seconds(), time.monotonic()
        measure(running, items, rate, _WARM_UP_TURNS, 0)
        share = (running.compiler_seconds() - used) / (time.monotonic() - since)
        status(f"  the broker's compilers {share:.1%} of a core")
        if share < _COMPILES_LITTLE:
            return
    status("  the broker still compiles: the tails below have that in them")


def main() -> int:
    parser = benchmark_arguments(__doc__)
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="items/s (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=20, help="length of each run (default: %(default)s)")
    parser.add_argument("--items", type=int, default=0, help="in the index before, as 10000000 (default: %(default)s)")
    parser.add_argument("--directory", type=Path, help="where to put the temporary files (default: the system's)")
    arguments = parser.parse_args()
    items, results = Items(), []
    collect_garbage_rarely()
    with (
        tempfile.TemporaryDirectory(dir=arguments.directory, prefix="sidstream-benchmark-") as directory,
        pipeline(Path(directory)) as running,
    ):
        if arguments.items:
            status(f"loading {arguments.items:,} items …")
            codebook_id = Bundle.open(running.settings.bundle).layout.codebook_id
            load(running.settings.index, arguments.items, SIZE, codebook_id)
        running.start("indexer")
        running.start("assigner")
        warm_up(running, items)
        for rate in arguments.rates:
            results += freshness_rows(running, items, rate, arguments.seconds, arguments.items)
        running.stop()
    return report(f"Freshness, {DIMENSION} numbers an item", results, arguments.json)


if __name__ == "__main__":
    raise SystemExit(main())
