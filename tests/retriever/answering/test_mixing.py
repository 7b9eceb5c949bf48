"""Both legs on a real index and a (tiny) model: which ran, what they found, freshness, exclusions, a bundle without a model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from models.attributes import AttributeType, encode_attributes
from models.bundles.bundle import Bundle
from models.bundles.model_of_bundle import load_language_model
from models.codebooks.codebook import Codebook
from models.dense.vectors import quantise
from retriever.answering.answers import NOTHING_TO_GO_ON, Answerer
from retriever.answering.asked import Asked
from store.reading.reader import IndexReader
from store.records.batch import CodesBatch
from store.writing.writer import IndexWriter
from streamer.events.records import Answer, Query
from streamer.filters.grammar import Filter
from streamer.filters.reading import read_filter
from streamer.settings.retriever import RetrieverSettings
from support.dense_bundles import dense_bundle
from support.filter_cases import LIMITS

LIVE, KNOWN = 300, 250
IDS = [f"item-{number}" for number in range(400)]


PRICES = {"price": "number"}


def cheaper_than(price: int) -> Filter:
    asked = json.dumps({"field": "price", "lt": price}).encode()
    return read_filter(asked, PRICES, LIMITS, of_json=True)


def batch(
    numbers: list[int],
    codebook: Codebook,
    embeddings: NDArray[np.float32],
    *,
    vectors: bool = True,
    deleted: bool = False,
) -> CodesBatch:
    count = len(numbers)
    return CodesBatch(
        ids=[IDS[number].encode() for number in numbers],
        codes=codebook.encode(embeddings[numbers]),
        weights=np.ones(count, np.float32),
        titles=[f"title of {number}" for number in numbers],
        updated_at=np.zeros(count, np.int64),
        deleted=np.full(count, deleted),
        vectors=quantise(embeddings[numbers]).encode() if vectors else None,
        attributes=[encode_attributes({"price": number % 10}) for number in numbers],
    )


@pytest.fixture
def bundle(tiny_model_bundle: Path, tmp_path: Path, tiny_embeddings: NDArray[np.float32]) -> Bundle:
    """With a model, and a dense part that knows the first 250 items."""
    return dense_bundle(tiny_model_bundle, tmp_path / "bundle", tiny_embeddings, IDS[:KNOWN])


@pytest.fixture
def codebook(bundle: Bundle) -> Codebook:
    return Codebook.load(bundle.codebook_path)


@pytest.fixture
def writer(
    tmp_path: Path, bundle: Bundle, codebook: Codebook, tiny_embeddings: NDArray[np.float32]
) -> Iterator[IndexWriter]:
    layout = bundle.layout
    with IndexWriter.open(
        tmp_path / "index", codebook_id=layout.codebook_id, layers=layout.layers, size=layout.size
    ) as writer:
        writer.apply(batch(list(range(LIVE)), codebook, tiny_embeddings), {("item-codes", 0): LIVE})
        yield writer


@pytest.mark.parametrize("price", [1, 4, 9])
def test_filtered_answer_of_both_legs_is_that_of_an_index_of_the_eligible_items(
    bundle: Bundle,
    writer: IndexWriter,
    codebook: Codebook,
    tiny_embeddings: NDArray[np.float32],
    tmp_path: Path,
    price: int,
) -> None:
    layout = bundle.layout
    eligible = [number for number in range(LIVE) if number % 10 < price]
    queries = [
        Query(text="thing number 7", embedding=tiny_embeddings[31].tolist(), limit=20, search="exact"),
        Query(history=(IDS[eligible[3]], IDS[eligible[-1]]), limit=20, search="exact"),
        Query(embedding=tiny_embeddings[290].tolist(), limit=20),
    ]
    with IndexWriter.open(
        tmp_path / "alone", codebook_id=layout.codebook_id, layers=layout.layers, size=layout.size
    ) as alone:
        alone.apply(batch(eligible, codebook, tiny_embeddings), {})
        expected = answerer(bundle, alone).answers([Asked(str(at), query) for at, query in enumerate(queries)])
    wanted = cheaper_than(price)
    filtered = answerer(bundle, writer, filterable=PRICES).answers(
        [Asked(str(at), query, filter=wanted) for at, query in enumerate(queries)]
    )
    for own, other in zip(filtered, expected, strict=True):
        assert [item.item_id for item in own.items] == [item.item_id for item in other.items]
        assert [item.score for item in own.items] == pytest.approx([item.score for item in other.items], abs=1e-4)
        assert [item.found_by for item in own.items] == [item.found_by for item in other.items]
        assert own.legs == other.legs


def answerer(
    bundle: Bundle,
    writer: IndexWriter,
    *,
    has_model: bool = True,
    filterable: dict[str, AttributeType] | None = None,
    **settings: Any,
) -> Answerer:
    model, prompts = load_language_model(bundle) if has_model else (None, None)
    return Answerer(
        bundle=bundle,
        model=model,
        prompts=prompts,
        reader=IndexReader(writer.path),
        settings=RetrieverSettings(maximum_limit=LIVE, **settings),
        filterable=filterable,
    )


def ask(answering: Answerer, **query: Any) -> Answer:
    return answering.answers([Asked("q", Query(**query))])[0]


def nearest(embeddings: NDArray[np.float32], target: int, of: list[int]) -> list[str]:
    rows = embeddings[of] / np.linalg.norm(embeddings[of], axis=1, keepdims=True)
    return [IDS[of[row]] for row in np.argsort(-(rows @ embeddings[target]), kind="stable")[:5]]


def test_embedding_beside_a_text_is_answered_by_both_legs_which_name_what_they_found(
    bundle: Bundle, writer: IndexWriter, tiny_embeddings: NDArray[np.float32]
) -> None:
    answer = ask(answerer(bundle, writer), text="thing number 7", embedding=tiny_embeddings[280].tolist(), limit=LIVE)
    assert answer.legs == ("model", "dense")
    assert [item.score for item in answer.items] == sorted((item.score for item in answer.items), reverse=True)
    assert sum(np.exp(item.score) for item in answer.items) <= 1 + 1e-3
    found_by = {item.item_id: item.found_by for item in answer.items}
    assert set(found_by.values()) <= {"model", "dense", "both"}
    assert {"dense", "both"} & set(found_by.values())
    new = {item.item_id for item in answer.items if item.new is True}
    assert new == {item for item in found_by if int(item.removeprefix("item-")) >= KNOWN}
    # An item that training did not know is found by its own embedding.
    assert IDS[280] in [item.item_id for item in answer.items[:3]]


def test_text_alone_is_answered_by_the_model_as_without_a_dense_leg_and_the_answer_says_why(
    bundle: Bundle, writer: IndexWriter
) -> None:
    mixing = ask(answerer(bundle, writer), text="thing number 7")
    without = ask(answerer(bundle, writer, dense=False), text="thing number 7")
    assert mixing.items == without.items
    assert mixing.legs == ("model",)
    assert "send an embedding" in mixing.note
    assert not without.legs


def test_prompt_of_nothing_leaves_the_answer_to_the_nearest_vectors(
    bundle: Bundle, writer: IndexWriter, tiny_embeddings: NDArray[np.float32]
) -> None:
    answer = ask(answerer(bundle, writer), embedding=tiny_embeddings[290].tolist(), limit=5)
    assert answer.legs == ("dense",)
    assert "the model knows nothing" in answer.note
    assert [item.item_id for item in answer.items] == nearest(tiny_embeddings, 290, list(range(LIVE)))
    assert {item.found_by for item in answer.items} == {"dense"}


def test_bundle_without_a_model_serves_embeddings_and_histories_and_says_so(
    bundle: Bundle, writer: IndexWriter, tiny_embeddings: NDArray[np.float32]
) -> None:
    alone = answerer(bundle, writer, has_model=False)
    answer = ask(alone, embedding=tiny_embeddings[17].tolist(), limit=5)
    assert (answer.legs, answer.error) == (("dense",), None)
    assert "no language model yet" in answer.note
    assert [item.item_id for item in answer.items] == nearest(tiny_embeddings, 17, list(range(LIVE)))
    history = ask(alone, history=(IDS[17], "gone"), limit=5)
    others = [number for number in range(LIVE) if number != 17]
    assert [item.item_id for item in history.items] == nearest(tiny_embeddings, 17, others)
    assert history.skipped_history == ("gone",)
    nothing = ask(alone, text="a text without a tower")
    assert nothing.error is not None
    assert nothing.error.kind == NOTHING_TO_GO_ON
    assert "sidstream train" in nothing.error.message


def test_item_is_found_by_its_vector_as_soon_as_it_is_indexed_and_gone_with_its_deletion(
    bundle: Bundle, writer: IndexWriter, codebook: Codebook, tiny_embeddings: NDArray[np.float32]
) -> None:
    answering = answerer(bundle, writer)
    asked = {"embedding": tiny_embeddings[350].tolist(), "limit": 3}
    assert IDS[350] not in [item.item_id for item in ask(answering, **asked).items]
    writer.apply(batch([350], codebook, tiny_embeddings), {("item-codes", 0): LIVE + 1})
    first = ask(answering, **asked).items[0]
    assert (first.item_id, first.new) == (IDS[350], True)
    moved = tiny_embeddings.copy()
    moved[350] = -moved[350]
    writer.apply(batch([350], codebook, moved), {})
    assert IDS[350] not in [item.item_id for item in ask(answering, **asked).items]
    assert ask(answering, embedding=moved[350].tolist()).items[0].item_id == IDS[350]
    writer.apply(batch([350], codebook, moved, deleted=True), {})
    assert IDS[350] not in [item.item_id for item in ask(answering, embedding=moved[350].tolist(), limit=LIVE).items]


def test_excluded_items_and_those_of_the_history_are_not_answered_by_either_leg(
    bundle: Bundle, writer: IndexWriter, tiny_embeddings: NDArray[np.float32]
) -> None:
    answering = answerer(bundle, writer)
    asked = {"text": "thing", "embedding": tiny_embeddings[9].tolist(), "limit": LIVE}
    answer = ask(answering, **asked, history=(IDS[9],), exclude=(IDS[10], "unknown"))
    named = {item.item_id for item in answer.items}
    assert not named & {IDS[9], IDS[10]}
    assert IDS[9] in {item.item_id for item in ask(answering, **asked, history=(IDS[9],), exclude_history=False).items}


def test_items_of_an_older_index_are_found_by_the_model_and_their_history_says_nothing(
    bundle: Bundle, writer: IndexWriter, codebook: Codebook, tiny_embeddings: NDArray[np.float32]
) -> None:
    answering = answerer(bundle, writer)
    with_vectors = ask(answering, text="thing number 7", embedding=tiny_embeddings[9].tolist(), limit=20)
    writer.apply(batch(list(range(LIVE)), codebook, tiny_embeddings, vectors=False), {})
    asked = {"text": "thing number 7", "limit": 20}
    without = ask(answering, **asked, embedding=tiny_embeddings[9].tolist())
    model = ask(answerer(bundle, writer, dense=False), **asked)
    assert with_vectors.items != without.items
    assert [item.item_id for item in without.items] == [item.item_id for item in model.items]
    assert {item.found_by for item in without.items} == {"model"}
    assert ask(answering, history=(IDS[9],)).legs == ("model",)


def test_queries_of_many_kinds_in_a_batch_are_answered_as_one_by_one(
    bundle: Bundle, writer: IndexWriter, tiny_embeddings: NDArray[np.float32]
) -> None:
    answering = answerer(bundle, writer)
    queries = [
        Query(text="thing number 7", embedding=tiny_embeddings[3].tolist()),
        Query(text="thing number 7"),
        Query(history=(IDS[5], IDS[6])),
        Query(embedding=tiny_embeddings[270].tolist(), limit=3),
        Query(text="thing", history=(IDS[20],), limit=200),
    ]
    together = answering.answers([Asked(str(number), query) for number, query in enumerate(queries)])
    for batched, query in zip(together, queries, strict=True):
        [single] = answering.answers([Asked("alone", query)])
        assert [item.item_id for item in batched.items] == [item.item_id for item in single.items]
        assert [item.score for item in batched.items] == pytest.approx([item.score for item in single.items], abs=1e-4)
        assert (batched.legs, batched.note) == (single.legs, single.note)
