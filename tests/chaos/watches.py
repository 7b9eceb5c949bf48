"""What a user sees of a pipeline in a chaos run, and when: probe items in the index, answers, drift records."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from confluent_kafka import Consumer, TopicPartition

from chaos.producers import PROBE, Producers
from models.errors import SidstreamError
from store.reading.reader import IndexReader
from store.topology.current import CurrentTopology
from streamer.kafka.clients import consumer_configuration
from streamer.kafka.gather import drain
from streamer.settings import Settings
from support.patience import PATIENCE_SECONDS


@dataclass
class Watch:
    """When which progress was seen: (when, up to what moment of publishing everything was there)."""

    seen: list[tuple[float, float]] = field(default_factory=list)

    def recovery(self, at: float) -> float | None:
        """Seconds from ``at`` until something published after it was there."""
        return next((when - at for when, published in self.seen if published >= at), None)


class Watches:
    """Follows the index and the topics in threads of its own until stopped."""

    def __init__(self, settings: Settings, producers: Producers) -> None:
        self._settings = settings
        self._producers = producers
        self._stop = threading.Event()
        self.items, self.answers, self.drift = Watch(), Watch(), Watch()
        # Follows the index through all faults, as a retriever's does: at the end it is held against the index itself.
        self.topology = CurrentTopology()
        self.rolled_forward = 0

    def start(self) -> None:
        for work in (self._look_at_items, self._read_answers, self._read_drift):
            threading.Thread(target=work, daemon=True).start()

    def stop(self) -> None:
        self._stop.set()

    @property
    def everything(self) -> bool:
        """Whether items, answers and drift were seen once."""
        return bool(self.items.seen and self.answers.seen and self.drift.seen)

    def _look_at_items(self) -> None:
        probes = [f"{PROBE}-{partition}".encode() for partition in range(self._settings.topics.partitions)]
        seen = 0
        while not self._stop.wait(0.02):
            try:
                with IndexReader(self._settings.index) as reader:
                    while not self._stop.wait(0.02):
                        with reader.snapshot() as snapshot:
                            found = snapshot.find(probes)
                            self.rolled_forward += self.topology.step(snapshot).changes is not None
                        row = min(item.updated_at if item else 0 for item in found)
                        now, published = time.monotonic(), self._producers.probes
                        while seen < len(published) and published[seen][1] <= row:
                            seen += 1
                        if seen:
                            self.items.seen.append((now, published[seen - 1][0]))
            except SidstreamError:
                continue  # there is none yet

    def _read_answers(self) -> None:
        for record in self._follow(self._settings.topics.results):
            asked = self._producers.asked_at.get((record.key() or b"").decode("utf-8", "replace"))
            if asked is not None:
                self.answers.seen.append((time.monotonic(), asked))

    def _read_drift(self) -> None:
        for _ in self._follow(self._settings.topics.drift):
            now = time.monotonic()
            self.drift.seen.append((now, now))

    def _follow(self, topic: str) -> Iterator[object]:
        configuration = consumer_configuration(
            self._settings.kafka, group="chaos-watch", isolation_level="read_committed"
        )
        consumer = Consumer(configuration)
        partitions = consumer.list_topics(topic, timeout=PATIENCE_SECONDS).topics[topic].partitions
        consumer.assign([TopicPartition(topic, partition, 0) for partition in partitions])
        while not self._stop.is_set():
            yield from drain(consumer, 500, 0.1)
        consumer.close()
