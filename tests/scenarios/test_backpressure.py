"""Floods: memory has a bound whatever waits, and nothing is lost to an indexer, a model or a broker that stands still."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from confluent_kafka import Producer
from numpy.typing import NDArray

from store.errors import IndexMissingError
from store.reading.reader import IndexReader
from streamer.events.records import ANSWER, QUERY, Query
from streamer.events.topics import topic_specs
from streamer.kafka.admin import create
from streamer.kafka.clients import FETCH_BYTES, FETCHED_AHEAD_KIB, UNSENT_KIB, producer_configuration
from streamer.kafka.gather import produce
from streamer.local.broker import LocalBroker
from streamer.settings import Settings, load_settings
from support.item_stream import FIRST_TIME, publish_updates
from support.paths import SUPPORT
from support.patience import PATIENCE_SECONDS
from support.processes import SidstreamProcess, committed_records, wait_until

PADDING = "x" * 65_536  # of an event; a query's is its history
# Two batches of what was fetched, the queue, one fetch, what is not sent yet; and as much again for Python's copies.
BOUND_MEBIBYTES = 2 * (3 * FETCHED_AHEAD_KIB // 1024 + FETCH_BYTES // 1024**2 + UNSENT_KIB // 1024)


@pytest.mark.parametrize(
    ("seconds", "updates_per_second", "queries_per_second"),
    [
        pytest.param(8, 10_000, 200, id="short"),
        # As fast as they go they would fill a disk: this is 16 GiB.
        pytest.param(600, 400, 400, id="ten-minutes", marks=pytest.mark.chaos),
    ],
)
@pytest.mark.timeout(1_500)
def test_memory_is_bounded_under_a_flood_with_a_stopped_indexer_and_a_slow_model(
    pipeline_settings: Settings,
    tiny_model_bundle: Path,
    tiny_embeddings: NDArray[np.float32],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seconds: float,
    updates_per_second: int,
    queries_per_second: int,
) -> None:
    monkeypatch.setenv("SLOW_MODEL_SECONDS", "1.0")
    own = pipeline_settings.retriever.model_copy(update={"maximum_wait_seconds": 5.0})
    settings = pipeline_settings.model_copy(update={"bundle": tiny_model_bundle, "retriever": own})

    def updated_at(item: bytes) -> int:
        try:
            with IndexReader(settings.index) as reader, reader.snapshot() as snapshot:
                [found] = snapshot.find([item])
                return found.updated_at if found is not None else -1
        except IndexMissingError:
            return -1

    with (
        SidstreamProcess(settings, "assigner", tmp_path, alone=True) as assigner,
        SidstreamProcess(settings, "indexer", tmp_path, alone=True) as indexer,
        SidstreamProcess(settings, "retriever", tmp_path, program=SUPPORT / "slow_retriever.py") as retriever,
    ):
        publish_updates(settings, tiny_embeddings, range(100))
        wait_until(lambda: updated_at(b"item-99") >= 0, what="100 items")
        asked = ask_until_answered(settings)
        processes = {"assigner": assigner, "indexer": indexer, "retriever": retriever}
        before = {name: process.peak_mebibytes for name, process in processes.items()}
        os.kill(indexer.pid, signal.SIGSTOP)
        try:
            sent, queries = flood(settings, tiny_embeddings, seconds, updates_per_second, queries_per_second)
        finally:
            os.kill(indexer.pid, signal.SIGCONT)
        wait_until(
            lambda: updated_at(b"flood-last") == FIRST_TIME + sent, what="the last update in the index", every=1.0
        )
        asked += queries
        wait_until(lambda: len(answered(settings)) >= len(asked), what="every answer", every=2.0 + seconds / 60)
        peaks = {name: process.peak_mebibytes - before[name] for name, process in processes.items()}
        print(f"{sent} events of {len(PADDING)} bytes, {len(asked)} queries; memory beyond {before} MiB: {peaks}")
        assert all(process.stop() == 0 for process in processes.values())
    assert answered(settings) == Counter(asked), "one answer per query"
    for name, peak in peaks.items():
        assert peak < BOUND_MEBIBYTES, f"the {name} took {peak:.0f} MiB more"


def answered(settings: Settings) -> Counter[str]:
    records = committed_records(settings, settings.topics.results)
    return Counter(ANSWER.decode(record.value()).query_id for record in records)


def ask_until_answered(settings: Settings) -> list[str]:
    """A retriever that has loaded its model has its base of memory."""
    producer = Producer(producer_configuration(settings.kafka))
    produce(producer, settings.topics.queries, key=b"first", value=QUERY.encode(Query(text="thing")))
    assert producer.flush(PATIENCE_SECONDS) == 0
    wait_until(lambda: "first" in answered(settings), what="a retriever that answers", every=0.5)
    return ["first"]


def flood(
    settings: Settings,
    embeddings: NDArray[np.float32],
    seconds: float,
    updates_per_second: int,
    queries_per_second: int,
) -> tuple[int, list[str]]:
    """Large updates, more of them than may be held, and queries, each at its rate or as fast as they go.

    Returns how many updates, the last of them ``flood-last``, and the queries' ids.
    """
    # Not compressed: the bound is of what a fetch brings, and these values would unpack to hundreds of times of it.
    producer = Producer(producer_configuration(settings.kafka))
    values = [
        json.dumps({"embedding": row.tolist(), "padding": PADDING, "title": "flood", "updated_at": FIRST_TIME}).encode()
        for row in embeddings[:50]
    ]
    history = tuple(f"unknown-{'x' * 200}-{number}" for number in range(200))
    asked: list[str] = []
    sent, started = 0, time.monotonic()
    while (elapsed := time.monotonic() - started) < seconds or sent * len(PADDING) < 2 * BOUND_MEBIBYTES * 1024**2:
        for _ in range(20 if sent < elapsed * updates_per_second else 0):
            produce(
                producer, settings.topics.item_updates, key=f"flood-{sent % 5_000}".encode(), value=values[sent % 50]
            )
            sent += 1
        while len(asked) < elapsed * queries_per_second:
            asked.append(f"query-{len(asked)}")
            value = QUERY.encode(Query(text=f"thing {len(asked)}", history=history, limit=3))
            produce(producer, settings.topics.queries, key=asked[-1].encode(), value=value)
        producer.poll(0.001)
    last = json.dumps({"embedding": embeddings[0].tolist(), "updated_at": FIRST_TIME + sent}).encode()
    produce(producer, settings.topics.item_updates, key=b"flood-last", value=last)
    assert producer.flush(PATIENCE_SECONDS) == 0
    return sent, asked


@pytest.mark.broker
@pytest.mark.chaos
def test_broker_that_stands_still_for_seconds_loses_no_answer_and_repeats_none(
    tiny_model_bundle: Path, tiny_embeddings: NDArray[np.float32], tmp_path: Path
) -> None:
    """The short chaos run has one such pause under load."""
    with LocalBroker(tmp_path / "broker", short_lived=True) as broker:
        settings = load_settings(
            bundle=tiny_model_bundle,
            index=tmp_path / "index",
            kafka={"bootstrap_servers": broker.bootstrap_servers},
            retriever={"maximum_wait_seconds": 120},
        )
        create(settings.kafka, topic_specs(settings))
        with (
            SidstreamProcess(settings, "assigner", tmp_path, alone=True),
            SidstreamProcess(settings, "indexer", tmp_path, alone=True),
            SidstreamProcess(settings, "retriever", tmp_path) as retriever,
        ):
            publish_updates(settings, tiny_embeddings, range(100))
            asked = ask_until_answered(settings)
            producer = Producer(producer_configuration(settings.kafka))
            done = threading.Event()

            def ask() -> None:
                while not done.wait(0.02):
                    asked.append(f"query-{len(asked)}")
                    value = QUERY.encode(Query(text=f"thing {len(asked)}", limit=3))
                    produce(producer, settings.topics.queries, key=asked[-1].encode(), value=value)
                    producer.poll(0)

            asking = threading.Thread(target=ask)
            asking.start()
            try:
                for stillness in (3.0, 6.0, 9.0, 12.0):  # of a session's 6 seconds
                    time.sleep(1.0)
                    os.kill(broker.pid, signal.SIGSTOP)
                    try:
                        time.sleep(stillness)
                    finally:
                        os.kill(broker.pid, signal.SIGCONT)
                time.sleep(1.0)
            finally:
                done.set()
                asking.join()
            assert producer.flush(PATIENCE_SECONDS) == 0
            wait_until(lambda: len(answered(settings)) >= len(asked), what="every answer", every=1.0)
            assert retriever.stop() == 0
        assert len(asked) > 100
        assert answered(settings) == Counter(asked), "one answer per query"
