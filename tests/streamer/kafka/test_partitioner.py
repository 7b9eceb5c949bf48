"""The partition of a key is Kafka's own, and a producer with another partitioner is noticed from a few of its keys."""

from __future__ import annotations

import random
from typing import Any

import pytest
from confluent_kafka import Message, Producer
from prometheus_client import Counter
from structlog.testing import capture_logs

from streamer.events.topics import TopicSpec
from streamer.kafka.admin import create
from streamer.kafka.clients import client_configuration, producer_configuration
from streamer.kafka.partitioner import (
    MISPLACED_KEYS,
    MOVED_HEADER,
    SAMPLED_KEYS,
    PartitionerCheck,
    murmur2,
    partition_of,
)
from streamer.settings import Settings
from support.patience import PATIENCE_SECONDS
from support.processes import committed_records


@pytest.mark.parametrize(
    ("key", "hashed"),
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_hash_is_that_of_kafkas_own_test_vectors(key: bytes, hashed: int) -> None:
    assert murmur2(key) == hashed % 2**32


def keys_of(count: int, seed: int) -> list[bytes]:
    """Ids as shops have them, and bytes of every length."""
    dice = random.Random(seed)
    return [
        f"sku-{dice.randrange(10**6)}".encode() if number % 2 else dice.randbytes(1 + number % 70)
        for number in range(count)
    ]


def sent(settings: Settings, topic: str, keys: list[bytes], **configuration: Any) -> list[Message]:
    producer = Producer({**producer_configuration(settings.kafka), **configuration})
    for key in keys:
        producer.produce(topic, key=key, value=b"")
    assert producer.flush(PATIENCE_SECONDS) == 0
    return committed_records(settings, topic)


def test_partition_is_the_one_that_librdkafkas_murmur2_chooses(broker_settings: Settings) -> None:
    topic = broker_settings.topics.item_updates
    create(broker_settings.kafka, [TopicSpec(topic, 7, 1)])
    records = sent(broker_settings, topic, keys_of(700, seed=1))
    assert len(records) == 700
    assert {record.partition() for record in records} == set(range(7))
    assert all(partition_of(record.key() or b"", 7) == record.partition() for record in records)


def test_producer_with_librdkafkas_default_partitioner_is_noticed_and_told_what_to_set(
    broker_settings: Settings,
) -> None:
    topic = broker_settings.topics.item_updates
    create(broker_settings.kafka, [TopicSpec(topic, 4, 1)])
    keys = [f"sku-{number}".encode() for number in range(400)]
    producer = Producer(client_configuration(broker_settings.kafka))  # as somebody writes it who sets none
    for key in keys:
        producer.produce(topic, key=key, value=b"")
    assert producer.flush(PATIENCE_SECONDS) == 0
    check = PartitionerCheck(topic, lambda: 4)
    before = _value(SAMPLED_KEYS), _value(MISPLACED_KEYS)
    with capture_logs() as logs:
        check.look(committed_records(broker_settings, topic))
    sampled, misplaced = _value(SAMPLED_KEYS) - before[0], _value(MISPLACED_KEYS) - before[1]
    assert 0 < sampled <= 16, "a few of a batch, whatever its size"
    assert misplaced > sampled / 4
    (line,) = logs
    assert (line["event"], line["topic"], line["misplaced"]) == ("keys_misplaced", topic, misplaced)
    assert "partitioner=murmur2_random" in line["next"]
    assert "sidstream topics repartition" in line["next"]


def record(key: bytes | None, partition: int) -> Message:
    return Message(topic="item-updates", partition=partition, offset=0, key=key, value=b"")


def wrong(count: int, partitions: int) -> list[Message]:
    return [
        record(key, (partition_of(key, partitions) + 1) % partitions)
        for key in (f"k{number}".encode() for number in range(count))
    ]


def test_misplaced_keys_are_told_once_a_minute_with_how_many_there_were() -> None:
    now = 0.0
    check = PartitionerCheck("item-updates", lambda: 4, clock=lambda: now)
    with capture_logs() as logs:
        for second in range(100):
            now = float(second)
            check.look(wrong(3, 4))
    assert [line["misplaced"] for line in logs] == [3, 180]


def test_keys_in_their_place_no_keys_and_a_single_partition_are_no_news() -> None:
    right = [record(key, partition_of(key, 4)) for key in keys_of(200, seed=2)]
    check, single = PartitionerCheck("item-updates", lambda: 4), PartitionerCheck("item-updates", lambda: 1)
    before = _value(MISPLACED_KEYS)
    with capture_logs() as logs:
        check.look([])
        check.look(right)
        check.look([record(None, 0), record(b"", 3)])
        single.look([record(key, 0) for key in keys_of(20, seed=3)])
    assert not logs
    assert _value(MISPLACED_KEYS) == before


def test_records_of_before_a_topic_grew_are_in_their_place_and_those_of_after_it_too() -> None:
    partitions = 4
    check = PartitionerCheck("item-updates", lambda: partitions)
    before = [record(key, partition_of(key, 4)) for key in keys_of(16, seed=4)]
    with capture_logs() as logs:
        check.look(before)
        partitions = 6
        check.look(before)
        check.look([record(key, partition_of(key, 6)) for key in keys_of(16, seed=5)])
        assert not logs
        check.look(
            [
                record(key, next(n for n in range(6) if n not in (partition_of(key, 4), partition_of(key, 6))))
                for key in keys_of(16, seed=6)
            ]
        )
    assert [line["misplaced"] for line in logs] == [16]


def test_what_a_repartition_leaves_behind_is_no_misplaced_key() -> None:
    left = [
        Message(
            topic="item-updates", partition=one.partition(), offset=0, key=one.key(), headers=[(MOVED_HEADER, b"[7]")]
        )
        for one in wrong(16, 4)
    ]
    with capture_logs() as logs:
        PartitionerCheck("item-updates", lambda: 4).look(left)
    assert not logs


def _value(counter: Counter) -> float:
    return counter._value.get()  # type: ignore[no-any-return]
