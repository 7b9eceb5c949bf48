"""The indexer refuses what does not belong together, with what to do, and writes nothing of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from confluent_kafka import Producer
from prometheus_client import REGISTRY

from models.bundles.bundle import Bundle
from models.sids.layout import Layout
from store.batch import CodesBatch
from store.writer import IndexWriter
from streamer.events.records import ITEM_CODES, ItemCodes
from streamer.indexer.process import Indexer, IndexerError
from streamer.kafka.clients import producer_configuration
from streamer.process.health import Health
from streamer.settings import Settings
from support.patience import PATIENCE_SECONDS
from support.processes import wait_until

DAY = 86_400


@pytest.fixture
def layout(tiny_bundle: Path) -> Layout:
    return Bundle.open(tiny_bundle).layout


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
    assert writer.offsets() == {}
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
    def value(name: str, **labels: str) -> float:
        return REGISTRY.get_sample_value(name, labels) or 0.0

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
