"""Reading partitions from an offset to the end that they had at the start, committed records alone.

Markers of transactions, aborted records and what compaction removed take offsets too: the last record of a partition may
lie far below its end. So a partition is read once the client says that its end was reached, or a record at the end came.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

from models.errors import SidstreamError
from streamer.events.topics import Partition
from streamer.kafka.clients import consumer_configuration
from streamer.kafka.errors import Meaning, error_text, meaning, told
from streamer.kafka.gather import drain
from streamer.settings import Settings
from streamer.settings.kafka import KafkaSettings

_BROKER_SECONDS: Final = 10.0
_WAIT_SECONDS: Final = 0.2
_STALL_SECONDS: Final = 30.0
_DRAINED_AT_ONCE: Final = 10_000


class LogReadError(SidstreamError):
    """A partition cannot be read to its end: the broker refuses or does not answer."""


@dataclass(frozen=True)
class Span:
    """Offsets of one partition: the first to read, and the end, which is the offset after the last one to read."""

    first: int
    end: int

    def __len__(self) -> int:
        return max(0, self.end - self.first)


@dataclass(frozen=True)
class Reading:
    """Some records, in order within a partition, and the next offset of every partition that got further with them."""

    records: list[Message]
    positions: dict[Partition, int]


def end_reader(settings: Settings, purpose: str, **more: Any) -> Consumer:
    """A consumer of committed records that is told of ends; its group is asked for by the client, never used."""
    group = settings.in_cluster(f"sidstream-{purpose}")
    return Consumer(consumer_configuration(settings.kafka, group=group, enable_partition_eof=True, **more))


def partitions_of(consumer: Consumer, topic: str) -> list[int]:
    """The partition numbers of a topic, rising."""
    try:
        metadata = consumer.list_topics(topic, timeout=_BROKER_SECONDS)
    except KafkaException as error:
        raise LogReadError(f"cannot read the partitions of {topic}: {error_text(error)}") from error
    return sorted(metadata.topics[topic].partitions)


def watermarks(consumer: Consumer, topic: str, partition: int) -> tuple[int, int]:
    """First offset and end. The end of a read_committed consumer is where the oldest open transaction begins."""
    give_up = time.monotonic() + _BROKER_SECONDS
    while True:
        try:
            ends = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=_BROKER_SECONDS)
            low, high = map(told, ends)
            return low, high
        except KafkaException as error:
            # A broker that has just come back does not know its partitions for a moment.
            passing = meaning(error.args[0]) in (Meaning.PASSING, Meaning.UNKNOWN_PARTITION)
            if not passing or time.monotonic() > give_up:
                raise LogReadError(f"cannot read the ends of {topic}/{partition}: {error_text(error)}") from error
        time.sleep(_WAIT_SECONDS)


def whole_topics(consumer: Consumer, topics: Iterable[str]) -> dict[Partition, Span]:
    """Every partition of ``topics`` from its first offset to its end now."""
    return {
        (topic, partition): Span(*watermarks(consumer, topic, partition))
        for topic in topics
        for partition in partitions_of(consumer, topic)
    }


def read_spans(
    consumer: Consumer, spans: Mapping[Partition, Span], *, size: int = _DRAINED_AT_ONCE
) -> Iterator[Reading]:
    """The committed records of ``spans``, about ``size`` at a time; of the last readings some have positions alone.

    Raises:
        LogReadError: nothing came for 30 s.
    """
    unread = {at: span.end for at, span in spans.items() if len(span)}
    if not unread:
        return
    assigned = [TopicPartition(*at, spans[at].first) for at in unread]
    consumer.assign(assigned)
    try:
        while unread:
            yield _one_reading(consumer, unread, size)
    finally:
        consumer.resume(assigned)  # a pause would outlast the assignment
        consumer.unassign()


def has_records(kafka: KafkaSettings, group: str, topic: str) -> bool:
    """Whether a topic holds any committed record; what was aborted is none. ``group``: asked for by the client, never used.

    Raises:
        LogReadError: the broker refuses or does not answer.
    """
    consumer = Consumer(consumer_configuration(kafka, group=group, enable_partition_eof=True))
    try:
        return any(reading.records for reading in read_spans(consumer, whole_topics(consumer, [topic]), size=1))
    finally:
        consumer.close()


def _one_reading(consumer: Consumer, unread: dict[Partition, int], size: int) -> Reading:
    """Takes what was read to its end out of ``unread``."""
    kept: list[Message] = []
    positions: dict[Partition, int] = {}

    def on_end(news: Message) -> None:
        at = (news.topic(), news.partition())
        if at in unread:
            positions[at] = min(news.offset(), unread[at])
            ended.add(at)

    give_up = time.monotonic() + _STALL_SECONDS
    while unread and len(kept) < size:
        ended: set[Partition] = set()
        records = drain(consumer, min(size - len(kept), _DRAINED_AT_ONCE), _WAIT_SECONDS, on_end)
        for record in records:
            at, following = (record.topic(), record.partition()), record.offset() + 1
            end = unread.get(at)
            if end is None:
                continue
            if following <= end:
                kept.append(record)
            if at not in ended:
                positions[at] = min(following, end)
            if following >= end:
                ended.add(at)
        # A partition that was read to its end would go on to bring records that were written since.
        finished = ended & unread.keys()
        if finished:
            consumer.pause([TopicPartition(*at) for at in finished])
            for at in finished:
                del unread[at]
        if records or finished:
            give_up = time.monotonic() + _STALL_SECONDS
        elif time.monotonic() > give_up:
            places = ", ".join(f"{topic}/{partition}" for topic, partition in sorted(unread))
            raise LogReadError(f"nothing came from {places} for {_STALL_SECONDS:.0f} s: is the broker there? Try again")
    return Reading(kept, positions)
