"""Dead letters sent again to where they came from, each exactly once, however often the replay is interrupted or repeated.

Originals and the notes that they were sent (``streamer.dead_letters.progress``) are one Kafka transaction. Its transactional
id is one for all: a second replay fences the first, and goes on where that stood.

An original goes to the partition that it came from, wherever today's partitioner would put it, so that the order of an
item's events stays the order of one partition. Key, value, headers and the time of an item's update are the original's; the
header ``dlq.replayed.offset`` is added, so that its age stays known (``streamer.dead_letters.plan``). A query's time is now.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from models.errors import SidstreamError
from streamer.dead_letters.old_progress import CARRIED_OVER, OldProgress, OldProgressError
from streamer.dead_letters.plan import Choice, Letter, ReplayPlan, make_plan, original_of
from streamer.dead_letters.progress import ReplayProgress, note, read_notes
from streamer.dead_letters.reading import REPLAYED_HEADER, DeadLetter, Place, dead_letter_topics, topics_of_items
from streamer.events.headers import UnreadableHeadersError, headers_of
from streamer.events.topics import Partition
from streamer.exactly_once.retrying import repeated_for_a_while
from streamer.kafka.admin import require
from streamer.kafka.clients import consumer_configuration, producer_configuration
from streamer.kafka.errors import Meaning, error_text, meaning
from streamer.kafka.read_to_end import Span, end_reader, read_spans, whole_topics
from streamer.settings import Settings

_CALL_SECONDS: Final = 15.0
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

    def __init__(self, settings: Settings, topics: Sequence[str], reader: Consumer) -> None:
        self._settings = settings
        self._reader = reader
        self._topics = topics
        self._producer: Producer | None = None
        # What the topic of the notes says, as far as this replay knows.
        self._progress = ReplayProgress()

    @classmethod
    @contextmanager
    def open(cls, settings: Settings, topics: Sequence[str]) -> Iterator[Replay]:
        """``topics``: the dead-letter topics whose letters are meant."""
        letters = dead_letter_topics(settings)
        require(settings.kafka, [*letters, *letters.values(), settings.topics.replayed_dead_letters])
        reader = end_reader(settings, "dead-letters")
        try:
            yield cls(settings, topics, reader)
        finally:
            reader.close()

    def plan(self, choice: Choice, *, dry_run: bool = False, now_ms: int | None = None) -> ReplayPlan:
        """Decide. Unless it is a dry run, another replay that is at work is stopped first: its last note is then known."""
        if not dry_run:
            self._take_over()
        self._progress = self._read_progress(tolerant=choice.again)
        if not dry_run and self._progress.old:
            self._carry_over()
        spans = whole_topics(self._reader, self._topics)
        now = int(time.time() * 1000) if now_ms is None else now_ms
        return make_plan(self._settings, self._reader, spans, self._progress, choice, now_ms=now)

    def send(self, plan: ReplayPlan, *, progress: Callable[[int], None] = lambda _sent: None) -> ReplayOutcome:
        """Send what the plan has chosen, about a hundred letters a transaction.

        Raises:
            ReplayError: another replay has taken over, or the broker refuses.
        """
        outcome = ReplayOutcome(plan, skipped=list(plan.skipped))
        chosen: dict[Partition, dict[int, Letter]] = {}
        for letter in plan.chosen:
            chosen.setdefault((letter.topic, letter.partition), {})[letter.offset] = letter
        spans = {at: Span(min(letters), max(letters) + 1) for at, letters in chosen.items()}
        wanted_again = set(plan.wanted_again)
        letter_reader = end_reader(self._settings, "dead-letters")
        try:
            for reading in read_spans(letter_reader, spans, size=_LETTERS_A_TRANSACTION):
                letters = [
                    DeadLetter.of(record)
                    for record in reading.records
                    if record.offset() in chosen[record.topic(), record.partition()]
                ]
                self._send_some(letters, chosen, wanted_again, outcome)
                progress(outcome.sent)
        finally:
            letter_reader.close()
        return outcome

    def _send_some(
        self,
        letters: Sequence[DeadLetter],
        chosen: dict[Partition, dict[int, Letter]],
        wanted_again: set[Place],
        outcome: ReplayOutcome,
    ) -> None:
        groups = [list(letters)] if letters else []
        if any(letter.omitted for letter in letters):  # each may be refused for its size
            groups = [[letter] for letter in letters]
        while groups:
            group = groups.pop(0)
            originals = [
                self._original(letter, chosen[letter.topic, letter.partition][letter.offset]) for letter in group
            ]
            try:
                self._transaction(originals, [letter.place for letter in group], wanted_again)
            except _RefusedError as refusal:
                if len(group) > 1:
                    groups[:0] = [[letter] for letter in group]
                    continue
                letter = group[0]
                short = chosen[letter.topic, letter.partition][letter.offset]
                outcome.skipped.append((short, f"the topic does not take it: {refusal}"))
                continue
            wanted_again.clear()  # noted
            outcome.sent += len(group)

    def _transaction(
        self,
        originals: Sequence[dict[str, Any]],
        replayed: Sequence[Place],
        wanted_again: Iterable[Place] = (),
        old_offsets: Sequence[TopicPartition] = (),
    ) -> None:
        """``originals`` and the notes of their letters, at once.

        ``wanted_again``: letters that are not replayed any more; ``old_offsets``: what an older sidstream is to find.
        """
        after = self._progress.after(replayed, wanted_again)
        producer = self._own_producer()
        refusals: list[KafkaError] = []

        def on_delivery(error: KafkaError | None, _record: Message) -> None:
            if error is not None:
                refusals.append(error)

        try:
            self._call(producer.begin_transaction)
            if old_offsets:
                group = Consumer(consumer_configuration(self._settings.kafka, group=_identity(self._settings)))
                try:
                    metadata = group.consumer_group_metadata()
                    self._call(producer.send_offsets_to_transaction, list(old_offsets), metadata, _CALL_SECONDS)
                finally:
                    group.close()
            for record in [*originals, *self._notes(replayed, wanted_again)]:
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
            if refusal is not None or len(originals) > 1:
                raise _RefusedError(refusal.str() if refusal is not None else error_text(error)) from error
            raise ReplayError(
                f"the replay has stopped: {error_text(error)}. Run it again: it goes on from there, and sends nothing twice"
            ) from error
        except KeyboardInterrupt:
            self._call(producer.abort_transaction, _CALL_SECONDS)
            raise
        self._progress = after

    def _notes(self, replayed: Iterable[Place], wanted_again: Iterable[Place]) -> Iterator[dict[str, Any]]:
        topic, now = self._settings.topics.replayed_dead_letters, int(time.time() * 1000)
        done = set(replayed)
        for places, state in ((set(wanted_again) - done, False), (done, True)):
            for place in places:
                key, value = note(place, replayed=state, at=now)
                yield {"topic": topic, "key": key, "value": value}

    def _read_progress(self, *, tolerant: bool) -> ReplayProgress:
        notes = read_notes(self._reader, self._settings.topics.replayed_dead_letters, tolerant=tolerant)
        return ReplayProgress(notes, self._read_old_progress(tolerant=tolerant))

    def _read_old_progress(self, *, tolerant: bool) -> dict[Partition, OldProgress]:
        """What an older sidstream has noted, of the partitions where that is anything."""
        partitions = list(whole_topics(self._reader, dead_letter_topics(self._settings)))
        group = Consumer(consumer_configuration(self._settings.kafka, group=_identity(self._settings)))
        try:
            committed = group.committed([TopicPartition(*at) for at in partitions], timeout=_CALL_SECONDS)
        except KafkaException as error:
            raise ReplayError(f"what was replayed before cannot be read: {error_text(error)}") from error
        finally:
            group.close()
        found = {}
        for state in committed:
            if state.error is not None:
                raise ReplayError(f"what was replayed of {state.topic} before cannot be read: {state.error.str()}")
            try:
                old = OldProgress.parse(state.offset, state.metadata)
            except OldProgressError:
                if not tolerant:
                    raise
                old = OldProgress(max(0, state.offset))
            if old.scanned:
                found[state.topic, state.partition] = old
        return found

    def _carry_over(self) -> None:
        """Note what an older sidstream has replayed; its offsets then say that they are not to be used any more."""
        spans = whole_topics(self._reader, {topic for topic, _ in self._progress.old})
        letters = [
            Place(record.topic(), record.partition(), record.offset())
            for reading in read_spans(self._reader, spans, size=_LETTERS_A_TRANSACTION)
            for record in reading.records
            if self._progress.without_note((record.topic(), record.partition()), record.offset())
        ]
        offsets = [TopicPartition(*at, 0, metadata=CARRIED_OVER) for at in self._progress.old]
        self._transaction([], letters, old_offsets=offsets)
        self._progress = ReplayProgress(self._progress.notes)

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
            try:
                headers = [(name, content or b"") for name, content in headers_of(record)]
            except UnreadableHeadersError as error:  # the plan has left those out; the record is another one by now
                raise ReplayError(f"the replay has stopped: {letter.place}: {error}. Run it again") from error
        headers = [(name, content) for name, content in headers if name != REPLAYED_HEADER]
        headers.append((REPLAYED_HEADER, str(short.age).encode()))
        record_time = source.timestamp if source.topic in topics_of_items(self._settings) else 0
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
        if self._read_progress(tolerant=False).notes != self._progress.notes:
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

    def _call(self, call: Callable[..., Any], *arguments: Any) -> None:
        repeated_for_a_while(call, *arguments, refusal=self._refusal)

    @staticmethod
    def _refusal(error: KafkaException, means: Meaning) -> ReplayError:
        if means is Meaning.FENCED:
            return ReplayError("another replay has taken over: this one has stopped, what it sent is noted")
        return ReplayError(f"the replay cannot go on: {error_text(error)}")


def _identity(settings: Settings) -> str:
    """The transactional id of all replays of one pipeline, and the group in whose offsets an older sidstream kept notes."""
    return settings.in_cluster("sidstream-dead-letter-replay")
