"""Minutes of ``kill -9`` of every process under load: run by ``make chaos``."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from confluent_kafka import Producer
from item_stream import (
    Stream,
    assert_index_holds_exactly,
    assert_nothing_twice,
    assert_published_counts_are,
    index_has_everything,
)
from processes import SidstreamProcess, committed_records, wait_until

from models.bundle import Bundle
from models.onnx_encoder import OnnxEncoder
from store.reader import IndexReader
from streamer.kafka import produce, producer_configuration
from streamer.records import ANSWER, QUERY, Query
from streamer.settings import Settings

SECONDS = 120
PROCESSES = ("assigner", "indexer", "monitor", "retriever")


@pytest.mark.chaos
@pytest.mark.parametrize("seed", [1, 2])
def test_kill_9_of_every_process_for_minutes_under_load_loses_nothing_and_repeats_nothing(
    pipeline_settings: Settings, tiny_model_bundle: Path, tmp_path: Path, seed: int
) -> None:
    settings = pipeline_settings.model_copy(update={"bundle": tiny_model_bundle})
    encoder = OnnxEncoder(Bundle.open(tiny_model_bundle).encoder_path)
    stream = Stream(settings, encoder.dimension, events=1_000 * SECONDS, ids=20_000, per_second=1_000, seed=seed)
    publisher = threading.Thread(target=stream.publish)
    processes = {name: SidstreamProcess(settings, name, tmp_path).start() for name in PROCESSES}
    producer = Producer(producer_configuration(settings.kafka))
    asked: list[str] = []
    dice = random.Random(seed)
    try:
        publisher.start()
        kills: Counter[str] = Counter()
        while not stream.sent.is_set():
            for _ in range(5):
                asked.append(f"query-{len(asked)}")
                value = QUERY.encode(Query(text=f"thing {len(asked)}", limit=3))
                produce(producer, settings.topics.queries, key=asked[-1].encode(), value=value)
            producer.poll(0)
            time.sleep(dice.uniform(0.5, 4))
            # The retriever takes a while to load its model: leave it alone more often.
            [victim] = dice.choices(PROCESSES, weights=(4, 4, 2, 1))
            processes[victim].kill()
            kills[victim] += 1
            processes[victim].start()
        publisher.join()
        assert producer.flush(30) == 0
        print(f"kills: {dict(kills)}")
        wait_until(lambda: index_has_everything(settings, stream), seconds=120, what="every live item", every=1.0)

        def answered() -> Counter[str]:
            records = committed_records(settings, settings.topics.results)
            return Counter(ANSWER.decode(record.value()).query_id for record in records)

        wait_until(lambda: answered().keys() >= set(asked), seconds=120, what="every query answered", every=2.0)
        time.sleep(2 * settings.indexer.counts_interval_seconds)
        for process in processes.values():
            assert process.stop() == 0
    finally:
        for process in processes.values():
            if process.running():
                os.kill(process.pid, signal.SIGKILL)
    assert answered() == Counter(asked), "one answer per query"
    with IndexReader(settings.index) as reader, reader.snapshot() as snapshot:
        assert_index_holds_exactly(snapshot, stream, encoder)
        census = snapshot.census()
    assert_nothing_twice(settings, stream)
    assert_published_counts_are(settings, census)
