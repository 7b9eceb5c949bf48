"""A second codebook takes over under load while processes are killed: no item is lost, no query is answered twice."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from confluent_kafka import Producer
from numpy.typing import NDArray

from models.bundles.bundle import Bundle
from retriever.client import Client
from streamer.client.publisher import ItemPublisher
from streamer.client.read_your_writes import await_indexed
from streamer.deployments.served import served_settings
from streamer.events.records import ANSWER, QUERY, Query
from streamer.indexer.rebuild import rebuild
from streamer.kafka.admin import describe
from streamer.kafka.clients import producer_configuration
from streamer.operations.generations.changes import promote, rollback
from streamer.operations.generations.deploy import DeployOptions, deploy
from streamer.operations.generations.retire import retire
from streamer.operations.verify import examine
from streamer.settings import Settings
from support.other_codebook import other_codebook
from support.patience import PATIENCE_SECONDS
from support.processes import SidstreamProcess, committed_records, processes_of

ITEMS = 500
SECONDS_BETWEEN_KILLS = 12.0


@contextmanager
def until_left(*works: object) -> Iterator[None]:
    """Each work, a function of an event that ends it, in a thread."""
    ended = threading.Event()
    threads = [threading.Thread(target=work, args=(ended,)) for work in works]  # type: ignore[arg-type]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


@pytest.mark.chaos
def test_codebook_takes_over_while_processes_are_killed_items_change_and_queries_are_asked(
    pipeline_settings: Settings, tiny_model_bundle: Path, tiny_embeddings: NDArray[np.float32], tmp_path: Path
) -> None:
    settings = pipeline_settings
    shutil.copytree(tiny_model_bundle, settings.bundle)
    first, second = Bundle.open(settings.bundle), other_codebook(tmp_path / "other", tiny_embeddings)
    chance, kills, asked = random.Random(1), Counter[str](), list[str]()

    def change_items(ended: threading.Event) -> None:
        for turn in itertools.count():
            with ItemPublisher(settings) as publisher:
                for number in range(10):
                    publisher.update(f"item-{(7 * turn + number) % ITEMS}", tiny_embeddings[(turn + number) % ITEMS])
                publisher.delete(f"item-{turn % 60}")
            if ended.wait(0.1):
                return

    def ask(ended: threading.Event) -> None:
        producer = Producer(producer_configuration(settings.kafka, linger_ms=0))
        while not ended.wait(0.1):
            asked.append(f"query-{len(asked)}")
            value = QUERY.encode(Query(text=f"thing {len(asked)}", user=f"user-{len(asked) % 50}", limit=3))
            producer.produce(settings.topics.queries, key=asked[-1], value=value)
            producer.poll(0)
        producer.flush()

    def kill(ended: threading.Event) -> None:
        while not ended.wait(SECONDS_BETWEEN_KILLS):
            if running := processes_of(up.pid):
                name = chance.choice(sorted(running))
                kills[name] += 1
                os.kill(running[name], signal.SIGKILL)

    def settled() -> None:
        with ItemPublisher(settings) as publisher:
            for number in range(ITEMS):
                publisher.update(f"item-{number}", tiny_embeddings[number])
        assert await_indexed(settings, publisher.delivered, seconds=3 * PATIENCE_SECONDS).complete

    with SidstreamProcess(settings, "up --no-broker --retrievers 1", tmp_path, name="up") as up:
        settled()
        with until_left(change_items, ask, kill):
            deploy(settings, str(second.directory), DeployOptions(share=0.3, seconds=3 * PATIENCE_SECONDS))
            time.sleep(20)
            assert promote(settings, force=True).bundle == second.id
            time.sleep(20)
            assert rollback(settings).bundle == first.id
            time.sleep(10)
            assert promote(settings, second.id, force=True).bundle == second.id
            time.sleep(20)
            retire(settings, first.id, force=True, seconds=3 * PATIENCE_SECONDS)
        settled()
        with Client(settings) as client:
            last = client.ask(text="thing 7", limit=3, timeout_seconds=3 * PATIENCE_SECONDS)
        assert (last.bundle, last.codebook, last.error) == (second.id, second.layout.codebook_id, None)
        own = served_settings(settings)
        fresh = rebuild(own, tmp_path / "fresh")
        assert (fresh.items, fresh.digest) == (ITEMS, examine(own.index).digest)
        assert describe(settings.kafka, [settings.topics.item_codes]) == []
        assert not settings.index.exists()
    results = committed_records(settings, settings.topics.results)
    answers = Counter((record.key() or b"").decode() for record in results)
    assert {answers[name] for name in asked} == {1}, "each query has one answer"
    codebooks = {first.id: first.layout.codebook_id, second.id: second.layout.codebook_id}
    for record in results:
        answer = ANSWER.decode(record.value())
        assert answer.error is not None or codebooks[answer.bundle] == answer.codebook, "none mixes two codebooks"
    assert {ANSWER.decode(record.value()).bundle for record in results} == {first.id, second.id}
    assert kills, "something was killed"
