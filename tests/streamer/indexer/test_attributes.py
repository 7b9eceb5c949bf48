"""Attributes through the indexer on a real broker: alone or with an update, refused ones as dead letters, exactly once."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from models.attributes import Attributes
from models.sids.layout import Layout
from store.reading.reader import IndexReader
from store.writing.failpoints import FAILPOINT_VARIABLE, Failpoint
from streamer.indexer.rebuild import RebuildError, rebuild
from streamer.kafka.clients import producer_configuration
from streamer.operations.verify import examine
from streamer.settings import Settings
from support.patience import PATIENCE_SECONDS
from support.processes import SidstreamProcess, committed_records, wait_until
from support.running_indexer import RunningIndexer, running_indexer, send_codes, with_indexer

NOW = 1_767_323_045_000


@pytest.fixture
def settings(settings: Settings) -> Settings:
    filterable = {"price": "number", "in_stock": "boolean"}
    attributes = settings.attributes.model_copy(update={"filterable": filterable})
    return settings.model_copy(update={"attributes": attributes})


def send_attributes(settings: Settings, *records: dict[str, Any]) -> None:
    """Each as ``key``, ``attributes`` (None takes them away) or a raw ``value``, and what ``produce`` takes."""
    producer = Producer(producer_configuration(settings.kafka))
    for record in records:
        if "attributes" in record:
            attributes = record.pop("attributes")
            record["value"] = None if attributes is None else json.dumps({"attributes": attributes}).encode()
        producer.produce(settings.topics.item_attributes, **{"partition": 0, "timestamp": NOW, **record})
        producer.poll(0)
    assert producer.flush(PATIENCE_SECONDS) == 0


def await_read(running: RunningIndexer, settings: Settings, topic: str, count: int) -> None:
    def read() -> bool:
        assert running.fault is None
        return sum(at for (name, _), at in running.writer.offsets().items() if name == topic) == count

    wait_until(read, what=f"{count} records of {topic} in the index")


def attributes_in(index: Path, *ids: str) -> list[Attributes | None]:
    with IndexReader(index) as reader, reader.snapshot() as snapshot:
        items = snapshot.find([item_id.encode() for item_id in ids])
        return [None if item is None else snapshot.attributes([item.number])[0] for item in items]


def test_attributes_come_with_an_update_or_alone_before_or_after_it_and_go_with_a_null_value(
    settings: Settings, layout: Layout
) -> None:
    topics = settings.topics
    item = {"partition": 0, "codes": (1, 2, 3), "timestamp": NOW}
    send_attributes(settings, {"key": b"early", "attributes": {"price": 9}})
    send_codes(
        settings,
        layout,
        {"key": b"early", **item},
        {"key": b"late", **item, "attributes": {"brand": "Acme", "price": 5}},
    )
    with running_indexer(settings, layout) as running:
        wait_until(lambda: running.health.ready, what="an indexer that has caught up")
        assert attributes_in(settings.index, "early", "late") == [{"price": 9}, {"brand": "Acme", "price": 5}]
        send_attributes(
            settings,
            {"key": b"late", "attributes": {"price": 4.5, "in_stock": True}, "timestamp": NOW + 1},
            {"key": b"early", "attributes": None, "timestamp": NOW + 1},
        )
        await_read(running, settings, topics.item_attributes, 3)
        changed = {"brand": "Acme", "price": 4.5, "in_stock": True}
        assert attributes_in(settings.index, "early", "late", "never") == [{}, changed, None]
    found = examine(settings.index)
    assert found.faults == ()
    assert rebuild(settings, settings.index.with_name("fresh")).digest == found.digest


def test_refused_attributes_are_a_dead_letter_and_what_the_topic_said_before_counts_no_more(
    settings: Settings, layout: Layout
) -> None:
    """Compaction keeps the last record of a key: with the one before, a rebuild would give another index."""
    topics = settings.topics
    send_codes(settings, layout, {"key": b"a", "partition": 0, "codes": (1, 2, 3), "attributes": {"brand": "Acme"}})
    send_attributes(
        settings,
        {"key": b"a", "attributes": {"price": 9}},
        {"key": b"a", "attributes": {"price": "9"}},
        {"key": b"", "attributes": {"price": 9}},
        {"key": b"b", "value": b"{"},
    )
    with running_indexer(settings, layout) as running:
        wait_until(lambda: running.health.ready, what="an indexer that has caught up")
        assert running.fault is None
        assert attributes_in(settings.index, "a") == [{"brand": "Acme"}]
    letters = committed_records(settings, topics.item_attributes_dead_letters)
    headers = [dict(letter.headers()) for letter in letters]
    assert [one["dlq.errors.class"] for one in headers] == [b"InvalidAttributes", b"EmptyId", b"UndecodableEvent"]
    assert [one["dlq.errors.offset"] for one in headers] == [b"1", b"2", b"3"]
    assert all(one["dlq.errors.stage"] == b"indexer" for one in headers)
    message = headers[0]["dlq.errors.message"].decode()
    assert "attributes.price is a string, and attributes.filterable declares it as a number" in message
    assert "said of this item before counts no more" in message
    found = examine(settings.index)
    assert found.faults == ()
    assert rebuild(settings, settings.index.with_name("fresh")).digest == found.digest


def test_attributes_of_ids_that_nobody_has_are_kept_up_to_the_limit_of_items(
    settings: Settings, layout: Layout
) -> None:
    limited = with_indexer(settings, maximum_items=2)
    send_codes(limited, layout, {"key": b"item", "partition": 0, "codes": (1, 2, 3)})
    with running_indexer(limited, layout) as running:
        wait_until(lambda: running.health.ready, what="an indexer that has caught up")
        keys = [b"one", b"two", b"three", b"item", b"one"]
        send_attributes(limited, *({"key": key, "attributes": {"price": 1}} for key in keys))
        await_read(running, limited, limited.topics.item_attributes, len(keys))
        with running.writer.snapshot() as snapshot:
            assert snapshot.known_attribute_ids(keys) == {b"one", b"two", b"item"}
    [letter] = committed_records(limited, limited.topics.item_attributes_dead_letters)
    assert letter.key() == b"three"
    assert dict(letter.headers())["dlq.errors.class"] == b"IndexFull"
    with pytest.raises(RebuildError, match=r"3 ids with attributes and no item, .* allows 2: .* null value"):
        rebuild(limited, limited.index.with_name("fresh"))


@pytest.mark.parametrize("failpoint", [Failpoint.ATTRIBUTES_WRITTEN, Failpoint.ATTRIBUTES_COMMITTED])
def test_indexer_that_is_killed_in_the_middle_of_attributes_has_each_of_them_once(
    settings: Settings, layout: Layout, tmp_path: Path, failpoint: Failpoint
) -> None:
    choose = random.Random(3)
    ids = [b"item-%d" % number for number in range(40)]
    last: dict[str, Attributes] = {}
    waves = []
    for wave in range(4):
        records: list[dict[str, Any]] = []
        for item_id in choose.choices(ids, k=60):
            given: Attributes = {"price": choose.randrange(100), "wave": wave}
            last[item_id.decode()] = given
            partition = ids.index(item_id) % 4
            records.append({"key": item_id, "attributes": given, "partition": partition, "timestamp": NOW + wave})
        waves.append(records)
    send_codes(
        settings,
        layout,
        *({"key": item_id, "partition": 0, "codes": (1, 2, 3), "timestamp": NOW - 1} for item_id in ids),
    )
    indexer = SidstreamProcess(settings, "indexer", tmp_path)
    for records in waves:
        indexer.start({FAILPOINT_VARIABLE: f"{failpoint}=1"})
        send_attributes(settings, *records)
        wait_until(lambda: indexer.status() is not None, what="death at the failpoint")
    with indexer.start():
        end = sum(map(len, waves))
        wait_until(lambda: _position(settings) == end, what="all attributes in the index")
    found = examine(settings.index)
    assert found.faults == ()
    expected = [last.get(item_id.decode(), {}) for item_id in ids]
    assert attributes_in(settings.index, *[item_id.decode() for item_id in ids]) == expected
    assert rebuild(settings, settings.index.with_name("fresh")).digest == found.digest


def _position(settings: Settings) -> int:
    with IndexReader(settings.index) as reader, reader.snapshot() as snapshot:
        return sum(at for (topic, _), at in snapshot.position.items() if topic == settings.topics.item_attributes)
