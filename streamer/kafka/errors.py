"""What an error of a Kafka client means to us; every broker error leaves a room of ours as one of these exceptions."""

from __future__ import annotations

from typing import Final

from confluent_kafka import KafkaError, KafkaException

from models.errors import SidstreamError
from streamer.settings import KafkaSettings

# The client goes on by itself after these; it does not mark all of them as retriable.
PASSING_CODES: Final = frozenset(
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
REFUSAL_CODES: Final = frozenset(
    {
        KafkaError._AUTHENTICATION,
        KafkaError._SSL,
        KafkaError.SASL_AUTHENTICATION_FAILED,
        KafkaError.UNSUPPORTED_SASL_MECHANISM,
    }
)


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


def error_text(error: KafkaException) -> str:
    """One line for a person: what the broker said and its code."""
    inner = error.args[0]
    return f"{inner.str()} ({inner.name()})" if isinstance(inner, KafkaError) else str(error)
