"""``kill -9`` of assigner and indexer in the middle of a stream, on a real broker: nothing lost, nothing twice."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path

import pytest
from item_stream import (
    Stream,
    assert_index_holds_exactly,
    assert_nothing_twice,
    assert_published_counts_are,
    index_has_everything,
)
from processes import SidstreamProcess, wait_until

from models.bundle import Bundle
from models.onnx_encoder import OnnxEncoder
from store.reader import IndexReader
from streamer.settings import Settings


@pytest.mark.parametrize("victim", ["assigner", "indexer"])
def test_kill_9_in_the_middle_of_a_stream_loses_nothing_and_repeats_nothing(
    pipeline_settings: Settings, tiny_bundle: Path, tmp_path: Path, victim: str
) -> None:
    settings = pipeline_settings.model_copy(update={"bundle": tiny_bundle})
    encoder = OnnxEncoder(Bundle.open(tiny_bundle).encoder_path)
    stream = Stream(settings, encoder.dimension, events=12_000, ids=3_000, per_second=3_000, seed=len(victim))
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

        wait_until(lambda: index_has_everything(settings, stream), seconds=40, what="every live item in the index")
        assert assigner.stop() == 0
        assert indexer.stop() == 0

    with IndexReader(settings.index) as reader, reader.snapshot() as snapshot:
        assert_index_holds_exactly(snapshot, stream, encoder)
        census = snapshot.census()
    assert_nothing_twice(settings, stream)
    assert_published_counts_are(settings, census)
