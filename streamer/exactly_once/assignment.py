"""The partitions that the group gives to one consumer: taken up, given back, read again from where nothing is promised yet."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Final

import structlog
from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

from streamer.kafka.errors import FatalKafkaError, error_text
from streamer.kafka.input_progress import InputProgress, Place
from streamer.process.health import Health, Part

log = structlog.get_logger(__name__)

_ENDS_SECONDS: Final = 2.0
_SEEK_SECONDS: Final = 5.0


class Assignment:
    """What one consumer of a group has to read; for the thread that consumes."""

    def __init__(
        self,
        consumer: Consumer,
        source: str,
        health: Health,
        input_progress: InputProgress,
        before_revoke: Callable[[], None],
    ) -> None:
        """Subscribes. ``before_revoke`` ends what is under way, while the partitions are still ours."""
        self._consumer = consumer
        self._source = source
        self._health = health
        self._input = input_progress
        self._before_revoke = before_revoke
        # What the consumer was given since the last turn: the ends of these partitions are to be read.
        self._new: list[TopicPartition] | None = None
        self.rebalanced = False
        """Whether partitions came or went since this was last set to false."""
        consumer.subscribe([source], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_revoke)

    def take_up(self) -> bool:
        """Read the ends of what was just assigned; ``False`` when there is nothing new, or the broker does not answer."""
        if self._new is None:
            return False
        ends: dict[Place, int] = {}
        for assigned in self._new:
            place = (assigned.topic, assigned.partition)
            try:
                ends[place] = self._consumer.get_watermark_offsets(assigned, timeout=_ENDS_SECONDS)[1]
            except KafkaException as error:
                self._health.set_unready(
                    Part.BROKER, f"the end of {assigned.topic} cannot be read: {error_text(error)}"
                )
                return False
        self._new = None
        self._input.assign(ends)
        return True

    def seek_back(self, records: Iterable[Message]) -> None:
        """To the first offset of ``records`` in each partition that is still ours."""
        first: dict[int, int] = {}
        for record in records:
            partition, offset = record.partition(), record.offset()
            first[partition] = min(offset, first.get(partition, offset))
        assigned = {assignment.partition for assignment in self._consumer.assignment()}
        for partition in first.keys() & assigned:
            self._seek(TopicPartition(self._source, partition, first[partition]))

    def _seek(self, target: TopicPartition) -> None:
        deadline = time.monotonic() + _SEEK_SECONDS
        while True:
            try:
                self._consumer.seek(target)
                return
            except KafkaException as error:
                # A partition that was assigned this instant has no fetcher yet.
                if time.monotonic() > deadline:
                    raise FatalKafkaError(f"cannot seek back to {target}: {error_text(error)}") from error
                time.sleep(0.05)

    def _on_assign(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self.rebalanced = True
        self._new = partitions
        log.info("partitions_assigned", partitions=[assigned.partition for assigned in partitions])

    def _on_revoke(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Revoked or lost: finish what is under way first. A lost partition's commit is refused by the coordinator."""
        self.rebalanced = True
        log.info("partitions_revoked", partitions=[revoked.partition for revoked in partitions])
        self._before_revoke()
