"""Item updates and attributes out, for the event loop: each is confirmed by the broker, or its sender is told that it may not be.

What must hold: the event loop never waits for Kafka; no write is said to be accepted that the broker has not confirmed.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from typing import Final, NamedTuple

import structlog
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from gateway.problems import Problem, too_busy
from streamer.client.delivery import ends_of_letters
from streamer.kafka.clients import producer_configuration
from streamer.kafka.errors import error_text
from streamer.process.health import Health
from streamer.settings import Settings
from streamer.tracing.sending import headers_of_new

log = structlog.get_logger(__name__)
_POLL_SECONDS: Final = 0.1
_CLOSE_SECONDS: Final = 2.0
# Where the dead letters end is asked so often: an older answer is as right, and has more read.
_LETTERS_SECONDS: Final = 60.0


class Place(NamedTuple):
    """Where the broker has a record."""

    partition: int
    offset: int


class Writes:
    """Made before the event loop, ``start``ed in it."""

    def __init__(self, settings: Settings, health: Health) -> None:
        self._settings = settings
        self._producer = Producer(producer_configuration(settings.kafka, health=health))
        self._unconfirmed = 0
        self._confirmed: list[tuple[asyncio.Future[Place], KafkaError | None, Place]] = []  # the thread's
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="writes", daemon=True)
        topics = settings.topics
        self._letter_topics = (topics.item_updates_dead_letters, topics.item_attributes_dead_letters)
        self.letters: dict[str, dict[int, int]] = {topic: {} for topic in self._letter_topics}
        """Topic of dead letters → where each partition ended a while ago."""

    def start(self) -> None:
        """In the event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    @property
    def unconfirmed(self) -> int:
        """Writes that are on their way."""
        return self._unconfirmed

    @property
    def full(self) -> bool:
        """Whether as many are on their way as the settings allow."""
        return self._unconfirmed >= self._settings.gateway.maximum_writing

    def send(self, topic: str, item_id: bytes, value: bytes | None) -> asyncio.Future[Place]:
        """Begins a write; the future has its place, or a ``Problem``.

        Raises:
            Problem: 429: too many are on their way.
        """
        if self.full:
            raise too_busy(f"{self._unconfirmed:,} writes are on their way to the broker: send this one again")
        future: asyncio.Future[Place] = self._loop.create_future()
        future.add_done_callback(_seen)

        def on_delivery(error: KafkaError | None, record: Message) -> None:
            self._confirmed.append((future, error, Place(record.partition(), record.offset())))

        try:
            self._producer.produce(
                topic, key=item_id, value=value, headers=headers_of_new(topic, item_id), on_delivery=on_delivery
            )
        except BufferError:
            raise too_busy("as many writes are on their way to the broker as are held: send this one again") from None
        except KafkaException as error:
            raise _not_written(error_text(error)) from None
        self._unconfirmed += 1
        return future

    def _poll(self) -> None:
        letters_at = 0.0
        while not self._ended.is_set() or self._producer.flush(0):
            self._producer.poll(_POLL_SECONDS)
            if self._confirmed:
                with contextlib.suppress(RuntimeError):  # the loop has closed: nobody waits any more
                    self._loop.call_soon_threadsafe(self._confirm, self._confirmed)
                self._confirmed = []
            if not self._ended.is_set() and (now := time.monotonic()) >= letters_at:
                letters_at = now + _LETTERS_SECONDS
                self._read_letters()

    def _read_letters(self) -> None:
        try:
            for topic in self._letter_topics:
                self.letters[topic] = ends_of_letters(self._settings, topic) or self.letters[topic]
        except KafkaException as error:
            log.warning("ends_of_dead_letters_not_read", reason=error_text(error), next="those of before are as right")

    def _confirm(self, confirmed: list[tuple[asyncio.Future[Place], KafkaError | None, Place]]) -> None:
        self._unconfirmed -= len(confirmed)
        for future, error, place in confirmed:
            if future.done():
                continue
            if error is None:
                future.set_result(place)
            else:
                future.set_exception(_not_written(f"{error.str()} ({error.name()})"))

    def close(self) -> None:
        """Once no request waits any more; whoever sent what is still on its way knows that it may not be written."""
        self._ended.set()
        self._thread.join(_CLOSE_SECONDS)


def _not_written(reason: str) -> Problem:
    return Problem(
        503,
        "NotWritten",
        f"the broker has not confirmed the write: {reason}. Send it again: the same state of an item twice changes nothing",
        again_seconds=1,
    )


def _seen(future: asyncio.Future[Place]) -> None:
    """A fault that comes after its request has gone is no news."""
    if not future.cancelled():
        future.exception()
