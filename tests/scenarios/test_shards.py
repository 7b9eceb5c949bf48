"""A catalogue in two shards on one machine, on a real broker: answers are those of one index; a shard that is away is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import UNSET, Raw
from numpy.typing import NDArray

from models.bundles.bundle import Bundle
from models.bundles.model_of_bundle import load_language_model
from models.dense.mixture import MixtureWeights
from retriever.answering.answers import Answerer
from retriever.answering.asked import Asked
from retriever.client import Client, ClientError
from store.errors import IndexMissingError
from store.reading.reader import IndexReader
from streamer.client.publisher import ItemPublisher
from streamer.events.records import Answer, Query
from streamer.filters.reading import read_filter
from streamer.indexer.rebuild import rebuild
from streamer.interactions.hit_rates import hit_rates
from streamer.settings import Settings
from support.dense_bundles import dense_bundle
from support.filter_cases import LIMITS
from support.patience import PATIENCE_SECONDS
from support.processes import SidstreamProcess, wait_until

ITEMS, KNOWN = 120, 100
PRICES: dict[str, Any] = {"price": "number"}
HISTORY = ("item-3", "item-4", "never", "item-5", "item-6")


def changed(settings: Settings, index: Path, shards: int, partitions: str) -> Settings:
    sections = {
        "indexer": settings.indexer.model_copy(update={"partitions": partitions}),
        "retriever": settings.retriever.model_copy(
            update={"shards": shards, "beams": ITEMS, "exact_budget": 100_000, "layout": "live"}
        ),
        "attributes": settings.attributes.model_copy(update={"filterable": PRICES}),
    }
    return settings.model_copy(update={"index": index, **sections})


def items_in(settings: Settings) -> int:
    try:
        with IndexReader(settings.index) as reader, reader.snapshot() as snapshot:
            return snapshot.item_count
    except IndexMissingError:
        return 0


def asked(embeddings: NDArray[np.float32]) -> list[Query]:
    cheap = Raw(json.dumps({"field": "price", "lt": 4}).encode())
    return [
        Query(text="thing number 7", limit=20),
        Query(text="thing number 9", limit=15, search="exact", filter=cheap, exclude=("item-2",)),
        Query(text="thing", history=HISTORY, limit=20, search="exact"),
        Query(embedding=embeddings[110].tolist(), text="number", limit=10),
    ]


def answers_of_one_index(settings: Settings, bundle: Bundle, queries: list[Query]) -> list[Answer]:
    model, prompts = load_language_model(bundle)
    with IndexReader(settings.index) as reader:
        answerer = Answerer(
            bundle=bundle,
            model=model,
            prompts=prompts,
            reader=reader,
            settings=settings.retriever,
            filterable=PRICES,
        )
        return [
            answerer.answers(
                [
                    Asked(
                        "q",
                        query,
                        filter=None
                        if query.filter is UNSET
                        else read_filter(query.filter, PRICES, LIMITS, of_json=True),
                    )
                ]
            )[0]
            for query in queries
        ]


def test_answers_of_two_shards_are_those_of_one_index_and_a_shard_that_is_away_is_named(
    pipeline_settings: Settings, tiny_model_bundle: Path, tiny_embeddings: NDArray[np.float32], tmp_path: Path
) -> None:
    histories = [[row, (row * 7 + 1) % KNOWN, (row * 3 + 2) % KNOWN] for row in range(KNOWN)]
    names = [f"item-{number}" for number in range(KNOWN)]
    weights = MixtureWeights(sharpness=9.0, share=0.4, together=0.3)
    bundle = dense_bundle(tiny_model_bundle, tmp_path / "bundle", tiny_embeddings, names, histories, weights)
    settings = pipeline_settings.model_copy(update={"bundle": tmp_path / "bundle"})
    whole = changed(settings, tmp_path / "whole", 1, "")
    one, two = (changed(settings, tmp_path / name, 2, held) for name, held in (("one", "0,3"), ("two", "1-2")))

    def process(own: Settings, command: str) -> SidstreamProcess:
        return SidstreamProcess(own, command, tmp_path, name=f"{command}-{own.index.name}")

    with (
        process(whole, "assigner"),
        process(one, "indexer"),
        process(two, "indexer"),
        process(one, "retriever") as first,
        process(two, "retriever") as second,
        Client(one) as client,
    ):
        with ItemPublisher(settings) as publisher:
            for number, embedding in enumerate(tiny_embeddings[:ITEMS]):
                publisher.update(
                    f"item-{number}",
                    embedding,
                    title=f"thing {number}",
                    weight=1.0 + number % 5,
                    updated_at=1_700_000_000_000 + number,
                    attributes={"price": number % 10},
                )
        wait_until(lambda: items_in(one) + items_in(two) == ITEMS, what="all items in one of the shards")
        assert min(items_in(one), items_in(two)) > ITEMS // 4

        queries = asked(tiny_embeddings)
        answers = client.ask_all(queries, timeout_seconds=PATIENCE_SECONDS)
        rebuild(whole, whole.index)
        expected = answers_of_one_index(whole, bundle, queries)
        for own, other in zip(answers, expected, strict=True):
            assert (own.error, own.missing_partitions, own.part) == (None, UNSET, UNSET)
            assert [item.item_id for item in own.items] == [item.item_id for item in other.items]
            assert [item.score for item in own.items] == pytest.approx([item.score for item in other.items], abs=1e-4)
            assert (own.legs, own.search, own.skipped_history) == (other.legs, other.search, other.skipped_history)
            assert own.position.keys() == other.position.keys()
        # However many rounds and shards, a question is one query with one answer.
        assert [found.answered for found in hit_rates(settings, 0).bundles] == [len(queries)]

        # Who does not know of shards is told, and gets no half of an answer.
        with Client(whole) as unaware, pytest.raises(ClientError, match=r"set retriever\.shards"):
            unaware.ask("thing number 7", timeout_seconds=PATIENCE_SECONDS)
        refused = client.ask("thing number 7", slate=[{"per": "sid", "most": 1}], timeout_seconds=PATIENCE_SECONDS)
        assert refused.error is not None
        assert refused.error.kind == "NotOverShards"

        second.kill()
        partial = client.ask("thing number 7", limit=20, timeout_seconds=30)
        assert partial.missing_partitions == (1, 2)
        assert "no shard that holds the partitions 1-2" in str(partial.note)
        assert 0 < len(partial.items) <= 20
        second.start()
        again = client.ask("thing number 7", limit=20, timeout_seconds=PATIENCE_SECONDS)
        assert again.items == answers[0].items

        assert first.stop() == 0
        assert second.stop() == 0

    mistaken = changed(settings, two.index, 2, "0,3")
    with SidstreamProcess(mistaken, "retriever", tmp_path, name="mistaken") as retriever:
        assert retriever.wait() != 0
        assert "the index holds the partitions 1-2 and this host is to hold the partitions 0,3" in retriever.log()
