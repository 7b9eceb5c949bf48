"""The partitions that the group gives to one consumer: taken up, given back, read again from where nothing is promised yet.

What must hold: no partition is read before it is known that its committed offset and its log belong together, and that
nothing was missed since; and none whose outputs have nowhere to go. The consumer starts where we say, never where it guesses.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import structlog
from confluent_kafka import OFFSET_END, Consumer, KafkaException, Message, TopicPartition

from models.errors import SidstreamError
from streamer.exactly_once.commit_note import Standing, missed, parse_note, replaced_logs
from streamer.kafka.errors import FatalKafkaError, Meaning, error_text, meaning, told
from streamer.kafka.input_progress import InputProgress
from streamer.kafka.partition_watch import TopicState
from streamer.kafka.read_to_end import LogReadError
from streamer.process.health import Health, Part

log = structlog.get_logger(__name__)

_ANSWER_SECONDS: Final = 2.0
_SEEK_SECONDS: Final = 5.0


class MissedRecordsError(SidstreamError):
    """Records are gone that were never read, or the log is not the one that was read."""


@dataclass(frozen=True)
class Input:
    """What is read, and what must hold of it.

    ``outputs``: topics that take what comes of a record into the partition of the same number. ``every_record``: whether a
    record that was missed is refused, with ``remedy`` as what to do, unless ``accept_missed``; otherwise it is told, and
    reading goes on.
    """

    source: str
    outputs: tuple[str, ...] = ()
    every_record: bool = False
    remedy: str = ""
    accept_missed: bool = False


class Assignment:
    """What one consumer of a group has to read; for the thread that consumes."""

    def __init__(
        self,
        consumer: Consumer,
        reads: Input,
        health: Health,
        input_progress: InputProgress,
        before_revoke: Callable[[], None],
        has_records: Callable[[str], bool],
        *,
        one_by_one: bool = False,
    ) -> None:
        """Subscribes. ``before_revoke`` ends what is under way, while the partitions are still ours; ``has_records``:
        whether a topic holds any committed record; ``one_by_one``: partitions come and go while others stay (KIP-848).
        """
        self._one_by_one = one_by_one
        self._consumer = consumer
        self._reads = reads
        self._health = health
        self._input = input_progress
        self._before_revoke = before_revoke
        self._has_records = has_records
        self._never_committed = False
        self._given: list[int] = []
        self._to_take_up = False
        self._held: list[int] = []
        self.rebalanced = False
        """Whether partitions came or went since this was last set to false."""
        self.standings: dict[int, Standing] = {}
        """How each partition that is read stood when it was taken up."""
        consumer.subscribe(
            [reads.source], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_revoke
        )

    def take_up(self, topics: Mapping[str, TopicState], now_ms: int) -> bool:
        """Start to read what was given since the last turn; ``False`` when that is nothing, or the broker does not answer.

        ``topics``: the states of source and outputs as they were last seen; what they do not know yet is waited for. A
        partition that an output does not have waits too, and the others are read meanwhile.

        Raises:
            MissedRecordsError: records were missed, or the log is another one, and ``every_record`` is asked for.
        """
        reads = self._reads
        known = topics.get(reads.source)
        if not self._to_take_up or known is None or not all(topic in topics for topic in reads.outputs):
            return False
        if self._given and max(self._given) >= known.partitions:
            return False  # the consumer knows of a new partition a moment before the watch does
        room = min([topics[topic].partitions for topic in reads.outputs], default=known.partitions)
        taken, self._held = [n for n in self._given if n < room], [n for n in self._given if n >= room]
        logs = {topic: state.topic_id for topic, state in topics.items()}
        try:
            standings = self._standings(taken, topics)
            replaced = self._judge(standings, logs, now_ms)
        except (KafkaException, LogReadError) as error:
            self._wait_for(error)
            return False
        if reads.source in replaced:
            standings = [replace(one, committed=None) for one in standings]
        self._to_take_up = False
        self.standings = {standing.partition: standing for standing in standings}
        self._read([TopicPartition(reads.source, one.partition, one.start) for one in standings])
        self._input.assign(
            {(one.topic, one.partition): one.end for one in standings},
            {(one.topic, one.partition): one.start for one in standings},
        )
        self._tell_held(topics, room)
        return True

    def take_up_again(self) -> None:
        """From what is committed, at the next turn: what is in hand must be committed or thrown away before."""
        self._read_nothing()
        self._to_take_up = True

    def has_room(self, topics: Mapping[str, TopicState]) -> bool:
        """Whether a partition waits that every output has now."""
        if not self._held:
            return False
        return min(self._held) < min(topics[topic].partitions for topic in self._reads.outputs)

    def seek_back(self, records: Iterable[Message]) -> None:
        """To the first offset of ``records`` in each partition that is still ours."""
        first: dict[int, int] = {}
        for record in records:
            partition, offset = record.partition(), record.offset()
            first[partition] = min(offset, first.get(partition, offset))
        assigned = {assignment.partition for assignment in self._consumer.assignment()}
        for partition in first.keys() & assigned:
            self._seek(TopicPartition(self._reads.source, partition, first[partition]))

    def _standings(self, partitions: list[int], topics: Mapping[str, TopicState]) -> list[Standing]:
        source = self._reads.source
        everywhere = [TopicPartition(source, partition) for partition in range(topics[source].partitions)]
        committed = self._consumer.committed(everywhere, timeout=_ANSWER_SECONDS)
        for found in committed:
            if found.error is not None:
                raise KafkaException(found.error)
        self._never_committed = all(found.offset < 0 for found in committed)
        standings = []
        for partition in partitions:
            ends = self._consumer.get_watermark_offsets(everywhere[partition], timeout=_ANSWER_SECONDS)
            low, high = map(told, ends)
            at = committed[partition]
            offset = at.offset if at.offset >= 0 else None
            standings.append(Standing(source, partition, offset, parse_note(at.metadata), first=low, end=high))
        return standings

    def _judge(self, standings: list[Standing], logs: Mapping[str, str], now_ms: int) -> list[str]:
        """The topics that are other logs than those that were read; whatever is wrong is refused, or told."""
        replaced = replaced_logs(standings, logs)
        faults = [f"{topic} was deleted and made anew since" for topic in replaced] or missed(standings, now_ms)
        if self._never_committed and self._reads.every_record:
            faults += [
                f"the group has no committed offsets, but {topic} holds records that it made: the offsets have expired "
                "(offsets.retention.minutes of the broker), or the group has another name than before"
                for topic in self._reads.outputs
                if self._has_records(topic)
            ]
        if faults:
            if self._reads.every_record and not self._reads.accept_missed:
                raise MissedRecordsError(f"{'; '.join(faults)}. {self._reads.remedy}")
            log.warning("records_missed", topic=self._reads.source, faults=faults, next="reads on with what there is")
        return replaced

    def _wait_for(self, error: KafkaException | LogReadError) -> None:
        """Unready until the broker answers.

        Raises:
            FatalKafkaError: it refuses.
        """
        source = self._reads.source
        if isinstance(error, KafkaException) and meaning(error.args[0]) is not Meaning.PASSING:
            raise FatalKafkaError(f"the position in {source} cannot be read: {error_text(error)}") from error
        text = error_text(error) if isinstance(error, KafkaException) else str(error)
        self._health.set_unready(Part.BROKER, f"the position in {source} cannot be read: {text}")

    def _tell_held(self, topics: Mapping[str, TopicState], room: int) -> None:
        if not self._held:
            self._health.set_ready(Part.TOPICS)
            return
        source = self._reads.source
        small = next(topic for topic in self._reads.outputs if topics[topic].partitions == room)
        reason = (
            f"{small} has {room} partitions and {source} has {topics[source].partitions}: codes go to the partition that "
            f"their update came from, so give {small} {topics[source].partitions}. What is in {source}/"
            f"{', '.join(map(str, self._held))} waits until then"
        )
        log.error("partitions_wait", reason=reason)
        self._health.set_unready(Part.TOPICS, reason)

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

    def _read(self, starts: list[TopicPartition]) -> None:
        """From these positions, and nothing else."""
        if not self._one_by_one:
            self._consumer.assign(starts)
            return
        if starts:  # in this order: a position that is set while a partition rests is forgotten
            self._consumer.resume([TopicPartition(start.topic, start.partition) for start in starts])
        for start in starts:
            self._seek(start)

    def _read_nothing(self) -> None:
        """Partitions that come one by one stay ours and rest: giving them up would give them to another."""
        if not self._one_by_one:
            self._consumer.assign([])
        elif self._given:
            self._consumer.pause([TopicPartition(self._reads.source, partition) for partition in self._given])

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self.rebalanced = True
        came = [given.partition for given in partitions]
        if self._one_by_one:
            self._before_revoke()  # positions of all are read anew, so that none may be on its way
            self._given = sorted({*self._given, *came})
            # Of no use but to be ours: nothing is read until it is known where from.
            consumer.incremental_assign(
                [TopicPartition(given.topic, given.partition, OFFSET_END) for given in partitions]
            )
        else:
            self._given = came
        self._read_nothing()
        self._to_take_up = bool(self._given)
        log.info("partitions_assigned", partitions=came)

    def _on_revoke(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Revoked or lost: finish what is under way first. A lost partition's commit is refused by the coordinator."""
        self.rebalanced = True
        gone = [revoked.partition for revoked in partitions]
        # Those that stay are taken up again, so that one way of reading holds for all.
        self._given = [partition for partition in self._given if self._one_by_one and partition not in gone]
        self._held, self._to_take_up = [], bool(self._given)
        log.info("partitions_revoked", partitions=gone)
        self._before_revoke()
        if self._one_by_one:
            self._read_nothing()
