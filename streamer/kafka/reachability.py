"""Whether the cluster answers our clients, and whether a client has lost a cluster that answers others.

A broker that has stood still for longer than its session tells, for a moment, of a cluster without brokers. librdkafka then
forgets all that it knows, and some clients never ask again: they must be made anew (librdkafka issues 5301, 5511, 5430).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from confluent_kafka import Consumer, KafkaException, Producer

from models.errors import SidstreamError
from streamer.kafka.clients import client_configuration
from streamer.process.health import Health, Part
from streamer.settings.kafka import KafkaSettings

# A client that is well finds a broker that came back within its longest backoff of two seconds.
CUT_OFF_SECONDS: Final = 10.0
_ASK_OTHERS_SECONDS: Final = 2.0
_PROBE_SECONDS: Final = 10.0
_PROBE_AGAIN_SECONDS: Final = 1.0
_PROBE_TIMEOUT_SECONDS: Final = 2.0
_SILENT: Final = 0  # of syslog's levels, as librdkafka counts them


class ClientCutOffError(SidstreamError):
    """A client has lost a cluster that answers others; a new client in its place goes on from what is committed."""


def client_answers(client: Consumer | Producer, seconds: float = 1.0) -> bool:
    """Whether the cluster answers a metadata request of this client now."""
    try:
        client.list_topics(timeout=seconds)
    except KafkaException:
        return False
    return True


def cluster_answers(kafka: KafkaSettings, seconds: float = _PROBE_TIMEOUT_SECONDS) -> bool:
    """Whether the cluster answers a new client now, and has a broker."""
    configuration = {**client_configuration(kafka), "error_cb": lambda _error: None, "log_level": _SILENT}
    try:
        return bool(Producer(configuration).list_topics(timeout=seconds).brokers)
    except KafkaException:
        return False


class CutOffGuard:
    """Tells a cluster that is away, which is waited for, from a client that has lost it, which is not worth waiting for."""

    def __init__(
        self,
        kafka: KafkaSettings,
        others_answered: Callable[[KafkaSettings], bool] = cluster_answers,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._kafka = kafka
        self._others_answered = others_answered
        self._clock = clock
        self._asked_at = float("-inf")
        self._others_since: float | None = None

    def works(self) -> None:
        """The client got an answer."""
        self._others_since = None

    def fails(self) -> None:
        """The client got none; call it again while that lasts.

        Raises:
            ClientCutOffError: for ten seconds others have got answers.
        """
        now = self._clock()
        if now - self._asked_at < _ASK_OTHERS_SECONDS:
            return
        self._asked_at = now
        if not self._others_answered(self._kafka):
            self._others_since = None
        elif self._others_since is None:
            self._others_since = now
        elif now - self._others_since >= CUT_OFF_SECONDS:
            raise ClientCutOffError(
                f"{self._kafka.bootstrap_servers} has answered others for {now - self._others_since:.0f} s, but not this client"
            )


class BrokerProbe:
    """Asks now and then whether the cluster answers, when nothing else shows it: one small request in ten seconds, one a
    second while it does not. For the thread that owns the clients."""

    def __init__(self, clients: Sequence[Consumer | Producer], kafka: KafkaSettings, health: Health) -> None:
        self._clients = clients
        self._health = health
        self._guard = CutOffGuard(kafka)
        self._answered_at = self._asked_at = time.monotonic()

    def answered(self) -> None:
        """A commit, or whatever else needs an answer, succeeded."""
        self._answered_at = time.monotonic()
        self._guard.works()
        self._health.set_ready(Part.BROKER)

    def look(self) -> None:
        """Call it at every turn; asks only when it is time to.

        Raises:
            ClientCutOffError: one of the clients has lost the cluster.
        """
        now = time.monotonic()
        well = self._health.is_well(Part.BROKER)
        if now - self._asked_at < _PROBE_AGAIN_SECONDS or (well and now - self._answered_at < _PROBE_SECONDS):
            return
        if all(client_answers(client, _PROBE_TIMEOUT_SECONDS) for client in self._clients):
            self.answered()
        else:
            if well:
                self._health.set_unready(Part.BROKER, "the broker does not answer")
            self._guard.fails()
        self._asked_at = time.monotonic()
