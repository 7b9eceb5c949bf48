"""The keys of one topic brought into their own partitions: looked at, and moved in Kafka transactions, until none is elsewhere.

What must hold: a transaction has a key's copy and all that is left behind for it, or nothing; whatever a killed run has committed
is found by the next one's first look (``streamer.operations.key_moves``), so that no step is noted elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final, Literal

from confluent_kafka import TIMESTAMP_CREATE_TIME, Consumer, KafkaException, Message, Producer

from models.errors import SidstreamError
from store.writing.failpoints import Failpoint, reach
from streamer.events.headers import UnreadableHeadersError, headers_of
from streamer.exactly_once.retrying import repeated_for_a_while
from streamer.kafka.clients import producer_configuration
from streamer.kafka.errors import Meaning, error_text
from streamer.kafka.partitioner import MOVED_HEADER, murmur2
from streamer.kafka.read_to_end import Span, end_reader, read_spans, whole_topics
from streamer.operations.key_moves import LEFT_BEHIND_AT, KeyHistory, Move, Note, Sighting
from streamer.operations.key_verdicts import Stays, Verdicts
from streamer.settings import Settings

_KEYS_A_TRANSACTION: Final = 500
# About 600 bytes each: what a look holds in memory. A topic with more records is looked at part by part.
_KEYS_AT_ONCE: Final = 2_000_000
_FIRST_PAUSE_SECONDS: Final = 0.1
_LONGEST_PAUSE_SECONDS: Final = 10.0
_CALL_SECONDS: Final = 15.0


class RepartitionError(SidstreamError):
    """The run has stopped; the message says why. Running it again goes on from there."""


@dataclass(frozen=True)
class RepartitionProgress:
    """How far a step is with a topic: ``looking`` counts records, ``moving`` keys."""

    topic: str
    look: int
    step: Literal["looking", "moving"]
    done: int
    total: int


@dataclass
class MovedKeys:
    """What became of the keys of ``topic`` among its ``partitions``.

    ``keys``: that were looked at; ``to_move``: in the first look; ``moved``: were written; ``staying``: where they are, and why.
    """

    topic: str
    partitions: int
    keys: int = 0
    to_move: int = 0
    moved: int = 0
    staying: dict[bytes, Stays] = field(default_factory=dict)

    @property
    def kept(self) -> int:
        """How many keys stay where they are."""
        return len(self.staying)


class KeyMover:
    """Looks at the keys of one topic, and moves them; what becomes of them is in ``outcome``.

    ``verdicts``: of copies the keys that are to stay where they are; so does a key whose newest record's headers cannot be read.
    """

    def __init__(
        self,
        settings: Settings,
        outcome: MovedKeys,
        verdicts: Verdicts,
        progress: Callable[[RepartitionProgress], None],
    ) -> None:
        self._settings = settings
        self.topic = outcome.topic
        self._outcome = outcome
        self._verdicts = verdicts
        self._progress = progress

    def _parts(self) -> list[tuple[int, int]]:
        """(number, of how many): the looks that go over the topic once, each at some of its keys."""
        with _reader(self._settings) as reader:
            records = sum(map(len, whole_topics(reader, [self.topic]).values()))
        many = 1 + records // _KEYS_AT_ONCE
        return [(number, many) for number in range(many)]

    def count(self) -> None:
        """A first look at everything; nothing is written."""
        for part in self._parts():
            self._look(1, part)

    def turn(self, producer: Producer, round_: int) -> int:
        """A look at everything, and the moves that it found: how many."""
        found = 0
        for part in self._parts():
            moves, ends = self._look(round_, part)
            found += len(moves)
            self._move(producer, round_, moves, ends)
        return found

    def _look(self, round_: int, part: tuple[int, int]) -> tuple[dict[bytes, Move], dict[int, int]]:
        """The moves of one part of the keys, and up to which offset each partition was read to decide them."""
        number, many = part
        partitions = self._outcome.partitions
        histories: dict[bytes, KeyHistory] = {}
        homes: dict[bytes, int] = {}
        with _reader(self._settings) as reader:
            spans = whole_topics(reader, [self.topic])
            first = {at: span.first for at, span in spans.items()}
            read, total = dict.fromkeys(spans, 0), sum(map(len, spans.values()))
            for reading in read_spans(reader, spans):
                read |= {at: position - first[at] for at, position in reading.positions.items()}
                self._progress(RepartitionProgress(self.topic, round_, "looking", sum(read.values()), total))
                for record in reading.records:
                    key = record.key()
                    if not key:
                        continue  # no item's: the assigner refuses it
                    history = histories.get(key)
                    if history is None:
                        hashed = murmur2(key) & 0x7FFFFFFF
                        if hashed // partitions % many != number:
                            continue
                        homes[key] = hashed % partitions
                        history = histories[key] = KeyHistory()
                    history.add(_sighting(record))
        moves = {
            key: move
            for key, history in histories.items()
            if key not in self._outcome.staying and (move := history.move(homes[key])) is not None
        }
        if round_ == 1:
            self._outcome.keys += len(histories)
            self._outcome.to_move += len(moves)
        return moves, {partition: span.end for (_, partition), span in spans.items()}

    def _move(self, producer: Producer, round_: int, moves: Mapping[bytes, Move], ends: Mapping[int, int]) -> None:
        done = 0
        for some in self._with_newest(moves):
            done += len(some)
            copies = {key: self._copy(key, move, newest, ends) for key, move, newest in some}
            stay = self._staying([copy for copy in copies.values() if copy is not None])
            records: list[dict[str, Any]] = []
            for key, move, _ in some:
                copy = copies[key]
                if copy is None or key in stay:
                    self._outcome.staying[key] = stay.get(key, Stays.REFUSED)
                    continue
                records += [
                    self._record(key, partition, None, [], LEFT_BEHIND_AT, Note(ends[partition]))
                    for partition in move.left_behind
                ]
                records += [copy] if move.copied else []
                self._outcome.moved += 1
            if records:
                self._transaction(producer, records)
            self._progress(RepartitionProgress(self.topic, round_, "moving", done, len(moves)))

    def _with_newest(self, moves: Mapping[bytes, Move]) -> Iterator[list[tuple[bytes, Move, Message | None]]]:
        """Batches of moves with their newest records, deletions without. What has left the log is for the next look."""
        deletions = [(key, move, None) for key, move in moves.items() if move.deleted]
        for start in range(0, len(deletions), _KEYS_A_TRANSACTION):
            yield deletions[start : start + _KEYS_A_TRANSACTION]
        wanted: dict[int, set[int]] = {}
        for move in moves.values():
            if not move.deleted:
                wanted.setdefault(move.newest[0], set()).add(move.newest[1])
        spans = {(self.topic, partition): Span(min(offsets), max(offsets) + 1) for partition, offsets in wanted.items()}
        with _reader(self._settings) as reader:
            for reading in read_spans(reader, spans, size=_KEYS_A_TRANSACTION):
                found = [record for record in reading.records if record.offset() in wanted[record.partition()]]
                yield [(key, moves[key], record) for record in found if (key := record.key() or b"") in moves]

    def _copy(self, key: bytes, move: Move, newest: Message | None, ends: Mapping[int, int]) -> dict[str, Any] | None:
        """The newest record again, in its own partition; ``None`` if its headers cannot be read."""
        note = Note(ends.get(move.home, 0), move.origin)
        if newest is None:
            return self._record(key, move.home, None, [], move.time, note)
        try:
            headers = [(name, content) for name, content in headers_of(newest) if name != MOVED_HEADER]
        except UnreadableHeadersError:
            return None
        return self._record(key, move.home, newest.value(), headers, move.time, note)

    def _staying(self, copies: Sequence[Mapping[str, Any]]) -> Mapping[bytes, Stays]:
        """Keys of the copies that are to stay where they are."""
        records = [
            Message(
                topic=self.topic,
                partition=copy["partition"],
                offset=offset,
                key=copy["key"],
                value=copy["value"],
                headers=copy["headers"],
                timestamp=(TIMESTAMP_CREATE_TIME, copy["timestamp"]),
            )
            for offset, copy in enumerate(copies)
        ]
        return self._verdicts(records)

    def _record(
        self,
        key: bytes,
        partition: int,
        value: bytes | None,
        headers: Sequence[tuple[str, Any]],
        at: int,
        note: Note,
    ) -> dict[str, Any]:
        return {
            "key": key,
            "value": value,
            "partition": partition,
            "headers": [*headers, (MOVED_HEADER, note.encode())],
            "timestamp": at,
        }

    def _transaction(self, producer: Producer, records: Iterable[Mapping[str, Any]]) -> None:
        try:
            _repeat(producer.begin_transaction)
            for record in records:
                while True:
                    try:
                        producer.produce(self.topic, **record)
                        break
                    except BufferError:
                        producer.poll(0.1)
            reach(Failpoint.OUTPUTS_SENT, producer.flush)
            _repeat(producer.commit_transaction, _CALL_SECONDS)
            reach(Failpoint.TRANSACTION_COMMITTED)
        except KafkaException as error:
            _repeat(producer.abort_transaction, _CALL_SECONDS)
            raise RepartitionError(f"moving keys has stopped: {error_text(error)}. Run it again: it goes on") from error
        except KeyboardInterrupt:
            _repeat(producer.abort_transaction, _CALL_SECONDS)
            raise


def move_everything(settings: Settings, movers: Sequence[KeyMover], patience_seconds: float) -> None:
    """Look and move until a look at every topic finds nothing; ``patience_seconds``: how long to go on meanwhile.

    Raises:
        RepartitionError: the broker refuses, another run has taken over, or producers put keys into other partitions as fast as
            they are moved.
    """
    identity = settings.in_cluster("sidstream-repartition")
    producer = Producer(producer_configuration(settings.kafka, transactional_id=identity))
    _repeat(producer.init_transactions, _CALL_SECONDS)
    give_up, pause = time.monotonic() + patience_seconds, _FIRST_PAUSE_SECONDS
    for round_ in count(1):
        # Topic after topic in each round: an item and what is said of it elsewhere are apart for as short as can be.
        unfinished = [mover.topic for mover in movers if mover.turn(producer, round_)]
        if not unfinished:
            return
        if time.monotonic() > give_up:
            raise RepartitionError(
                f"after {round_} looks at {', '.join(unfinished)} there is still something to move: a producer puts keys into "
                "other partitions all the time. Set its partitioner to murmur2_random (Java's default), then run this again"
            )
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


def _sighting(record: Message) -> Sighting:
    note = None
    try:
        for name, content in headers_of(record):
            if name == MOVED_HEADER:
                note = Note.decode(content or b"")
    except UnreadableHeadersError:
        pass  # none of ours
    return Sighting(record.partition(), record.offset(), record.timestamp()[1], record.value() is None, note)


def _reader(settings: Settings) -> closing[Consumer]:
    return closing(end_reader(settings, "repartition"))


def _repeat(call: Callable[..., Any], *arguments: Any) -> None:
    repeated_for_a_while(call, *arguments, refusal=_refusal)


def _refusal(error: KafkaException, means: Meaning) -> RepartitionError:
    if means is Meaning.FENCED:
        return RepartitionError("another `topics repartition` has taken over: this one has stopped")
    return RepartitionError(f"keys cannot be moved: {error_text(error)}. Run it again: it goes on")
