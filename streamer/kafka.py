"""The two Kafka clients: their configuration, how a batch is gathered, and what their errors mean to us.

Nothing here connects on import or in a constructor; every broker error leaves here as a typed exception.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer

from models.errors import SidstreamError
from streamer.health import Health, Part
from streamer.settings import KafkaSettings

log = structlog.get_logger(__name__)

Configuration = dict[str, Any]

# librdkafka's default of 1,000 ms stalls the fetcher whenever its queue is full: 50 → 80 k records/s (design § 11).
FETCH_QUEUE_BACKOFF_MS: Final = 10
# The coordinator answers "concurrent transactions" right after a commit; librdkafka would wait 100 ms: p50 68 → 15 ms.
TRANSACTION_RETRY_BACKOFF_MS: Final = 2
# A killed instance comes back under its static name within this time, without a rebalance.
SESSION_TIMEOUT_MS: Final = 6_000
# A dangling transaction holds readers back until this has passed, when its producer never comes back.
TRANSACTION_TIMEOUT_MS: Final = 15_000
STATISTICS_INTERVAL_MS: Final = 1_000
# Java's partitioner, so that every producer of a topic puts a key into the same partition.
PARTITIONER: Final = "murmur2_random"

# The client goes on by itself after these; it does not mark all of them as retriable.
_PASSING_ERRORS: Final = frozenset(
    {
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._TRANSPORT,
        KafkaError._TIMED_OUT,
        KafkaError._MAX_POLL_EXCEEDED,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.NOT_COORDINATOR,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
    }
)

# No attempt more will help.
_REFUSALS: Final = frozenset(
    {
        KafkaError._AUTHENTICATION,
        KafkaError._SSL,
        KafkaError.SASL_AUTHENTICATION_FAILED,
        KafkaError.UNSUPPORTED_SASL_MECHANISM,
    }
)

# What a topic takes (2 MiB), and room for the headers that a dead letter adds.
MESSAGE_MAXIMUM_BYTES: Final = 2 * 1024 * 1024 + 64 * 1024


# What a client may hold, so that a process has a bound whatever waits at the broker or does not get there (docs/security.md):
# records fetched ahead (some two batches of a full assigner), one answer to a fetch, and records not yet sent.
FETCHED_AHEAD_KIB: Final = 32 * 1024
FETCHED_AHEAD_RECORDS: Final = 100_000
FETCH_BYTES: Final = 16 * 1024 * 1024
UNSENT_KIB: Final = 64 * 1024
UNSENT_RECORDS: Final = 100_000


class FatalKafkaError(SidstreamError):
    """The broker or the client refuses for good; the process ends and a supervisor starts it anew."""


class ConsumerBrokenError(FatalKafkaError):
    """This consumer cannot go on, but a new one in its place can: its membership was lost while the broker was away."""


class LoginRefusedError(FatalKafkaError):
    """The broker refuses our user or password, or one side does not trust the other's certificate."""

    def __init__(self, kafka: KafkaSettings, reason: str) -> None:
        super().__init__(
            f"{kafka.bootstrap_servers} and we do not agree on who we are: {reason}. Correct kafka.security in the settings: "
            "sasl.username and sasl.password, or the certificate in ssl.ca.location"
        )


class ErrorListener:
    """Hears what a client complains of; ``refusal`` is the last complaint that only other settings can end."""

    def __init__(self, kafka: KafkaSettings, health: Health | None) -> None:
        self._servers = kafka.bootstrap_servers
        self._health = health
        self.refusal: str | None = None

    def __call__(self, error: KafkaError) -> None:
        code = error.code()
        if code == KafkaError._ALL_BROKERS_DOWN:
            log.warning("broker_away", servers=self._servers)
            self._unready(f"no broker of {self._servers} answers")
        elif code in _REFUSALS:
            self.refusal = error.str()
            log.error("login_refused", servers=self._servers, reason=self.refusal, next="correct kafka.security")
            self._unready(self.refusal)
        elif code not in (KafkaError._TRANSPORT, KafkaError._RESOLVE):
            log.warning("kafka_client_error", code=error.name(), message=error.str())

    def _unready(self, reason: str) -> None:
        if self._health is not None:
            self._health.set_unready(Part.BROKER, reason)


def client_configuration(kafka: KafkaSettings, health: Health | None = None) -> Configuration:
    """What every client shares: where the cluster is, security, and an ``ErrorListener`` that reports into ``health``."""
    return {
        "bootstrap.servers": kafka.bootstrap_servers,
        "error_cb": ErrorListener(kafka, health),
        "logger": _client_logger(),
        "log.connection.close": False,
        "reconnect.backoff.max.ms": 2_000,
        **kafka.security_properties(),
    }


def _client_logger() -> logging.Logger:
    logger = logging.getLogger("librdkafka")
    logger.setLevel(logging.CRITICAL)  # hundreds of lines a second otherwise; error_cb already tells of brokers away
    return logger


def consumer_configuration(
    kafka: KafkaSettings,
    *,
    group: str,
    instance: str | None = None,
    health: Health | None = None,
    on_statistics: Callable[[str], None] | None = None,
    **more: Any,
) -> Configuration:
    """A consumer of committed records that never commits by itself; ``more`` has dots as underscores.

    ``on_statistics`` is told librdkafka's statistics, as JSON, once a second and by the thread that consumes.
    """
    configuration = {
        **client_configuration(kafka, health),
        "group.id": group,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "earliest",
        "isolation.level": "read_committed",
        "session.timeout.ms": SESSION_TIMEOUT_MS,
        "fetch.queue.backoff.ms": FETCH_QUEUE_BACKOFF_MS,
        "fetch.wait.max.ms": 100,
        "queued.max.messages.kbytes": FETCHED_AHEAD_KIB,
        "queued.min.messages": FETCHED_AHEAD_RECORDS,
        "fetch.max.bytes": FETCH_BYTES,
        **{name.replace("_", "."): value for name, value in more.items()},
    }
    if on_statistics is not None:
        configuration |= {"stats_cb": on_statistics, "statistics.interval.ms": STATISTICS_INTERVAL_MS}
    if instance is not None:
        configuration["group.instance.id"] = f"{group}-{instance}"
    return configuration


def producer_configuration(
    kafka: KafkaSettings, *, transactional_id: str | None = None, health: Health | None = None, **more: Any
) -> Configuration:
    """An idempotent producer, transactional when it is given an id; ``more`` has dots as underscores."""
    configuration = {
        **client_configuration(kafka, health),
        "enable.idempotence": True,
        "partitioner": PARTITIONER,
        "linger.ms": 5,
        "message.max.bytes": MESSAGE_MAXIMUM_BYTES,
        "queue.buffering.max.messages": UNSENT_RECORDS,
        "queue.buffering.max.kbytes": UNSENT_KIB,
        **{name.replace("_", "."): value for name, value in more.items()},
    }
    if transactional_id is not None:
        configuration |= {
            "transactional.id": transactional_id,
            "transaction.timeout.ms": TRANSACTION_TIMEOUT_MS,
            "retry.backoff.ms": TRANSACTION_RETRY_BACKOFF_MS,
            # Re-bootstrapping, librdkafka's default, forgets the coordinators when every broker is away for a moment: the
            # next send_offsets_to_transaction then hangs (librdkafka issue 5511).
            "metadata.recovery.strategy": "none",
        }
    return configuration


def drain(
    consumer: Consumer, maximum: int, wait_seconds: float, on_end: Callable[[Message], None] | None = None
) -> list[Message]:
    """Whatever waits, at most ``maximum`` records; waits only while there is nothing.

    ``consume(n, timeout)`` would wait for the whole timeout at low rates: p50 146 → 17 ms (design § 11).
    ``on_end`` hears of every partition whose end was reached, if the consumer has ``enable.partition.eof``.

    Raises:
        FatalKafkaError: the broker refuses the subscription (authorisation, unknown topic).
    """
    records: list[Message] = consumer.consume(maximum, 0)
    if not records:
        first = consumer.poll(wait_seconds)
        if first is None:
            return []
        records = [first, *consumer.consume(maximum - 1, 0)] if maximum > 1 else [first]
    if any(record.error() is not None for record in records):
        records = [record for record in records if not _is_event(record, on_end)]
    return records


def _is_event(record: Message, on_end: Callable[[Message], None] | None) -> bool:
    """Whether this is news of the client instead of a record."""
    error = record.error()
    if error is None:
        return False
    if error.code() == KafkaError._PARTITION_EOF:
        if on_end is not None:
            on_end(record)
        return True
    if error.retriable() or error.code() in _PASSING_ERRORS:
        log.warning("consumer_waits", code=error.name(), message=error.str())
        return True
    kind = ConsumerBrokenError if error.code() == KafkaError._FATAL else FatalKafkaError
    raise kind(f"cannot consume {record.topic() or 'the subscription'}: {error.str()} ({error.name()})")


def produce(producer: Producer, topic: str, **record: Any) -> None:
    """``Producer.produce`` that waits when the local queue is full instead of failing.

    Raises:
        FatalKafkaError: the record is too large, or the client is broken.
    """
    while True:
        try:
            producer.produce(topic, **record)
            return
        except BufferError:
            producer.poll(0.05)
        except KafkaException as error:
            raise FatalKafkaError(f"cannot send a record to {topic}: {error_text(error)}") from error


def error_text(error: KafkaException) -> str:
    """One line for a person: what the broker said and its code."""
    inner = error.args[0]
    return f"{inner.str()} ({inner.name()})" if isinstance(inner, KafkaError) else str(error)
