"""Read your writes: wait until everything that a producer has sent is in the index of this machine, or was refused.

How that is known, partition by partition:

1. the assigner's group has committed past the last event: its outputs, codes or dead letters, are in the same transaction;
2. the ends of ``item-codes`` and of the dead letters are read once, then: all of those outputs lie before them;
3. the dead letters up to their end say which of the events were refused;
4. the index stands at the end of ``item-codes``; or below it with no committed record in between, for markers of transactions
   and aborted records take offsets too. A transaction that is still open there may bring records: its end is awaited;
5. the dead letters once more: the indexer writes those of codes that it has no room for before it passes them.

Attributes that were sent alone need 4 and 5: the indexer reads ``item-attributes`` itself, and has letters of their own.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Final

from confluent_kafka import Consumer, IsolationLevel, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from models.bundles.bundle import Bundle
from models.bundles.manifest import MANIFEST_FILE
from models.errors import SidstreamError
from store.errors import IndexMissingError
from store.files.environment import writer_of
from store.reading.reader import IndexReader
from streamer.client.delivery import Delivery
from streamer.client.refusals import Outcome, Refusals
from streamer.deployments.served import served_settings
from streamer.kafka.admin import require
from streamer.kafka.clients import client_configuration
from streamer.kafka.errors import error_text, told
from streamer.kafka.gather import drain
from streamer.kafka.groups import GroupReader, GroupStartingError
from streamer.kafka.read_to_end import LogReadError, Span, end_reader, partitions_of, read_spans, watermarks
from streamer.settings import Settings
from streamer.shards.partitions import holds, text_of

_POLL_SECONDS: Final = 0.02
_REQUEST_SECONDS: Final = 10.0
_READ_SECONDS: Final = 1.0
_NAMED_PARTITIONS: Final = 3
_LETTERS_AT_ONCE: Final = 100  # each may have two megabytes


class NotIndexedError(SidstreamError):
    """The outcome is not known in time; the message says which stage is behind."""


def await_indexed(settings: Settings, delivery: Delivery, *, seconds: float) -> Outcome:
    """Return once each event of ``delivery`` is in the index of this machine from which queries are answered, or a dead letter,
    and say which.

    Raises:
        NotIndexedError: not within ``seconds``; it says what stands where, and what was refused until then.
    """
    alone = delivery.attributes
    if not delivery.ends and (alone is None or not alone.ends):
        return Outcome(0)
    settings = served_settings(settings)
    _require_own_model(settings, delivery)
    _require_own_shard(settings, delivery)
    topics = settings.topics
    needed = [topics.item_updates, topics.item_updates_dead_letters, topics.item_codes] if delivery.ends else []
    needed += [topics.item_attributes, topics.item_attributes_dead_letters] if alone is not None else []
    require(settings.kafka, needed)
    refusals = Refusals(settings, delivery)
    with _Wait.open(settings, seconds) as wait:
        try:
            if delivery.ends:
                codes = wait.for_assigner(delivery.ends)
                letters = wait.for_letters(topics.item_updates_dead_letters, delivery.letters_from, refusals)
                wait.for_indexer(topics.item_codes, codes)
                wait.for_letters(topics.item_updates_dead_letters, letters, refusals)
            if alone is not None:
                wait.for_indexer(topics.item_attributes, alone.ends)
                wait.for_letters(topics.item_attributes_dead_letters, alone.letters_from, refusals)
        except NotIndexedError as error:
            refused = wait.outcome(refusals).refused
            if not refused:
                raise
            classes = ", ".join(f"{one.events:,} {one.kind}" for one in refused)
            raise NotIndexedError(f"{error}. Of the {delivery.events:,} events these were refused: {classes}") from None
        return wait.outcome(refusals)


def _require_own_model(settings: Settings, delivery: Delivery) -> None:
    """Updates that the assigner passes over would never come; where this machine has the bundle, that is known before."""
    if not (settings.bundle / MANIFEST_FILE).is_file() or not delivery.models:
        return
    takes = Bundle.open(settings.bundle).manifest.embedding_model
    others = sorted(str(name or "none") for name in delivery.models - {takes})
    if others:
        raise NotIndexedError(
            f"what answers takes updates with the embedding_model {takes or 'none'}, and these have {', '.join(others)}: they "
            "are for another codebook, and are passed over here"
        )


def _require_own_shard(settings: Settings, delivery: Delivery) -> None:
    """What lies in the partitions of other shards never comes to the index of this machine."""
    held = settings.indexer.partitions
    sent = {*delivery.ends, *(delivery.attributes.ends if delivery.attributes is not None else ())}
    if others := [partition for partition in sent if not holds(held, partition)]:
        raise NotIndexedError(
            f"what was sent is safe in Kafka, but whether it is indexed cannot be seen here: this machine's index holds the "
            f"partitions {held} (indexer.partitions), and events went to {text_of(others)} too. Ask a query for them, or "
            "`sidstream status` on the machines of the other shards"
        )


class _Wait:
    """One wait: the clients that it asks, and its deadline."""

    def __init__(self, settings: Settings, seconds: float, consumer: Consumer, assigners: GroupReader) -> None:
        self._settings = settings
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds
        self._admin = AdminClient(client_configuration(settings.kafka))
        self._consumer = consumer
        self._assigners = assigners
        self._reader: IndexReader | None = None

    @classmethod
    @contextmanager
    def open(cls, settings: Settings, seconds: float) -> Iterator[_Wait]:
        # At an end the broker holds a fetch back for this long: it is the time that a check takes.
        consumer = end_reader(settings, "wait", fetch_wait_max_ms=10)
        with closing(consumer), GroupReader(settings.kafka, settings.in_cluster(settings.assigner.group)) as assigners:
            wait = cls(settings, seconds, consumer, assigners)
            try:
                yield wait
            finally:
                if wait._reader is not None:
                    wait._reader.close()

    def for_assigner(self, wanted: Mapping[int, int]) -> dict[int, int]:
        """Wait for the assigner; the ends of ``item-codes`` that hold all of its outputs, by partition."""
        topic = self._settings.topics.item_updates
        while behind := {
            partition: committed
            for partition, committed in self._committed(topic, wanted).items()
            if committed < wanted[partition]
        }:
            if self._over():
                raise NotIndexedError(self._assigner_behind(topic, wanted, behind))
        return self._ends(self._settings.topics.item_codes, wanted)

    def for_indexer(self, topic: str, ends: Mapping[int, int]) -> None:
        """Wait until the index has every committed record of ``topic`` below ``ends``."""
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

    def for_letters(self, topic: str, first: Mapping[int, int], refusals: Refusals) -> dict[int, int]:
        """Tell ``refusals`` of every dead letter on ``topic`` from ``first`` to the end now; the end of each partition.

        A transaction that is open before the end may be the one that passed our events: its end is awaited.
        """
        ends = self._ends(topic, dict.fromkeys(partitions_of(self._consumer, topic), 0))
        spans = {}
        for partition, end in ends.items():
            low, stable = watermarks(self._consumer, topic, partition)
            while stable < end:
                if self._over():
                    raise NotIndexedError(self._transaction_open(topic, [partition]))
                stable = watermarks(self._consumer, topic, partition)[1]
            spans[topic, partition] = Span(max(low, first.get(partition, 0)), end)
        for reading in read_spans(self._consumer, spans, size=_LETTERS_AT_ONCE):
            refusals.add(reading.records)
        return ends

    def outcome(self, refusals: Refusals) -> Outcome:
        return refusals.outcome(self._consumer, self._missing)

    def _missing(self, item_ids: Sequence[bytes]) -> list[bytes]:
        """Those of the items that the index does not have."""
        if self._reader is None:
            return list(item_ids)
        with self._reader.snapshot() as snapshot:
            found = snapshot.find(item_ids)
        return [item_id for item_id, item in zip(item_ids, found, strict=True) if item is None]

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

    def _committed(self, topic: str, partitions: Mapping[int, int]) -> dict[int, int]:
        """The group's next offset of each partition, 0 where it has none."""
        try:
            found = self._assigners.committed(topic, partitions)
        except GroupStartingError:
            found = {}
        return {partition: found[partition].offset if partition in found else 0 for partition in partitions}

    def _ends(self, topic: str, partitions: Mapping[int, int]) -> dict[int, int]:
        """The ends with what is not committed yet: the offsets' commit may be seen before that of the outputs."""
        wanted = {TopicPartition(topic, partition): OffsetSpec.latest() for partition in partitions}
        try:
            answers = self._admin.list_offsets(
                wanted, isolation_level=IsolationLevel.READ_UNCOMMITTED, request_timeout=_REQUEST_SECONDS
            )
            return {at.partition: told(int(answer.result().offset)) for at, answer in answers.items()}
        except KafkaException as error:
            raise LogReadError(f"cannot read the ends of {topic}: {error_text(error)}") from error

    def _over(self) -> bool:
        """Whether time is up; waits a moment if not."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            return True
        time.sleep(min(left, _POLL_SECONDS))
        return False

    def _assigner_behind(self, topic: str, wanted: Mapping[int, int], committed: Mapping[int, int]) -> str:
        places = _places((f"{topic}/{p} at {at} of {wanted[p]}" for p, at in sorted(committed.items())), len(committed))
        return (
            f"not indexed within {self._seconds:g} s: the assigner is behind ({places}); {self._members()}. The updates "
            "are safe in Kafka: they are indexed as soon as it has caught up"
        )

    def _members(self) -> str:
        try:
            group, members = self._assigners.group, self._assigners.members()
        except GroupStartingError as error:
            return str(error)
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
            return self._transaction_open(topic, blocked)
        places = _places(
            (f"{topic}/{p} at {positions.get((topic, p), 0)} of {end}" for p, end in sorted(ends.items())), len(ends)
        )
        writer = writer_of(index)
        who = f"process {writer} writes it" if writer else f"no process writes it: {start}"
        return f"not indexed within {self._seconds:g} s: the index {index} is behind ({places}); {who}"

    def _transaction_open(self, topic: str, partitions: Sequence[int]) -> str:
        places = _places((f"{topic}/{partition}" for partition in partitions), len(partitions))
        return (
            f"not indexed within {self._seconds:g} s: a transaction is open on {places}, which holds readers back: an "
            "assigner has died in the middle of it and has not come back, or hangs. It ends with the assigner's "
            "restart, or after the transaction's time limit"
        )


def _places(places: Iterator[str], count: int) -> str:
    named = [place for place, _ in zip(places, range(_NAMED_PARTITIONS), strict=False)]
    more = f" and {count - len(named)} more" if count > len(named) else ""
    return ", ".join(named) + more
