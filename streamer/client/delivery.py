"""What a producer has sent: the offsets that its own events got, and where the dead letters ended before the first of them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from streamer.kafka.read_to_end import LogReadError, end_reader, partitions_of, watermarks
from streamer.settings import Settings

_LAST: Final = 1 << 63


@dataclass(frozen=True)
class Delivery:
    """Events of one producer that the broker has.

    ranges: partition of ``item-updates`` → (first, next) offset of every unbroken run of its events, rising. Another
    producer's events may lie between two runs.
    letters_from: partition of the dead-letter topic → where that ended before anything was sent; a partition that is
    not named is searched from its start.
    attributes: the same of ``item-attributes``, None if nothing was sent there.
    models: the names of the models that made the embeddings, None among them for updates without one.
    """

    ranges: Mapping[int, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    letters_from: Mapping[int, int] = field(default_factory=dict)
    attributes: Delivery | None = None
    models: frozenset[str | None] = frozenset()

    @property
    def ends(self) -> dict[int, int]:
        """Partition of ``item-updates`` → the offset after its last event."""
        return {partition: runs[-1][1] for partition, runs in self.ranges.items() if runs}

    @property
    def events(self) -> int:
        """How many events there are, of attributes too."""
        own = sum(following - first for runs in self.ranges.values() for first, following in runs)
        return own + (self.attributes.events if self.attributes is not None else 0)

    def has(self, partition: int, offset: int) -> bool:
        """Whether the event at this offset of ``item-updates`` is one of them."""
        runs = self.ranges.get(partition, ())
        before = bisect_right(runs, (offset, _LAST)) - 1
        return before >= 0 and offset < runs[before][1]


class DeliveryLog:
    """Collects a ``Delivery`` from the offsets that the broker gives, which rise within a partition."""

    def __init__(self, letters_from: Mapping[int, int]) -> None:
        self._letters_from = letters_from
        self._runs: dict[int, list[list[int]]] = {}

    def add(self, partition: int, offset: int) -> None:
        runs = self._runs.setdefault(partition, [])
        if runs and runs[-1][1] == offset:
            runs[-1][1] = offset + 1
        else:
            runs.append([offset, offset + 1])

    def delivery(self, attributes: Delivery | None = None) -> Delivery:
        ranges = {partition: tuple((first, end) for first, end in runs) for partition, runs in self._runs.items()}
        return Delivery(ranges, dict(self._letters_from), attributes)


def ends_of_letters(settings: Settings, topic: str) -> dict[int, int]:
    """Where a topic of dead letters ends now, by partition.

    Nothing where it cannot be read: whoever may only write the events can publish, and not wait for the outcome.
    """
    consumer = end_reader(settings, "publish")
    try:
        return {partition: watermarks(consumer, topic, partition)[1] for partition in partitions_of(consumer, topic)}
    except LogReadError:
        return {}
    finally:
        consumer.close()
