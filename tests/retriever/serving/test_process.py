"""The retriever as a process on a real broker: asked by the client, and killed in the middle of a stream of queries."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import numpy as np
from confluent_kafka import Producer
from numpy.typing import NDArray

from retriever.client import Client
from store.errors import IndexMissingError
from store.reading.reader import IndexReader
from streamer.client.publisher import ItemPublisher
from streamer.events.records import ANSWER, QUERY, Query
from streamer.kafka.clients import producer_configuration
from streamer.kafka.gather import produce
from streamer.settings import Settings
from support.patience import PATIENCE_SECONDS
from support.processes import SidstreamProcess, committed_records, wait_until

QUERIES = 240


def test_update_is_answered_deletion_is_not_and_kill_9_answers_every_query_once(
    pipeline_settings: Settings, tiny_model_bundle: Path, tiny_embeddings: NDArray[np.float32], tmp_path: Path
) -> None:
    settings = pipeline_settings.model_copy(
        update={
            "bundle": tiny_model_bundle,
            "retriever": pipeline_settings.retriever.model_copy(update={"batch_size": 4}),
        }
    )

    def items() -> int:
        try:
            with IndexReader(settings.index) as reader, reader.snapshot() as snapshot:
                return snapshot.item_count
        except IndexMissingError:  # the indexer is still making it
            return 0

    with (
        SidstreamProcess(settings, "assigner", tmp_path),
        SidstreamProcess(settings, "indexer", tmp_path),
        SidstreamProcess(settings, "retriever", tmp_path) as retriever,
        Client(settings) as client,
    ):
        with ItemPublisher(settings) as publisher:
            for number, embedding in enumerate(tiny_embeddings[:200]):
                publisher.update(f"item-{number}", embedding, title=f"thing {number}")
        wait_until(lambda: items() == 200, what="200 items in the index")

        answer = client.ask("thing number 7", limit=50, timeout_seconds=PATIENCE_SECONDS)
        assert answer.error is None
        best = answer.items[0].item_id
        with ItemPublisher(settings) as publisher:
            publisher.delete(best)
        wait_until(lambda: items() == 199, what="the deletion in the index")
        again = client.ask(
            "thing number 7",
            limit=50,
            explain=True,
            why_not=[best, "never"],
            slate=[{"per": "sid", "most": 1}],
            timeout_seconds=PATIENCE_SECONDS,
        )
        assert best not in {item.item_id for item in again.items}
        assert len({item.sid for item in again.items}) == len(again.items) > 0
        assert all(item.explanation for item in again.items)
        assert isinstance(again.why_not, tuple)
        assert [why.reason for why in again.why_not] == ["deleted", "not_indexed"]
        assert isinstance(again.why_not[0].deleted_at, int)
        assert 0 <= time.time() * 1000 - again.why_not[0].deleted_at < 60_000 * 60

        producer = Producer(producer_configuration(settings.kafka))
        ids = [f"query-{number}" for number in range(QUERIES)]
        for number, query_id in enumerate(ids):
            produce(
                producer,
                settings.topics.queries,
                key=query_id.encode(),
                value=QUERY.encode(Query(text=f"thing {number}", limit=3)),
            )
            producer.poll(0)
            if number in (60, 150):
                producer.flush()
                time.sleep(0.4)
                retriever.kill()
                retriever.start()
        producer.flush()

        def answered() -> Counter[str]:
            records = committed_records(settings, settings.topics.results)
            return Counter(ANSWER.decode(record.value()).query_id for record in records)

        wait_until(lambda: answered().keys() >= set(ids), what="every query answered", every=1.0)
        assert retriever.stop() == 0
        counts = answered()
    assert {query_id: counts[query_id] for query_id in ids} == dict.fromkeys(ids, 1), "one answer per query"
