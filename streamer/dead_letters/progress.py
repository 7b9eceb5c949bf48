"""Which dead letters were replayed: one small record a letter on the compacted topic ``dlq.replayed``.

The record is written in the transaction that sends the letter's original. Its key is the place of the letter,
``topic/partition:offset``; the newest record of a key counts. The topic keeps them for longer than a letter can stay.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec
from confluent_kafka import Consumer

from models.errors import SidstreamError
from streamer.dead_letters.old_progress import OldProgress
from streamer.dead_letters.reading import DeadLetterError, Place
from streamer.events.topics import Partition
from streamer.kafka.read_to_end import read_spans, whole_topics

_NOT_YET: Final = OldProgress()


class ReplayNoteError(SidstreamError):
    """A record of ``dlq.replayed`` is none of ours."""


class ReplayNote(msgspec.Struct, frozen=True):
    """``replayed``: false where ``--again`` has asked for the letter once more; ``at``: milliseconds since the epoch."""

    replayed: bool
    at: int


_NOTE: Final = msgspec.json.Decoder(ReplayNote)


@dataclass(frozen=True)
class ReplayProgress:
    """notes: partition of dead letters → offset of a letter → whether it was replayed. ``old``: for letters without a note."""

    notes: Mapping[Partition, Mapping[int, bool]] = field(default_factory=dict)
    old: Mapping[Partition, OldProgress] = field(default_factory=dict)

    def was_replayed(self, at: Partition, offset: int) -> bool:
        noted = self.notes.get(at, {}).get(offset)
        return self.old.get(at, _NOT_YET).was_replayed(offset) if noted is None else noted

    def without_note(self, at: Partition, offset: int) -> bool:
        """Whether an older sidstream has replayed the letter, and the topic does not say so yet."""
        return offset not in self.notes.get(at, {}) and self.old.get(at, _NOT_YET).was_replayed(offset)

    def after(self, replayed: Iterable[Place], wanted_again: Iterable[Place]) -> ReplayProgress:
        """The progress after a transaction."""
        notes = {at: dict(some) for at, some in self.notes.items()}
        for places, done in ((wanted_again, False), (replayed, True)):
            for place in places:
                notes.setdefault((place.topic or "", place.partition), {})[place.offset] = done
        return ReplayProgress(notes, self.old)


def note(place: Place, *, replayed: bool, at: int) -> tuple[bytes, bytes]:
    """Key and value of the record that says so; ``at``: milliseconds since the epoch."""
    return str(place).encode(), msgspec.json.encode(ReplayNote(replayed, at))


def read_notes(consumer: Consumer, topic: str, *, tolerant: bool) -> dict[Partition, dict[int, bool]]:
    """Every note of the topic up to its end now. ``tolerant``: a value that is no note counts as none.

    Raises:
        ReplayNoteError: a value is no note, so that a letter might be sent twice.
    """
    notes: dict[Partition, dict[int, bool]] = defaultdict(dict)
    for reading in read_spans(consumer, whole_topics(consumer, [topic])):
        for record in reading.records:
            try:
                place = Place.parse((record.key() or b"").decode("utf-8", "replace"))
            except DeadLetterError:
                continue  # of no letter
            of_partition = notes[place.topic or "", place.partition]
            value = record.value()
            if value is None:
                of_partition.pop(place.offset, None)
                continue
            try:
                of_partition[place.offset] = _NOTE.decode(value).replayed
            except (msgspec.DecodeError, UnicodeError) as error:
                if not tolerant:
                    raise ReplayNoteError(
                        f"whether {place} was replayed cannot be read ({topic} at offset {record.offset()}: {error}): a newer "
                        "sidstream or another program has written it. Update sidstream, or start over with --again"
                    ) from None
                of_partition.pop(place.offset, None)
    return {at: some for at, some in notes.items() if some}
