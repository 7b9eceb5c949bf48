"""Dead letters as they lie on their topics: what was refused, by whom and why, and where the original came from.

A letter's own headers come last, so an event that brought headers of these names cannot pass as another one.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Self

from confluent_kafka import Consumer, Message

from models.errors import SidstreamError
from streamer.events.headers import UnreadableHeadersError, headers_of
from streamer.kafka.admin import require
from streamer.kafka.read_to_end import Span, end_reader, partitions_of, read_spans, watermarks, whole_topics
from streamer.settings import Settings

ERROR_HEADERS: Final = "dlq.errors."
# A replayed record says how old it is: the offset in its partition that the original had. See ``streamer.dead_letters.plan``.
REPLAYED_HEADER: Final = "dlq.replayed.offset"
# Letters may have two megabytes each.
_READ_AT_ONCE: Final = 100
_PLACE: Final = re.compile(r"(?:(?P<topic>[^/\s]+)/)?(?P<partition>\d+):(?P<offset>\d+)")


class DeadLetterError(SidstreamError):
    """There is no such dead letter, or it cannot be named like this."""


class Place(NamedTuple):
    """Where a record lies; ``topic`` is ``None`` where a person left it out."""

    topic: str | None
    partition: int
    offset: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """``PARTITION:OFFSET`` or ``TOPIC/PARTITION:OFFSET``.

        Raises:
            DeadLetterError: neither.
        """
        found = _PLACE.fullmatch(text.strip())
        if found is None:
            raise DeadLetterError(f"{text!r} is no place of a record: write PARTITION:OFFSET or TOPIC/PARTITION:OFFSET")
        return cls(found["topic"], int(found["partition"]), int(found["offset"]))

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}:{self.offset}" if self.topic else f"{self.partition}:{self.offset}"


@dataclass(frozen=True)
class Source:
    """Where the refused event came from; ``timestamp`` in milliseconds since the epoch."""

    topic: str
    partition: int
    offset: int
    timestamp: int


@dataclass(frozen=True)
class DeadLetter:
    """One letter. ``key``, ``value`` and ``headers`` are the original's; ``omitted`` says what of them was left out.

    ``source`` is ``None`` for a record that no process of ours wrote. ``timestamp``: when it was refused, in ms since 1970.
    """

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    source: Source | None
    stage: str
    kind: str
    message: str
    omitted: str
    codebook: str = ""
    """Whose processes refused it; empty where an older sidstream did, or where no codebook has a say."""

    @classmethod
    def of(cls, record: Message) -> Self:
        """The letter that a record of a dead-letter topic is; where its headers cannot be read, ``message`` says so."""
        headers: list[tuple[str, bytes]] = []
        unreadable = ""
        try:
            headers = [(name, content or b"") for name, content in headers_of(record)]
        except UnreadableHeadersError as error:
            unreadable = f"the headers of this letter cannot be read: {error}"
        errors = {
            name.removeprefix(ERROR_HEADERS): content.decode("utf-8", "backslashreplace")
            for name, content in headers
            if name.startswith(ERROR_HEADERS)
        }
        return cls(
            topic=record.topic(),
            partition=record.partition(),
            offset=record.offset(),
            timestamp=record.timestamp()[1],
            key=record.key(),
            value=record.value(),
            headers=tuple((name, content) for name, content in headers if not name.startswith(ERROR_HEADERS)),
            source=_source(errors),
            stage=errors.get("stage", ""),
            kind=errors.get("class", ""),
            message=errors.get("message", unreadable),
            omitted=errors.get("omitted", ""),
            codebook=errors.get("codebook", ""),
        )

    @property
    def place(self) -> Place:
        return Place(self.topic, self.partition, self.offset)

    def is_at(self, place: Place) -> bool:
        """Whether ``place`` names this letter, by its own coordinates or by those of its source."""
        if place.topic in (None, self.topic):
            return (self.partition, self.offset) == (place.partition, place.offset)
        source = self.source
        return source is not None and (source.topic, source.partition, source.offset) == tuple(place)


def _source(errors: dict[str, str]) -> Source | None:
    try:
        return Source(
            errors["topic"], int(errors["partition"]), int(errors["offset"]), int(errors.get("timestamp", "-1"))
        )
    except (KeyError, ValueError):
        return None


def dead_letter_topics(settings: Settings) -> dict[str, str]:
    """Every dead-letter topic with the topic whose events end there."""
    topics = settings.topics
    return {
        topics.item_updates_dead_letters: topics.item_updates,
        topics.item_attributes_dead_letters: topics.item_attributes,
        topics.queries_dead_letters: topics.queries,
        topics.interactions_dead_letters: topics.interactions,
    }


def topics_of_items(settings: Settings) -> tuple[str, ...]:
    """The topics whose records are states of an item, so that a newer one must not be overwritten."""
    return (settings.topics.item_updates, settings.topics.item_attributes)


def chosen_topics(settings: Settings, names: Sequence[str]) -> list[str]:
    """The dead-letter topics that ``names`` (theirs, or those of their sources) mean; all of them for no name.

    Raises:
        DeadLetterError: a name means none.
    """
    known = dead_letter_topics(settings)
    by_source = {source: topic for topic, source in known.items()}
    for name in names:
        if name not in known and name not in by_source:
            raise DeadLetterError(f"{name!r} is no topic with dead letters: {', '.join([*known, *by_source])} are")
    return [topic for topic, source in known.items() if not names or topic in names or source in names]


def read_letters(settings: Settings, topics: Collection[str]) -> Iterator[DeadLetter]:
    """Every letter of these topics up to their ends now, in order within a partition."""
    require(settings.kafka, topics)
    consumer = end_reader(settings, "dead-letters")
    try:
        spans = whole_topics(consumer, topics)
        for reading in read_spans(consumer, spans, size=_READ_AT_ONCE):
            yield from map(DeadLetter.of, reading.records)
    finally:
        consumer.close()


def find_letters(settings: Settings, place: Place) -> list[DeadLetter]:
    """The letters that ``place`` names: by their own coordinates, in every dead-letter topic if it has no topic, or by
    those of their source, of which an event replayed or read again may have several.

    Raises:
        DeadLetterError: the topic has nothing to do with dead letters.
    """
    known = dead_letter_topics(settings)
    topics = chosen_topics(settings, [place.topic] if place.topic else [])
    if place.topic in known.values():
        return [letter for letter in read_letters(settings, topics) if letter.is_at(place)]
    require(settings.kafka, topics)
    consumer = end_reader(settings, "dead-letters")
    try:
        found = (read_record(consumer, topic, place.partition, place.offset) for topic in topics)
        return [DeadLetter.of(record) for record in found if record is not None]
    finally:
        consumer.close()


def read_record(consumer: Consumer, topic: str, partition: int, offset: int) -> Message | None:
    """The committed record at exactly this offset; ``None`` if it was compacted away, has expired or never was."""
    if partition not in partitions_of(consumer, topic):
        return None
    low, high = watermarks(consumer, topic, partition)
    if not low <= offset < high:
        return None
    for reading in read_spans(consumer, {(topic, partition): Span(offset, offset + 1)}, size=1):
        for record in reading.records:
            return record if record.offset() == offset else None
    return None
