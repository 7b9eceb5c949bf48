"""What a shop does to tell what its users did: interactions onto the topic ``interactions``. Any Kafka client can do the same.

What must hold: what nothing would take is refused here, before it is sent; an interaction that is sent has its time, so that one
that is sent twice is known as such.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import msgspec
from confluent_kafka import KafkaError, Message, Producer
from msgspec import UNSET

from models.data_files import DataFileError, numbered_lines, plain_id
from streamer.client.publisher import PublishError
from streamer.events.cloudevents import cloud_event_headers
from streamer.events.intake import EventError
from streamer.events.interactions import INTERACTION, KINDS, Interaction, InteractionIntake, Kind
from streamer.kafka.admin import require
from streamer.kafka.clients import producer_configuration
from streamer.kafka.gather import produce
from streamer.settings import Settings
from streamer.tracing.sending import headers_of_new

_POLL_EVERY: Final = 1_000
_FLUSH_SECONDS: Final = 30.0
_FORM: Final = f'{{"user": "ada", "item": "sku-17", "kind": "{"|".join(KINDS)}", "query": "…", "at": 1767323045000}}'
_OBJECT: Final = msgspec.json.Decoder(dict[str, Any])


class InteractionPublisher:
    """Sends interactions; leaving the ``with`` block means that the broker has them all.

    >>> with InteractionPublisher(settings) as publisher:  # doctest: +SKIP
    ...     publisher.send("ada", "sku-17", "click", query=answer.query_id)
    """

    def __init__(self, settings: Settings) -> None:
        require(settings.kafka, [settings.topics.interactions])
        self._topic = settings.topics.interactions
        self._intake = InteractionIntake(settings.retriever)
        self._producer = Producer(producer_configuration(settings.kafka))
        self._sent = 0
        self._failures: list[str] = []

    def send(
        self,
        user: str,
        item: str,
        kind: Kind,
        *,
        query: str | None = None,
        text: str | None = None,
        at: int | None = None,
    ) -> None:
        """What a user did with an item. ``query``: the ``query_id`` of the answer that it stood in; ``text``: what was searched
        for, where there was no query of ours; ``at``: milliseconds since the epoch, now without it. Give the same ``at``
        when it is sent once more, and it counts once.

        Raises:
            PublishError: what nothing would take; it is not sent.
        """
        now = time.time_ns() // 1_000_000
        said = Interaction(
            item=item,
            kind=kind,
            query=UNSET if query is None else query,
            text=UNSET if text is None else text,
            at=now if at is None else at,
        )
        try:
            self._intake.checked(user.encode(), said, now)
            if kind not in KINDS:
                raise EventError("InvalidEvent", f"kind {kind!r} is none of {', '.join(KINDS)}")
        except (EventError, UnicodeError) as error:
            raise PublishError(f"{user!r}, {item!r}: {error}") from None
        produce(
            self._producer,
            self._topic,
            key=user.encode(),
            value=INTERACTION.encode(said),
            headers=[
                *cloud_event_headers(
                    "interaction",
                    identity=f"{user}/{said.at}/{kind}/{item}",
                    subject=item,
                    at=now if at is None else at,
                ),
                *(headers_of_new(self._topic, user.encode()) or ()),
            ],
            on_delivery=self._on_delivery,
        )
        self._sent += 1
        if self._sent % _POLL_EVERY == 0:
            self._producer.poll(0)

    def poll(self) -> None:
        """Serve the client between interactions that come slowly."""
        self._producer.poll(0)

    def flush(self) -> None:
        """Wait until the broker has everything.

        Raises:
            PublishError: some were refused or timed out.
        """
        left = self._producer.flush(_FLUSH_SECONDS)
        if left or self._failures:
            why = f": {self._failures[0]}" if self._failures else " within 30 s: is the broker there?"
            raise PublishError(
                f"{left + len(self._failures)} of {self._sent} interactions did not reach the broker{why}"
            )

    def _on_delivery(self, error: KafkaError | None, record: Message) -> None:
        if error is not None:
            self._failures.append(f"{(record.key() or b'').decode()}: {error.str()}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.flush()


def read_interaction_file(settings: Settings, path: Path) -> Iterator[tuple[str, Interaction]]:
    """The user and the interaction of each line of a file of JSON objects, gzipped or not; each would be taken.

    Raises ``DataFileError`` naming the line, and what is wrong with it.
    """
    intake, now = InteractionIntake(settings.retriever), time.time_ns() // 1_000_000
    for number, line in numbered_lines(path):
        try:
            fields = _OBJECT.decode(line)
            fields |= {name: plain_id(fields[name]) for name in ("user", "item", "query") if name in fields}
            said = INTERACTION.decode(msgspec.json.encode(fields))
            user = "" if said.user is UNSET else said.user
            intake.checked(user.encode(), said, now)
        except (msgspec.DecodeError, UnicodeError) as error:
            raise DataFileError(f"{path} line {number} is no interaction ({error}): a line is like {_FORM}") from error
        except EventError as error:
            why = "it names no user" if error.kind == "EmptyId" and not user else str(error)
            raise DataFileError(f"{path} line {number}: {why}; a line is like {_FORM}") from error
        yield user, said


def publish_interactions(
    settings: Settings, path: Path, *, advance: Callable[[int], None] = lambda _count: None
) -> int:
    """Sends a file's interactions, all of them or, where a line is wrong, none. ``advance`` hears of each thousand; how many.

    Raises ``DataFileError`` as ``read_interaction_file``, ``PublishError`` where the broker does not take them.
    """
    for _ in read_interaction_file(settings, path):
        pass
    sent = 0
    with InteractionPublisher(settings) as publisher:
        for user, said in read_interaction_file(settings, path):
            publisher.send(
                user,
                said.item,
                said.kind,
                query=None if said.query is UNSET else said.query,
                text=None if said.text is UNSET else said.text,
                at=None if said.at is UNSET else said.at,
            )
            sent += 1
            if sent % _POLL_EVERY == 0:
                advance(_POLL_EVERY)
    advance(sent % _POLL_EVERY)
    return sent
