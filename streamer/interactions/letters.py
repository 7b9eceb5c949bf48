"""Interactions that cannot be used become dead letters, each exactly once: whatever came since the last look is looked at.

There is no process for it: nobody waits for a letter of an interaction, and whoever reads interactions looks first (``sidstream
examples``, ``hit-rates``, ``interactions --check``). Letters and the offsets up to which was looked are one Kafka transaction
under one transactional id: a look that is killed or repeated writes nothing twice, and of two at once the older is fenced and
leaves the rest to the other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from confluent_kafka import Consumer, KafkaException, Message, Producer, TopicPartition

from models.errors import SidstreamError
from store.writing.failpoints import Failpoint, reach
from streamer.dead_letters.reading import DeadLetter
from streamer.events.dead_letter import Rejection, dead_letter
from streamer.events.intake import EventError
from streamer.events.interactions import InteractionIntake
from streamer.events.outgoing import Outgoing
from streamer.events.topics import Partition
from streamer.exactly_once.retrying import repeated_for_a_while
from streamer.interactions.reading import READ_AT_ONCE
from streamer.kafka.admin import require_usable
from streamer.kafka.clients import consumer_configuration, producer_configuration
from streamer.kafka.errors import Meaning, error_text, took_our_place
from streamer.kafka.gather import produce
from streamer.kafka.read_to_end import Span, end_reader, read_spans, whole_topics
from streamer.registry.reading import formats_of
from streamer.settings import Settings

STAGE: Final = "interactions"
_CALL_SECONDS: Final = 15.0
_Origin = tuple[int, int, int]  # partition, offset and time of an interaction
_RECORDS_A_TRANSACTION: Final = 20_000  # where none of them is refused


class InteractionCheckError(SidstreamError):
    """What came since the last look could not be looked at; what was written stands, and the next look goes on from there."""


@dataclass
class Checked:
    """``records`` that were looked at now, and how many of them were refused, by class; ``elsewhere``: another command has taken
    over, and looks at the rest.
    """

    records: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    elsewhere: bool = False


def check_interactions(settings: Settings) -> Checked:
    """Looks at every interaction since the last look, and writes the dead letters of those that cannot be used.

    Raises:
        InteractionCheckError: the broker refuses.
        MissingTopicsError: a topic is missing.
    """
    topics = settings.topics
    require_usable(settings, [topics.interactions, topics.interactions_dead_letters])
    looking = _Look(settings)
    try:
        looking.run()
    except _TakenOver:
        looking.done.elsewhere = True
    finally:
        looking.close()
    return looking.done


class _TakenOver(Exception):
    """Another look has begun since."""


class _Look:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._identity = settings.in_cluster("sidstream-interactions")
        self._intake = InteractionIntake(settings.retriever, formats_of(settings))
        self._reader = end_reader(settings, "interactions")
        self._group = Consumer(consumer_configuration(settings.kafka, group=self._identity))
        self._producer = Producer(producer_configuration(settings.kafka, transactional_id=self._identity))
        self._written: set[_Origin] = set()
        self.done = Checked()

    def close(self) -> None:
        self._reader.close()
        self._group.close()

    def run(self) -> None:
        # Whoever looks at this moment is fenced, and what it left open aborted: its offsets are known from here on.
        self._called(self._producer.init_transactions, _CALL_SECONDS)
        positions: dict[Partition, int] = {}
        pending = 0
        for reading in read_spans(self._reader, self._unseen(), size=READ_AT_ONCE):
            letters = [letter for record in reading.records if (letter := self._letter(record)) is not None]
            positions |= reading.positions
            pending += len(reading.records)
            self.done.records += len(reading.records)
            if letters or pending >= _RECORDS_A_TRANSACTION:
                self._commit(letters, positions)
                positions, pending = {}, 0
        if positions:
            self._commit([], positions)

    def _unseen(self) -> dict[Partition, Span]:
        spans = whole_topics(self._reader, [self._settings.topics.interactions])
        committed = self._called(self._committed, [TopicPartition(*at) for at in spans])
        if any(state.offset < 0 for state in committed):
            self._written = (
                self._origins()
            )  # the group is new, or its offsets have expired: Kafka keeps them for a week
        unseen = {}
        for state in committed:
            span = spans[state.topic, state.partition]
            # Beyond the end: the topic was made anew.
            first = state.offset if span.first <= state.offset <= span.end else span.first
            unseen[state.topic, state.partition] = Span(first, span.end)
        return unseen

    def _committed(self, partitions: list[TopicPartition]) -> list[TopicPartition]:
        """Up to where was looked, by partition; a negative offset for nowhere. Raises ``KafkaException``."""
        found: list[TopicPartition] = self._group.committed(partitions, timeout=_CALL_SECONDS)
        for state in found:
            if state.error is not None:
                raise KafkaException(state.error)
        return found

    def _origins(self) -> set[_Origin]:
        """Where the interactions lie that have a letter."""
        spans = whole_topics(self._reader, [self._settings.topics.interactions_dead_letters])
        return {
            (source.partition, source.offset, source.timestamp)
            for reading in read_spans(self._reader, spans, size=READ_AT_ONCE)
            for record in reading.records
            if (source := DeadLetter.of(record).source) is not None
        }

    def _letter(self, record: Message) -> Outgoing | None:
        try:
            self._intake.read(record)
        except EventError as error:
            if (record.partition(), record.offset(), record.timestamp()[1]) in self._written:
                return None
            self.done.refused[error.kind] += 1
            topic = self._settings.topics.interactions_dead_letters
            return dead_letter(topic, record, Rejection(STAGE, error.kind, str(error)))
        return None

    def _commit(self, letters: list[Outgoing], positions: Mapping[Partition, int]) -> None:
        producer = self._producer
        offsets = [TopicPartition(*at, offset) for at, offset in positions.items()]
        try:
            self._called(producer.begin_transaction)
            reach(Failpoint.TRANSACTION_BEGUN)
            self._called(
                producer.send_offsets_to_transaction, offsets, self._group.consumer_group_metadata(), _CALL_SECONDS
            )
            reach(Failpoint.OFFSETS_SENT)
            for letter in letters:
                produce(producer, letter.topic, key=letter.key, value=letter.value, headers=letter.headers)
            reach(Failpoint.OUTPUTS_SENT, producer.flush)
            self._called(producer.commit_transaction, _CALL_SECONDS)
            reach(Failpoint.TRANSACTION_COMMITTED)
        except KafkaException as error:  # to be aborted, which the next look does
            raise self._refusal(error, Meaning.FENCED if took_our_place(error.args[0]) else Meaning.PASSING) from error

    def _called(self, call: Callable[..., Any], *arguments: Any) -> Any:
        return repeated_for_a_while(call, *arguments, refusal=self._refusal)

    @staticmethod
    def _refusal(error: KafkaException, means: Meaning) -> Exception:
        if means is Meaning.FENCED:
            return _TakenOver()
        return InteractionCheckError(
            f"interactions cannot be looked at, or their dead letters not written: {error_text(error)}. Try again"
        )
