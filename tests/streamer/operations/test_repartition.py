"""Topics that grow on the real broker: every item is in its own partition afterwards, whoever writes or is killed meanwhile."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from confluent_kafka import Message, Producer
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from models.attributes import Attributes
from store.errors import IndexMissingError
from store.reading.reader import IndexReader
from store.writing.failpoints import FAILPOINT_VARIABLE
from streamer.client.publisher import ItemPublisher
from streamer.events.records import ITEM_UPDATE, ItemUpdate
from streamer.events.topics import topic_specs
from streamer.indexer.rebuild import rebuild
from streamer.kafka.admin import TopicMismatchError, create, describe
from streamer.kafka.clients import client_configuration, producer_configuration
from streamer.kafka.partitioner import MOVED_HEADER, partition_of
from streamer.operations.key_mover import RepartitionError
from streamer.operations.repartition import repartition
from streamer.operations.topic_growth import grow
from streamer.registry.subjects import register_subjects
from streamer.settings import Settings
from streamer.settings.records import RegistrySettings
from support.patience import PATIENCE_SECONDS
from support.processes import SidstreamProcess, committed_records, wait_until
from support.schema_registry import SchemaRegistry

ITEMS, DELETED, BEFORE, AFTER = 300, 40, 2, 5


@pytest.fixture
def shop(pipeline_settings: Settings, tiny_bundle: Path) -> Settings:
    """Settings of a pipeline whose topics have two partitions."""
    return pipeline_settings.model_copy(update={"bundle": tiny_bundle})


@pytest.fixture
def broker_settings(broker_settings: Settings) -> Settings:
    topics = broker_settings.topics.model_copy(update={"partitions": BEFORE})
    return broker_settings.model_copy(update={"topics": topics})


def update(number: int, state: int) -> bytes:
    embedding = np.random.default_rng(number).normal(size=8).astype("<f4").tobytes()
    return ITEM_UPDATE.encode(ItemUpdate(embedding=embedding, title=f"state {state} of {number}"))


def attributes(number: int, state: int) -> bytes:
    return json.dumps({"attributes": {"number": number, "state": state}}).encode()


class Truth(dict[bytes, bytes | None]):
    """What was published last of each item, into ``item-updates`` or another topic; ``None`` for a deletion."""

    def __init__(self, settings: Settings, topic: str = "item_updates", **producer: str) -> None:
        super().__init__()
        self._topic = getattr(settings.topics, topic)
        self._value = {"item_updates": update, "item_attributes": attributes}[topic]
        self._producer = Producer(producer_configuration(settings.kafka) | producer)

    def publish(self, numbers: Iterable[int], state: int, *, delete: bool = False) -> None:
        for number in numbers:
            key = b"item-%d" % number
            self[key] = None if delete else self._value(number, state)
            self._producer.produce(self._topic, key=key, value=self[key], headers={"trace": str(state).encode()})
        assert self._producer.flush(PATIENCE_SECONDS) == 0

    @property
    def live(self) -> dict[bytes, bytes | None]:
        return {key: value for key, value in self.items() if value is not None}


def last_of_partitions(records: Iterable[Message]) -> dict[bytes, dict[int, Message]]:
    last: dict[bytes, dict[int, Message]] = {}
    for record in records:
        last.setdefault(record.key() or b"", {})[record.partition()] = record
    return last


def items_of(records: Iterable[Message]) -> dict[bytes, bytes | None]:
    """The items by the index's rule; deleted ones left out."""
    newest = {
        key: max(last.values(), key=lambda record: (record.timestamp()[1], record.partition()))
        for key, last in last_of_partitions(records).items()
    }
    return {key: record.value() for key, record in newest.items() if record.value() is not None}


def assert_at_home(records: Iterable[Message], partitions: int) -> None:
    """No partition but its own shows a state of any key."""
    for key, last in last_of_partitions(records).items():
        showing = {partition for partition, record in last.items() if record.value() is not None}
        assert showing <= {partition_of(key, partitions)}, key


def notes(records: Iterable[Message]) -> Counter[bytes]:
    """How many copies moves have made of each key."""
    return Counter(
        record.key()
        for record in records
        if record.value() is not None and MOVED_HEADER in dict(record.headers() or ())
    )


MOVING = pytest.mark.parametrize("name", ["item_updates", "item_attributes"])


@MOVING
def test_items_move_into_their_partitions_while_producers_go_on(name: str, shop: Settings) -> None:
    topic, truth = getattr(shop.topics, name), Truth(shop, name)
    truth.publish(range(ITEMS), 1)
    truth.publish(range(DELETED), 2, delete=True)
    times = {(record.key(), record.value()): record.timestamp() for record in committed_records(shop, topic)}

    [would] = [keys for keys in repartition(shop, AFTER, dry_run=True).topics if keys.topic == topic]
    assert would.keys == ITEMS
    assert 0 < would.to_move < ITEMS - DELETED, "deleted items need nothing, some are where they belong"
    assert {one.partitions for one in describe(shop.kafka, [topic])} == {BEFORE}, "a dry run changes nothing"

    # A producer goes on, and hears of the new partitions a second after they are there.
    dice, stop, went_on = random.Random(1), threading.Event(), threading.Event()
    late = Truth(shop, name, **{"topic.metadata.refresh.interval.ms": "1000"})
    late.publish([0], 3)

    def go_on() -> None:
        state = 10
        while not stop.is_set():
            state += 1
            numbers = dice.sample(range(ITEMS), 20)
            late.publish(numbers[:15], state)
            late.publish(numbers[15:], state, delete=True)
            went_on.set()

    producing = threading.Thread(target=go_on)
    producing.start()
    went_on.wait(30)
    try:
        repartition(shop, AFTER)
    finally:
        stop.set()
        producing.join()
    truth.update(late)
    records = committed_records(shop, topic)
    assert items_of(records) == truth.live
    assert_at_home(records, AFTER)
    assert {one.partitions for one in describe(shop.kafka, _all_topics(shop))} == {AFTER}
    assert {keys.moved for keys in repartition(shop, AFTER).topics} == {0}, "again: nothing to do"
    assert len(committed_records(shop, topic)) == len(records)
    for record in records:
        headers = dict(record.headers() or ())
        if record.value() is not None and MOVED_HEADER in headers:
            assert headers.keys() == {"trace", MOVED_HEADER}
            if (known := times.get((record.key(), record.value()))) is not None:
                assert record.timestamp() == known, "verbatim: the Kafka time too"


@MOVING
def test_what_a_quiet_producer_writes_into_old_partitions_afterwards_a_second_run_brings_home(
    name: str, shop: Settings
) -> None:
    topic = getattr(shop.topics, name)
    quiet = Truth(shop, name, **{"topic.metadata.refresh.interval.ms": "300000"})
    quiet.publish(range(40), 1)
    repartition(shop, AFTER)
    quiet.publish(range(20), 2)
    quiet.publish(range(20, 30), 3, delete=True)
    outcome = repartition(shop)
    assert outcome.grown == ()
    assert any(keys.moved for keys in outcome.topics), "it did not know of the new partitions"
    records = committed_records(shop, topic)
    assert items_of(records) == quiet.live
    assert_at_home(records, AFTER)


@MOVING
def test_killed_anywhere_and_run_again_moves_every_item_once(name: str, shop: Settings, tmp_path: Path) -> None:
    topic, truth = getattr(shop.topics, name), Truth(shop, name)
    truth.publish(range(1_500), 1)
    truth.publish(range(DELETED), 2, delete=True)
    for failpoint in ("transaction-committed=1", "outputs-sent=1"):
        answer = sidstream(shop, tmp_path, "topics", "repartition", "--partitions", str(AFTER), failpoint=failpoint)
        assert answer.returncode == -signal.SIGKILL, answer.stderr
    assert 0 < len(notes(committed_records(shop, topic))) < 1_000, "a part of them is moved"
    answer = sidstream(shop, tmp_path, "topics", "repartition", "--partitions", str(AFTER))
    assert answer.returncode == 0, answer.stderr
    told = " ".join(answer.stderr.split())
    assert f"set topics.partitions = {AFTER}" in told
    assert "each lies in its own partition" in told
    topics_then = shop.topics.model_copy(update={"partitions": AFTER})
    answer = sidstream(shop.model_copy(update={"topics": topics_then}), tmp_path, "topics", "create")
    assert answer.returncode == 0, f"every topic has grown: {answer.stderr}"
    records = committed_records(shop, topic)
    assert items_of(records) == truth.live
    assert_at_home(records, AFTER)
    copies = notes(records)
    assert set(copies.values()) == {1}, "each once"
    assert set(copies) == {key for key in truth.live if partition_of(key, AFTER) != partition_of(key, BEFORE)}


def test_keys_of_another_partitioner_are_brought_home_without_new_partitions(shop: Settings) -> None:
    truth, other = Truth(shop), Truth(shop, partitioner="consistent_random")
    other.publish(range(100), 1)
    truth.publish(range(50, 120), 2)
    other.publish(range(70, 90), 3, delete=True)
    truth = Truth(shop) | truth | {key: other[key] for key in [b"item-%d" % n for n in (*range(50), *range(70, 90))]}
    outcome = repartition(shop)
    assert outcome.grown == ()
    assert outcome.updates.moved > 0
    records = committed_records(shop, shop.topics.item_updates)
    assert items_of(records) == {key: value for key, value in truth.items() if value is not None}
    assert_at_home(records, BEFORE)


def test_item_whose_newest_update_the_assigner_refuses_stays_where_it_is_and_is_told_of(
    shop: Settings, tmp_path: Path
) -> None:
    truth = Truth(shop)
    truth.publish(range(20), 1)
    producer = Producer(producer_configuration(shop.kafka))
    refused = next(n for n in range(20) if partition_of(b"item-%d" % n, BEFORE) != partition_of(b"item-%d" % n, AFTER))
    producer.produce(shop.topics.item_updates, key=b"item-%d" % refused, value=b'{"embedding": [1]}')
    assert producer.flush(PATIENCE_SECONDS) == 0
    answer = sidstream(shop, tmp_path, "topics", "repartition", "--partitions", str(AFTER))
    told = " ".join(answer.stderr.split())
    assert "1 stay where they are" in told
    assert "each lies in its own partition" not in told.partition("item-attributes moved")[0], "one does not"
    last = last_of_partitions(committed_records(shop, shop.topics.item_updates))[b"item-%d" % refused]
    assert list(last) == [partition_of(b"item-%d" % refused, BEFORE)], "its codes are an earlier update's: untouched"


def test_item_whose_newest_update_is_of_another_model_keeps_its_codes_and_its_attributes_beside_them(
    shop: Settings, tmp_path: Path
) -> None:
    truth, alone = Truth(shop), Truth(shop, "item_attributes")
    alone.publish(range(20), 1)
    key = next(b"item-%d" % n for n in range(20) if len({partition_of(b"item-%d" % n, c) for c in (BEFORE, AFTER)}) > 1)
    before = partition_of(key, BEFORE)

    def codes() -> dict[int, Message]:
        return last_of_partitions(committed_records(shop, shop.topics.item_codes)).get(key, {})

    with SidstreamProcess(shop, "assigner", tmp_path):
        truth.publish(range(20), 1)
        wait_until(lambda: before in codes(), what="its codes")
        other = ItemUpdate(embedding=b"\0" * 16, title="of another", embedding_model="another")
        producer = Producer(producer_configuration(shop.kafka))
        producer.produce(shop.topics.item_updates, key=key, value=ITEM_UPDATE.encode(other))
        assert producer.flush(PATIENCE_SECONDS) == 0
        answer = sidstream(shop, tmp_path, "topics", "repartition", "--partitions", str(AFTER))
        told = " ".join(answer.stderr.split())
        assert "1 stay where they are: a codebook passes over their newest update" in told
        assert "1 stay where they are: so do their items" in told
        later = next(n for n in range(100, 200) if partition_of(b"item-%d" % n, AFTER) == before)
        Truth(shop).publish([later], 1)
        lies = shop.topics.item_codes
        wait_until(
            lambda: b"item-%d" % later in last_of_partitions(committed_records(shop, lies)), what="codes after it"
        )
    assert {number: one.value() is None for number, one in codes().items()} == {before: False}
    for topic in (shop.topics.item_updates, shop.topics.item_attributes):
        assert list(last_of_partitions(committed_records(shop, topic))[key]) == [before]

    # Sent anew for this codebook it moves, and what is said of it too.
    Truth(shop).publish([int(key.partition(b"-")[2])], 2)
    assert not any(keys.kept for keys in repartition(shop, AFTER).topics)
    for topic in (shop.topics.item_updates, shop.topics.item_attributes):
        assert_at_home(committed_records(shop, topic), AFTER)


def test_rows_in_the_settings_columns_move_as_the_assigner_reads_them(shop: Settings) -> None:
    shop = shop.model_copy(update={"columns": shop.columns.model_copy(update={"embedding": "vec"})})
    producer = Producer(producer_configuration(shop.kafka))
    for number in range(100):
        row = json.dumps({"vec": [float(number + 1)] * 8, "title": f"row {number}"}).encode()
        producer.produce(shop.topics.item_updates, key=b"item-%d" % number, value=row)
    assert producer.flush(PATIENCE_SECONDS) == 0
    updates = repartition(shop, AFTER).updates
    assert (updates.kept, updates.moved) == (0, updates.to_move)
    assert updates.moved > 0
    assert_at_home(committed_records(shop, shop.topics.item_updates), AFTER)


def test_values_in_a_registrys_frame_move_as_the_assigner_reads_them(
    shop: Settings, schema_registry: SchemaRegistry
) -> None:
    registry = RegistrySettings(url=schema_registry.url, format="avro", publish=True)
    shop = shop.model_copy(update={"registry": registry})
    register_subjects(shop)
    with ItemPublisher(shop) as publisher:
        for number in range(50):
            publisher.update(f"item-{number}", np.full(8, number + 1, dtype=np.float32))
    updates = repartition(shop, AFTER).updates
    assert (updates.kept, updates.moved) == (0, updates.to_move)
    assert updates.moved > 0


@pytest.mark.parametrize("dry_run", [False, True])
def test_fewer_partitions_are_refused_with_and_without_a_dry_run(dry_run: bool, shop: Settings) -> None:
    with pytest.raises(TopicMismatchError, match=rf"has {BEFORE} partitions, more than 1: .*--partitions {BEFORE}"):
        repartition(shop, 1, dry_run=dry_run)


def test_topics_that_an_older_cluster_lacks_are_told_and_created_with_the_new_number(
    broker_settings: Settings, tiny_bundle: Path, tmp_path: Path
) -> None:
    shop = broker_settings.model_copy(update={"bundle": tiny_bundle})
    lacking = (shop.topics.interactions, shop.topics.item_attributes)
    create(shop.kafka, [spec for spec in topic_specs(shop) if spec.name not in lacking])
    Truth(shop).publish(range(20), 1)
    outcome = repartition(shop, AFTER)
    assert outcome.attributes is None
    assert sorted(outcome.missing) == sorted(lacking)
    shop = shop.model_copy(update={"topics": shop.topics.model_copy(update={"partitions": AFTER})})
    assert sidstream(shop, tmp_path, "topics", "create").returncode == 0
    assert {one.partitions for one in describe(shop.kafka, _all_topics(shop))} == {AFTER}


def test_topics_that_a_sidstream_of_before_left_behind_catch_up(shop: Settings) -> None:
    truth = Truth(shop, "item_attributes")
    truth.publish(range(50), 1)
    topics = shop.topics
    grow(shop.kafka, [topics.item_codes, topics.item_updates, topics.results, topics.queries], AFTER)
    grown = shop.model_copy(update={"topics": topics.model_copy(update={"partitions": AFTER})})
    with pytest.raises(TopicMismatchError, match=f"sidstream topics repartition --partitions {AFTER}"):
        create(shop.kafka, topic_specs(grown))
    assert set(repartition(grown, AFTER).grown) == {topics.item_attributes, topics.interactions}
    create(shop.kafka, topic_specs(grown))
    records = committed_records(shop, topics.item_attributes)
    assert items_of(records) == truth.live
    assert_at_home(records, AFTER)


def test_topic_whose_keys_do_not_move_may_have_more_partitions(shop: Settings, tmp_path: Path) -> None:
    Truth(shop).publish(range(20), 1)
    grow(shop.kafka, [shop.topics.interactions], AFTER + 2)
    answer = sidstream(shop, tmp_path, "topics", "repartition", "--partitions", str(AFTER))
    assert answer.returncode == 0, answer.stderr
    told = " ".join(answer.stderr.split())
    assert f"{shop.topics.queries} has {AFTER} partitions now" in told
    assert "run `sidstream topics repartition` once more" in told, "producers hear of it later"
    found = {one.name: one.partitions for one in describe(shop.kafka, _all_topics(shop))}
    assert found.pop(shop.topics.interactions) == AFTER + 2
    assert set(found.values()) == {AFTER}


@pytest.mark.parametrize("name", ["item_codes", "item_attributes"])
def test_topic_that_the_broker_dates_is_refused_with_what_to_do(name: str, shop: Settings) -> None:
    _configure(shop, getattr(shop.topics, name), "message.timestamp.type", "LogAppendTime")
    with pytest.raises(TopicMismatchError, match=r"kafka-configs .*message\.timestamp\.type=CreateTime"):
        repartition(shop, AFTER)
    assert {one.partitions for one in describe(shop.kafka, _all_topics(shop))} == {BEFORE}


def test_index_with_an_order_of_its_own_is_refused(shop: Settings) -> None:
    indexer = shop.indexer.model_copy(update={"order": "updated_at"})
    with pytest.raises(RepartitionError, match=r"indexer\.order = 'updated_at'"):
        repartition(shop.model_copy(update={"indexer": indexer}), AFTER, dry_run=True)


@MOVING
def test_compaction_waits_while_items_move_and_is_as_before_afterwards(name: str, shop: Settings) -> None:
    topic = getattr(shop.topics, name)
    Truth(shop).publish(range(50), 1)
    _configure(shop, topic, "min.compaction.lag.ms", "60000")
    during: list[str] = []
    repartition(shop, AFTER, progress=lambda _progress: during.append(_lag(shop, topic)))
    assert set(during) == {str(24 * 60 * 60 * 1000)}
    assert _lag(shop, topic) == "60000"


def test_running_assigner_and_indexer_follow_and_a_rebuild_agrees_in_shards_too(shop: Settings, tmp_path: Path) -> None:
    truth, alone = Truth(shop), Truth(shop, "item_attributes")

    def held(index: Path) -> dict[bytes, tuple[str, Attributes]]:
        """Title and attributes by id."""
        with IndexReader(index) as reader, reader.snapshot() as snapshot:
            found = {key: item for key, item in zip(truth, snapshot.find(list(truth)), strict=True) if item is not None}
            said = snapshot.attributes([item.number for item in found.values()])
            return {key: (item.title, one or {}) for (key, item), one in zip(found.items(), said, strict=True)}

    def indexed() -> dict[bytes, tuple[str, Attributes]]:
        try:
            return held(shop.index)
        except IndexMissingError:  # the indexer is still making it
            return {}

    def expected() -> dict[bytes, tuple[str, Attributes]]:
        said = {key: json.loads(value)["attributes"] for key, value in alone.live.items() if value}
        return {key: (ITEM_UPDATE.decode(value).title, said.get(key, {})) for key, value in truth.live.items() if value}

    def codes_at_home() -> bool:
        codes = last_of_partitions(committed_records(shop, shop.topics.item_codes))
        return all(
            record.value() is None or partition == partition_of(key, AFTER)
            for key, last in codes.items()
            for partition, record in last.items()
        )

    def digest() -> str:
        with IndexReader(shop.index) as reader, reader.snapshot() as snapshot:
            return snapshot.digest()

    with SidstreamProcess(shop, "assigner", tmp_path), SidstreamProcess(shop, "indexer", tmp_path):
        truth.publish(range(ITEMS), 1)
        truth.publish(range(DELETED), 2, delete=True)
        alone.publish(range(200), 1)
        alone.publish(range(150, 200), 2, delete=True)
        wait_until(lambda: indexed() == expected(), what="items before", every=0.5)
        repartition(shop, AFTER)
        wait_until(lambda: indexed() == expected(), what="items moved", every=0.5)
        later, changed = Truth(shop), Truth(shop, "item_attributes")
        later.publish(range(20, 60), 3)  # some anew, some changed
        later.publish(range(100, 110), 4, delete=True)
        changed.publish(range(50, 90), 3)
        changed.publish(range(90, 140), 4, delete=True)
        changed.publish(range(180, 190), 5)
        truth.update(later)
        alone.update(changed)
        wait_until(lambda: indexed() == expected(), what="items after", every=0.5)
        wait_until(codes_at_home, what="codes in their own partitions alone", every=1.0)
        built = rebuild(shop, tmp_path / "fresh")
        assert built.items == len(expected())
        wait_until(lambda: (indexed(), digest()) == (expected(), built.digest), what="the rebuild's digest", every=0.5)
    of_shards: dict[bytes, tuple[str, Attributes]] = {}
    for partitions in ("0-1", f"2-{AFTER - 1}"):
        indexer = shop.indexer.model_copy(update={"partitions": partitions})
        rebuild(shop.model_copy(update={"indexer": indexer}), tmp_path / partitions)
        of_shards |= held(tmp_path / partitions)
    assert of_shards == expected(), "each shard has the attributes of its items"


def sidstream(
    settings: Settings, directory: Path, *arguments: str, failpoint: str = ""
) -> subprocess.CompletedProcess[str]:
    configuration = directory / "sidstream.toml"
    configuration.write_text(tomli_w.dumps(settings.model_dump(mode="json", exclude_none=True)))
    environment = {**os.environ, "SIDSTREAM_CONFIG": str(configuration), FAILPOINT_VARIABLE: failpoint}
    return subprocess.run(
        [sys.executable, "-m", "sidstream", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )


def _all_topics(settings: Settings) -> list[str]:
    return [spec.name for spec in topic_specs(settings) if spec.grows]


def _configure(settings: Settings, topic: str, name: str, value: str) -> None:
    entry = ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    admin = AdminClient(client_configuration(settings.kafka))
    admin.incremental_alter_configs([resource])[resource].result(20)


def _lag(settings: Settings, topic: str) -> str:
    resource = ConfigResource(ResourceType.TOPIC, topic)
    admin = AdminClient(client_configuration(settings.kafka))
    answer = admin.describe_configs([resource])[resource].result(20)
    return str(answer["min.compaction.lag.ms"].value)
