"""The configuration of the two Kafka clients, and the listener that hears what they complain of. Nothing here connects."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import structlog
from confluent_kafka import KafkaError

from streamer.kafka.errors import Meaning, has_no_token, login_was_cut_off, meaning, refuses_our_certificate
from streamer.kafka.login.authorities import with_authorities
from streamer.kafka.login.sources import confluent_callback
from streamer.process.health import Health, Part
from streamer.settings.kafka import KafkaSettings

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
# How soon a client knows of partitions that were added; librdkafka's default is five minutes.
METADATA_REFRESH_MS: Final = 5_000
# Java's partitioner, so that every producer of a topic puts a key into the same partition.
PARTITIONER: Final = "murmur2_random"
# What a topic takes (2 MiB), and room for the headers that a dead letter adds.
MESSAGE_MAXIMUM_BYTES: Final = 2 * 1024 * 1024 + 64 * 1024
# What a client may hold, so that a process has a bound whatever waits at the broker or does not get there (docs/security.md):
# records fetched ahead (some two batches of a full assigner), one answer to a fetch, and records not yet sent.
FETCHED_AHEAD_KIB: Final = 32 * 1024
FETCHED_AHEAD_RECORDS: Final = 100_000
FETCH_BYTES: Final = 16 * 1024 * 1024
UNSENT_KIB: Final = 64 * 1024
UNSENT_RECORDS: Final = 100_000
_TELL_AGAIN_SECONDS: Final = 10.0
_TOLD_AT: Final[dict[str, float]] = {}  # by complaint and cluster, of all clients of this process
_TOLD_LOCK: Final = threading.Lock()


def _is_due(what: str, clock: Callable[[], float] = time.monotonic) -> bool:
    """Whether what a client complains of is to be told again: each client hears it with each try, some every 50 ms."""
    with _TOLD_LOCK:
        due = clock() - _TOLD_AT.get(what, -math.inf) >= _TELL_AGAIN_SECONDS
        if due:
            _TOLD_AT[what] = clock()
    return due


class ErrorListener:
    """Hears what a client complains of; ``refusal`` is the last complaint that only other settings can end, ``no_token`` the last
    one of a token that could not be got, which may pass."""

    def __init__(self, kafka: KafkaSettings, health: Health | None) -> None:
        self._servers = kafka.bootstrap_servers
        self._tells_itself = bool(kafka.oauth_token_provider)  # a function of the user's own, which knows more of why
        self._health = health
        self.refusal: str | None = None
        self.no_token: str | None = None

    def __call__(self, error: KafkaError) -> None:
        code = error.code()
        if code == KafkaError._ALL_BROKERS_DOWN:
            if _is_due(self._servers):
                log.warning("broker_away", servers=self._servers)
            self._unready(f"no broker of {self._servers} answers")
        elif has_no_token(error):
            self.no_token = error.str()
            if not self._tells_itself and _is_due(f"no token for {self._servers}"):
                log.error("no_login_token", servers=self._servers, reason=self.no_token, next="it is asked for again")
            self._unready(self.no_token)
        elif login_was_cut_off(error):
            log.info("connects_anew", servers=self._servers, reason=error.str())
        elif meaning(error) is Meaning.LOGIN_REFUSED or refuses_our_certificate(error):
            self.refusal = error.str()
            if _is_due(f"login refused by {self._servers}"):
                log.error("login_refused", servers=self._servers, reason=self.refusal, next="correct kafka.security")
            self._unready(self.refusal)
        elif code not in (KafkaError._TRANSPORT, KafkaError._RESOLVE):
            log.warning("kafka_client_error", code=error.name(), message=error.str())

    def _unready(self, reason: str) -> None:
        if self._health is not None:
            self._health.set_unready(Part.BROKER, reason)


def client_configuration(kafka: KafkaSettings, health: Health | None = None) -> Configuration:
    """What every client shares: where the cluster is, security, and an ``ErrorListener`` that reports into ``health``.

    Raises:
        TokenRefusedError: the function of ``kafka.oauth_token_provider`` cannot be loaded.
    """
    callback = confluent_callback(kafka)
    return {
        "bootstrap.servers": kafka.bootstrap_servers,
        "error_cb": ErrorListener(kafka, health),
        "logger": _client_logger(),
        "log.connection.close": False,
        "reconnect.backoff.max.ms": 2_000,
        "topic.metadata.refresh.interval.ms": METADATA_REFRESH_MS,
        **with_authorities(kafka.security_properties()),
        **({} if callback is None else {"oauth_cb": callback}),
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
    if instance is not None and kafka.group_protocol == "classic":
        configuration["group.instance.id"] = f"{group}-{instance}"
    elif instance is not None:
        # Not under a fixed name: the broker keeps that of a member that was killed until its session ends, and refuses the next.
        configuration["group.protocol"] = "consumer"
        del configuration["session.timeout.ms"]  # the broker's group.consumer.session.timeout.ms decides
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
