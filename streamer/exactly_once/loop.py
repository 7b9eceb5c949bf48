"""Consume → transform → produce, exactly once: outputs, dead letters and offsets of a batch in one Kafka transaction.

The steps of a batch, and what happens when one fails:

1. *Gather* whatever waits. A rebalance meanwhile throws the batch away and seeks back: nothing was promised yet. A loop
   that selects takes its batch from the front of what it has gathered; the rest waits here for the next batches.
2. *Transform* it, without touching Kafka. An exception ends the process: a fault of ours, not of the input's.
3. *Begin*, send the batch's own offsets, produce.
4. *Commit*; when the batch came back full, in a second thread, so that the next one is gathered and transformed meanwhile.

An error that asks for an abort aborts the transaction and seeks back to the first offset that is not committed; a
retriable one repeats the same call; a fatal one ends the process, whose successor takes over the transactional id. Clients
that have lost a cluster which answers others are replaced by new ones, as if the process had been killed.
A ``kill -9`` leaves an open transaction, which the successor's ``init_transactions`` aborts (KIP-98).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from prometheus_client import Histogram

from store.failpoints import Failpoint, reach
from streamer.events.outgoing import Outgoing
from streamer.kafka.clients import consumer_configuration, producer_configuration
from streamer.kafka.errors import ConsumerBrokenError, FatalKafkaError, error_text
from streamer.kafka.gather import drain
from streamer.kafka.input_progress import InputProgress, Place
from streamer.kafka.reachability import BrokerProbe, ClientCutOffError, CutOffGuard
from streamer.process.batch_log import BatchSummary
from streamer.process.health import Health, Part
from streamer.process.metrics import BATCH_EVENTS, BATCH_SECONDS, EVENTS, TRANSACTION_ABORTS, observe_ages
from streamer.settings import KafkaSettings

log = structlog.get_logger(__name__)

IDLE_WAIT_SECONDS: Final = 0.1
RETRY_SECONDS: Final = 0.2
_ENDS_SECONDS: Final = 2.0
_SEEK_SECONDS: Final = 5.0
_REPLACE_SECONDS: Final = 60.0
# One attempt; then the process says that it is not ready, looks whether it is to stop, and makes the same call again.
_CALL_SECONDS: Final = 5.0

# What waits here for its batch is no more than this many bytes of values, and what one more look at the queue brings.
_GATHERED_BYTES: Final = 8 * 1024 * 1024

Transform = Callable[[list[Message]], Iterable[Outgoing]]
# How many of the gathered records, from the first, are the next batch.
Select = Callable[[list[Message]], int]


class _AbortRequired(Exception):
    """The transaction can only be aborted; the batch is processed again."""


class _Stopped(Exception):
    """Told to stop while the broker does not answer: the successor aborts the open transaction and does its batch anew."""


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """One transactional loop: ``group`` and ``instance`` make its stable transactional id.

    ``event_seconds`` is told how long events took from their Kafka timestamps to the commit of what came of them.
    ``gather_size``: records to select a batch from; without it, ``batch_size``.
    """

    process: str
    source: str
    group: str
    instance: str
    batch_size: int
    minimum_batch_interval_ms: float
    event_seconds: Histogram
    gather_size: int | None = None


class TransactionalLoop:
    """Runs ``transform`` over the records of one topic; see the module's docstring for its guarantees."""

    def __init__(
        self,
        settings: LoopSettings,
        kafka: KafkaSettings,
        transform: Transform,
        health: Health,
        select: Select = len,
    ) -> None:
        self._settings = settings
        self._select = select
        self._kafka = kafka
        self._transform = transform
        self._health = health
        self._stop = threading.Event()
        self._replaced_at = float("-inf")
        self._rebalanced = False
        self._committing: Future[None] | None = None
        # Records whose transaction is not known to be committed, oldest batch first.
        self._unfinished: list[Message] = []
        # Gathered, but in no batch yet.
        self._waiting: list[Message] = []
        self._summary = BatchSummary()
        # What the consumer was given since the last turn: the ends of these partitions are to be read.
        self._new_assignment: list[TopicPartition] | None = None
        self._input = InputProgress(settings.process, health, f"waiting for partitions of {settings.source}")
        self._aborts = TRANSACTION_ABORTS.labels(settings.process)

    def run(self, stop: threading.Event) -> None:
        """Work until ``stop`` is set; the batch in hand is finished first.

        Raises:
            FatalKafkaError: fenced by another instance of the same name, not authorised, or the client is broken.
        """
        self._stop = stop
        self._health.set_ready(Part.START)
        try:
            while True:
                try:
                    self._run(stop)
                    return
                except ClientCutOffError as reason:
                    log.warning("clients_replaced", reason=str(reason), events=len(self._unfinished))
                    # The new producer aborts what the old one left open; the new consumer starts at what is committed.
                    self._unfinished, self._waiting, self._committing = [], [], None
        except _Stopped:
            log.warning("stopped_without_broker", events=len(self._unfinished), next="the successor does them again")

    def _run(self, stop: threading.Event) -> None:
        settings = self._settings
        identity = f"{settings.group}-{settings.instance}"
        self._producer = Producer(
            # Lingering fills the requests of a large batch, and costs a small one nothing: a commit sends at once.
            producer_configuration(self._kafka, transactional_id=identity, health=self._health)
        )
        self._retrying(self._producer.init_transactions, _CALL_SECONDS)
        self._health.set_ready(Part.BROKER)
        self._consumer = self._new_consumer()
        with ThreadPoolExecutor(1, thread_name_prefix="commit") as committer:
            try:
                while not stop.is_set():
                    try:
                        self._one_batch(committer)
                    except ConsumerBrokenError as reason:
                        self._replace_consumer(reason)
                self._finish_commit()
            except _AbortRequired as reason:
                self._abort_transaction(reason, len(self._unfinished))
            finally:
                self._consumer.close()

    def _new_consumer(self) -> Consumer:
        settings = self._settings
        consumer = Consumer(
            consumer_configuration(
                self._kafka,
                group=settings.group,
                instance=settings.instance,
                health=self._health,
                on_statistics=self._input.read_statistics,
            )
        )
        self._broker = BrokerProbe((consumer, self._producer), self._kafka, self._health)
        consumer.subscribe(
            [settings.source], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_revoke
        )
        return consumer

    def _replace_consumer(self, reason: ConsumerBrokenError) -> None:
        """A new consumer starts at what is committed. Once in a while only: two instances of one name would take turns."""
        if time.monotonic() - self._replaced_at < _REPLACE_SECONDS:
            raise reason
        self._replaced_at = time.monotonic()
        log.warning("consumer_replaced", reason=str(reason))
        self._finish_or_abort([])
        self._consumer.close()
        self._waiting = []
        self._consumer = self._new_consumer()

    def _one_batch(self, committer: ThreadPoolExecutor) -> None:
        settings = self._settings
        started = time.monotonic()
        self._health.progress()
        self._rebalanced = False
        records = self._gather()
        if self._rebalanced:
            # What a transaction aborted during the rebalance held comes before what was just gathered.
            aborted, self._unfinished = self._unfinished, []
            self._seek_back(aborted + records)
            return
        if self._new_assignment is not None:
            self._read_ends()
        if not records:
            self._finish_or_abort([])
            self._summary.idle()
            self._input.advance({}, nothing_waits=not self._waiting)
            self._input.show_lag(self._consumer)
            self._broker.look()
            return
        batch_size = self._select(records)
        records, self._waiting = records[:batch_size], records[batch_size:]
        with self._health.working(f"a batch of {len(records)} events"):
            outgoing = self._transform(records)
        if not self._finish_or_abort(records):
            return
        try:
            offsets = self._begin(records, outgoing)
            if len(records) >= settings.batch_size:
                self._committing = committer.submit(self._commit, records)
                self._unfinished = records
            else:
                self._commit(records)
        except _AbortRequired as reason:
            self._abort(records, reason)
            return
        seconds = time.monotonic() - started
        self._input.advance(offsets, nothing_waits=not self._waiting)
        self._input.show_lag(self._consumer)
        BATCH_EVENTS.labels(settings.process).observe(len(records))
        EVENTS.labels(settings.process).inc(len(records))
        BATCH_SECONDS.labels(settings.process).observe(seconds)
        self._summary.add(len(records), seconds)
        rest = settings.minimum_batch_interval_ms / 1000 - (time.monotonic() - started)
        if rest > 0:
            time.sleep(rest)

    def _gather(self) -> list[Message]:
        """What has waited here, and what has come since; looks at the consumer each time, for a rebalance happens in there."""
        waiting, self._waiting = self._waiting, []
        wanted = (self._settings.gather_size or self._settings.batch_size) - len(waiting)
        if wanted < 1 or sum(map(len, waiting)) > _GATHERED_BYTES:
            wanted = 1
        # With a commit under way, wait for more records only as long as it takes.
        wait = 0.0 if waiting else 0.005 if self._committing else IDLE_WAIT_SECONDS
        return waiting + drain(self._consumer, wanted, wait)

    def _commit(self, records: list[Message]) -> None:
        self._retrying(self._producer.commit_transaction, _CALL_SECONDS)
        reach(Failpoint.TRANSACTION_COMMITTED)
        self._broker.answered()
        observe_ages(self._settings.event_seconds, records)

    def _begin(self, records: list[Message], outgoing: Iterable[Outgoing]) -> dict[Place, int]:
        """Everything but the commit; the offsets that it will commit."""
        producer = self._producer
        self._retrying(producer.begin_transaction)
        reach(Failpoint.TRANSACTION_BEGUN)
        source = self._settings.source
        last = {record.partition(): record.offset() for record in records}
        offsets = [TopicPartition(source, partition, offset + 1) for partition, offset in last.items()]
        # The offsets first: the coordinator is ready for them by the time that the outputs are sent (p99 -10 ms).
        self._retrying(
            producer.send_offsets_to_transaction, offsets, self._consumer.consumer_group_metadata(), _CALL_SECONDS
        )
        reach(Failpoint.OFFSETS_SENT)
        for topic, key, value, partition, headers, timestamp in outgoing:
            while True:
                try:
                    producer.produce(
                        topic, value=value, key=key, partition=partition, headers=headers, timestamp=timestamp
                    )
                    break
                except BufferError:
                    self._health.progress()  # a slow broker; its records are given up after transaction.timeout.ms
                    producer.poll(0.05)
                except KafkaException as error:
                    if error.args[0].code() == KafkaError.MSG_SIZE_TOO_LARGE:
                        raise FatalKafkaError(
                            f"a record for {topic} is larger than message.max.bytes: {error_text(error)}"
                        ) from error
                    raise _AbortRequired(error_text(error)) from error
        reach(Failpoint.OUTPUTS_SENT, producer.flush)
        return {(source, partition): offset + 1 for partition, offset in last.items()}

    def _finish_or_abort(self, next_records: list[Message]) -> bool:
        """Wait for the commit under way; ``False`` when it failed and ``next_records`` are to be gathered again."""
        try:
            self._finish_commit()
        except _AbortRequired as reason:
            self._abort(next_records, reason)
            return False
        return True

    def _finish_commit(self) -> None:
        if self._committing is not None:
            committing, self._committing = self._committing, None
            committing.result()
            self._unfinished = []

    def _abort(self, records: list[Message], reason: Exception) -> None:
        self._abort_transaction(reason, len(self._unfinished) + len(records))
        unfinished, self._unfinished = self._unfinished, []
        self._seek_back(unfinished + records)
        time.sleep(RETRY_SECONDS)

    def _abort_transaction(self, reason: Exception, events: int) -> None:
        log.warning("transaction_aborted", reason=str(reason), events=events)
        self._aborts.inc()
        self._retrying(self._producer.abort_transaction, _CALL_SECONDS)

    def _seek_back(self, records: list[Message]) -> None:
        """To the first offset of ``records``, and of what waits, in each partition that is still ours."""
        waiting, self._waiting = self._waiting, []
        first: dict[int, int] = {}
        for record in records + waiting:
            partition, offset = record.partition(), record.offset()
            first[partition] = min(offset, first.get(partition, offset))
        assigned = {assignment.partition for assignment in self._consumer.assignment()}
        for partition in first.keys() & assigned:
            self._seek(TopicPartition(self._settings.source, partition, first[partition]))

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
        self._rebalanced = True
        self._new_assignment = partitions
        log.info("partitions_assigned", partitions=[assigned.partition for assigned in partitions])

    def _on_revoke(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Revoked or lost: finish what is under way first. A lost partition's commit is refused by the coordinator."""
        self._rebalanced = True
        log.info("partitions_revoked", partitions=[revoked.partition for revoked in partitions])
        try:
            self._finish_commit()
        except _AbortRequired as reason:
            # No seek in here: the records stay in ``_unfinished`` until the rebalance is over.
            self._abort_transaction(reason, len(self._unfinished))

    def _read_ends(self) -> None:
        """Of the partitions just assigned; when the broker does not answer, at the next turn."""
        assert self._new_assignment is not None
        ends: dict[Place, int] = {}
        for assigned in self._new_assignment:
            place = (assigned.topic, assigned.partition)
            try:
                ends[place] = self._consumer.get_watermark_offsets(assigned, timeout=_ENDS_SECONDS)[1]
            except KafkaException as error:
                self._health.set_unready(
                    Part.BROKER, f"the end of {assigned.topic} cannot be read: {error_text(error)}"
                )
                return
        self._new_assignment = None
        self._broker.answered()
        self._input.assign(ends)

    def _retrying(self, call: Callable[..., Any], *arguments: Any) -> None:
        """Repeat the same call while its error is retriable (KIP-98's three kinds of error), and the cluster is away."""
        guard: CutOffGuard | None = None
        while True:
            try:
                # An attempt that does not return at all (librdkafka issue 5456) is a reason to start anew; attempts that fail
                # while the broker is away are not.
                with self._health.working(getattr(call, "__name__", "a call of the broker")):
                    call(*arguments)
                return
            except KafkaException as error:
                inner = error.args[0]
                if inner.txn_requires_abort():
                    raise _AbortRequired(error_text(error)) from error
                if not inner.retriable():
                    raise FatalKafkaError(self._fatal_text(error)) from error
                log.warning("kafka_call_repeated", call=getattr(call, "__name__", "call"), reason=error_text(error))
                self._health.set_unready(Part.BROKER, error_text(error))
                guard = guard or CutOffGuard(self._kafka)
                guard.fails()
                if self._stop.wait(RETRY_SECONDS):
                    raise _Stopped from error

    def _fatal_text(self, error: KafkaException) -> str:
        settings = self._settings
        if error.args[0].code() == KafkaError._FENCED:
            return (
                f"another {settings.process} took over as instance {settings.instance!r} of group {settings.group!r}: "
                f"give each one its own {settings.process}.instance"
            )
        return f"the {settings.process} cannot go on: {error_text(error)}"
