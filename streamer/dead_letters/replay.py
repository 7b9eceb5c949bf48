"""Dead letters sent again to where they came from, each exactly once, however often the replay is interrupted or repeated.

Originals and the note that they were sent are one Kafka transaction: the offsets, with metadata, of a consumer group that
nobody else uses. Its transactional id is one for all: a second replay fences the first, and goes on where that stood.

An original goes to the partition that it came from, wherever today's partitioner would put it, so that the order of an
item's events stays the order of one partition. Key, value, headers and the time of an item's update are the original's; the
header ``dlq.replayed.offset`` is added, so that its age stays known (``streamer.dead_letters.plan``). A query's time is now.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from models.errors import SidstreamError
from streamer.dead_letters.plan import Choice, Letter, ReplayPlan, make_plan, original_of
from streamer.dead_letters.progress import ReplayState
from streamer.dead_letters.reading import REPLAYED_HEADER, DeadLetter
from streamer.exactly_once.retrying import AbortRequired, repeated
from streamer.kafka.admin import require
from streamer.kafka.clients import consumer_configuration, producer_configuration
from streamer.kafka.errors import Meaning, error_text, meaning
from streamer.kafka.read_to_end import Partition, Span, end_reader, read_spans, whole_topics
from streamer.settings import Settings

_CALL_SECONDS: Final = 15.0
_RETRY_SECONDS: Final = 0.1
_GIVE_UP_SECONDS: Final = 60.0
_LETTERS_A_TRANSACTION: Final = 100
# An original whose value was left out was larger than a topic takes uncompressed.
_LARGEST_BYTES: Final = 64 * 1024 * 1024


class ReplayError(SidstreamError):
    """The replay has stopped; what was sent is noted, and the next one goes on from there."""


class _RefusedError(Exception):
    """The topic does not take one of these records, and never will; the broker's reason."""


@dataclass
class ReplayOutcome:
    """How many letters were sent, and which were left with what reason."""

    plan: ReplayPlan
    sent: int = 0
    skipped: list[tuple[Letter, str]] = field(default_factory=list)


class Replay:
    """Plans and sends; a context manager, as it holds the clients.

    >>> with Replay.open(settings, [settings.topics.item_updates_dead_letters]) as replay:  # doctest: +SKIP
    ...     outcome = replay.send(replay.plan(Choice()))
    """

    def __init__(self, settings: Settings, topics: Sequence[str], group: Consumer, reader: Consumer) -> None:
        self._settings = settings
        self._group = group
        self._reader = reader
        self._topics = topics
        self._producer: Producer | None = None
        # What the group's offsets say, as far as this replay knows.
        self._noted: dict[Partition, ReplayState] = {}

    @classmethod
    @contextmanager
    def open(cls, settings: Settings, topics: Sequence[str]) -> Iterator[Replay]:
        """``topics``: the dead-letter topics whose letters are meant."""
        require(settings.kafka, [*topics, settings.topics.item_updates, settings.topics.queries])
        group = Consumer(consumer_configuration(settings.kafka, group=_identity(settings)))
        reader = end_reader(settings, "dead-letters")
        try:
            yield cls(settings, topics, group, reader)
        finally:
            group.close()
            reader.close()

    def plan(self, choice: Choice, *, dry_run: bool = False, now_ms: int | None = None) -> ReplayPlan:
        """Decide. Unless it is a dry run, another replay that is at work is stopped first: its last note is then known."""
        if not dry_run:
            self._take_over()
        spans = whole_topics(self._reader, self._topics)
        states = self._noted = self._states(list(spans), tolerant=choice.again)
        now = int(time.time() * 1000) if now_ms is None else now_ms
        return make_plan(self._settings, self._reader, spans, states, choice, now_ms=now)

    def send(self, plan: ReplayPlan, *, progress: Callable[[int], None] = lambda _sent: None) -> ReplayOutcome:
        """Send what the plan has chosen, about a hundred letters a transaction.

        Raises:
            ReplayError: another replay has taken over, or the broker refuses.
        """
        outcome = ReplayOutcome(plan, skipped=list(plan.skipped))
        pending = {at: set(offsets) for at, offsets in plan.pending.items()}
        chosen: dict[Partition, dict[int, Letter]] = {}
        for letter in plan.chosen:
            chosen.setdefault((letter.topic, letter.partition), {})[letter.offset] = letter
        spans = {at: Span(min(letters), max(letters) + 1) for at, letters in chosen.items()}
        letter_reader = end_reader(self._settings, "dead-letters")
        try:
            for reading in read_spans(letter_reader, spans, size=_LETTERS_A_TRANSACTION):
                letters = [
                    DeadLetter.of(record)
                    for record in reading.records
                    if record.offset() in chosen[record.topic(), record.partition()]
                ]
                self._send_some(letters, chosen, plan, pending, outcome)
                progress(outcome.sent)
        finally:
            letter_reader.close()
        return outcome

    def _send_some(
        self,
        letters: Sequence[DeadLetter],
        chosen: dict[Partition, dict[int, Letter]],
        plan: ReplayPlan,
        pending: dict[Partition, set[int]],
        outcome: ReplayOutcome,
    ) -> None:
        groups = [list(letters)] if letters else []
        if any(letter.omitted for letter in letters):  # each may be refused for its size
            groups = [[letter] for letter in letters]
        while groups:
            group = groups.pop(0)
            try:
                self._transaction(group, chosen, plan, pending)
            except _RefusedError as refusal:
                if len(group) > 1:
                    groups[:0] = [[letter] for letter in group]
                    continue
                letter = group[0]
                short = chosen[letter.topic, letter.partition][letter.offset]
                outcome.skipped.append((short, f"the topic does not take it: {refusal}"))
                continue
            outcome.sent += len(group)

    def _transaction(
        self,
        letters: Sequence[DeadLetter],
        chosen: dict[Partition, dict[int, Letter]],
        plan: ReplayPlan,
        pending: dict[Partition, set[int]],
    ) -> None:
        """Originals and the note of them, at once; ``pending`` loses them."""
        records = [self._original(letter, chosen[letter.topic, letter.partition][letter.offset]) for letter in letters]
        after = {
            at: offsets - {one.offset for one in letters if (one.topic, one.partition) == at}
            for at, offsets in pending.items()
        }
        # Of every partition: what --again asks for once more is pending from the first transaction on.
        noted = {at: ReplayState(plan.ends[at], frozenset(left)) for at, left in after.items()}
        notes = [TopicPartition(*at, state.position, metadata=state.metadata()) for at, state in noted.items()]
        producer = self._own_producer()
        refusals: list[KafkaError] = []

        def on_delivery(error: KafkaError | None, _record: Message) -> None:
            if error is not None:
                refusals.append(error)

        try:
            self._call(producer.begin_transaction)
            self._call(
                producer.send_offsets_to_transaction, notes, self._group.consumer_group_metadata(), _CALL_SECONDS
            )
            for record in records:
                while True:
                    try:
                        producer.produce(**record, on_delivery=on_delivery)
                        break
                    except BufferError:
                        producer.poll(0.1)
            self._call(producer.commit_transaction, _CALL_SECONDS)
        except KafkaException as error:
            self._call(producer.abort_transaction, _CALL_SECONDS)
            producer.poll(0)  # hear of the deliveries that failed
            self._renew()
            refusal = next((one for one in (*refusals, error.args[0]) if meaning(one) is Meaning.RECORD_REFUSED), None)
            # A record that was refused takes its neighbours along, under errors of their own: each is tried by itself.
            if refusal is not None or len(letters) > 1:
                raise _RefusedError(refusal.str() if refusal is not None else error_text(error)) from error
            raise ReplayError(
                f"the replay has stopped: {error_text(error)}. Run it again: it goes on from there, and sends nothing twice"
            ) from error
        except KeyboardInterrupt:
            self._call(producer.abort_transaction, _CALL_SECONDS)
            raise
        pending.update(after)
        self._noted = noted

    def _original(self, letter: DeadLetter, short: Letter) -> dict[str, Any]:
        """What ``produce`` takes."""
        source = letter.source
        assert source is not None  # the plan has left those out
        key, value, headers = letter.key, letter.value, list(letter.headers)
        if letter.omitted:
            record = original_of(self._reader, letter)
            if record is None:
                raise ReplayError(
                    f"the replay has stopped: the original of {letter.place} has just left {source.topic}. Run it again"
                )
            key, value = record.key(), record.value()
            headers = [(name, content or b"") for name, content in record.headers() or []]
        headers = [(name, content) for name, content in headers if name != REPLAYED_HEADER]
        headers.append((REPLAYED_HEADER, str(short.age).encode()))
        record_time = source.timestamp if source.topic == self._settings.topics.item_updates else 0
        return {
            "topic": source.topic,
            "partition": source.partition,
            "key": key,
            "value": value,
            "headers": headers,
            "timestamp": max(0, record_time),  # 0: now
        }

    def _take_over(self) -> None:
        """Ends the transaction of a replay that was killed, and fences one that is at work."""
        self._call(self._own_producer().init_transactions, _CALL_SECONDS)

    def _renew(self) -> None:
        """A new client in the place of one whose record was refused: it has a gap in its sequence numbers, and every
        transaction after that fails (OUT_OF_ORDER_SEQUENCE_NUMBER, librdkafka 2.16).
        """
        self._producer = None
        self._take_over()
        # Another replay may have come and gone since our transaction was aborted.
        if self._states(list(self._noted), tolerant=False) != self._noted:
            raise ReplayError("another replay has been at work: this one has stopped, what it sent is noted")

    def _own_producer(self) -> Producer:
        if self._producer is None:
            self._producer = Producer(
                producer_configuration(
                    self._settings.kafka,
                    transactional_id=_identity(self._settings),
                    message_max_bytes=_LARGEST_BYTES,
                    compression_type="gzip",
                )
            )
        return self._producer

    def _states(self, partitions: Sequence[Partition], *, tolerant: bool) -> dict[Partition, ReplayState]:
        try:
            committed = self._group.committed([TopicPartition(*at) for at in partitions], timeout=_CALL_SECONDS)
        except KafkaException as error:
            raise ReplayError(f"what was replayed before cannot be read: {error_text(error)}") from error
        states = {}
        for found in committed:
            if found.error is not None:
                raise ReplayError(f"what was replayed of {found.topic} before cannot be read: {found.error.str()}")
            metadata = None if tolerant and not _readable(found) else found.metadata
            states[found.topic, found.partition] = ReplayState.parse(found.offset, metadata)
        return states

    def _call(self, call: Callable[..., Any], *arguments: Any) -> None:
        """Repeat a call while its error is retriable; what asks for an abort is the caller's, anything else the end."""
        give_up = time.monotonic() + _GIVE_UP_SECONDS

        def wait(error: KafkaException) -> None:
            if time.monotonic() > give_up:
                raise self._refusal(error, Meaning.PASSING) from error
            time.sleep(_RETRY_SECONDS)

        try:
            repeated(call, *arguments, between=wait, refusal=self._refusal)
        except AbortRequired as abort:
            raise abort.error from None

    @staticmethod
    def _refusal(error: KafkaException, means: Meaning) -> ReplayError:
        if means is Meaning.FENCED:
            return ReplayError("another replay has taken over: this one has stopped, what it sent is noted")
        return ReplayError(f"the replay cannot go on: {error_text(error)}")


def _readable(found: TopicPartition) -> bool:
    from streamer.dead_letters.progress import ReplayStateError

    try:
        ReplayState.parse(found.offset, found.metadata)
    except ReplayStateError:
        return False
    return True


def _identity(settings: Settings) -> str:
    """Consumer group and transactional id of all replays of one pipeline."""
    return f"{settings.topics.prefix}sidstream-dead-letter-replay"
