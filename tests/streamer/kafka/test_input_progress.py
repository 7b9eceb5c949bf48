"""Readiness by what was on the topics at the start: floods and transaction markers do not hold it up, backlogs do."""

from __future__ import annotations

import time

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from prometheus_client import REGISTRY

from streamer.kafka.clients import consumer_configuration, producer_configuration
from streamer.kafka.gather import drain
from streamer.kafka.input_progress import InputProgress
from streamer.process.health import Health, Part
from streamer.settings import Settings
from support.patience import PATIENCE_SECONDS
from support.processes import wait_until

ENDS = {("codes", 0): 100, ("codes", 1): 50}


@pytest.fixture
def health() -> Health:
    health = Health()
    health.set_ready(Part.START)
    health.set_ready(Part.BROKER)
    return health


@pytest.fixture
def progress(health: Health) -> InputProgress:
    return InputProgress("test", health, "waiting for partitions of codes")


def test_nothing_assigned_is_not_ready_and_no_partition_at_all_is(health: Health, progress: InputProgress) -> None:
    assert health.reason == "waiting for partitions of codes"
    assert not progress.has_caught_up
    progress.assign({})
    assert progress.has_caught_up
    assert health.ready, "every partition belongs to another member of the group"


def test_reason_counts_down_what_is_to_be_read(health: Health, progress: InputProgress) -> None:
    progress.assign(ENDS, {("codes", 1): 40})
    assert health.reason == "catching up: 110 offsets on 2 partitions to go"
    progress.advance({("codes", 0): 70})
    assert health.reason == "catching up: 40 offsets on 2 partitions to go"
    progress.advance({("codes", 0): 100})
    assert not health.ready
    progress.advance({("codes", 1): 50})
    assert health.ready


def test_steady_flood_past_the_ends_of_the_start_is_ready(health: Health, progress: InputProgress) -> None:
    progress.assign(ENDS)
    for offset in range(10, 200, 10):  # the topic grows as fast: an end of a partition is never seen
        progress.advance({("codes", 0): offset, ("codes", 1): offset})
    assert health.ready
    progress.advance({("codes", 0): 201})
    assert health.ready, "what comes later does not make it unready again"


def test_end_of_partition_counts_only_when_the_batch_before_it_is_processed(
    health: Health, progress: InputProgress
) -> None:
    progress.assign({("codes", 0): 100})
    progress.end_reached(("codes", 0), 100)
    assert not health.ready, "the records came with the news of the end and are not processed"
    progress.advance({("codes", 0): 60}, nothing_waits=False)
    assert not health.ready
    progress.advance({("codes", 0): 99})  # offset 99 is a transaction's marker
    assert health.ready


def test_new_assignment_is_caught_up_anew(health: Health, progress: InputProgress) -> None:
    progress.assign({("codes", 0): 10}, {("codes", 0): 10})
    assert health.ready
    progress.assign({("codes", 1): 5})
    assert not health.ready
    progress.advance({("codes", 1): 5})
    assert health.ready


@pytest.mark.parametrize("transactional", [False, True], ids=["plain records", "a transaction's marker at the end"])
def test_consumer_of_a_group_catches_up_and_has_no_lag_by_its_statistics(
    pipeline_settings: Settings, health: Health, transactional: bool
) -> None:
    topic = pipeline_settings.topics.queries
    identity = {"transactional_id": f"{topic}-producer"} if transactional else {}
    producer = Producer(producer_configuration(pipeline_settings.kafka, **identity))
    if transactional:
        producer.init_transactions(10)
        producer.begin_transaction()
    for number in range(40):
        producer.produce(topic, key=f"query-{number}".encode(), value=b"{}")
    if transactional:
        producer.commit_transaction(10)
    assert producer.flush(PATIENCE_SECONDS) == 0

    progress = InputProgress("test", health, "waiting")
    consumer = Consumer(
        consumer_configuration(
            pipeline_settings.kafka,
            group=f"{topic}-group",
            on_statistics=progress.read_statistics,
        )
    )
    try:
        consumer.subscribe([topic])
        read, deadline = 0, time.monotonic() + PATIENCE_SECONDS
        while not consumer.assignment():
            records = drain(consumer, 100, 0.1)
            read += len(records)
            assert time.monotonic() < deadline
        ends = {(topic, at.partition): consumer.get_watermark_offsets(at, timeout=5)[1] for at in consumer.assignment()}
        assert sum(ends.values()) > 40 if transactional else sum(ends.values()) == 40
        progress.assign(ends)
        while not health.ready or read < 40:
            records = drain(consumer, 100, 0.1)
            read += len(records)
            progress.advance({(topic, record.partition()): record.offset() + 1 for record in records})
            progress.show_lag(consumer)
            assert time.monotonic() < deadline, health.reason
        assert read == 40

        def has_no_lag() -> bool:
            consumer.poll(0)  # the statistics come with it
            progress.show_lag(consumer)
            return REGISTRY.get_sample_value("sidstream_lag_records", {"process": "test", "topic": topic}) == 0

        wait_until(has_no_lag, what="no lag")
    finally:
        consumer.close()


def test_lag_counts_what_an_open_transaction_holds_back(pipeline_settings: Settings, health: Health) -> None:
    topic = pipeline_settings.topics.queries
    producer = Producer(producer_configuration(pipeline_settings.kafka, transactional_id=f"{topic}-open"))
    producer.init_transactions(20)
    producer.begin_transaction()
    for number in range(18):
        producer.produce(topic, key=f"query-{number}".encode(), value=b"{}", partition=0)
    assert producer.flush(20) == 0
    progress = InputProgress("open", health, "waiting")
    consumer = Consumer(consumer_configuration(pipeline_settings.kafka, group=f"{topic}-group"))
    try:
        consumer.assign([TopicPartition(topic, 0, 0)])
        progress.assign({(topic, 0): 0})

        def lag() -> float | None:
            assert drain(consumer, 100, 0.2) == [], "nothing of it is committed"
            progress.show_lag(consumer)
            return REGISTRY.get_sample_value("sidstream_lag_records", {"process": "open", "topic": topic})

        wait_until(lambda: lag() == 18, what="a lag of 18 records")
        assert health.ready, "the process has read all that it may"
    finally:
        consumer.close()
        producer.abort_transaction(20)
