"""``kill -9`` of assigner and indexer in the middle of a stream, on a real broker: nothing lost, nothing twice."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from confluent_kafka import Producer
from processes import SidstreamProcess, committed_records, wait_until

from models.bundle import Bundle
from models.census import count_tokens
from models.onnx_encoder import OnnxEncoder
from store.reader import IndexReader, Snapshot
from streamer.kafka import produce, producer_configuration
from streamer.records import ITEM_CODES, ITEM_UPDATE, TOKEN_COUNT, ItemUpdate, TokenCount
from streamer.settings import Settings

EVENTS = 12_000
IDS = 3_000
EVENTS_PER_SECOND = 3_000


class Stream:
    """Updates, deletions and malformed events over few ids, so that most items change several times."""

    def __init__(self, settings: Settings, dimension: int, seed: int) -> None:
        random_ = np.random.default_rng(seed)
        self._settings = settings
        self.embeddings = random_.normal(size=(EVENTS, dimension)).astype("<f4")
        self._ids = [f"item-{number}" for number in random_.integers(IDS, size=EVENTS)]
        self._kinds = random_.choice(["update", "delete", "malformed"], p=[0.87, 0.1, 0.03], size=EVENTS).tolist()
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
                time.sleep(max(0.0, started + row / EVENTS_PER_SECOND - time.monotonic()))
        assert producer.flush(30) == 0
        self.sent.set()


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


@pytest.mark.parametrize("victim", ["assigner", "indexer"])
def test_kill_9_in_the_middle_of_a_stream_loses_nothing_and_repeats_nothing(
    pipeline_settings: Settings, tiny_bundle: Path, tmp_path: Path, victim: str
) -> None:
    settings = pipeline_settings.model_copy(update={"bundle": tiny_bundle})
    encoder = OnnxEncoder(Bundle.open(tiny_bundle).encoder_path)
    stream = Stream(settings, encoder.dimension, seed=hash(victim) % 1_000)
    publisher = threading.Thread(target=stream.publish)
    with (
        SidstreamProcess(settings, "assigner", tmp_path) as assigner,
        SidstreamProcess(settings, "indexer", tmp_path) as indexer,
    ):
        process = {"assigner": assigner, "indexer": indexer}[victim]
        publisher.start()
        dice = random.Random(7)
        kills = 0
        while not stream.sent.is_set():
            time.sleep(dice.uniform(0.3, 1.2))
            process.kill()
            process.start()
            kills += 1
            # Let it live long enough to be in the middle of something at the next kill.
            time.sleep(dice.uniform(0.8, 1.4))
        publisher.join()
        assert kills >= 2

        live = {item_id for item_id, row in stream.expected.items() if row is not None}
        newest = max(row for row in stream.expected.values() if row is not None)

        def caught_up() -> bool:
            if not settings.index.exists():
                return False
            with IndexReader(settings.index) as reader, reader.snapshot() as snapshot:
                items = snapshot.find([item_id.encode() for item_id in sorted(live)])
                return snapshot.item_count == len(live) and any(item and item.updated_at == newest for item in items)

        wait_until(caught_up, seconds=40, what=f"{len(live)} items in the index")
        assert assigner.stop() == 0
        assert indexer.stop() == 0

    with IndexReader(settings.index) as reader, reader.snapshot() as snapshot:
        assert_index_holds_exactly(snapshot, stream, encoder)
        census = snapshot.census()

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

    published: dict[tuple[int, int], TokenCount] = {}
    for record in committed_records(settings, settings.topics.token_counts):
        count: TokenCount = TOKEN_COUNT.decode(record.value())
        known = published.get((count.layer, count.token))
        if known is None or count.as_of >= known.as_of:
            published[count.layer, count.token] = count
    for (layer_index, token), expected in np.ndenumerate(census):
        assert published[layer_index + 1, token].n == expected, "the newest published count is the census"
