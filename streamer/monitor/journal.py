"""The monitor's journal: layouts, alerts and drift go out together in one Kafka transaction, and are learned again from it.

What must hold: one monitor at a time can write. Taking over fences every earlier one through the transactional id, and only
then reads the topics to their end, so that no generation is issued twice with different content (KIP-98).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from store.writing.failpoints import Failpoint, reach
from streamer.events.cloudevents import cloud_event_headers
from streamer.events.records import ALERT, DRIFT, LAYOUT, Alert, Codec, LayoutRecord, layout_key
from streamer.exactly_once.retrying import AbortRequired, repeated
from streamer.kafka.clients import producer_configuration
from streamer.kafka.errors import FatalKafkaError, Meaning, error_text, took_our_place
from streamer.kafka.reachability import ClientCutOffError, CutOffGuard, client_answers
from streamer.kafka.read_to_end import LogReadError, end_reader, read_spans, whole_topics
from streamer.monitor.look import Outcome
from streamer.process.health import Health
from streamer.process.metrics import TRANSACTION_ABORTS
from streamer.settings import Settings

log = structlog.get_logger(__name__)

_BROKER_SECONDS: Final = 15.0
_ONLY_CRITICAL: Final = 2  # of syslog's levels, as librdkafka counts them


class JournalUnavailable(Exception):
    """Nothing is known to be written; ``take_over`` aborts what is open, and then reads what there is."""


@dataclass(frozen=True)
class History:
    """The records of the topics ``layouts`` and ``alerts`` in their order, of every codebook; ``counts_end``: the end of
    ``token-counts`` when they were read, up to which counts are to be known before anything is judged."""

    layouts: tuple[LayoutRecord, ...]
    alerts: tuple[Alert, ...]
    counts_end: int


class Journal:
    """Blocking; call it from one thread at a time. Connects in ``take_over``."""

    def __init__(self, settings: Settings, health: Health) -> None:
        self._settings = settings
        self._health = health
        self._producer: Producer | None = None
        self._guard = CutOffGuard(settings.kafka)

    @property
    def is_open(self) -> bool:
        """Whether it was taken over, and not given up since."""
        return self._producer is not None

    def take_over(self) -> History:
        """Fence earlier writers, then read everything that was ever committed.

        Raises:
            JournalUnavailable: the broker does not answer for now.
            FatalKafkaError: it refuses.
        """
        app_id = self._settings.monitor_app_id
        configuration = producer_configuration(
            self._settings.kafka, transactional_id=f"{app_id}-journal", health=self._health, linger_ms=0
        )
        configuration["log_level"] = _ONLY_CRITICAL  # a broker that is away is told once, by the error callback
        producer = Producer(configuration)
        self._translated(producer.init_transactions, _BROKER_SECONDS)
        self._producer = producer
        topics = self._settings.topics
        return History(
            layouts=tuple(self._read(topics.layouts, LAYOUT)),
            alerts=tuple(self._read(topics.alerts, ALERT)),
            counts_end=self._end(topics.token_counts),
        )

    def publish(self, outcome: Outcome) -> None:
        """All of ``outcome``, or nothing; returns once the transaction is committed.

        Raises:
            JournalUnavailable: it was aborted, or nobody knows: take over again, which aborts or reads what there is.
            FatalKafkaError: another monitor took over, or the broker refuses.
        """
        assert self._producer is not None, "take_over comes first"
        producer, topics = self._producer, self._settings.topics
        self._translated(producer.begin_transaction)
        try:
            if (layout := outcome.layout) is not None:
                key = layout_key(layout.codebook, layout.generation)
                self._produce(producer, topics.layouts, key, LAYOUT, layout, "layout", layout.issued_at)
            for alert in outcome.alerts:
                self._produce(producer, topics.alerts, alert.key.encode(), ALERT, alert, "alert", alert.at)
            if (drift := outcome.drift) is not None:
                self._produce(producer, topics.drift, drift.codebook.encode(), DRIFT, drift, "drift", drift.at)
            reach(Failpoint.JOURNAL_SENT, producer.flush)
            self._translated(producer.commit_transaction, _BROKER_SECONDS)
            reach(Failpoint.JOURNAL_COMMITTED)
        except JournalUnavailable:
            TRANSACTION_ABORTS.labels("monitor").inc()
            self._translated(producer.abort_transaction, _BROKER_SECONDS)
            raise

    def notice(self) -> None:
        """Let the client report what happened to its connection; never blocks."""
        if self._producer is not None:
            self._producer.poll(0)

    def answers(self) -> bool:
        """Whether the broker answers now; true as long as nothing was taken over. Gives up a producer that has lost it."""
        if self._producer is None or client_answers(self._producer):
            self._guard.works()
            return True
        try:
            self._guard.fails()
        except ClientCutOffError as reason:
            log.warning("clients_replaced", reason=str(reason))
            self.close()
        return False

    def close(self) -> None:
        """Give up the producer; an open transaction is aborted by whoever takes over."""
        self._producer = None

    def _produce(
        self, producer: Producer, topic: str, key: bytes, codec: Codec, record: Any, type_: str, at: int
    ) -> None:
        subject = key.decode()
        headers = cloud_event_headers(
            type_, identity=f"{subject}@{at}", subject=subject, at=at, source=self._settings.monitor_app_id
        )
        self._translated(lambda: producer.produce(topic, key=key, value=codec.encode(record), headers=headers))

    def _read(self, topic: str, codec: Codec) -> Iterable[Any]:
        """Every committed record of ``topic``; what cannot be decoded is told once and skipped."""
        consumer = self._consumer()
        records, bad = [], 0
        try:
            for reading in read_spans(consumer, whole_topics(consumer, [topic])):
                for record in reading.records:
                    if (value := record.value()) is None:
                        continue
                    try:
                        records.append(codec.decode(value))
                    except (msgspec.DecodeError, UnicodeDecodeError):
                        bad += 1
        except LogReadError as error:
            raise JournalUnavailable(str(error)) from error
        finally:
            consumer.close()
        if bad:
            log.warning(
                "journal_records_skipped", topic=topic, records=bad, reason="not decodable: who else writes to it?"
            )
        return records

    def _end(self, topic: str) -> int:
        consumer = self._consumer()
        try:
            _, end = self._translated(consumer.get_watermark_offsets, TopicPartition(topic, 0), _BROKER_SECONDS)
        finally:
            consumer.close()
        return int(end)

    def _consumer(self) -> Consumer:
        return end_reader(self._settings, "journal")

    def _translated(self, call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return repeated(call, *arguments, between=self._give_up, refusal=self._refusal)
        except BufferError as error:
            raise JournalUnavailable("the local queue is full") from error
        except AbortRequired as abort:
            # Aborting and taking over again would fence the other one, and so by turns.
            if took_our_place(abort.error.args[0]):
                raise self._refusal(abort.error, Meaning.FENCED) from abort
            raise JournalUnavailable(str(abort)) from abort

    @staticmethod
    def _give_up(error: KafkaException) -> None:
        raise JournalUnavailable(error_text(error)) from error

    def _refusal(self, error: KafkaException, means: Meaning) -> Exception:
        if means is Meaning.FENCED:
            return FatalKafkaError(
                f"another monitor took over the journal of {self._settings.monitor_app_id!r}; this one ends"
            )
        if error.args[0].code() == KafkaError._STATE and not error.args[0].fatal():
            return JournalUnavailable(error_text(error))  # an earlier call's outcome is not known
        return FatalKafkaError(f"the monitor cannot write its journal: {error_text(error)}")
