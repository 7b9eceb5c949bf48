"""The dead letters of what one producer has sent: how many events were refused, for what reason, and an example of each.

The assigner's letters name the offset of the update that they refuse. An indexer's name the codes that it had no room for:
they concern us if we have sent an update of that item, and the index of this machine does not have it. What the processes of
another codebook refuse concerns nobody who waits for this one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from confluent_kafka import Consumer, Message

from streamer.client.delivery import Delivery
from streamer.dead_letters.reading import DeadLetter, Place
from streamer.kafka.read_to_end import Span, read_spans, watermarks
from streamer.settings import Settings


@dataclass(frozen=True)
class Refusal:
    """Events that were refused for one reason. ``kind``: the letters' class; ``example``: one of their messages."""

    kind: str
    events: int
    example: str
    letter: Place


@dataclass(frozen=True)
class Outcome:
    """What became of the events of one producer. ``indexed``: the index has their state, or a newer one of the item."""

    indexed: int
    refused: tuple[Refusal, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether nothing was refused."""
        return not self.refused


class Refusals:
    """Collects the letters that concern a delivery; each event is counted once."""

    def __init__(self, settings: Settings, delivery: Delivery) -> None:
        self._updates, self._codes = settings.topics.item_updates, settings.topics.item_codes
        self._delivery = delivery
        self._codebook = settings.pipeline
        self._sent = {self._updates: delivery, settings.topics.item_attributes: delivery.attributes}
        self._of_events: dict[tuple[str, int, int], DeadLetter] = {}
        self._of_codes: dict[bytes, DeadLetter] = {}
        self._own_keys: set[bytes] | None = None

    def add(self, records: Iterable[Message]) -> None:
        """Records of a dead-letter topic, whoever they concern."""
        for record in records:
            letter = DeadLetter.of(record)
            source = letter.source
            if source is None or (self._codebook and letter.codebook not in ("", self._codebook)):
                continue
            sent = self._sent.get(source.topic)
            if sent is not None and sent.has(source.partition, source.offset):
                self._of_events.setdefault((source.topic, source.partition, source.offset), letter)
            elif source.topic == self._codes and letter.key is not None:
                self._of_codes.setdefault(letter.key, letter)

    def outcome(self, consumer: Consumer, missing: Callable[[Sequence[bytes]], Collection[bytes]]) -> Outcome:
        """``consumer`` reads our own updates, where letters do not say which update they refuse; ``missing``: those of some
        item ids that the index does not have.
        """
        letters = [*self._of_events.values(), *self._codes_of_ours(consumer, missing)]
        classes: dict[str, list[DeadLetter]] = {}
        for letter in letters:
            classes.setdefault(letter.kind, []).append(letter)
        refused = tuple(
            Refusal(kind, len(some), some[0].message, some[0].place)
            for kind, some in sorted(classes.items(), key=lambda one: (-len(one[1]), one[0]))
        )
        return Outcome(max(0, self._delivery.events - len(letters)), refused)

    def _codes_of_ours(
        self, consumer: Consumer, missing: Callable[[Sequence[bytes]], Collection[bytes]]
    ) -> list[DeadLetter]:
        if not self._of_codes:
            return []
        if self._own_keys is None:
            self._own_keys = self._read_keys(consumer)
        return [self._of_codes[key] for key in missing([key for key in self._of_codes if key in self._own_keys])]

    def _read_keys(self, consumer: Consumer) -> set[bytes]:
        spans = {}
        for partition, runs in self._delivery.ranges.items():
            low, _ = watermarks(consumer, self._updates, partition)
            spans[self._updates, partition] = Span(max(low, runs[0][0]), runs[-1][1])
        return {
            record.key() or b""
            for reading in read_spans(consumer, spans)
            for record in reading.records
            if self._delivery.has(record.partition(), record.offset())
        }
