"""The topics of the stream, read to the ends that they have now: interactions that can be used, and values of other topics.

What must hold: a record that cannot be used is passed over and counted here; its dead letter is written by
``streamer.interactions.letters``, exactly once, however often the topic is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

from streamer.events.intake import EventError
from streamer.events.interactions import CheckedInteraction, InteractionIntake
from streamer.exactly_once.retrying import repeated_for_a_while
from streamer.kafka.admin import require_usable
from streamer.kafka.errors import Meaning, error_text
from streamer.kafka.read_to_end import LogReadError, Span, end_reader, read_spans, whole_topics
from streamer.registry.reading import formats_of
from streamer.settings import Settings

# Whoever may write to the topics can fill a record with two megabytes.
READ_AT_ONCE: Final = 100
_BROKER_SECONDS: Final = 15.0


def records_of(settings: Settings, topic: str, since: int | None = None) -> Iterator[Message]:
    """Every committed record of a topic up to its end now, in order within a partition; with ``since`` (milliseconds since the
    epoch) from the first one that the broker had then.

    Raises:
        MissingTopicsError: there is no such topic.
        LogReadError: the broker does not answer.
    """
    require_usable(settings, [topic])
    consumer = end_reader(settings, "interactions")
    try:
        spans = whole_topics(consumer, [topic])
        if since is not None:
            spans = _spans_since(consumer, spans, since)
        for reading in read_spans(consumer, spans, size=READ_AT_ONCE):
            yield from reading.records
    finally:
        consumer.close()


def _spans_since(consumer: Consumer, spans: dict[tuple[str, int], Span], since: int) -> dict[tuple[str, int], Span]:
    def look() -> list[TopicPartition]:
        asked = [TopicPartition(*at, max(0, since)) for at in spans]
        found: list[TopicPartition] = consumer.offsets_for_times(asked, timeout=_BROKER_SECONDS) if asked else []
        for one in found:
            if one.error is not None:
                raise KafkaException(one.error)
        return found

    def refusal(error: KafkaException, _: Meaning) -> LogReadError:
        return LogReadError(f"cannot look for the records since a time: {error_text(error)}")

    found = repeated_for_a_while(look, refusal=refusal)
    first = {(one.topic, one.partition): one.offset for one in found if one.offset >= 0}
    # Without an offset there is no record since then.
    return {at: Span(max(span.first, first.get(at, span.end)), span.end) for at, span in spans.items()}


@dataclass
class InteractionReader:
    """Reads the interactions that can be used; ``read``, ``refused``: records so far."""

    settings: Settings
    read: int = 0
    refused: int = 0

    def interactions(self, since: int | None = None) -> Iterator[CheckedInteraction]:
        """All of them, in no order that means anything; ``since``: those alone that the broker had then or later."""
        intake = InteractionIntake(self.settings.retriever, formats_of(self.settings))
        for record in records_of(self.settings, self.settings.topics.interactions, since):
            self.read += 1
            try:
                yield intake.read(record)
            except EventError:
                self.refused += 1


def records_in(settings: Settings, topic: str) -> int:
    """About how many records a topic has now: its offsets, among which may be markers."""
    require_usable(settings, [topic])
    consumer = end_reader(settings, "interactions")
    try:
        return sum(map(len, whole_topics(consumer, [topic]).values()))
    finally:
        consumer.close()
