"""``sidstream topics repartition``: topics get partitions, and every item moves into the partition that its key belongs into.

1. *Check*: the topics keep the times that records are written with, and have no more partitions than asked for.
2. *Grow* ``item-codes`` before ``item-updates``: codes go to the partition of their update. Then results before queries.
3. *Look*: read ``item-updates`` to its end, and decide for every key (``streamer.operations.key_moves``).
4. *Move*: copies and tombstones of some hundred keys a Kafka transaction. The assigner carries all of it, and the times,
   over to ``item-codes``, and the indexer into the index.
5. Look again, until there is nothing to move.

Killed anywhere, an open transaction is aborted by the next run, and what is committed is found by its first look: no step is
noted elsewhere. One run at a time: a second one fences the first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from typing import Any, Final, Literal

import numpy as np
import structlog
from confluent_kafka import TIMESTAMP_CREATE_TIME, Consumer, KafkaException, Message, Producer
from numpy.typing import NDArray

from models.bundles.bundle import Bundle
from models.errors import SidstreamError
from store.writing.failpoints import Failpoint, reach
from streamer.assigner.assign_batch import AssignBatch
from streamer.deployments.pipelines import codes_topic_of
from streamer.deployments.served import find_serving, served_settings
from streamer.events.headers import UnreadableHeadersError, headers_of
from streamer.exactly_once.retrying import repeated_for_a_while
from streamer.kafka.clients import producer_configuration
from streamer.kafka.errors import Meaning, error_text
from streamer.kafka.partitioner import MOVED_HEADER, murmur2
from streamer.kafka.read_to_end import Span, end_reader, read_spans, whole_topics
from streamer.operations.key_moves import LEFT_BEHIND_AT, KeyHistory, Move, Note, Sighting
from streamer.operations.topic_growth import (
    grow,
    kept_from_compaction,
    partitions_of_topics,
    require_fewer,
    require_own_times,
)
from streamer.registry.reading import formats_of
from streamer.settings import Settings

log = structlog.get_logger(__name__)

_KEYS_A_TRANSACTION: Final = 500
# About 600 bytes each: what a look holds in memory. A topic with more records is looked at part by part.
_KEYS_AT_ONCE: Final = 2_000_000
# Producers ask for a topic's partitions anew every five minutes, in Java's client as in librdkafka.
PATIENCE_SECONDS: Final = 600.0
_FIRST_PAUSE_SECONDS: Final = 0.1
_LONGEST_PAUSE_SECONDS: Final = 10.0
_CALL_SECONDS: Final = 15.0


class RepartitionError(SidstreamError):
    """The run has stopped; the message says why. Running it again goes on from there."""


@dataclass(frozen=True)
class RepartitionProgress:
    """How far a step is: ``looking`` counts records, ``moving`` keys."""

    look: int
    step: Literal["looking", "moving"]
    done: int
    total: int


@dataclass
class RepartitionOutcome:
    """``grown``: topics that got partitions; ``keys``: that were looked at; ``to_move``: in the first look; ``moved``: were
    written; ``kept``: stay where they are, since the assigner refuses their newest update: the item is an earlier one's, whose
    codes a tombstone would take away.
    """

    partitions: int
    grown: tuple[str, ...] = ()
    keys: int = 0
    to_move: int = 0
    moved: int = 0
    kept: int = 0


def repartition(
    settings: Settings,
    partitions: int | None = None,
    *,
    dry_run: bool = False,
    patience_seconds: float = PATIENCE_SECONDS,
    progress: Callable[[RepartitionProgress], None] = lambda _progress: None,
) -> RepartitionOutcome:
    """Bring every key of ``item-updates`` into its partition among ``partitions``; without a number, among those it has.

    ``patience_seconds``: how long to go on while producers still write into the partitions of before.

    Raises:
        TopicError: a topic is missing, has more partitions, or does not keep its records' times.
        RepartitionError: the broker refuses, another run has taken over, or the index has an order of its own.
    """
    topics, kafka = settings.topics, settings.kafka
    if settings.indexer.order != "arrival":
        raise RepartitionError(
            f"items move by the order of their updates' Kafka times, and this pipeline's index goes by indexer.order = "
            f"{settings.indexer.order!r}: an item could go back to an older state. Add partitions by kafka-topics, "
            f"{topics.item_codes} first, and publish the whole catalogue again (docs/partitions.md)"
        )
    serving = find_serving(settings)
    pipelines = () if serving is None else serving.pipelines
    # The codes of every codebook, first: what comes of an update goes into the partition of the same number.
    codes = [codes_topic_of(settings, pipeline) for pipeline in pipelines] or [topics.item_codes]
    settings = served_settings(settings)
    names = [*codes, topics.item_updates, topics.results, topics.queries]
    now = partitions_of_topics(kafka, names)
    wanted = now[topics.item_updates] if partitions is None else partitions
    outcome = RepartitionOutcome(wanted)
    require_own_times(kafka, [topics.item_updates, *codes])
    # Without a number keys go home, and the topics stay as they are.
    growing = [*codes, topics.item_updates] if partitions is None else names
    require_fewer({name: now[name] for name in growing}, wanted)
    if dry_run:
        run = _Run(settings, outcome, progress)
        for part in run.parts():
            run.look(1, part)
        return outcome
    outcome.grown = tuple(grow(kafka, growing, wanted))
    with kept_from_compaction(kafka, topics.item_updates):
        _Run(settings, outcome, progress).move_everything(patience_seconds)
    return outcome


class _Run:
    def __init__(
        self, settings: Settings, outcome: RepartitionOutcome, progress: Callable[[RepartitionProgress], None]
    ) -> None:
        self._settings = settings
        self._topic = settings.topics.item_updates
        self._outcome = outcome
        self._progress = progress
        self._kept: set[bytes] = set()
        manifest = Bundle.open(settings.bundle).manifest
        self._assign = AssignBatch(
            _AnyCodes(manifest.dimension),
            codes_topic=settings.topics.item_codes,
            dead_letter_topic=settings.topics.item_updates_dead_letters,
            limits=settings.assigner,
            attributes=settings.attributes.rules(),
            embedding_model=manifest.embedding_model,
            formats=formats_of(settings, rows=True),
        )

    def parts(self) -> list[tuple[int, int]]:
        """(number, of how many): the looks that go over the topic once, each at some of its keys."""
        with _reader(self._settings) as reader:
            records = sum(map(len, whole_topics(reader, [self._topic]).values()))
        many = 1 + records // _KEYS_AT_ONCE
        return [(number, many) for number in range(many)]

    def move_everything(self, patience_seconds: float) -> None:
        """Look and move until a look finds nothing.

        Raises:
            RepartitionError: the broker refuses, or producers put keys into other partitions as fast as they are moved.
        """
        self._producer = Producer(
            producer_configuration(
                self._settings.kafka, transactional_id=self._settings.in_cluster("sidstream-repartition")
            )
        )
        _repeat(self._producer.init_transactions, _CALL_SECONDS)
        give_up, pause = time.monotonic() + patience_seconds, _FIRST_PAUSE_SECONDS
        for round_ in count(1):
            found = 0
            for part in self.parts():
                moves, ends = self.look(round_, part)
                found += len(moves)
                self._move(round_, moves, ends)
            if not found:
                self._outcome.kept = len(self._kept)
                return
            if time.monotonic() > give_up:
                raise RepartitionError(
                    f"after {round_} looks at {self._topic} there is still something to move: a producer puts keys into other "
                    "partitions all the time. Set its partitioner to murmur2_random (Java's default), then run this again"
                )
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def look(self, round_: int, part: tuple[int, int]) -> tuple[dict[bytes, Move], dict[int, int]]:
        """The moves of one part of the keys, and up to which offset each partition was read to decide them."""
        number, many = part
        partitions = self._outcome.partitions
        histories: dict[bytes, KeyHistory] = {}
        homes: dict[bytes, int] = {}
        with _reader(self._settings) as reader:
            spans = whole_topics(reader, [self._topic])
            first = {at: span.first for at, span in spans.items()}
            read, total = dict.fromkeys(spans, 0), sum(map(len, spans.values()))
            for reading in read_spans(reader, spans):
                read |= {at: position - first[at] for at, position in reading.positions.items()}
                self._progress(RepartitionProgress(round_, "looking", sum(read.values()), total))
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
            if key not in self._kept and (move := history.move(homes[key])) is not None
        }
        if round_ == 1:
            self._outcome.keys += len(histories)
            self._outcome.to_move += len(moves)
        return moves, {partition: span.end for (_, partition), span in spans.items()}

    def _move(self, round_: int, moves: Mapping[bytes, Move], ends: Mapping[int, int]) -> None:
        done = 0
        for some in self._with_newest(moves):
            done += len(some)
            copies = {key: self._copy(key, move, newest, ends) for key, move, newest in some}
            refused = self._refused([copy for copy in copies.values() if copy is not None])
            records: list[dict[str, Any]] = []
            for key, move, _ in some:
                copy = copies[key]
                if copy is None or key in refused:
                    self._kept.add(key)
                    continue
                records += [
                    self._record(key, partition, None, [], LEFT_BEHIND_AT, Note(ends[partition]))
                    for partition in move.left_behind
                ]
                records += [copy] if move.copied else []
                self._outcome.moved += 1
            if records:
                self._transaction(records)
            self._progress(RepartitionProgress(round_, "moving", done, len(moves)))

    def _with_newest(self, moves: Mapping[bytes, Move]) -> Iterator[list[tuple[bytes, Move, Message | None]]]:
        """Batches of moves with their newest records, deletions without. What has left the log is for the next look."""
        deletions = [(key, move, None) for key, move in moves.items() if move.deleted]
        for start in range(0, len(deletions), _KEYS_A_TRANSACTION):
            yield deletions[start : start + _KEYS_A_TRANSACTION]
        wanted: dict[int, set[int]] = {}
        for move in moves.values():
            if not move.deleted:
                wanted.setdefault(move.newest[0], set()).add(move.newest[1])
        spans = {
            (self._topic, partition): Span(min(offsets), max(offsets) + 1) for partition, offsets in wanted.items()
        }
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

    def _refused(self, copies: Sequence[Mapping[str, Any]]) -> set[bytes]:
        """Keys of the copies that the assigner would make dead letters of."""
        records = [
            Message(
                topic=self._topic,
                partition=copy["partition"],
                offset=offset,
                key=copy["key"],
                value=copy["value"],
                headers=copy["headers"],
                timestamp=(TIMESTAMP_CREATE_TIME, copy["timestamp"]),
            )
            for offset, copy in enumerate(copies)
        ]
        dead_letters = self._settings.topics.item_updates_dead_letters
        return {outgoing.key or b"" for outgoing in self._assign(records) if outgoing.topic == dead_letters}

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

    def _transaction(self, records: Iterable[Mapping[str, Any]]) -> None:
        producer = self._producer
        try:
            _repeat(producer.begin_transaction)
            for record in records:
                while True:
                    try:
                        producer.produce(self._topic, **record)
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


def _sighting(record: Message) -> Sighting:
    note = None
    try:
        for name, content in headers_of(record):
            if name == MOVED_HEADER:
                note = Note.decode(content or b"")
    except UnreadableHeadersError:
        pass  # none of ours
    return Sighting(record.partition(), record.offset(), record.timestamp()[1], record.value() is None, note)


class _AnyCodes:
    """Stands for the encoder where only the verdict on an update is asked for."""

    codebook_id = ""

    def __init__(self, dimension: int) -> None:
        self.dimension = dimension

    def encode(self, embeddings: NDArray[np.float32], ids: Sequence[bytes]) -> NDArray[np.uint16]:
        """Zeros, (n, 1)."""
        return np.zeros((len(embeddings), 1), dtype=np.uint16)


def _reader(settings: Settings) -> closing[Consumer]:
    return closing(end_reader(settings, "repartition"))


def _repeat(call: Callable[..., Any], *arguments: Any) -> None:
    repeated_for_a_while(call, *arguments, refusal=_refusal)


def _refusal(error: KafkaException, means: Meaning) -> RepartitionError:
    if means is Meaning.FENCED:
        return RepartitionError("another `topics repartition` has taken over: this one has stopped")
    return RepartitionError(f"keys cannot be moved: {error_text(error)}. Run it again: it goes on")
