"""Consume → transform → produce, exactly once: outputs, dead letters and offsets of a batch in one Kafka transaction.

The turn of a batch, and what happens when a part of it fails:

- *Gather* whatever waits. A rebalance meanwhile throws the batch away and seeks back: nothing was promised yet. A loop
  that selects takes its batch from the front of what it has gathered; the rest waits here for the next batches.
- *Transform* it, without touching Kafka. An exception ends the process: a fault of ours, not of the input's. Where the input
  cannot be read yet (a schema registry is away), the batch waits here, and is transformed again a moment later.
- *Send and commit* it (``transaction``, in numbered steps); when the batch came back full, the whole transaction runs in a
  second thread, so that the next batch is gathered and transformed meanwhile.

After an abort the consumer seeks back to the first offset that is not committed (``assignment``). Clients that have lost a
cluster which answers others are replaced by new ones, as if the process had been killed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from prometheus_client import Histogram

from streamer.events.formats.frames import RegistryAwayError
from streamer.events.outgoing import Outgoing
from streamer.exactly_once.assignment import Assignment, Input, MissedRecordsError
from streamer.exactly_once.commit_note import encode_note
from streamer.exactly_once.retrying import AbortRequired, Stopped
from streamer.exactly_once.transaction import RETRY_SECONDS, TransactionalProducer
from streamer.kafka.clients import consumer_configuration
from streamer.kafka.errors import ConsumerBrokenError, FatalKafkaError, OffsetGoneError
from streamer.kafka.gather import drain
from streamer.kafka.input_progress import InputProgress
from streamer.kafka.partition_watch import PartitionWatch
from streamer.kafka.reachability import BrokerProbe, ClientCutOffError
from streamer.kafka.read_to_end import has_records
from streamer.process.batch_log import BatchSummary
from streamer.process.health import Health, Part
from streamer.process.metrics import BATCH_EVENTS, BATCH_SECONDS, EVENTS, TRANSACTION_ABORTS, observe_ages
from streamer.process.yielding import Yielding
from streamer.settings.kafka import KafkaSettings
from streamer.tracing.batches import UNTRACED, BatchTrace, PassedOn, Traces

log = structlog.get_logger(__name__)

IDLE_WAIT_SECONDS: Final = 0.1
_REPLACE_SECONDS: Final = 60.0
_LEARN_SECONDS: Final = 2.0
_REGISTRY_SECONDS: Final = 1.0  # between two tries; each looks at the consumer, which so keeps its partitions
# What waits here for its batch is no more than this many bytes of values, and what one more look at the queue brings.
_GATHERED_BYTES: Final = 8 * 1024 * 1024

Transform = Callable[[list[Message]], Sequence[Outgoing]]
# How many of the gathered records, from the first, are the next batch.
Select = Callable[[list[Message]], int]


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """One transactional loop: ``group`` and ``instance`` make its stable transactional id.

    ``batch_interval_ms``: asked after each batch for the least time from its begin to that of the next. ``event_seconds`` is
    told how long events took from their Kafka timestamps to the commit of what came of them. ``gather_size``: records to
    select a batch from; without it, ``batch_size``. ``outputs`` to ``accept_missed``: see ``Input``. ``commit_note``: fields
    for the note that is committed with each offset (JSON, a few hundred bytes at most), asked once a batch.
    ``life_sign_seconds``: how often an idle loop commits where it stands, so that the time in the note says when somebody
    read last. ``yields``: share of the time, and records at once, until it has caught up; None takes all there is.
    """

    process: str
    source: str
    group: str
    instance: str
    batch_size: int
    batch_interval_ms: Callable[[], float]
    event_seconds: Histogram
    gather_size: int | None = None
    outputs: tuple[str, ...] = ()
    every_record: bool = False
    remedy: str = ""
    accept_missed: bool = False
    commit_note: Callable[[], Mapping[str, Any]] | None = None
    life_sign_seconds: float = 3_600.0
    yields: tuple[float, int] | None = None

    @property
    def reads(self) -> Input:
        return Input(self.source, self.outputs, self.every_record, self.remedy, self.accept_missed)


class TransactionalLoop:
    """Runs ``transform`` over the records of one topic; see the module's docstring for its guarantees."""

    def __init__(
        self,
        settings: LoopSettings,
        kafka: KafkaSettings,
        transform: Transform,
        health: Health,
        select: Select = len,
        traces: Traces | None = None,
    ) -> None:
        """``traces``: of its batches; the same that ``transform`` asks."""
        self._settings = settings
        self._select = select
        self._traces: Traces = PassedOn() if traces is None else traces
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
        share, batch = settings.yields or (1.0, settings.gather_size or settings.batch_size)
        self._yielding = Yielding(share, batch, lambda: self._input.has_caught_up)
        # Next offsets, known to be committed, of every partition that is read.
        self._committed: dict[int, int] = {}
        self._life_sign_at = float("-inf")
        self._aborts = TRANSACTION_ABORTS.labels(settings.process)

    @property
    def partitions(self) -> int:
        """How many partitions the source has now; known from the first batch on."""
        return self._watch.states[self._settings.source].partitions

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
        # Its first answer comes while the group is joined.
        self._watch = PartitionWatch(self._kafka, [settings.source, *settings.outputs])
        self._watch.look()
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
                    except OffsetGoneError as reason:
                        log.warning("offset_gone", reason=str(reason))
                        self._watch.refresh()  # another log may have the topic's name
                        self._read_again()
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
                auto_offset_reset="error",  # where to read from is never guessed (``Assignment``)
            )
        )
        self._broker = BrokerProbe((consumer, self._producer.client), self._kafka, self._health)
        self._assignment = Assignment(
            consumer,
            settings.reads,
            self._health,
            self._input,
            before_revoke=self._finish_under_way,
            has_records=partial(has_records, self._kafka, f"{settings.group}-start"),
            one_by_one=self._kafka.group_protocol == "consumer",
        )
        return consumer

    def _replace_consumer(self, reason: ConsumerBrokenError) -> None:
        """A new consumer starts at what is committed. Once in a while only: two instances of one name would take turns."""
        settings = self._settings
        if time.monotonic() - self._replaced_at < _REPLACE_SECONDS:
            if KafkaError(KafkaError.FENCED_INSTANCE_ID).str() not in str(reason):
                raise reason
            raise FatalKafkaError(
                f"another {settings.process} runs as instance {settings.instance!r} of group {settings.group!r}, and they take "
                f"turns: give each one its own {settings.process}.instance "
                f"(SIDSTREAM_{settings.process.upper()}__INSTANCE), or end one of them"
            ) from reason
        self._replaced_at = time.monotonic()
        log.warning("consumer_replaced", reason=str(reason))
        self._finish_or_abort([])
        self._consumer.close()
        self._waiting = []
        self._consumer = self._new_consumer()

    def _one_batch(self, committer: ThreadPoolExecutor) -> None:
        settings = self._settings
        self._health.progress()
        self._assignment.rebalanced = False
        records = self._gather()
        if self._assignment.rebalanced:
            # What a transaction aborted during the rebalance held comes before what was just gathered.
            aborted, self._unfinished = self._unfinished, []
            self._seek_back(aborted + records)
            self._watch.refresh()
            return
        self._follow_topics()
        if not records:
            if self._finish_or_abort([]) and not self._waiting:
                self._give_life_sign()
            self._summary.idle()
            self._input.advance({}, nothing_waits=not self._waiting)
            self._input.show_lag(self._consumer)
            self._broker.look()
            return
        # From here on: a batch that was waited for must not count the waiting, or the interval would never apply.
        started = time.monotonic()
        gathered = records
        try:
            batch_size = self._select(records)
            records, self._waiting = records[:batch_size], records[batch_size:]
            trace = self._traces.begin(records)
            with trace.current(), self._health.working(f"a batch of {len(records)} events"):
                outgoing = self._transform(records)
        except RegistryAwayError as reason:
            self._wait_for_registry(gathered, reason)
            return
        self._health.set_ready(Part.REGISTRY)
        if not self._finish_or_abort(records):
            return
        last = dict(zip(map(Message.partition, records), map(Message.offset, records), strict=True))
        offsets = {partition: offset + 1 for partition, offset in last.items()}
        transact = self._transaction(records, outgoing, offsets, trace)
        if len(records) >= settings.batch_size:
            self._committing = committer.submit(transact)
            self._unfinished = records
        else:
            try:
                transact()
            except AbortRequired as reason:
                self._abort(records, reason)
                return
        seconds = time.monotonic() - started
        following = {(settings.source, partition): offset for partition, offset in offsets.items()}
        self._input.advance(following, nothing_waits=not self._waiting)
        self._input.show_lag(self._consumer)
        BATCH_EVENTS.labels(settings.process).observe(len(records))
        EVENTS.labels(settings.process).inc(len(records))
        BATCH_SECONDS.labels(settings.process).observe(seconds)
        self._summary.add(len(records), seconds)
        rest = max(settings.batch_interval_ms() / 1000 - (time.monotonic() - started), self._yielding.rest(seconds))
        if rest > 0:
            time.sleep(rest)

    def _wait_for_registry(self, records: list[Message], reason: RegistryAwayError) -> None:
        """Nothing is known against the records: they wait, in their order, until their schemas can be asked for."""
        if self._health.is_well(Part.REGISTRY):
            log.warning(
                "waiting_for_registry", reason=str(reason), events=len(records), next="nothing is lost: they wait"
            )
        self._health.set_unready(Part.REGISTRY, str(reason))
        if self._finish_or_abort(records):
            self._waiting = records
            self._summary.idle()
            self._broker.look()
            time.sleep(_REGISTRY_SECONDS)

    def _gather(self) -> list[Message]:
        """What has waited here, and what has come since; looks at the consumer each time, for a rebalance happens in there."""
        waiting, self._waiting = self._waiting, []
        size = self._settings.gather_size or self._settings.batch_size
        wanted = self._yielding.batch_size(size) - len(waiting)
        if wanted < 1 or sum(map(len, waiting)) > _GATHERED_BYTES:
            wanted = 1
        # With a commit under way, wait for more records only as long as it takes.
        wait = 0.0 if waiting else 0.005 if self._committing else IDLE_WAIT_SECONDS
        return waiting + drain(self._consumer, wanted, wait)

    def _follow_topics(self) -> None:
        """Take up what was given to us, and hear of topics that changed.

        Raises:
            MissedRecordsError: records were missed, or a log is not the one that was read.
        """
        settings, assignment = self._settings, self._assignment
        for change in self._watch.look():
            if change.deleted or change.made_anew:
                what = "was deleted" if change.deleted else "was deleted and made anew"
                raise MissedRecordsError(
                    f"{change.topic} {what} while the {settings.process} ran. {settings.remedy}".strip()
                )
            if change.topic in settings.outputs:
                self._learn_partitions(change.topic)
        if assignment.has_room(self._watch.states):
            self._read_again()
        now_ms = time.time_ns() // 1_000_000
        if self._watch.stale or not assignment.take_up(self._watch.states, now_ms):
            return
        self._broker.answered()
        standings = assignment.standings.values()
        self._committed = {one.partition: one.start for one in standings}
        # One that was never committed, or by a process that noted no time, is noted at the first turn that is idle.
        oldest = min((one.note.at if one.committed is not None else 0 for one in standings), default=now_ms)
        self._life_sign_at = time.monotonic() - (now_ms - oldest) / 1000

    def _learn_partitions(self, topic: str) -> None:
        """The producer's own metadata may be some seconds behind; a record for a partition that it does not know fails."""
        try:
            self._producer.client.list_topics(topic, timeout=_LEARN_SECONDS)
        except KafkaException as error:
            log.warning("partitions_not_learned", topic=topic, reason=str(error))  # the batch is aborted and done again

    def _read_again(self) -> None:
        """From what is committed: for partitions that waited, or whose log has changed."""
        self._finish_or_abort([])
        self._waiting, self._committed = [], {}
        self._assignment.take_up_again()

    def _give_life_sign(self) -> None:
        """An idle process commits where it stands now and then: an old note must mean that nobody has read."""
        due = time.monotonic() - self._life_sign_at >= self._settings.life_sign_seconds
        if not (due and self._committed and self._input.caught_up):
            return
        try:
            self._transaction([], (), {}, UNTRACED)()
        except AbortRequired as reason:
            self._abort([], reason)

    def _transaction(
        self, records: list[Message], outgoing: Sequence[Outgoing], offsets: dict[int, int], trace: BatchTrace
    ) -> Callable[[], None]:
        """One transaction, to be run by any thread; what the group and the topics say of it is of this moment.

        ``offsets``: the next ones of ``records``, by partition.
        """
        settings = self._settings
        if time.monotonic() - self._life_sign_at >= settings.life_sign_seconds:
            offsets = self._committed | offsets
        logs = {topic: state.topic_id for topic, state in self._watch.states.items()}
        more = settings.commit_note() if settings.commit_note is not None else {}
        note = encode_note(time.time_ns() // 1_000_000, logs, more)
        noted = [TopicPartition(settings.source, partition, offset, note) for partition, offset in offsets.items()]
        group = self._consumer.consumer_group_metadata()
        return partial(self._transact, records, outgoing, offsets, noted, group, trace)

    def _transact(
        self,
        records: list[Message],
        outgoing: Sequence[Outgoing],
        offsets: dict[int, int],
        noted: list[TopicPartition],
        group_metadata: object,
        trace: BatchTrace,
    ) -> None:
        try:
            with trace.current():
                self._producer.send(noted, group_metadata, outgoing)
                self._producer.commit()
        except BaseException as fault:
            trace.fail(fault)
            raise
        trace.end()
        if offsets.keys() >= self._committed.keys():
            self._life_sign_at = time.monotonic()
        self._committed |= offsets
        self._broker.answered()
        observe_ages(self._settings.event_seconds, records, trace.traced)

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
        # Nobody else's positions are committed for a sign of life.
        self._committed = {}

    def _seek_back(self, records: list[Message]) -> None:
        """To the first offset of ``records``, and of what waits, in each partition that is still ours."""
        waiting, self._waiting = self._waiting, []
        self._assignment.seek_back(records + waiting)
