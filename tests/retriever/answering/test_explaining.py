"""An explained answer on a real index and a (tiny) model: every figure is that of the search, the mixture and the index."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from models.attributes import encode_attributes
from models.bundles.bundle import Bundle
from models.bundles.model_of_bundle import load_language_model
from models.codebooks.codebook import Codebook
from models.dense.vectors import quantise
from models.sids.layout import Layout
from retriever.answering.answers import Answerer
from retriever.answering.asked import Asked
from store.reading.reader import IndexReader
from store.records.batch import CodesBatch
from store.writing.writer import IndexWriter
from streamer.events.records import Answer, AnswerExplanation, AnswerItem, ItemExplanation, Query
from streamer.filters.reading import read_filter
from streamer.settings.retriever import RetrieverSettings
from support.dense_bundles import dense_bundle
from support.filter_cases import LIMITS

LIVE, KNOWN = 300, 250
IDS = [f"item-{number}" for number in range(LIVE)]


@pytest.fixture
def bundle(tiny_model_bundle: Path, tmp_path: Path, tiny_embeddings: NDArray[np.float32]) -> Bundle:
    """With a model, and a dense part that knows the first 250 items."""
    return dense_bundle(tiny_model_bundle, tmp_path / "bundle", tiny_embeddings, IDS[:KNOWN])


@pytest.fixture
def writer(tmp_path: Path, bundle: Bundle, tiny_embeddings: NDArray[np.float32]) -> Iterator[IndexWriter]:
    """300 items of unequal weights, their numbers' last digit as a price."""
    layout = bundle.layout
    items = CodesBatch(
        ids=[item_id.encode() for item_id in IDS],
        codes=Codebook.load(bundle.codebook_path).encode(tiny_embeddings[:LIVE]),
        weights=np.arange(1, LIVE + 1, dtype=np.float32),
        titles=IDS,
        updated_at=np.zeros(LIVE, np.int64),
        deleted=np.zeros(LIVE, np.bool_),
        vectors=quantise(tiny_embeddings[:LIVE]).encode(),
        attributes=[encode_attributes({"price": number % 10}) for number in range(LIVE)],
    )
    with IndexWriter.open(
        tmp_path / "index", codebook_id=layout.codebook_id, layers=layout.layers, size=layout.size
    ) as writer:
        writer.apply(items, {("item-codes", 0): LIVE})
        writer.put_layout(layout, {})
        yield writer


def answer_of(bundle: Bundle, writer: IndexWriter, query: Query, price: int | None = None, **settings: Any) -> Answer:
    model, prompts = load_language_model(bundle)
    answerer = Answerer(
        bundle=bundle,
        model=model,
        prompts=prompts,
        reader=IndexReader(writer.path),
        settings=RetrieverSettings(maximum_limit=LIVE, **settings),
        filterable={"price": "number"},
    )
    wanted = None
    if price is not None:
        clause = json.dumps({"field": "price", "lt": price}).encode()
        wanted = read_filter(clause, {"price": "number"}, LIMITS, of_json=True)
    return answerer.answers([Asked("q", query, filter=wanted)])[0]


def why(item: AnswerItem) -> ItemExplanation:
    assert isinstance(item.explanation, ItemExplanation)
    return item.explanation


def number(value: object) -> float:
    assert isinstance(value, float)
    return value


@pytest.mark.parametrize("search", ["beam", "exact"])
def test_layers_and_share_of_an_item_add_up_to_its_score(bundle: Bundle, writer: IndexWriter, search: Any) -> None:
    answer = answer_of(bundle, writer, Query(text="thing number 7", limit=30, search=search, explain=True))
    assert len(answer.items) == 30
    for item in answer.items:
        explanation = why(item)
        assert isinstance(explanation.by_layer, dict)
        assert "".join(explanation.by_layer) == item.sid
        assert sum(explanation.by_layer.values()) == pytest.approx(number(explanation.log_sid), abs=1e-4)
        assert number(explanation.log_sid) + np.log(explanation.share) == pytest.approx(item.score, abs=1e-4)
        assert number(explanation.log_model) == pytest.approx(item.score, abs=1e-4)
        assert (explanation.log_dense, explanation.cosine) == (msgspec.UNSET, msgspec.UNSET)
    assert isinstance(answer.explanation, AnswerExplanation)
    assert isinstance(answer.explanation.expansions, int) == (search == "exact")
    assert answer.explanation.sharpness is msgspec.UNSET


def test_share_counts_the_eligible_items_of_the_sid_by_their_weight(bundle: Bundle, writer: IndexWriter) -> None:
    query = Query(text="thing", history=(IDS[0], IDS[3], IDS[9]), limit=LIVE, explain=True)
    answer = answer_of(bundle, writer, query, price=5, dense=False)
    eligible = [number for number in range(LIVE) if number % 10 < 5 and number not in (0, 3)]
    with writer.snapshot() as snapshot:
        stored = snapshot.find([IDS[number].encode() for number in eligible])
    sids = {item.id.decode(): bundle.layout.sid_text(item.codes) for item in stored if item is not None}
    holders, weights = Counter(sids.values()), Counter[str]()
    for item_id, sid in sids.items():
        weights[sid] += 1 + int(item_id.removeprefix("item-"))
    assert max(holders.values()) > 1, "some SID is shared, or nothing is tested"
    for item in answer.items:
        assert why(item).sid_items == holders[item.sid]
        own = 1 + int(item.item_id.removeprefix("item-"))
        assert why(item).share == pytest.approx(own / weights[item.sid], abs=1e-5)
    assert isinstance(answer.explanation, AnswerExplanation)
    # Item 9 costs 9: the filter has it out already.
    figures = (answer.explanation.live_items, answer.explanation.let_through, answer.explanation.excluded)
    assert figures == (LIVE, LIVE // 2, 2)


@pytest.mark.parametrize("search", ["beam", "exact"])
def test_probability_of_a_token_is_a_share_of_its_layer_where_the_settings_say_so(
    bundle: Bundle, writer: IndexWriter, search: Literal["beam", "exact"]
) -> None:
    query = Query(text="thing number 7", limit=20, explain=True, search=search)
    of_all = answer_of(bundle, writer, query, dense=False)
    of_layer = answer_of(bundle, writer, query, dense=False, normaliser="layers")
    known = {item.item_id: why(item) for item in of_all.items}
    both = [item for item in of_layer.items if item.item_id in known]
    assert len(both) > 5
    for item in of_layer.items:
        layers = why(item).by_layer
        assert isinstance(layers, dict)
        assert sum(layers.values()) == pytest.approx(number(why(item).log_sid), abs=1e-4)
    for item in both:
        assert number(why(item).log_sid) > number(known[item.item_id].log_sid)


def test_parts_of_the_mixture_make_its_score(
    bundle: Bundle, writer: IndexWriter, tiny_embeddings: NDArray[np.float32]
) -> None:
    query = Query(text="thing number 7", embedding=tiny_embeddings[280].tolist(), limit=60, explain=True)
    answer = answer_of(bundle, writer, query, boost_of_new=0.5)
    about = answer.explanation
    assert isinstance(about, AnswerExplanation)
    assert (about.sharpness, about.share_of_dense, about.share_of_dense_new, about.boost_of_new) == (
        12.0,
        0.5,
        1.0,
        0.5,
    )
    assert {item.found_by for item in answer.items} >= {"dense", "both"}
    for item in answer.items:
        explanation = why(item)
        assert (explanation.log_model is msgspec.UNSET) == (item.found_by == "dense")
        share, boost = (1.0, 0.5) if item.new is True else (0.5, 0.0)
        parts = share * np.exp(number(explanation.log_dense) + boost)
        if explanation.log_model is not msgspec.UNSET:
            parts += (1 - share) * np.exp(number(explanation.log_model))
        assert np.log(parts) == pytest.approx(item.score, abs=1e-4)
        own = tiny_embeddings[int(item.item_id.removeprefix("item-"))]
        cosine = own @ tiny_embeddings[280] / np.linalg.norm(own) / np.linalg.norm(tiny_embeddings[280])
        assert number(explanation.cosine) == pytest.approx(cosine, abs=0.01)


def test_marginal_layout_gives_the_sum_alone_and_says_why(bundle: Bundle, writer: IndexWriter) -> None:
    own = bundle.layout
    with writer.snapshot() as snapshot:
        used = sorted({item.codes[1] for item in snapshot.find([IDS[0].encode(), IDS[7].encode()]) if item is not None})
    writer.put_layout(Layout(own.generation + 1, own.codebook_id, own.layers, own.size, tuple(used)), {})
    answer = answer_of(bundle, writer, Query(text="thing number 7", explain=True), layout="marginal", dense=False)
    assert answer.items
    for item in answer.items:
        assert why(item).by_layer is msgspec.UNSET
        assert number(why(item).log_sid) + np.log(why(item).share) == pytest.approx(item.score, abs=1e-4)
    assert isinstance(answer.explanation, AnswerExplanation)
    assert "is not told by layer" in answer.explanation.layout_reason


def test_query_that_does_not_ask_gets_the_same_items_and_no_explanation(bundle: Bundle, writer: IndexWriter) -> None:
    plain = answer_of(bundle, writer, Query(text="thing number 7"))
    explained = answer_of(bundle, writer, Query(text="thing number 7", explain=True))
    assert plain.explanation is msgspec.UNSET
    assert plain.items == tuple(msgspec.structs.replace(item, explanation=msgspec.UNSET) for item in explained.items)
