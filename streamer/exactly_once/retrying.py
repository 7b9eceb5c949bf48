"""The same Kafka call again and again while its error is a passing one; ours for every transaction, of whatever process."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from confluent_kafka import KafkaException

from streamer.kafka.errors import Meaning, error_text, meaning

_GIVE_UP_SECONDS: Final = 60.0
_RETRY_SECONDS: Final = 0.2


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


def repeated_for_a_while(
    call: Callable[..., Any], *arguments: Any, refusal: Callable[[KafkaException, Meaning], Exception]
) -> Any:
    """``repeated`` for a command that a person waits for: a passing error too is refused after a minute.

    Raises:
        KafkaException: the transaction is to be aborted.
    """
    give_up = time.monotonic() + _GIVE_UP_SECONDS

    def wait(error: KafkaException) -> None:
        if time.monotonic() > give_up:
            raise refusal(error, Meaning.PASSING) from error
        time.sleep(_RETRY_SECONDS)

    try:
        return repeated(call, *arguments, between=wait, refusal=refusal)
    except AbortRequired as abort:
        raise abort.error from None
