"""Consume → transform → produce, exactly once: outputs, dead letters and offsets of a batch in one Kafka transaction.

The turn of a batch, and what happens when a part of it fails:

- *Gather* whatever waits. A rebalance meanwhile throws the batch away and seeks back: nothing was promised yet. A loop
  that selects takes its batch from the front of what it has gathered; the rest waits here for the next batches.
- *Transform* it, without touching Kafka. An exception ends the process: a fault of ours, not of the input's.
- *Send and commit* it (``transaction``, in numbered steps); when the batch came back full, the commit runs in a second
  thread, so that the next batch is gathered and transformed meanwhile.

After an abort the consumer seeks back to the first offset that is not committed (``assignment``). Clients that have lost a
cluster which answers others are replaced by new ones, as if the process had been killed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import structlog
from confluent_kafka import Consumer, Message, TopicPartition
from prometheus_client import Histogram

from streamer.events.outgoing import Outgoing
from streamer.exactly_once.assignment import Assignment
from streamer.exactly_once.retrying import AbortRequired, Stopped
from streamer.exactly_once.transaction import RETRY_SECONDS, TransactionalProducer
from streamer.kafka.clients import consumer_configuration
from streamer.kafka.errors import ConsumerBrokenError
from streamer.kafka.gather import drain
from streamer.kafka.input_progress import InputProgress, Place
from streamer.kafka.reachability import BrokerProbe, ClientCutOffError
from streamer.process.batch_log import BatchSummary
from streamer.process.health import Health, Part
from streamer.process.metrics import BATCH_EVENTS, BATCH_SECONDS, EVENTS, TRANSACTION_ABORTS, observe_ages
from streamer.settings import KafkaSettings

log = structlog.get_logger(__name__)

IDLE_WAIT_SECONDS: Final = 0.1
_REPLACE_SECONDS: Final = 60.0
# What waits here for its batch is no more than this many bytes of values, and what one more look at the queue brings.
_GATHERED_BYTES: Final = 8 * 1024 * 1024

Transform = Callable[[list[Message]], Iterable[Outgoing]]
# How many of the gathered records, from the first, are the next batch.
Select = Callable[[list[Message]], int]


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
        self._replaced_at = float("-inf")
        self._committing: Future[None] | None = None
        # Records whose transaction is not known to be committed, oldest batch first.
        self._unfinished: list[Message] = []
        # Gathered, but in no batch yet.
        self._waiting: list[Message] = []
        self._summary = BatchSummary()
        self._input = InputProgress(settings.process, health, f"waiting for partitions of {settings.source}")
        self._aborts = TRANSACTION_ABORTS.labels(settings.process)

    def run(self, stop: threading.Event) -> None:
        """Work until ``stop`` is set; the batch in hand is finished first.

        Raises:
            FatalKafkaError: fenced by another instance of the same name, not authorised, or the client is broken.
        """
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
        except Stopped:
            log.warning("stopped_without_broker", events=len(self._unfinished), next="the successor does them again")

    def _run(self, stop: threading.Event) -> None:
        settings = self._settings
        self._producer = TransactionalProducer(
            settings.process, settings.group, settings.instance, self._kafka, self._health, stop
        )
        self._producer.take_over()
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
            except AbortRequired as reason:
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
        self._broker = BrokerProbe((consumer, self._producer.client), self._kafka, self._health)
        self._assignment = Assignment(
            consumer, settings.source, self._health, self._input, before_revoke=self._finish_under_way
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
        self._assignment.rebalanced = False
        records = self._gather()
        if self._assignment.rebalanced:
            # What a transaction aborted during the rebalance held comes before what was just gathered.
            aborted, self._unfinished = self._unfinished, []
            self._seek_back(aborted + records)
            return
        if self._assignment.take_up():
            self._broker.answered()
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
            offsets = self._send(records, outgoing)
            if len(records) >= settings.batch_size:
                self._committing = committer.submit(self._commit, records)
                self._unfinished = records
            else:
                self._commit(records)
        except AbortRequired as reason:
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

    def _send(self, records: list[Message], outgoing: Iterable[Outgoing]) -> dict[Place, int]:
        """Everything but the commit; the offsets that it will commit."""
        source = self._settings.source
        last = {record.partition(): record.offset() for record in records}
        offsets = [TopicPartition(source, partition, offset + 1) for partition, offset in last.items()]
        self._producer.send(offsets, self._consumer.consumer_group_metadata(), outgoing)
        return {(source, partition): offset + 1 for partition, offset in last.items()}

    def _commit(self, records: list[Message]) -> None:
        self._producer.commit()
        self._broker.answered()
        observe_ages(self._settings.event_seconds, records)

    def _finish_or_abort(self, next_records: list[Message]) -> bool:
        """Wait for the commit under way; ``False`` when it failed and ``next_records`` are to be gathered again."""
        try:
            self._finish_commit()
        except AbortRequired as reason:
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
        self._producer.abort()

    def _finish_under_way(self) -> None:
        """Before partitions are given back."""
        try:
            self._finish_commit()
        except AbortRequired as reason:
            # No seek in here: the records stay in ``_unfinished`` until the rebalance is over.
            self._abort_transaction(reason, len(self._unfinished))

    def _seek_back(self, records: list[Message]) -> None:
        """To the first offset of ``records``, and of what waits, in each partition that is still ours."""
        waiting, self._waiting = self._waiting, []
        self._assignment.seek_back(records + waiting)
