"""Answers by the search on the device are those by the host's, filters and histories included."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from models.bundles.bundle import Bundle
from models.bundles.model_of_bundle import load_language_model
from models.codebooks.codebook import Codebook
from retriever.answering import searches
from retriever.answering.answers import Answerer
from retriever.answering.asked import Asked
from retriever.device_search import search as device_search
from store.reading.reader import IndexReader
from store.records.batch import CodesBatch
from store.writing.writer import IndexWriter
from streamer.events.records import Answer, Query
from streamer.settings.retriever import RetrieverSettings

LIVE = 300


@pytest.fixture
def writer(tmp_path: Path, tiny_model_bundle: Path, tiny_embeddings: NDArray[np.float32]) -> Iterator[IndexWriter]:
    bundle = Bundle.open(tiny_model_bundle, need_model=True)
    layout = bundle.layout
    with IndexWriter.open(
        tmp_path / "index", codebook_id=layout.codebook_id, layers=layout.layers, size=layout.size
    ) as writer:
        codes = Codebook.load(bundle.codebook_path).encode(tiny_embeddings[:LIVE])
        writer.apply(batch(range(LIVE), codes), {})
        yield writer


def batch(numbers: Any, codes: NDArray[np.uint16], *, deleted: bool = False) -> CodesBatch:
    ids = [f"item-{number}".encode() for number in numbers]
    count = len(ids)
    return CodesBatch(
        ids, codes, np.ones(count, np.float32), [""] * count, np.zeros(count, np.int64), np.full(count, deleted)
    )


def test_answers_are_the_hosts_while_the_index_changes_under_histories_and_exclusions(
    writer: IndexWriter, tiny_model_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(tiny_model_bundle, need_model=True)
    model, prompts = load_language_model(bundle)
    searched = []
    run = device_search.DeviceSearch._search

    def counted(self: Any, prompts: Any, *arguments: Any) -> Any:
        searched.append(len(prompts))
        return run(self, prompts, *arguments)

    monkeypatch.setattr(device_search.DeviceSearch, "_search", counted)
    queries = [
        Query(text="thing number 7", limit=20),
        Query(text="thing", history=("item-3", "item-90"), limit=20),
        Query(text="red", history=("item-3",), exclude=("item-7", "item-8"), limit=20),
    ]

    def ask(answerer: Answerer) -> list[Answer]:
        return answerer.answers([Asked(str(number), query) for number, query in enumerate(queries)])

    with IndexReader(writer.path) as reader:
        answerers = []
        for on_device in (True, False):
            monkeypatch.setattr(searches, "is_for", lambda _, on_device=on_device: on_device)
            answerers.append(
                Answerer(
                    bundle=bundle, model=model, prompts=prompts, reader=reader, settings=RetrieverSettings(dense=False)
                )
            )
        for turn in range(4):
            ours, theirs = (ask(answerer) for answerer in answerers)
            for mine, other in zip(ours, theirs, strict=True):
                assert [item.item_id for item in mine.items] == [item.item_id for item in other.items]
                assert len(mine.items) == 20
                assert [item.score for item in mine.items] == pytest.approx(
                    [item.score for item in other.items], abs=1e-4
                )
            gone = [int(item.item_id.removeprefix("item-")) for item in ours[0].items[:5]]
            codes = np.array([stored.codes for stored in _stored(reader, gone)], np.uint16)
            writer.apply(batch(gone, codes, deleted=turn % 2 == 0), {})
    assert searched.count(3) == 4
    assert set(searched) == {2, 3}, "probes of two prompts, and nothing but the batches"


def _stored(reader: IndexReader, numbers: list[int]) -> Any:
    with reader.snapshot() as snapshot:
        return snapshot.find([f"item-{number}".encode() for number in numbers])
