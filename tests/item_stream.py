"""A stream of updates, deletions and malformed events, and what must hold after it, however often processes were killed."""

from __future__ import annotations

import threading
import time

import numpy as np
from confluent_kafka import Producer
from numpy.typing import NDArray
from processes import committed_records

from models.census import count_tokens
from models.onnx_encoder import OnnxEncoder
from store.errors import IndexMissingError
from store.reader import IndexReader, Snapshot
from streamer.kafka import produce, producer_configuration
from streamer.records import ITEM_CODES, ITEM_UPDATE, TOKEN_COUNT, ItemUpdate, TokenCount
from streamer.settings import Settings


def publish_updates(settings: Settings, embeddings: NDArray[np.float32], ids: range) -> None:
    """Row ``number`` of ``embeddings`` as the update of ``item-<number>``."""
    producer = Producer(producer_configuration(settings.kafka))
    for number in ids:
        value = ITEM_UPDATE.encode(ItemUpdate(embedding=embeddings[number].astype("<f4").tobytes()))
        produce(producer, settings.topics.item_updates, key=f"item-{number}".encode(), value=value)
    assert producer.flush(30) == 0


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

    def publish(self) -> None:
        producer = Producer(producer_configuration(self._settings.kafka))
        topic = self._settings.topics.item_updates
        started = time.monotonic()
        for row, (item_id, kind) in enumerate(zip(self._ids, self._kinds, strict=True)):
            value: bytes | None
            if kind == "update":
                update = ItemUpdate(embedding=self.embeddings[row].tobytes(), title=f"title {row}", updated_at=row)
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
        assert producer.flush(30) == 0
        self.sent.set()


def index_has_everything(settings: Settings, stream: Stream) -> bool:
    """Whether the newest update has arrived and as many items are live as should be."""
    live = [item_id for item_id, row in stream.expected.items() if row is not None]
    newest = max(row for row in stream.expected.values() if row is not None)
    try:
        with IndexReader(settings.index) as reader, reader.snapshot() as snapshot:
            items = snapshot.find([item_id.encode() for item_id in live])
            return snapshot.item_count == len(live) and any(item and item.updated_at == newest for item in items)
    except IndexMissingError:  # the indexer is still making it
        return False


def assert_index_holds_exactly(snapshot: Snapshot, stream: Stream, encoder: OnnxEncoder) -> None:
    live = {item_id: row for item_id, row in stream.expected.items() if row is not None}
    rows = list(live.values())
    codes = encoder.encode(stream.embeddings[rows])
    assert snapshot.item_count == len(live)
    stored = snapshot.find([item_id.encode() for item_id in live])
    for item, row, expected in zip(stored, rows, codes, strict=True):
        assert item is not None
        assert (item.codes, item.updated_at) == (tuple(expected.tolist()), row)
    assert snapshot.verify() == []
    np.testing.assert_array_equal(snapshot.census(), count_tokens(codes, encoder.size))
    np.testing.assert_array_equal(snapshot.census(), snapshot.recount())


def assert_nothing_twice(settings: Settings, stream: Stream) -> None:
    """Codes and dead letters are on their topics once an event."""
    updates_seen = [
        (record.key(), ITEM_CODES.decode(record.value()).updated_at)
        for record in committed_records(settings, settings.topics.item_codes)
        if record.value() is not None
    ]
    assert len(updates_seen) == len(set(updates_seen)), "an update's codes are on the topic at most once"

    letters = committed_records(settings, settings.topics.item_updates_dead_letters)
    places = [
        (dict(letter.headers())["dlq.errors.partition"], dict(letter.headers())["dlq.errors.offset"])
        for letter in letters
    ]
    assert len(places) == stream.malformed
    assert len(set(places)) == stream.malformed, "a malformed event is a dead letter exactly once"


def assert_published_counts_are(settings: Settings, census: NDArray[np.int64]) -> None:
    """The newest count of every token is the census."""
    published: dict[tuple[int, int], TokenCount] = {}
    for record in committed_records(settings, settings.topics.token_counts):
        count: TokenCount = TOKEN_COUNT.decode(record.value())
        known = published.get((count.layer, count.token))
        if known is None or count.as_of >= known.as_of:
            published[count.layer, count.token] = count
    for (layer_index, token), expected in np.ndenumerate(census):
        assert published[layer_index + 1, token].n == expected, f"layer {layer_index + 1}, token {token}"
