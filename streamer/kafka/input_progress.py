"""How far a process has read its topics: ready once it is past the ends that it found at the start; lag once a second.

What must hold: a steady flood keeps nobody unready, as the ends of the start stay where they were; and a transaction's marker,
which takes an offset that no record ever comes from, keeps nobody unready either. No broker is asked here.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final

import msgspec
import structlog
from confluent_kafka import Consumer, KafkaException, TopicPartition

from streamer.events.topics import Partition
from streamer.kafka.clients import STATISTICS_INTERVAL_MS
from streamer.process.health import Health, Part
from streamer.process.metrics import LAG_RECORDS

log = structlog.get_logger(__name__)

_LAG_SECONDS: Final = 1.0


class _FetchedPartition(msgspec.Struct):
    next_offset: int = -1
    fetchq_cnt: int = 0


class _FetchedTopic(msgspec.Struct):
    partitions: dict[str, _FetchedPartition] = {}


class _Statistics(msgspec.Struct):
    """The few of librdkafka's statistics that are of use here."""

    topics: dict[str, _FetchedTopic] = {}


_DECODER: Final = msgspec.json.Decoder(_Statistics)


class InputProgress:
    """Positions of one consumer; for the thread that consumes."""

    def __init__(self, process: str, health: Health, waiting_for: str) -> None:
        """``waiting_for``: what the process waits for until ``assign``, for people."""
        self._process = process
        self._health = health
        self._next: dict[Partition, int] = {}
        self._behind: dict[Partition, int] = {}
        self._empty_up_to: dict[Partition, int] = {}
        self._topics: set[str] = set()
        self._lag_at = float("-inf")
        self._assigned_at = float("inf")
        health.set_unready(Part.INPUT, waiting_for)

    @property
    def caught_up(self) -> bool:
        """Whether every end of the start was reached."""
        return not self._behind

    @property
    def has_caught_up(self) -> bool:
        """Whether it was given something to read, and every end of the start was reached."""
        return self._assigned_at < float("inf") and self.caught_up

    def assign(self, ends: Mapping[Partition, int], next_offsets: Mapping[Partition, int] | None = None) -> None:
        """These partitions, and no others, are ours now. ``ends``: their high watermarks as they are now."""
        known = dict(next_offsets or {})
        self._next = {place: known.get(place, 0) for place in ends}
        self._behind = dict(ends)
        self._empty_up_to = {}
        self._assigned_at = time.monotonic()
        self._health.set_unready(Part.INPUT, self._reason())
        self._settle()

    def add(self, ends: Mapping[Partition, int]) -> None:
        """These partitions are ours from now on, too: unready until their ends are reached."""
        self._next |= dict.fromkeys(ends, 0)
        self._behind |= ends
        self._assigned_at = time.monotonic()
        if self._behind:
            self._health.set_unready(Part.INPUT, self._reason())
        self._settle()

    def end_reached(self, place: Partition, offset: int) -> None:
        """There is no record before ``offset`` that was not given to us; counts once the batch in hand is processed."""
        self._empty_up_to[place] = offset

    def read_statistics(self, json: str) -> None:
        """librdkafka's ``stats_cb``: what is fetched and no longer queued was given to us.

        For consumers of a group: end-of-partition events move the position that librdkafka resumes at after a rebalance
        by one record too many (librdkafka issue 4844, mended in 2025).
        """
        if time.monotonic() - self._assigned_at < 2 * STATISTICS_INTERVAL_MS / 1000:
            return  # they may be of before the assignment
        for topic, fetched in _DECODER.decode(json).topics.items():
            for number, partition in fetched.partitions.items():
                if partition.fetchq_cnt == 0 and (place := (topic, int(number))) in self._next:
                    self.end_reached(place, partition.next_offset)

    def advance(self, next_offsets: Mapping[Partition, int], *, nothing_waits: bool = True) -> None:
        """A batch is processed up to these offsets; call it with nothing when there was none.

        ``nothing_waits``: whether every record that was given to us is processed now.
        """
        if next_offsets:
            self._next.update(next_offsets)
        if self._empty_up_to and nothing_waits:
            for place, offset in self._empty_up_to.items():
                if offset > self._next.get(place, offset):
                    self._next[place] = offset
            self._empty_up_to = {}
        if self._behind:
            self._settle()

    def show_lag(self, consumer: Consumer) -> None:
        """Set the lag metric from the ends that the last fetches told, once a second."""
        now = time.monotonic()
        if now - self._lag_at < _LAG_SECONDS:
            return
        self._lag_at = now
        lag = self._lag(consumer)
        self._topics = set(lag)
        for topic, records in lag.items():
            LAG_RECORDS.labels(self._process, topic).set(records)

    def waiting(self, consumer: Consumer) -> int:
        """How many records are not processed yet, by the ends that the last fetches told."""
        return sum(self._lag(consumer).values())

    def _lag(self, consumer: Consumer) -> dict[str, int]:
        lag = dict.fromkeys(self._topics, 0)
        for (topic, partition), position in self._next.items():
            lag[topic] = lag.get(topic, 0) + max(0, _cached_end(consumer, topic, partition) - position)
        return lag

    def _settle(self) -> None:
        self._behind = {place: end for place, end in self._behind.items() if self._next.get(place, 0) < end}
        if self._behind:
            self._health.set_unready(Part.INPUT, self._reason())
        elif not self._health.is_well(Part.INPUT):
            log.info("caught_up")
            self._health.set_ready(Part.INPUT)

    def _reason(self) -> str:
        records = sum(end - self._next.get(place, 0) for place, end in self._behind.items())
        return f"catching up: {records:,} offsets on {len(self._behind)} partitions to go"


def _cached_end(consumer: Consumer, topic: str, partition: int) -> int:
    try:
        _, end = consumer.get_watermark_offsets(TopicPartition(topic, partition), cached=True)
    except KafkaException:
        return 0
    return int(end)  # negative until something was fetched
