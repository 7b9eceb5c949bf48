"""The monitor on a real broker: exact counts, one story of layouts and alerts, whatever is killed and whenever."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

from models.sids.layout import Layout
from streamer.events.records import ALERT, DRIFT, LAYOUT, TOKEN_COUNT, Codec, TokenCount, token_count, token_count_key
from streamer.events.topics import topic_specs
from streamer.kafka.admin import create
from streamer.kafka.clients import consumer_configuration, producer_configuration
from streamer.settings import Settings
from support.paths import SUPPORT
from support.patience import PATIENCE_SECONDS
from support.processes import free_port

LAYERS, SIZE = 3, 20
LAYOUT_OF_BUNDLE = Layout(generation=1, codebook_id="abc", layers=LAYERS, size=SIZE, head_tokens=(0, 1))
BASELINE = np.full((LAYERS, SIZE), 100, dtype=np.int64)
BASELINE[:, :2] = 300
# A take-over lasts 8 s at the most on an idle machine, 6 s of them until the broker gives up the killed monitor; where ten
# processes shared two cores, 32 s were measured.


class Process:
    """A monitor in a process of its own, which can be killed and started again."""

    def __init__(self, settings: Settings, log: Path, *, awaits_topics: bool = True) -> None:
        self.web, self.metrics = free_port(), free_port()
        self._log = log
        self._arguments = json.dumps(
            {
                "settings": {
                    "kafka": {"bootstrap_servers": settings.kafka.bootstrap_servers},
                    "topics": {"prefix": settings.topics.prefix},
                    "metrics": {"port": self.metrics},
                    "monitor": {
                        "web_port": self.web,
                        "interval_seconds": 0.2,
                        "drift_interval_seconds": 0.5,
                        "bucket_seconds": 0.5,
                        "buckets": 4,
                        "minimum_items": 1_000,
                        "minimum_interval_seconds": 1.0,
                        "reshortened_seconds": 2.0,
                    },
                },
                "layout": LAYOUT_OF_BUNDLE.to_dict(),
                "baseline": BASELINE.tolist(),
                "awaits_topics": awaits_topics,
            }
        )
        self.child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, str(SUPPORT / "monitor_process.py"), self._arguments]
        with self._log.open("ab") as log:
            self.child = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})

    def kill(self, number: int = signal.SIGKILL) -> int:
        assert self.child is not None
        self.child.send_signal(number)
        return self.child.wait(PATIENCE_SECONDS)

    def get(self, path: str, port: int | None = None) -> str | None:
        assert self.child is not None
        if self.child.poll() is not None:
            raise AssertionError(f"the monitor ended with {self.child.returncode}: {self.log}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port or self.web}{path}", timeout=5) as answer:
                return answer.read().decode()
        except OSError:
            return None

    def state(self) -> dict[str, Any]:
        return json.loads(self.get("/state") or '{"ready": false}')

    def counts(self) -> tuple[int, Any]:
        answer = json.loads(self.get("/counts") or '{"as_of": -2, "counts": []}')
        return answer["as_of"], answer["counts"]

    @property
    def log(self) -> str:
        return self._log.read_text()[-8_000:] if self._log.exists() else ""


def until(what: Callable[[], Any], why: str, *monitors: Process) -> Any:
    """The first true result of ``what``; a failure tells what the monitors say of themselves."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if result := what():
            return result
        time.sleep(0.05)
    told = "\n".join(f"--- ends with\n{monitor.log}" for monitor in monitors)
    raise AssertionError(f"not within {PATIENCE_SECONDS:g} s: {why}\n{told}")


class Indexer:
    """Publishes absolute counts as the indexer does, and holds the truth."""

    def __init__(self, settings: Settings, codebook: str = "abc", partitions: str = "") -> None:
        self.truth = BASELINE.copy()
        self.as_of = 0
        self._codebook = codebook
        self._partitions = partitions
        self._topic = settings.topics.token_counts
        self._producer = Producer(producer_configuration(settings.kafka))

    def publish(self, places: list[tuple[int, int]] | None = None, as_of: int | None = None) -> None:
        if as_of is None:
            self.as_of += 1
        for layer_index, token in places or list(np.ndindex(LAYERS, SIZE)):
            place = self._codebook, layer_index + 1, token
            n, included = int(self.truth[layer_index, token]), self.as_of if as_of is None else as_of
            record = token_count(*place, n, included, partitions=self._partitions)
            self.raw(token_count_key(*place, self._partitions), TOKEN_COUNT.encode(record))
        self._producer.flush()

    def raw(self, key: bytes, value: bytes | None) -> None:
        self._producer.produce(self._topic, key=key, value=value)

    def gain(self, token: int, items: int) -> None:
        """``items`` arrive on layer-2 token ``token``; in the other layers on one that changes each time."""
        places = [(0, self.as_of % SIZE), (1, token), (2, 7 * self.as_of % SIZE)]
        for place in places:
            self.truth[place] += items
        self.publish(places)


def read_all(settings: Settings, topic: str, codec: Codec) -> list[Any]:
    """Every committed record, with the CloudEvents headers checked."""
    consumer = Consumer(consumer_configuration(settings.kafka, group=f"{topic}-reader", enable_partition_eof=True))
    consumer.assign([TopicPartition(topic, 0, OFFSET_BEGINNING)])
    records = []
    while (message := consumer.poll(10)) is not None and message.error() is None:
        headers = dict(message.headers())
        assert headers["ce_specversion"] == b"1.0"
        records.append(codec.decode(message.value()))
    consumer.close()
    return records


@pytest.fixture
def monitor(pipeline_settings: Settings, tmp_path: Path) -> Iterator[Process]:
    process = Process(pipeline_settings, tmp_path / "monitor.log")
    yield process
    if process.child is not None and process.child.poll() is None:
        process.child.kill()
        process.child.wait()


def check_story(settings: Settings) -> None:
    """What must hold of the topics after any number of kills."""
    layouts = read_all(settings, settings.topics.layouts, LAYOUT)
    # Each generation once, none left out: none was issued twice with different content.
    assert [record.generation for record in layouts] == list(range(2, 2 + len(layouts)))
    for before, after in itertools.pairwise(layouts):
        assert before.head_tokens != after.head_tokens
        assert after.issued_at - before.issued_at >= 1_000
    told: dict[str, Any] = {}
    for alert in read_all(settings, settings.topics.alerts, ALERT):
        last = told.get(alert.key)
        if alert.state == "firing":
            news = (alert.severity, alert.figures.get("generation"))
            assert last is None or last.state == "resolved" or news != (last.severity, last.figures.get("generation"))
        else:
            assert last is not None
            assert last.state == "firing"
            assert last.first_at == alert.first_at
        told[alert.key] = alert


def test_fad_is_told_reshortens_and_clears_and_bad_records_do_no_harm(
    monitor: Process, pipeline_settings: Settings
) -> None:
    indexer = Indexer(pipeline_settings)
    indexer.publish()
    foreign = Indexer(pipeline_settings, codebook="other")
    foreign.truth += 5
    foreign.publish()
    for value in (
        b"junk",
        None,
        b"\xff\xff",
        TOKEN_COUNT.encode(TokenCount(codebook="abc", layer=2, token=99, n=1, as_of=9)),
        TOKEN_COUNT.encode(token_count("abc", 2, 9, 1, 9, partitions="some")),
    ):
        indexer.raw(b"bad", value)
    monitor.start()
    until(lambda: monitor.counts()[1] == indexer.truth.tolist(), "the counts are the truth", monitor)
    until(lambda: monitor.state()["ready"], "the monitor is active", monitor)
    until(lambda: monitor.get("/ready", monitor.metrics) == "ready\n", "the monitor says that it is ready", monitor)
    metrics = until(
        lambda: (text := monitor.get("/metrics", monitor.metrics)) and "bad_counts_total 5.0" in text and text,
        "five bad records are counted",
        monitor,
    )
    assert f"foreign_counts_total {LAYERS * SIZE}.0" in metrics
    # The window of half a second by four must have passed before a gain is a fad rather than the filling of an index.
    until(lambda: not monitor.state()["gaining"], "the window is calm", monitor)
    assert monitor.state()["generation"] == 1
    assert "<h1>sidstream</h1>" in (monitor.get("/") or "")

    indexer.gain(17, 600)
    until(lambda: monitor.state()["generation"] == 2, "a layout was issued", monitor)
    until(lambda: not monitor.state()["gaining"], "the window is calm again", monitor)
    until(
        lambda: all(a["key"].startswith("drift") for a in monitor.state()["alerts"]), "head growth has cleared", monitor
    )
    assert monitor.kill(signal.SIGTERM) == 0, monitor.log

    layouts = read_all(pipeline_settings, pipeline_settings.topics.layouts, LAYOUT)
    assert 17 in layouts[0].head_tokens
    assert layouts[0].cause.startswith("token 17 of layer 2 entered the head set: 700 items")
    alerts = read_all(pipeline_settings, pipeline_settings.topics.alerts, ALERT)
    growth = [alert for alert in alerts if alert.key == "head-growth:abc:2:17"]
    assert [alert.state for alert in growth] == ["firing", "resolved"]
    assert growth[0].figures["growth"] == 600
    assert "drift:abc:2:entropy" in {alert.key for alert in alerts}
    drifts = read_all(pipeline_settings, pipeline_settings.topics.drift, DRIFT)
    assert (drifts[-1].items, drifts[-1].generation) == (indexer.truth[1].sum(), 2)
    check_story(pipeline_settings)


def test_counts_of_shards_add_up_and_are_the_same_after_a_kill(monitor: Process, pipeline_settings: Settings) -> None:
    whole = Indexer(pipeline_settings)
    whole.publish()  # of before the catalogue was divided
    one, two = (Indexer(pipeline_settings, partitions=partitions) for partitions in ("0-1", "2-3"))
    two.truth //= 3
    for shard in (one, two):
        shard.as_of = 7 * len(shard.truth)
        shard.publish()
    monitor.start()
    until(lambda: monitor.counts()[1] == (one.truth + two.truth).tolist(), "the counts of both add up", monitor)
    assert "partitions_divided_anew" in monitor.log
    two.gain(3, 50)
    until(lambda: monitor.counts()[1] == (one.truth + two.truth).tolist(), "one shard's gain is counted", monitor)
    monitor.kill(signal.SIGKILL)
    one.gain(4, 20)
    monitor.start()
    until(lambda: monitor.counts()[1] == (one.truth + two.truth).tolist(), "the table has both again", monitor)


def test_killed_again_and_again_the_table_holds_the_truth_and_the_story_is_told_once(
    monitor: Process, pipeline_settings: Settings
) -> None:
    dice = random.Random(11)
    indexer = Indexer(pipeline_settings)
    indexer.publish()
    for _ in range(4):
        monitor.start()
        for step in range(2 * dice.randrange(20, 60)):
            old = indexer.as_of
            indexer.gain(dice.choice([3, 5, 17, 17]), dice.randrange(1, 30))
            if dice.random() < 0.2:
                indexer.publish(as_of=old)  # late and redelivered: must change nothing
                indexer.truth[dice.randrange(LAYERS), dice.randrange(SIZE)] -= 1  # a deletion
                indexer.publish()
            if step == 20:
                until(
                    lambda: monitor.counts()[1] == indexer.truth.tolist() and monitor.state()["ready"],
                    "after a kill the counts are the truth again",
                    monitor,
                )
        monitor.kill()  # with part of what followed read, part of that committed, and none of it waited for
    monitor.start()
    until(lambda: monitor.counts()[1] == indexer.truth.tolist(), "the counts are the truth", monitor)
    until(lambda: monitor.state()["ready"], "the monitor is active", monitor)
    until(lambda: not monitor.state()["gaining"], "the window is calm", monitor)
    layouts = read_all(pipeline_settings, pipeline_settings.topics.layouts, LAYOUT)
    state = until(
        lambda: (now := monitor.state())["generation"] == len(layouts) + 1 and now,
        "the newest layout is known",
        monitor,
    )
    assert state["items"] == indexer.truth[1].sum()
    monitor.kill(signal.SIGTERM)
    assert layouts, "the stream crowds token 17, so there is a story to tell"
    check_story(pipeline_settings)


def test_second_monitor_stands_by_and_takes_over(pipeline_settings: Settings, tmp_path: Path) -> None:
    indexer = Indexer(pipeline_settings)
    indexer.publish()
    first, second = (Process(pipeline_settings, tmp_path / f"{name}.log") for name in ("first", "second"))
    try:
        first.start()
        until(lambda: first.state()["ready"], "the first is active", first, second)
        second.start()
        until(lambda: second.get("/state") is not None, "the second runs", first, second)
        indexer.gain(17, 600)
        until(
            lambda: {p.state().get("generation") for p in (first, second)} & {2},
            "one of them issued a layout",
            first,
            second,
        )
        active, standby = (first, second) if first.state().get("generation") == 2 else (second, first)
        active.kill()
        indexer.gain(3, 40)
        until(
            lambda: standby.state().get("items") == indexer.truth[1].sum(), "the standby has taken over", first, second
        )
        assert standby.counts()[1] == indexer.truth.tolist()
        until(lambda: standby.state()["generation"] == 2, "it knows the layout of the first", first, second)
        check_story(pipeline_settings)
    finally:
        for process in (first, second):
            if process.child is not None and process.child.poll() is None:
                process.kill()


def test_monitor_that_was_told_of_no_topics_by_a_broker_takes_the_counts_soon_after_they_are_there(
    broker_settings: Settings, tmp_path: Path
) -> None:
    monitor = Process(broker_settings, tmp_path / "monitor.log", awaits_topics=False)
    monitor.start()
    try:
        until(lambda: "Ignoring missing topic" in monitor.log, "an assignment of nothing", monitor)
        create(broker_settings.kafka, topic_specs(broker_settings))
        indexer = Indexer(broker_settings)
        indexer.publish()
        until(lambda: monitor.counts() == (indexer.as_of, indexer.truth.tolist()), "its counts", monitor)
    finally:
        assert monitor.kill(signal.SIGTERM) == 0, monitor.log


def test_what_we_set_inside_faust_and_aiokafka_is_still_there(tmp_path: Path) -> None:
    """Private names of pinned versions: an upgrade that renames them must fail here, not read uncommitted records."""
    import inspect

    from aiokafka import AIOKafkaConsumer
    from faust.tables.base import Collection
    from faust.transport.consumer import Consumer as FaustConsumer
    from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread

    source = inspect.getsource(AIOKafkaConsumer)
    assert "isolation_level=self._isolation_level" in source
    assert "fetch_max_wait_ms=self._fetch_max_wait_ms" in source
    assert "_create_worker_consumer" in vars(AIOKafkaConsumerThread)
    assert "_commit_offsets" in vars(FaustConsumer)
    assert "send_changelog" in vars(Collection)
