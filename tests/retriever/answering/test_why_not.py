"""Why an item is not answered, on a real index and a (tiny) model: each reason, held against a search that drops nothing."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from confluent_kafka import Message
from numpy.typing import NDArray

from models.attributes import encode_attributes
from models.bundles.bundle import Bundle
from models.bundles.model_of_bundle import load_language_model
from models.codebooks.codebook import Codebook
from models.dense.vectors import quantise
from models.sids.layout import Layout
from retriever.answering.admission import Admission, BundleLimits
from retriever.answering.answers import Answerer
from retriever.answering.asked import Asked
from store.reading.reader import IndexReader
from store.records.batch import CodesBatch
from store.writing.writer import IndexWriter
from streamer.events.intake import EventError
from streamer.events.records import ANSWER, Answer, ItemExplanation, NotAnswered, Query
from streamer.filters.grammar import Filter
from streamer.filters.reading import read_filter
from streamer.settings.retriever import RetrieverSettings
from support.dense_bundles import dense_bundle
from support.filter_cases import LIMITS

LIVE, KNOWN = 120, 100
IDS = [f"item-{number}" for number in range(LIVE)]
TYPES: dict[str, Any] = {"price": "number", "brand": "string"}


@pytest.fixture
def bundle(tiny_model_bundle: Path, tmp_path: Path, tiny_embeddings: NDArray[np.float32]) -> Bundle:
    """With a model, and a dense part that knows the first items."""
    return dense_bundle(tiny_model_bundle, tmp_path / "bundle", tiny_embeddings, IDS[:KNOWN])


@pytest.fixture
def items(bundle: Bundle, tiny_embeddings: NDArray[np.float32]) -> CodesBatch:
    """Items of unequal weights, their numbers' last digit as a price."""
    return CodesBatch(
        ids=[item_id.encode() for item_id in IDS],
        codes=Codebook.load(bundle.codebook_path).encode(tiny_embeddings[:LIVE]),
        weights=np.arange(1, LIVE + 1, dtype=np.float32),
        titles=IDS,
        updated_at=np.zeros(LIVE, np.int64),
        deleted=np.zeros(LIVE, np.bool_),
        vectors=quantise(tiny_embeddings[:LIVE]).encode(),
        attributes=[encode_attributes({"price": number % 10, "brand": "Acme"}) for number in range(LIVE)],
    )


@pytest.fixture
def writer(tmp_path: Path, bundle: Bundle, items: CodesBatch) -> Iterator[IndexWriter]:
    layout = bundle.layout
    with IndexWriter.open(
        tmp_path / "index", codebook_id=layout.codebook_id, layers=layout.layers, size=layout.size
    ) as writer:
        writer.apply(items, {("item-codes", 0): LIVE})
        writer.put_layout(layout, {})
        yield writer


def answer_of(
    bundle: Bundle,
    writer: IndexWriter,
    query: Query,
    wanted: Filter | None = None,
    *,
    has_model: bool = True,
    **settings: Any,
) -> Answer:
    model, prompts = load_language_model(bundle) if has_model else (None, None)
    answerer = Answerer(
        bundle=bundle,
        model=model,
        prompts=prompts,
        reader=IndexReader(writer.path),
        settings=RetrieverSettings(maximum_limit=LIVE, **settings),
        filterable=TYPES,
    )
    return answerer.answers([Asked("q", query, filter=wanted)])[0]


def missing(answer: Answer) -> dict[str, NotAnswered]:
    assert isinstance(answer.why_not, tuple)
    return {one.item_id: one for one in answer.why_not}


def test_absent_deleted_excluded_filtered_and_answered_items_are_told_apart(
    bundle: Bundle, writer: IndexWriter, items: CodesBatch
) -> None:
    gone = dataclasses.replace(
        items,
        **{
            field.name: getattr(items, field.name)[:1]
            for field in dataclasses.fields(items)
            if getattr(items, field.name) is not None
        },
    )
    gone = dataclasses.replace(
        gone,
        deleted=np.ones(1, np.bool_),
        partitions=np.full(1, 3, np.int32),
        timestamps=np.full(1, 1_700_000_000_000, np.int64),
    )
    writer.apply(gone, {("item-codes", 0): LIVE + 1})
    clauses = [{"field": "price", "lt": 5}, {"field": "brand", "eq": "Acme"}]
    wanted = read_filter(json.dumps({"all": clauses}).encode(), TYPES, LIMITS, of_json=True)
    asked = ("never", IDS[0], IDS[1], IDS[2], IDS[9], "")
    query = Query(text="x", history=(IDS[2],), exclude=(IDS[1],), limit=LIVE, why_not=asked)
    answer = answer_of(bundle, writer, query, wanted)
    assert isinstance(answer.why_not, tuple)
    assert tuple(one.item_id for one in answer.why_not) == asked
    why = missing(answer)
    assert why["never"].reason == why[""].reason == "not_indexed"
    assert (why[IDS[0]].reason, why[IDS[0]].partition, why[IDS[0]].deleted_at) == ("deleted", 3, 1_700_000_000_000)
    assert "2023-11-14T22:13:20" in why[IDS[0]].message
    assert why[IDS[1]].reason == why[IDS[2]].reason == "excluded"
    assert ("exclude names it" in why[IDS[1]].message, "history" in why[IDS[2]].message) == (True, True)
    assert why[IDS[9]].reason == "not_let_through"
    assert why[IDS[9]].clauses == ('{"field":"price","lt":5}',)
    first = answer.items[0].item_id
    query = Query(text="x", history=(IDS[2],), exclude=(IDS[1],), why_not=(first,))
    again = missing(answer_of(bundle, writer, query, wanted))[first]
    assert (again.reason, again.rank) == ("answered", 1)


@pytest.mark.parametrize("with_vector", [False, True])
@pytest.mark.parametrize("layout", ["pinned", "marginal"])
def test_item_that_is_not_answered_has_the_score_of_a_search_that_drops_nothing(
    bundle: Bundle, writer: IndexWriter, tiny_embeddings: NDArray[np.float32], with_vector: bool, layout: Any
) -> None:
    if layout == "marginal":
        own = bundle.layout
        with writer.snapshot() as snapshot:
            used = sorted({item.codes[1] for item in snapshot.find([item.encode() for item in IDS[:20]]) if item})
        writer.put_layout(Layout(own.generation + 1, own.codebook_id, own.layers, own.size, tuple(used)), {})
    embedding: Any = tiny_embeddings[110].tolist() if with_vector else msgspec.UNSET
    everything = answer_of(bundle, writer, Query(text="thing 7", embedding=embedding, limit=LIVE), layout=layout)
    assert len(everything.items) == LIVE
    score = {item.item_id: item.score for item in everything.items}
    few = answer_of(
        bundle, writer, Query(text="thing 7", embedding=embedding, limit=4, why_not=tuple(IDS)), layout=layout, beams=4
    )
    worst, ranks = few.items[-1].score, {item.item_id for item in few.items}
    for item_id, why in missing(few).items():
        assert why.score == pytest.approx(score[item_id], abs=1e-3)
        if item_id in ranks:
            assert why.reason == "answered"
            continue
        assert why.worst_score == worst
        if abs(score[item_id] - worst) > 1e-2:
            assert why.reason == ("outscored" if score[item_id] < worst else "beyond_search")


def test_best_item_that_a_beam_of_one_loses_is_said_to_be_lost_and_at_which_layer(
    bundle: Bundle, writer: IndexWriter
) -> None:
    lost_at = []
    for number in range(30):
        text = f"thing number {number}"
        exact = answer_of(bundle, writer, Query(text=text, limit=LIVE, search="exact", explain=True), dense=False)
        best = exact.items[0]
        greedy = answer_of(
            bundle, writer, Query(text=text, limit=1, explain=True, why_not=(best.item_id,)), beams=1, dense=False
        )
        why = missing(greedy)[best.item_id]
        if why.reason == "answered":
            continue
        if greedy.items[0].sid == best.sid:
            continue
        assert why.reason == "beyond_search"
        assert isinstance(why.score, float)
        assert why.score > greedy.items[0].score
        # An exact search for one SID helps where that SID is the best one.
        explanation = greedy.items[0].explanation
        assert isinstance(explanation, ItemExplanation)
        assert isinstance(explanation.log_sid, float)
        assert isinstance(why.log_sid, float)
        assert ('search "exact"' in why.message) == (why.log_sid > explanation.log_sid)
        # What a beam of one keeps at layer 1 is the first token of its answer.
        same_first = greedy.items[0].sid.partition(">")[0] == best.sid.partition(">")[0]
        assert isinstance(why.lost_at_layer, int)
        assert isinstance(why.lost_by, float)
        assert (why.lost_at_layer == 1) != same_first
        assert why.lost_by >= 0
        lost_at.append(why.lost_at_layer)
    assert lost_at, "no beam of one lost the best item, so nothing is tested"


def test_outscored_item_names_the_layer_at_which_its_sid_fell_and_by_how_much(
    bundle: Bundle, writer: IndexWriter
) -> None:
    answer = answer_of(
        bundle, writer, Query(text="thing 7", limit=2, explain=True, why_not=tuple(IDS)), beams=2, dense=False
    )
    first_layers = sorted(
        {
            token: value
            for one in missing(answer).values()
            if isinstance(one.by_layer, dict)
            for token, value in list(one.by_layer.items())[:1]
        }.values(),
        reverse=True,
    )
    fell = [one for one in missing(answer).values() if one.lost_at_layer == 1]
    assert fell
    kept = {next(iter(item.explanation.by_layer.values())) for item in answer.items if item.explanation}  # type: ignore[union-attr]
    for one in fell:
        assert isinstance(one.by_layer, dict)
        assert isinstance(one.lost_by, float)
        # The worse of the two layer-1 tokens that two beams keep.
        second = sorted({*first_layers, *kept}, reverse=True)[1]
        assert one.lost_by == pytest.approx(second - next(iter(one.by_layer.values())), abs=1e-4)


def test_item_that_neither_leg_can_say_anything_of_is_not_scored(bundle: Bundle, writer: IndexWriter) -> None:
    answer = answer_of(bundle, writer, Query(text="x", why_not=(IDS[3],)), has_model=False)
    assert answer.error is not None
    assert missing(answer)[IDS[3]].reason == "not_scored"


def test_scores_that_are_not_finite_leave_an_answer_that_can_be_read(bundle: Bundle, writer: IndexWriter) -> None:
    with writer.snapshot() as snapshot:
        (item,) = snapshot.find([IDS[3].encode()])
    assert item is not None
    model, prompts = load_language_model(bundle)
    assert model is not None
    assert prompts is not None
    # The last layer's token of this item, and of all that share it, is impossible.
    row = prompts.vocabulary.layer_range(bundle.layout.layers - 1)[item.codes[-1]]
    bias = torch.zeros(prompts.vocabulary.total)
    bias[row] = -torch.inf
    model.get_output_embeddings().bias = torch.nn.Parameter(bias, requires_grad=False)
    answerer = Answerer(
        bundle=bundle,
        model=model,
        prompts=prompts,
        reader=IndexReader(writer.path),
        settings=RetrieverSettings(dense=False),
    )
    query = Query(text="x", limit=5, explain=True, why_not=(IDS[3],))
    (answer,) = answerer.answers([Asked("q", query)])
    why = missing(ANSWER.decode(ANSWER.encode(answer)))[IDS[3]]
    assert (why.reason, why.log_sid, why.by_layer) == ("not_scored", msgspec.UNSET, msgspec.UNSET)


def test_more_ids_than_the_settings_allow_are_refused() -> None:
    admission = Admission(RetrieverSettings(maximum_why_not=2), limits_of=lambda who: BundleLimits(8))
    value = json.dumps({"text": "x", "why_not": ["a", "b", "c"]}).encode()
    record = Message(topic="queries", partition=0, offset=0, key=b"q", value=value, timestamp=(1, 1))
    with pytest.raises(EventError, match="why_not has 3 items"):
        admission.decode(record)
