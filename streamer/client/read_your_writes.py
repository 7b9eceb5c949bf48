"""Read your writes: wait until the index of this machine has everything up to given offsets of ``item-updates``.

How that is known, partition by partition:

1. the assigner's group has committed past the offset: its outputs, codes or dead letters, are in the same transaction;
2. the end of ``item-codes`` in the same partition is read once, then: all of those outputs lie before it;
3. the index stands at that end; or below it with no committed record in between, for markers of transactions and aborted
   records take offsets too. A transaction that is still open there may bring records: its end is awaited.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, IsolationLevel, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from models.errors import SidstreamError
from store.errors import IndexMissingError
from store.reader import IndexReader
from store.writer_lock import writer_of
from streamer.kafka.admin import require
from streamer.kafka.clients import client_configuration
from streamer.kafka.errors import error_text
from streamer.kafka.gather import drain
from streamer.kafka.read_to_end import LogReadError, end_reader, watermarks
from streamer.settings import Settings

_POLL_SECONDS: Final = 0.02
_REQUEST_SECONDS: Final = 10.0
_READ_SECONDS: Final = 1.0
_NAMED_PARTITIONS: Final = 3


class NotIndexedError(SidstreamError):
    """The index does not have everything in time; the message says which stage is behind."""


def await_indexed(settings: Settings, offsets: Mapping[int, int], *, seconds: float) -> None:
    """Return once the index of this machine has all ``item-updates`` below ``offsets`` (partition → next offset).

    Raises:
        NotIndexedError: not within ``seconds``; it says what stands where.
    """
    wanted = {partition: offset for partition, offset in offsets.items() if offset > 0}
    if not wanted:
        return
    require(settings.kafka, [settings.topics.item_updates, settings.topics.item_codes])
    with _Wait.open(settings, seconds) as wait:
        wait.for_codes(wait.for_assigner(wanted))


class _Wait:
    """One wait: the clients that it asks, and its deadline."""

    def __init__(self, settings: Settings, seconds: float, admin: AdminClient, consumer: Consumer) -> None:
        self._settings = settings
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds
        self._admin = admin
        self._consumer = consumer
        self._reader: IndexReader | None = None

    @classmethod
    @contextmanager
    def open(cls, settings: Settings, seconds: float) -> Iterator[_Wait]:
        # At an end the broker holds a fetch back for this long: it is the time that a check takes.
        consumer = end_reader(settings, "wait", fetch_wait_max_ms=10)
        wait = cls(settings, seconds, AdminClient(client_configuration(settings.kafka)), consumer)
        try:
            yield wait
        finally:
            consumer.close()
            if wait._reader is not None:
                wait._reader.close()

    def for_assigner(self, wanted: Mapping[int, int]) -> dict[int, int]:
        """Wait for the assigner; the ends of ``item-codes`` that hold all of its outputs, by partition."""
        group = self._settings.topics.prefix + self._settings.assigner.group
        topic = self._settings.topics.item_updates
        while behind := {
            partition: committed
            for partition, committed in self._committed(group, topic, wanted).items()
            if committed < wanted[partition]
        }:
            if self._over():
                raise NotIndexedError(self._assigner_behind(group, topic, wanted, behind))
        return self._ends(self._settings.topics.item_codes, wanted)

    def for_codes(self, ends: Mapping[int, int]) -> None:
        """Wait until the index has every committed record of ``item-codes`` below ``ends``."""
        topic = self._settings.topics.item_codes
        left = dict(ends)
        while True:
            positions = self._index_positions()
            if positions is not None:
                left = {
                    partition: end
                    for partition, end in left.items()
                    if not self._has_all(topic, partition, positions.get((topic, partition), 0), end)
                }
                if not left:
                    return
            if self._over():
                raise NotIndexedError(self._indexer_behind(topic, left, positions))

    def _has_all(self, topic: str, partition: int, position: int, end: int) -> bool:
        """Whether no committed record lies from ``position`` to ``end``, and none can come to lie there."""
        low, stable = watermarks(self._consumer, topic, partition)
        position = max(position, low)
        if position >= end:
            return True
        if stable < end:  # a transaction is open before the end
            return False
        return self._nothing_committed(topic, partition, position, end)

    def _nothing_committed(self, topic: str, partition: int, position: int, end: int) -> bool:
        at_end: list[int] = []
        self._consumer.assign([TopicPartition(topic, partition, position)])
        try:
            give_up = time.monotonic() + _READ_SECONDS
            while not at_end and time.monotonic() < give_up:
                records = drain(self._consumer, 1, _POLL_SECONDS, lambda news: at_end.append(news.offset()))
                if records:
                    return bool(records[0].offset() >= end)
            return bool(at_end)
        finally:
            self._consumer.unassign()

    def _index_positions(self) -> dict[tuple[str, int], int] | None:
        try:
            if self._reader is None:
                self._reader = IndexReader(self._settings.index)
            with self._reader.snapshot() as snapshot:
                return snapshot.position
        except IndexMissingError:
            return None

    def _committed(self, group: str, topic: str, partitions: Mapping[int, int]) -> dict[int, int]:
        """The group's next offset of each partition, 0 where it has none."""
        asked = ConsumerGroupTopicPartitions(group, [TopicPartition(topic, partition) for partition in partitions])
        try:
            [answer] = self._admin.list_consumer_group_offsets([asked], request_timeout=_REQUEST_SECONDS).values()
            found = answer.result().topic_partitions
        except KafkaException as error:
            raise LogReadError(f"cannot read the offsets of group {group}: {error_text(error)}") from error
        return {at.partition: max(0, at.offset) for at in found}

    def _ends(self, topic: str, partitions: Mapping[int, int]) -> dict[int, int]:
        """The ends with what is not committed yet: the offsets' commit may be seen before that of the outputs."""
        wanted = {TopicPartition(topic, partition): OffsetSpec.latest() for partition in partitions}
        try:
            answers = self._admin.list_offsets(
                wanted, isolation_level=IsolationLevel.READ_UNCOMMITTED, request_timeout=_REQUEST_SECONDS
            )
            return {at.partition: int(answer.result().offset) for at, answer in answers.items()}
        except KafkaException as error:
            raise LogReadError(f"cannot read the ends of {topic}: {error_text(error)}") from error

    def _over(self) -> bool:
        """Whether time is up; waits a moment if not."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            return True
        time.sleep(min(left, _POLL_SECONDS))
        return False

    def _assigner_behind(self, group: str, topic: str, wanted: Mapping[int, int], committed: Mapping[int, int]) -> str:
        places = _places((f"{topic}/{p} at {at} of {wanted[p]}" for p, at in sorted(committed.items())), len(committed))
        return (
            f"not indexed within {self._seconds:g} s: the assigner is behind ({places}); {self._members(group)}. The updates "
            "are safe in Kafka: they are indexed as soon as it has caught up"
        )

    def _members(self, group: str) -> str:
        try:
            [answer] = self._admin.describe_consumer_groups([group], request_timeout=_REQUEST_SECONDS).values()
            members = len(answer.result().members)
        except KafkaException:
            members = 0  # a group that never was
        if members == 0:
            return f"no process is in its group {group}: start it (`sidstream assigner`, or `sidstream up`)"
        return f"{members} {'process is' if members == 1 else 'processes are'} in its group {group}"

    def _indexer_behind(
        self, topic: str, ends: Mapping[int, int], positions: Mapping[tuple[str, int], int] | None
    ) -> str:
        index = self._settings.index
        start = "start the indexer (`sidstream indexer`, or `sidstream up`)"
        if positions is None:
            return f"not indexed within {self._seconds:g} s: there is no index in {index}: {start}"
        blocked = [
            partition for partition, end in ends.items() if watermarks(self._consumer, topic, partition)[1] < end
        ]
        if blocked:
            return (
                f"not indexed within {self._seconds:g} s: a transaction is open on "
                f"{_places((f'{topic}/{partition}' for partition in blocked), len(blocked))}, which holds readers back: an "
                "assigner has died in the middle of it and has not come back, or hangs. It ends with the assigner's "
                "restart, or after the transaction's time limit"
            )
        places = _places(
            (f"{topic}/{p} at {positions.get((topic, p), 0)} of {end}" for p, end in sorted(ends.items())), len(ends)
        )
        writer = writer_of(index)
        who = f"process {writer} writes it" if writer else f"no process writes it: {start}"
        return f"not indexed within {self._seconds:g} s: the index {index} is behind ({places}); {who}"


def _places(places: Iterator[str], count: int) -> str:
    named = [place for place, _ in zip(places, range(_NAMED_PARTITIONS), strict=False)]
    more = f" and {count - len(named)} more" if count > len(named) else ""
    return ", ".join(named) + more
