"""Batches of what waits: what the client has to say between the records."""

from __future__ import annotations

from typing import Any, cast

import pytest
from confluent_kafka import Consumer, KafkaError, Message

from streamer.kafka.errors import FatalKafkaError
from streamer.kafka.gather import drain


class Waiting:
    """A consumer with these messages."""

    def __init__(self, *messages: Message) -> None:
        self._messages = list(messages)

    def consume(self, maximum: int, _seconds: float) -> list[Message]:
        taken, self._messages = self._messages[:maximum], self._messages[maximum:]
        return taken

    def poll(self, _seconds: float) -> None:
        return None


def drained(*messages: Message) -> list[Message]:
    return drain(cast(Consumer, Waiting(*messages)), 10, 0.0)


def news(code: int, text: str) -> Message:
    return Message(error=cast(Any, KafkaError(code, text)))


def test_login_that_was_cut_off_while_it_was_renewed_ends_nothing_and_the_records_around_it_are_taken() -> None:
    first, second = (Message(topic="item-updates", partition=0, offset=offset, value=b"{}") for offset in (1, 2))
    lost = news(KafkaError._AUTHENTICATION, "FindCoordinator response error: Local: Authentication failure")
    assert drained(first, lost, second) == [first, second]


def test_subscription_that_is_not_allowed_ends_the_process_with_the_brokers_words() -> None:
    with pytest.raises(FatalKafkaError, match="not authorised"):
        drained(news(KafkaError.TOPIC_AUTHORIZATION_FAILED, "not authorised"))
