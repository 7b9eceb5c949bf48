"""The indexer refuses what does not belong together, with what to do, and writes nothing of it."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewPartitions
from prometheus_client import REGISTRY

from models.sids.layout import Layout
from store.reading.reader import IndexReader
from store.records.batch import CodesBatch
from store.writing.writer import IndexWriter
from streamer.events.records import ITEM_CODES, ItemCodes
from streamer.indexer import process
from streamer.indexer.log_watch import LogWatch
from streamer.indexer.process import Indexer, IndexerError
from streamer.indexer.rebuild import RebuildError, rebuild
from streamer.kafka import admin, partition_watch
from streamer.kafka.admin import ClusterAwayError
from streamer.kafka.clients import client_configuration, producer_configuration
from streamer.kafka.input_progress import InputProgress
from streamer.operations.verify import examine
from streamer.process.health import Health, Part
from streamer.settings import Settings
from support.patience import PATIENCE_SECONDS
from support.processes import SidstreamProcess, committed_records, free_port, http_get, wait_until
from support.running_indexer import running_indexer, send_codes, with_indexer

DAY = 86_400


@pytest.fixture
def clock() -> list[float]:
    """What time the index believes it is, in seconds; a test may change it."""
    return [time.time()]


@pytest.fixture
def writer(pipeline_settings: Settings, layout: Layout, clock: list[float]) -> Iterator[IndexWriter]:
    with IndexWriter.open(
        pipeline_settings.index,
        codebook_id=layout.codebook_id,
        layers=layout.layers,
        size=layout.size,
        clock=lambda: clock[0],
    ) as writer:
        yield writer


def send(settings: Settings, key: bytes, value: bytes | None) -> None:
    producer = Producer(producer_configuration(settings.kafka))
    producer.produce(settings.topics.item_codes, key=key, value=value, partition=0)
    assert producer.flush(PATIENCE_SECONDS) == 0


def codes(codebook: str, *numbers: int) -> bytes:
    return ITEM_CODES.encode(ItemCodes(codebook=codebook, codes=numbers, title="", weight=1.0, updated_at=0))


def run(settings: Settings, writer: IndexWriter, layout: Layout) -> None:
    """Until it refuses; a test that it does not refuse would run into the deadline."""
    stop = threading.Event()
    threading.Timer(20, stop.set).start()
    Indexer(settings, writer, layout, Health()).run(stop)


def one_item(layout: Layout) -> CodesBatch:
    return CodesBatch(
        ids=[b"item"],
        codes=np.zeros((1, layout.layers), np.uint16),
        weights=np.ones(1, np.float32),
        titles=[""],
        updated_at=np.zeros(1, np.int64),
        deleted=np.zeros(1, bool),
    )


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (codes("another-codebook", 1, 2, 3), "another-codebook"),
        (b"{", "who else writes to it"),
    ],
    ids=["another codebook", "no item codes"],
)
def test_record_that_does_not_belong_is_refused_by_its_place_and_nothing_is_written(
    pipeline_settings: Settings, writer: IndexWriter, layout: Layout, value: bytes, message: str
) -> None:
    send(pipeline_settings, b"item", value)
    with pytest.raises(IndexerError, match=message) as caught:
        run(pipeline_settings, writer, layout)
    assert f"{pipeline_settings.topics.item_codes}/0 at offset 0" in str(caught.value)
    assert set(writer.offsets().values()) == {0}
    assert writer.census().sum() == 0


def test_codes_outside_the_codebook_are_refused(
    pipeline_settings: Settings, writer: IndexWriter, layout: Layout
) -> None:
    send(pipeline_settings, b"item", codes(layout.codebook_id, 1, 2, layout.size))
    with pytest.raises(IndexerError, match="outside"):
        run(pipeline_settings, writer, layout)


def test_index_ahead_of_its_topic_is_refused_with_what_to_delete(
    pipeline_settings: Settings, writer: IndexWriter, layout: Layout
) -> None:
    writer.apply(one_item(layout), {(pipeline_settings.topics.item_codes, 0): 7})
    with pytest.raises(IndexerError, match=r"made anew.*Delete"):
        run(pipeline_settings, writer, layout)


def test_index_that_nobody_fed_for_longer_than_tombstones_stay_is_refused(
    pipeline_settings: Settings, writer: IndexWriter, layout: Layout, clock: list[float]
) -> None:
    clock[0] -= 8 * DAY
    writer.apply(one_item(layout), {(pipeline_settings.topics.item_codes, 0): 0})
    with pytest.raises(IndexerError, match=r"8 days ago.*missed"):
        run(pipeline_settings, writer, layout)


def test_idle_index_is_dated_anew_so_that_it_is_not_taken_for_a_stale_one(
    pipeline_settings: Settings,
    writer: IndexWriter,
    layout: Layout,
    clock: list[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("streamer.indexer.process._LIFE_SIGN_SECONDS", 0.2)
    writer.apply(one_item(layout), {(pipeline_settings.topics.item_codes, 0): 0})
    clock[0] += 3 * DAY
    stop, health = threading.Event(), Health()
    indexer = threading.Thread(target=Indexer(pipeline_settings, writer, layout, health).run, args=(stop,))
    indexer.start()

    def dated() -> bool:
        with writer.snapshot() as snapshot:
            return snapshot.last_commit_at == int(clock[0] * 1000)

    try:
        wait_until(dated, what="a new date")
        assert health.ready
    finally:
        stop.set()
        indexer.join()
    assert writer.census()[0].sum() == 1


def test_metrics_tell_freshness_from_the_updates_own_timestamp_items_and_storage(
    pipeline_settings: Settings, writer: IndexWriter, layout: Layout
) -> None:
    def freshness() -> tuple[float, float]:
        count, total = "sidstream_freshness_seconds_count", "sidstream_freshness_seconds_sum"
        return value(count, process="indexer"), value(total, process="indexer")

    topic = pipeline_settings.topics.item_codes
    producer = Producer(producer_configuration(pipeline_settings.kafka))
    sent_at = int(time.time() * 1000) - 100_000  # as if the assigner had needed 100 s
    for number in range(3):
        producer.produce(topic, key=b"item-%d" % number, value=codes(layout.codebook_id, 1, 2, 3), timestamp=sent_at)
    assert producer.flush(PATIENCE_SECONDS) == 0
    before = freshness()
    stop, health = threading.Event(), Health()
    indexer = threading.Thread(target=Indexer(pipeline_settings, writer, layout, health).run, args=(stop,))
    indexer.start()
    try:
        wait_until(lambda: health.ready and freshness()[0] - before[0] == 3, what="three items")
        assert 300 <= freshness()[1] - before[1] < 390
        assert value("sidstream_index_items") == 3
        wait_until(lambda: value("sidstream_lag_records", process="indexer", topic=topic) == 0, what="no lag")
        used, room = value("sidstream_index_used_bytes"), value("sidstream_index_map_bytes")
        assert 0 < used < room
        assert value("sidstream_index_disk_free_bytes") > 0
        assert value("sidstream_index_commit_seconds_count") >= 1
    finally:
        stop.set()
        indexer.join()


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_partitions_that_are_added_while_running_are_read_without_a_restart(settings: Settings, layout: Layout) -> None:
    topic = settings.topics.item_codes
    first = {"partition": 3, "codes": (1, 2, 3)}
    send_codes(settings, layout, *({"key": b"old-%d" % number, **first} for number in range(20)))
    with running_indexer(settings, layout) as running:
        wait_until(lambda: running.health.ready, what="an indexer that has caught up")
        admin = AdminClient(client_configuration(settings.kafka))
        admin.create_partitions([NewPartitions(topic, 10)])[topic].result()
        added = {"codes": (3, 2, 1)}
        send_codes(
            settings, layout, *({"key": b"new-%d" % number, "partition": number, **added} for number in range(10))
        )

        def items() -> int:
            with running.writer.snapshot() as snapshot:
                return snapshot.item_count

        wait_until(lambda: items() == 30, what="the items of all ten partitions")
        wait_until(lambda: running.health.ready, what="an indexer that has caught up again")
        wait_until(lambda: value("sidstream_lag_records", process="indexer", topic=topic) == 0, what="no lag")
        position = running.writer.offsets()
    assert running.fault is None
    assert {partition for name, partition in position if name == topic} == set(range(10))
    fresh = settings.index.with_name("fresh")
    built = rebuild(settings, fresh)
    assert built.digest == examine(settings.index).digest


def test_added_partition_makes_unready_until_it_is_read() -> None:
    health = Health()
    progress = InputProgress("indexer", health, "waiting")
    for part in (Part.START, Part.BROKER):
        health.set_ready(part)
    progress.assign({("t", 0): 3})
    progress.advance({("t", 0): 3})
    assert health.ready
    progress.add({("t", 1): 5})
    assert "5 offsets on 1 partitions to go" in str(health.reason)
    progress.advance({("t", 1): 5})
    assert health.ready


def test_one_key_in_two_partitions_is_the_same_item_streamed_and_rebuilt(settings: Settings, layout: Layout) -> None:
    """Updated in one partition, deleted in another by a producer with another partitioner, and the other way round."""
    now = int(time.time() * 1000) - 60_000
    # The rebuild reads whole partitions one after the other; the streams saw them in the order of time.
    rounds: list[list[dict[str, Any]]] = [
        [{"key": b"deleted", "partition": 0, "codes": (1, 1, 1), "timestamp": now}],
        [{"key": b"deleted", "partition": 1, "codes": None, "timestamp": now + 10}],
        [{"key": b"back", "partition": 3, "codes": None, "timestamp": now + 20}],
        [{"key": b"back", "partition": 2, "codes": (2, 2, 2), "timestamp": now + 30}],
        [{"key": b"moved", "partition": 3, "codes": (3, 3, 3), "timestamp": now + 40}],
        [{"key": b"moved", "partition": 0, "codes": (4, 4, 4), "timestamp": now + 50}],
        [{"key": b"plain", "partition": 1, "codes": (5, 5, 5), "timestamp": now + 60}],
    ]
    with running_indexer(settings, layout) as running:
        sent = 0
        for records in rounds:
            send_codes(settings, layout, *(dict(record) for record in records))
            sent += len(records)
            wait_until(
                lambda: sum(running.writer.offsets().values()) >= sent,  # noqa: B023
                what="the record in the index",
            )
        wait_until(lambda: value("sidstream_index_split_keys") == 3, what="the split keys' metric")
    assert running.fault is None
    found = examine(settings.index)
    assert (found.items, found.split_keys, found.faults) == (3, 3, ())
    assert {example.id for example in found.split_key_examples} == {"deleted", "back", "moved"}
    backwards = settings.model_copy(update={"index": settings.index.with_name("backwards")})
    for target in ("one", "two"):
        built = rebuild(settings, settings.index.with_name(target))
        assert built.digest == found.digest
    with running_indexer(backwards, layout) as again:
        wait_until(lambda: again.health.ready, what="an index read anew")
    assert examine(backwards.index).digest == found.digest


def test_new_items_beyond_the_limit_are_dead_letters_and_known_ones_go_on(settings: Settings, layout: Layout) -> None:
    limited = with_indexer(settings, maximum_items=3, batch_size=4)
    one = {"partition": 0, "codes": (1, 1, 1)}
    send_codes(settings, layout, *({"key": b"item-%d" % number, **one} for number in range(5)))
    with running_indexer(limited, layout) as running:
        wait_until(lambda: running.health.ready, what="an indexer that has caught up")
        assert value("sidstream_index_fill_ratio") == 1
        send_codes(
            settings,
            layout,
            {"key": b"item-1", "partition": 0, "codes": (2, 2, 2)},
            {"key": b"item-0", "partition": 0, "codes": None},
            {"key": b"late", **one},
            {"key": b"later", **one},
        )
        wait_until(lambda: running.writer.offsets()[settings.topics.item_codes, 0] == 9, what="all read")
        with running.writer.snapshot() as snapshot:
            names = [b"item-0", b"item-1", b"item-2", b"item-3", b"item-4", b"late", b"later"]
            items = [item.codes if item else None for item in snapshot.find(names)]
    assert running.fault is None
    assert items == [None, (2, 2, 2), (1, 1, 1), None, None, (1, 1, 1), None]
    letters = committed_records(settings, settings.topics.item_updates_dead_letters)
    assert [letter.key() for letter in letters] == [b"item-3", b"item-4", b"later"]
    headers = dict(letters[0].headers())
    assert headers["dlq.errors.class"] == b"IndexFull"
    assert headers["dlq.errors.topic"] == settings.topics.item_codes.encode()
    assert headers["dlq.errors.offset"] == b"3"
    assert b"indexer.maximum_items" in headers["dlq.errors.message"]
    with pytest.raises(RebuildError, match=r"6 items, indexer\.maximum_items allows 3"):
        rebuild(limited, settings.index.with_name("fresh"))
    assert not settings.index.with_name("fresh").exists()
    unlimited = rebuild(settings, settings.index.with_name("fresh"))
    assert unlimited.items == 6, "what was refused is in item-codes, and a higher limit brings it in"


def test_counts_are_the_census_after_the_index_was_deleted_and_read_anew(
    settings: Settings, layout: Layout, tmp_path: Path
) -> None:
    """An index read anew goes through the partitions in another order: sums of offsets alone would hide its counts."""
    port = free_port()
    monitored = settings.model_copy(
        update={
            "monitor": settings.monitor.model_copy(update={"web_port": port, "interval_seconds": 0.2}),
            "indexer": settings.indexer.model_copy(update={"batch_size": 50, "counts_interval_seconds": 0.001}),
        }
    )

    def census() -> list[list[int]]:
        with IndexReader(settings.index) as reader, reader.snapshot() as snapshot:
            counts: list[list[int]] = snapshot.census().tolist()
            return counts

    def counts_are_the_census() -> bool:
        status, body = http_get(port, "/counts")
        return status == 200 and json.loads(body)["counts"] == census()

    random = np.random.default_rng(3)

    def send(first: int, count: int, partition: int) -> None:
        codes = random.integers(layout.size, size=(count, layout.layers)).tolist()
        send_codes(
            settings,
            layout,
            *(
                {"key": b"item-%d" % (first + row), "partition": partition, "codes": tuple(codes[row])}
                for row in range(count)
            ),
        )

    for partition in range(4):
        send(1_000 * partition, 300, partition)
    with SidstreamProcess(monitored, "monitor", tmp_path), SidstreamProcess(monitored, "indexer", tmp_path) as indexer:
        wait_until(lambda: "caught_up" in indexer.log(), what="an indexer that has caught up")
        wait_until(counts_are_the_census, what="counts of the first index")
        assert indexer.stop() == 0
        send(0, 40, 0)  # in the partition that may be read first
        shutil.rmtree(settings.index)
        indexer.start()
        wait_until(lambda: indexer.log().count("caught_up") == 2, what="an index read anew")
        wait_until(counts_are_the_census, what="counts of the index read anew")
        assert indexer.stop() == 0


def test_cluster_that_falls_silent_while_the_indexer_starts_is_asked_again(
    pipeline_settings: Settings, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker answered for the topics, and went away before it was asked for their state."""
    silent = ["first", "second"]
    monkeypatch.setattr(admin, "_AWAY_SECONDS", 0.0)

    class Watch(LogWatch):
        def __init__(self, settings: Settings, writer: IndexWriter) -> None:
            if silent:
                raise ClusterAwayError(f"{silent.pop(0)}: the broker does not tell the state of item-codes")
            super().__init__(settings, writer)

    monkeypatch.setattr(process, "LogWatch", Watch)
    with running_indexer(pipeline_settings, layout) as running, IndexReader(pipeline_settings.index) as reader:
        send_codes(pipeline_settings, layout, {"key": b"item", "partition": 0, "codes": (1, 2, 3)})

        def indexed() -> bool:
            assert running.fault is None
            with reader.snapshot() as snapshot:
                return snapshot.item_count == 1

        wait_until(indexed, what="the item of a cluster that fell silent and came back")
    assert silent == []


def test_topic_state_of_a_cluster_that_is_away_is_to_be_asked_again(
    pipeline_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = pipeline_settings.kafka.model_copy(update={"bootstrap_servers": f"127.0.0.1:{free_port()}"})
    monkeypatch.setattr(partition_watch, "_REQUEST_SECONDS", 1.0)
    with pytest.raises(ClusterAwayError, match="does not tell the state of item-codes"):
        partition_watch.topic_states(away, ["item-codes"])
