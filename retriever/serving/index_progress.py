"""Whether an index of this host holds what its codes topic had at one moment: one that is behind does not take over.

What must hold: offsets of markers and of aborted records keep nobody waiting; the ends are those of the first look, so that a
steady stream of updates does not either.
"""

from __future__ import annotations

from dataclasses import dataclass

from models.errors import SidstreamError
from store.reading.reader import IndexReader
from streamer.events.topics import Partition
from streamer.kafka.read_to_end import Span, end_reader, read_spans, whole_topics
from streamer.settings import Settings
from streamer.shards.partitions import holds


class IndexBehindError(SidstreamError):
    """The index lacks records of its codes topic."""


@dataclass(frozen=True)
class IndexGoal:
    """``ends`` of a codes ``topic`` that an index must have reached."""

    topic: str
    ends: dict[Partition, Span]

    @classmethod
    def now(cls, settings: Settings, topic: str) -> IndexGoal:
        """The ends that the topic has. Raises ``LogReadError``."""
        consumer = end_reader(settings, "retriever-ends")
        try:
            return cls(topic, whole_topics(consumer, [topic]))
        finally:
            consumer.close()

    def require(self, settings: Settings, reader: IndexReader) -> None:
        """Raises ``IndexBehindError`` if the index lacks a record before these ends, ``LogReadError`` if that cannot be known."""
        with reader.snapshot() as snapshot:
            position, held = snapshot.position, snapshot.partitions
        left = {
            at: Span(max(span.first, position.get(at, 0)), span.end)
            for at, span in self.ends.items()
            if holds(held, at[1]) and position.get(at, 0) < span.end
        }
        if not left:
            return
        consumer = end_reader(settings, "retriever-ends")
        try:
            # One record will do: the topic may hold millions.
            if any(reading.records for reading in read_spans(consumer, left, size=1)):
                missing = sum(map(len, left.values()))
                raise IndexBehindError(
                    f"the index {reader.path} is up to {missing:,} records of {self.topic} behind: wait for the indexer of this "
                    "host, and see that it runs"
                )
        finally:
            consumer.close()
