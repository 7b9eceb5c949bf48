"""What a loop takes up, on a real broker: added partitions, logs that are not the ones that were read, notes of offsets."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from confluent_kafka import Consumer, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions

from streamer.events.outgoing import Outgoing
from streamer.events.topics import TOMBSTONE_RETENTION_MS, TopicSpec, topic_specs
from streamer.exactly_once.assignment import MissedRecordsError
from streamer.exactly_once.loop import LoopSettings, TransactionalLoop
from streamer.kafka.admin import create
from streamer.kafka.clients import consumer_configuration, producer_configuration
from streamer.kafka.errors import OffsetGoneError
from streamer.kafka.gather import drain, produce
from streamer.kafka.read_to_end import has_records
from streamer.process.health import Health
from streamer.process.metrics import FRESHNESS_SECONDS
from streamer.settings import Settings
from support.patience import PATIENCE_SECONDS
from support.processes import committed_records, wait_until


class Running:
    """A loop in a thread that copies ``item-updates`` into the same partitions of ``item-codes``."""

    def __init__(self, settings: Settings, loop: LoopSettings) -> None:
        self.health = Health()
        self.error: BaseException | None = None
        self.stop = threading.Event()
        self._loop = TransactionalLoop(loop, settings.kafka, self._transform, self.health)
        self._target = settings.topics.item_codes
        self.thread = threading.Thread(target=self._run)

    def _transform(self, records: list[Message]) -> list[Outgoing]:
        return [Outgoing(self._target, record.key(), record.value(), record.partition()) for record in records]

    def _run(self) -> None:
        try:
            self._loop.run(self.stop)
        except BaseException as error:
            self.error = error

    def ended(self) -> BaseException | None:
        """What the loop ended with, waited for."""
        self.thread.join(60)
        assert not self.thread.is_alive()
        return self.error


def loop_settings(settings: Settings) -> LoopSettings:
    return LoopSettings(
        process="assigner",
        source=settings.topics.item_updates,
        group=settings.topics.prefix + "copy",
        instance="0",
        batch_size=100,
        batch_interval_ms=lambda: 0.0,
        event_seconds=FRESHNESS_SECONDS.labels("assigner"),
        outputs=(settings.topics.item_codes,),
        every_record=True,
        remedy="Do this.",
    )


@contextmanager
def running(settings: Settings, loop: LoopSettings) -> Iterator[Running]:
    run = Running(settings, loop)
    run.thread.start()
    try:
        yield run
    finally:
        run.stop.set()
        run.thread.join(PATIENCE_SECONDS)


def send(settings: Settings, topic: str, keys: range, partition: int | None = None) -> None:
    producer = Producer(producer_configuration(settings.kafka))
    for number in keys:
        where = {} if partition is None else {"partition": partition}
        produce(producer, topic, key=f"{number:04}".encode(), value=b"x", **where)
    assert producer.flush(PATIENCE_SECONDS) == 0


def keys_of(settings: Settings, topic: str) -> list[bytes | None]:
    return sorted(record.key() or b"" for record in committed_records(settings, topic))


def copied(settings: Settings, count: int) -> None:
    topic = settings.topics.item_codes
    wait_until(lambda: len(keys_of(settings, topic)) >= count, what=f"{count} copies", every=0.3)


def admin_of(settings: Settings) -> AdminClient:
    return AdminClient({"bootstrap.servers": settings.kafka.bootstrap_servers})


def commit(settings: Settings, offset: int, note: dict[str, object] | None) -> None:
    """An offset of partition 0, as a loop before this one would have committed it."""
    loop = loop_settings(settings)
    consumer = Consumer(consumer_configuration(settings.kafka, group=loop.group))
    metadata = "" if note is None else json.dumps(note)
    consumer.commit(offsets=[TopicPartition(loop.source, 0, offset, metadata=metadata)], asynchronous=False)
    consumer.close()


def committed_note(settings: Settings) -> dict[str, object]:
    loop = loop_settings(settings)
    consumer = Consumer(consumer_configuration(settings.kafka, group=loop.group))
    try:
        [found] = consumer.committed([TopicPartition(loop.source, 0)], timeout=20)
    finally:
        consumer.close()
    return {"offset": found.offset, **json.loads(found.metadata or "{}")}


def test_partitions_added_while_running_are_read_and_wait_where_their_outputs_have_no_partition(
    pipeline_settings: Settings,
) -> None:
    settings, topics = pipeline_settings, pipeline_settings.topics
    admin = admin_of(settings)
    with running(settings, loop_settings(settings)) as run:
        send(settings, topics.item_updates, range(100))
        copied(settings, 100)
        admin.create_partitions([NewPartitions(topics.item_updates, 6)])[topics.item_updates].result()
        reason = f"{topics.item_codes} has 4 partitions and {topics.item_updates} has 6"
        wait_until(lambda: reason in (run.health.reason or ""), what="the reason")
        send(settings, topics.item_updates, range(100, 110), partition=5)
        send(settings, topics.item_updates, range(110, 120), partition=1)
        copied(settings, 110)
        assert keys_of(settings, topics.item_codes)[-1] == b"0119", "partitions that have somewhere to go are read on"
        admin.create_partitions([NewPartitions(topics.item_codes, 6)])[topics.item_codes].result()
        copied(settings, 120)
        wait_until(lambda: run.health.ready, what="ready again")
    assert run.error is None
    assert keys_of(settings, topics.item_codes) == [f"{number:04}".encode() for number in range(120)]
    assert {record.partition() for record in committed_records(settings, topics.item_codes)} >= {5}


@pytest.mark.parametrize("which", ["item_updates", "item_codes"])
def test_topic_made_anew_while_running_ends_the_loop_with_what_to_do(pipeline_settings: Settings, which: str) -> None:
    settings = pipeline_settings
    topic = getattr(settings.topics, which)
    admin = admin_of(settings)
    with running(settings, loop_settings(settings)) as run:
        send(settings, settings.topics.item_updates, range(20))
        copied(settings, 20)
        admin.delete_topics([topic])[topic].result()
        create(settings.kafka, [spec for spec in topic_specs(settings) if spec.name == topic])
        error = run.ended()
    assert isinstance(error, MissedRecordsError)
    assert f"{topic} was deleted" in str(error)
    assert "Do this." in str(error)


@pytest.mark.parametrize("every_record", [True, False], ids=["every record counts", "what is there counts"])
def test_start_of_the_log_moved_past_the_committed_offset(broker_settings: Settings, every_record: bool) -> None:
    settings, topics = broker_settings, broker_settings.topics
    # Kafka deletes no records of a compacted topic.
    create(settings.kafka, [TopicSpec(name, 4, 1) for name in (topics.item_updates, topics.item_codes)])
    send(settings, topics.item_updates, range(30), partition=0)
    commit(settings, 10, None)
    admin = admin_of(settings)
    [future] = admin.delete_records([TopicPartition(topics.item_updates, 0, 20)]).values()
    future.result()
    loop = replace(loop_settings(settings), every_record=every_record)
    with running(settings, loop) as run:
        if every_record:
            error = run.ended()
            assert isinstance(error, MissedRecordsError)
            assert f"10 offsets of {topics.item_updates}/0 were deleted before they were read" in str(error)
        else:
            copied(settings, 10)
    if every_record:
        with running(settings, replace(loop, accept_missed=True)):
            copied(settings, 10)
    assert keys_of(settings, topics.item_codes) == [f"{number:04}".encode() for number in range(20, 30)]


@pytest.mark.parametrize(
    ("note", "sentence"),
    [
        ({"at": int(time.time() * 1000) - TOMBSTONE_RETENTION_MS - 60_000}, "was last read 7 days ago"),
        ({"at": int(time.time() * 1000), "logs": {"UPDATES": "another"}}, "was deleted and made anew since"),
    ],
    ids=["away for longer than deletions are kept", "another log"],
)
def test_start_from_an_offset_whose_note_does_not_fit_is_refused(
    pipeline_settings: Settings, note: dict[str, object], sentence: str
) -> None:
    settings = pipeline_settings
    send(settings, settings.topics.item_updates, range(30), partition=0)
    if "logs" in note:
        note = {**note, "logs": {settings.topics.item_updates: "another"}}
    commit(settings, 10, note)
    with running(settings, loop_settings(settings)) as run:
        error = run.ended()
    assert isinstance(error, MissedRecordsError)
    assert sentence in str(error)
    assert keys_of(settings, settings.topics.item_codes) == []


def test_group_without_offsets_beside_outputs_that_hold_records_is_refused(pipeline_settings: Settings) -> None:
    settings, topics = pipeline_settings, pipeline_settings.topics
    aborted = Producer(producer_configuration(settings.kafka, transactional_id=topics.prefix + "aborted"))
    aborted.init_transactions(20)
    aborted.begin_transaction()
    produce(aborted, topics.item_codes, key=b"never", value=b"x", partition=2)
    aborted.flush(PATIENCE_SECONDS)
    aborted.abort_transaction(20)
    assert not has_records(settings.kafka, topics.prefix + "look", topics.item_codes)
    send(settings, topics.item_updates, range(10))
    send(settings, topics.item_codes, range(1), partition=3)
    assert has_records(settings.kafka, topics.prefix + "look", topics.item_codes)
    with running(settings, loop_settings(settings)) as run:
        error = run.ended()
    assert isinstance(error, MissedRecordsError)
    assert f"no committed offsets, but {topics.item_codes} holds records" in str(error)
    with running(settings, replace(loop_settings(settings), accept_missed=True)):
        copied(settings, 11)


def test_idle_loop_commits_where_it_stands_with_the_time_the_logs_and_its_own_fields(
    pipeline_settings: Settings,
) -> None:
    settings, topics = pipeline_settings, pipeline_settings.topics
    seen = {"colour": 0}
    loop = replace(loop_settings(settings), life_sign_seconds=0.5, commit_note=lambda: {"unknown_fields": dict(seen)})
    with running(settings, loop):
        wait_until(lambda: committed_note(settings)["offset"] == 0, what="a commit before any record")
        seen["colour"] = 3
        send(settings, topics.item_updates, range(5), partition=0)
        copied(settings, 5)
        first = committed_note(settings)
        assert first["offset"] == 5
        wait_until(lambda: committed_note(settings)["at"] > first["at"], what="a sign of life")  # type: ignore[operator]
        last = committed_note(settings)
    assert last["offset"] == 5
    assert last["unknown_fields"] == {"colour": 3}
    assert set(last["logs"]) == {topics.item_updates, topics.item_codes}  # type: ignore[call-overload]


def test_consumer_that_is_told_to_guess_nothing_hears_that_its_offset_is_gone(pipeline_settings: Settings) -> None:
    topic = pipeline_settings.topics.item_updates
    configuration = consumer_configuration(pipeline_settings.kafka, group=topic, auto_offset_reset="error")
    consumer = Consumer(configuration)
    consumer.assign([TopicPartition(topic, 0, 99)])
    with pytest.raises(OffsetGoneError):
        drain_until(consumer, seconds=30)
    consumer.close()


def drain_until(consumer: Consumer, *, seconds: float) -> None:
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        drain(consumer, 10, 0.5)
