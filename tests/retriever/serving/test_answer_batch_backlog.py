"""A backlog of late queries before a slow model, on a real broker: answered by the thousand, the ones in time by the model."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from confluent_kafka import Message, Producer
from numpy.typing import NDArray

from models.bundles.bundle import Bundle
from models.bundles.model_of_bundle import load_language_model
from models.codebooks.codebook import Codebook
from retriever.answering.metrics import QUERY_SECONDS
from store.reading.reader import IndexReader
from store.records.batch import CodesBatch
from store.writing.writer import IndexWriter
from streamer.events.outgoing import Outgoing
from streamer.events.records import ANSWER, QUERY, Answer, Query
from streamer.exactly_once.loop import LoopSettings, TransactionalLoop
from streamer.kafka.clients import producer_configuration
from streamer.kafka.gather import produce
from streamer.process.health import Health
from streamer.settings import Settings
from support.answer_batches import answer_batch_of
from support.patience import PATIENCE_SECONDS
from support.processes import committed_records, wait_until

LATE = 6_000
IN_TIME = 40
BATCH = 8
MODEL_SECONDS = 0.1  # a call of the slow model


@pytest.fixture
def slow_retriever(
    pipeline_settings: Settings, tiny_model_bundle: Path, tiny_embeddings: NDArray[np.float32]
) -> Iterator[tuple[TransactionalLoop, list[int], list[int]]]:
    """A retriever's loop on an index of a hundred items, and the sizes of its batches and of its model calls."""
    settings = pipeline_settings
    bundle = Bundle.open(tiny_model_bundle, need_model=True)
    layout = bundle.layout
    with IndexWriter.open(
        settings.index, codebook_id=layout.codebook_id, layers=layout.layers, size=layout.size
    ) as writer:
        ids = [f"item-{number}".encode() for number in range(100)]
        codes = Codebook.load(bundle.codebook_path).encode(tiny_embeddings[:100])
        writer.apply(
            CodesBatch(ids, codes, np.ones(100, np.float32), [""] * 100, np.zeros(100, np.int64), np.zeros(100, bool)),
            {},
        )
        model, prompts = load_language_model(bundle)
        with IndexReader(settings.index) as reader:
            transform, answerer = answer_batch_of(
                bundle,
                model,
                prompts,
                reader,
                settings.retriever.model_copy(update={"batch_size": BATCH, "maximum_wait_seconds": 600.0}),
                results_topic=settings.topics.results,
                dead_letter_topic=settings.topics.queries_dead_letters,
            )
            search, calls, batches = answerer._searches.search, list[int](), list[int]()

            def slowly(asked: Any, trie: Any) -> Any:
                calls.append(len(asked))
                time.sleep(MODEL_SECONDS)
                return search(asked, trie)

            def counted(records: list[Message]) -> list[Outgoing]:
                batches.append(len(records))
                return transform(records)

            answerer._searches.search = slowly  # type: ignore[method-assign]
            group = settings.topics.prefix + settings.retriever.group
            loop = LoopSettings(
                "retriever", settings.topics.queries, group, "0", BATCH, lambda: 0.0, QUERY_SECONDS, 1_000
            )
            yield TransactionalLoop(loop, settings.kafka, counted, Health(), transform.next_batch), batches, calls


@contextmanager
def running(loop: TransactionalLoop) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=loop.run, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive()


def answers_of(settings: Settings) -> list[Answer]:
    return [ANSWER.decode(record.value()) for record in committed_records(settings, settings.topics.results)]


def test_late_queries_are_answered_by_the_thousand_though_the_model_is_slow(
    pipeline_settings: Settings, slow_retriever: tuple[TransactionalLoop, list[int], list[int]]
) -> None:
    settings, (loop, batches, calls) = pipeline_settings, slow_retriever
    producer = Producer(producer_configuration(settings.kafka))
    every = LATE // IN_TIME
    for number in range(LATE):
        late = QUERY.encode(Query(text=f"thing {number}", timeout_ms=1))
        produce(producer, settings.topics.queries, key=f"late-{number}".encode(), value=late)
        if number % every == 0:
            value = QUERY.encode(Query(text=f"thing {number}", limit=3))
            produce(producer, settings.topics.queries, key=f"in-time-{number // every}".encode(), value=value)
    assert producer.flush(PATIENCE_SECONDS) == 0
    time.sleep(0.1)  # the youngest is late now, too
    with running(loop):
        wait_until(lambda: len(answers_of(settings)) >= LATE + IN_TIME, what="every answer", every=1.0)
    answers = answers_of(settings)
    assert Counter(answer.query_id for answer in answers) == Counter(
        [f"late-{number}" for number in range(LATE)] + [f"in-time-{number}" for number in range(IN_TIME)]
    ), "every query has exactly one answer"
    kinds = Counter((answer.query_id.startswith("late"), answer.error and answer.error.kind) for answer in answers)
    assert kinds == {(True, "DeadlinePassed"): LATE, (False, None): IN_TIME}
    assert sum(calls) == IN_TIME, "the model sees the ones in time, and nothing else"
    assert max(calls) <= BATCH
    print(f"{LATE} late queries in {len(batches)} batches beside {len(calls)} model calls")
    assert len(batches) < LATE / 100, "the late ones do not wait for a batch of the model each"
