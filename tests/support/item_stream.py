"""Updates for tests: a few items, or a stream of updates, deletions and malformed events."""

from __future__ import annotations

import threading
import time
from typing import Final

import numpy as np
from confluent_kafka import Producer
from numpy.typing import NDArray

from store.errors import IndexMissingError
from store.reading.reader import IndexReader
from streamer.events.records import ITEM_UPDATE, ItemUpdate
from streamer.kafka.clients import producer_configuration
from streamer.kafka.gather import produce
from streamer.settings import Settings
from support.patience import PATIENCE_SECONDS

FIRST_TIME: Final = 1_767_225_600_000  # 2026: an update's number is told by its time, which has to be plausible


def publish_updates(settings: Settings, embeddings: NDArray[np.float32], ids: range) -> None:
    """Row ``number`` of ``embeddings`` as the update of ``item-<number>``."""
    producer = Producer(producer_configuration(settings.kafka))
    for number in ids:
        value = ITEM_UPDATE.encode(ItemUpdate(embedding=embeddings[number].astype("<f4").tobytes()))
        produce(producer, settings.topics.item_updates, key=f"item-{number}".encode(), value=value)
    assert producer.flush(PATIENCE_SECONDS) == 0


class Stream:
    """Updates, deletions and malformed events over few ids, so that most items change several times."""

    def __init__(
        self, settings: Settings, dimension: int, *, events: int, ids: int, per_second: int, seed: int
    ) -> None:
        random_ = np.random.default_rng(seed)
        self._per_second = per_second
        self._settings = settings
        self.embeddings = random_.normal(size=(events, dimension)).astype("<f4")
        self._ids = [f"item-{number}" for number in random_.integers(ids, size=events)]
        self._kinds = random_.choice(["update", "delete", "malformed"], p=[0.87, 0.1, 0.03], size=events).tolist()
        # id → row of the live update, None after a deletion.
        self.expected: dict[str, int | None] = {}
        self.malformed = self._kinds.count("malformed")
        self.sent = threading.Event()
        self._stopping = threading.Event()

    def publish(self) -> None:
        producer = Producer(producer_configuration(self._settings.kafka))
        topic = self._settings.topics.item_updates
        started = time.monotonic()
        for row, (item_id, kind) in enumerate(zip(self._ids, self._kinds, strict=True)):
            if self._stopping.is_set():
                break
            value: bytes | None
            if kind == "update":
                update = ItemUpdate(
                    embedding=self.embeddings[row].tobytes(), title=f"title {row}", updated_at=FIRST_TIME + row
                )
                value = ITEM_UPDATE.encode(update)
                self.expected[item_id] = row
            elif kind == "delete":
                value = None
                self.expected[item_id] = None
            else:
                value = b'{"embedding": "'
            produce(producer, topic, key=item_id.encode(), value=value)
            if row % 100 == 0:
                producer.poll(0)
                time.sleep(max(0.0, started + row / self._per_second - time.monotonic()))
        assert producer.flush(PATIENCE_SECONDS) == 0
        self.sent.set()

    def stop(self) -> None:
        """Publish no more; ``sent`` says when what was published is there."""
        self._stopping.set()


def index_has_everything(settings: Settings, stream: Stream) -> bool:
    """Whether the newest update has arrived and as many items are live as should be."""
    live = [item_id for item_id, row in stream.expected.items() if row is not None]
    newest = max(row for row in stream.expected.values() if row is not None)
    try:
        with IndexReader(settings.index) as reader, reader.snapshot() as snapshot:
            items = snapshot.find([item_id.encode() for item_id in live])
            return snapshot.item_count == len(live) and any(
                item and item.updated_at == FIRST_TIME + newest for item in items
            )
    except IndexMissingError:  # the indexer is still making it
        return False
