"""The same Kafka call again and again while its error is a passing one; ours for every transaction, of whatever process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from confluent_kafka import KafkaException

from streamer.kafka.errors import Meaning, error_text, meaning


class AbortRequired(Exception):
    """The open transaction can only be aborted. ``error``: what the client said."""

    def __init__(self, error: KafkaException) -> None:
        super().__init__(error_text(error))
        self.error = error


class Stopped(Exception):
    """Told to stop while the broker does not answer: the successor aborts the open transaction and does its batch anew."""


def repeated(
    call: Callable[..., Any],
    *arguments: Any,
    between: Callable[[KafkaException], None],
    refusal: Callable[[KafkaException, Meaning], Exception],
) -> Any:
    """What ``call(*arguments)`` returns once it succeeds (KIP-98's three kinds of error).

    ``between`` hears of each passing error before the call is repeated: it waits, or raises to give up. ``refusal`` makes the
    exception of an error that no repetition helps against.

    Raises:
        AbortRequired: the transaction is to be aborted.
    """
    while True:
        try:
            return call(*arguments)
        except KafkaException as error:
            means = meaning(error.args[0])
            if means is Meaning.ABORT:
                raise AbortRequired(error) from error
            if means is not Meaning.PASSING:
                raise refusal(error, means) from error
            between(error)
