"""Answers put together of shards are those of one index, ids, order and scores; and what is missing, or does not fit, is said."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec import UNSET, Raw
from numpy.typing import NDArray

from models.attributes import encode_attributes
from models.bundles.bundle import Bundle
from models.bundles.model_of_bundle import load_language_model
from models.codebooks.codebook import Codebook
from models.dense.mixture import MixtureWeights
from models.dense.vectors import quantise
from models.sids.layout import Layout
from retriever.answering.answers import Answerer
from retriever.answering.asked import Asked
from retriever.merging import Question, ShardsError
from store.reading.reader import IndexReader
from store.records.batch import CodesBatch
from store.writing.writer import IndexWriter
from streamer.events.records import ANSWER, QUERY, Answer, AnswerError, Query
from streamer.filters.reading import read_filter
from streamer.settings.retriever import RetrieverSettings
from streamer.shards.parts import ASK_ANEW, AnsweredPart
from support.dense_bundles import dense_bundle
from support.filter_cases import LIMITS

LIVE, KNOWN = 400, 300
IDS = [f"item-{number}" for number in range(LIVE)]
PRICES: dict[str, Any] = {"price": "number"}
WEIGHTS = np.random.default_rng(8).gamma(0.7, 3.0, LIVE).astype(np.float32)
# One index, and divided in two and in three: which items lie where is no matter of their codes.
DIVISIONS = {"one": [""], "two": ["0", "1"], "three": ["0", "1", "2"]}


def batch(numbers: Sequence[int], codebook: Codebook, embeddings: NDArray[np.float32], count: int) -> CodesBatch:
    some = np.array(numbers, dtype=int)
    return CodesBatch(
        ids=[IDS[number].encode() for number in numbers],
        codes=codebook.encode(embeddings[some]),
        weights=WEIGHTS[some] * (some % 17 != 0),
        titles=[f"title of {number}" for number in numbers],
        updated_at=(some * 7_919 % 1_000).astype(np.int64),
        deleted=np.zeros(len(some), bool),
        partitions=(some % count).astype(np.int32),
        vectors=[
            value if number % 11 else b"" for number, value in zip(numbers, vectors(embeddings[some]), strict=True)
        ],
        attributes=[encode_attributes({"price": number % 10}) for number in numbers],
    )


def vectors(embeddings: NDArray[np.float32]) -> list[bytes]:
    return quantise(embeddings).encode() if len(embeddings) else []


@pytest.fixture(scope="module")
def bundle(
    tiny_model_bundle: Path, tmp_path_factory: pytest.TempPathFactory, tiny_embeddings: NDArray[np.float32]
) -> Bundle:
    """With a model, and a dense part that knows most items and what was taken together."""
    dice = np.random.default_rng(2)
    histories = [dice.choice(KNOWN, 6, replace=False).tolist() for _ in range(150)]
    path = tmp_path_factory.mktemp("shards") / "bundle"
    weights = MixtureWeights(sharpness=9.0, share=0.5, boost_of_new=0.4, together=0.3)
    return dense_bundle(tiny_model_bundle, path, tiny_embeddings, IDS[:KNOWN], histories, weights)


class Shards:
    """A catalogue in one index or in several, and what answers from each."""

    def __init__(self, directory: Path, bundle: Bundle, embeddings: NDArray[np.float32], held: list[str]) -> None:
        self._bundle, self._held, self._directory = bundle, held, directory
        codebook, layout = Codebook.load(bundle.codebook_path), bundle.layout
        self._model, self._prompts = load_language_model(bundle)
        self.writers = []
        for place, partitions in enumerate(held):
            writer = IndexWriter.open(
                directory / f"index-{place}",
                codebook_id=layout.codebook_id,
                layers=layout.layers,
                size=layout.size,
                partitions=partitions,
            )
            writer.remember_partition_count(len(held))
            numbers = [number for number in range(LIVE) if number % len(held) == place]
            writer.apply(batch(numbers, codebook, embeddings, len(held)), {("item-codes", place): len(numbers)})
            # Short SIDs, so that most are held by several items.
            writer.put_layout(Layout(2, layout.codebook_id, layout.layers, layout.size, tuple(range(layout.size))), {})
            self.writers.append(writer)

    def answerers(self, **settings: Any) -> list[Answerer]:
        return [
            Answerer(
                bundle=self._bundle,
                model=self._model,
                prompts=self._prompts,
                reader=IndexReader(writer.path),
                settings=RetrieverSettings(maximum_limit=LIVE, **settings),
                filterable=PRICES,
                partitions=partitions,
            )
            for writer, partitions in zip(self.writers, self._held, strict=True)
        ]


@pytest.fixture(scope="module")
def divided(
    bundle: Bundle, tmp_path_factory: pytest.TempPathFactory, tiny_embeddings: NDArray[np.float32]
) -> Iterator[dict[str, Shards]]:
    made = {
        name: Shards(tmp_path_factory.mktemp(name), bundle, tiny_embeddings, held) for name, held in DIVISIONS.items()
    }
    yield made
    for shards in made.values():
        for writer in shards.writers:
            writer.close()


def answered(answerer: Answerer, query: Query) -> Answer:
    """As over the wire: what is asked, and what comes back, is encoded and read again."""
    query = QUERY.decode(QUERY.encode(query))
    wanted = None
    if query.filter is not UNSET:
        wanted = read_filter(query.filter, PRICES, LIMITS, of_json=True)
    [answer] = answerer.answers([Asked("q", query, filter=wanted)])
    return ANSWER.decode(ANSWER.encode(answer))


def merged(answerers: Sequence[Answerer], query: Query, *, silent: Sequence[int] = ()) -> Answer:
    """The answer of all shards but the silent ones."""
    question = Question("q", query, len(answerers))
    while True:
        for place, answerer in enumerate(answerers):
            if place not in silent:
                question.take(answered(answerer, question.record()))
        assert question.has_all == (not silent or question._expected is not None)
        if not question.go_on():
            return question.answer()


def assert_same(own: Answer, whole: Answer) -> None:
    assert [item.item_id for item in own.items] == [item.item_id for item in whole.items]
    assert [item.score for item in own.items] == pytest.approx([item.score for item in whole.items], abs=2e-5)
    assert [(item.sid, item.title, item.new) for item in own.items] == [
        (item.sid, item.title, item.new) for item in whole.items
    ]
    assert own.legs == whole.legs or not own.items
    assert (own.layout, own.bundle, own.search, own.search_complete) == (
        whole.layout,
        whole.bundle,
        whole.search,
        whole.search_complete,
    )
    assert sorted(own.skipped_history) == sorted(whole.skipped_history)
    assert (own.error is None) == (whole.error is None)
    assert own.missing_partitions is own.part is UNSET


def queries(embeddings: NDArray[np.float32], search: Any) -> list[Query]:
    def filtered(**clause: Any) -> Raw:
        return Raw(json.dumps({"field": "price", **clause}).encode())

    return [
        Query(text="thing number 7", limit=10, search=search),
        Query(text="thing number 7", limit=60, search=search, exclude=(IDS[4], IDS[5], IDS[77])),
        Query(text="thing number 8", limit=15, search=search, filter=filtered(lt=3)),
        Query(text="number 3", history=(IDS[17], "never", IDS[250], IDS[31]), limit=25, search=search),
        Query(history=(IDS[12], IDS[13], IDS[14]), limit=12, search=search, exclude_history=False),
        Query(history=(IDS[11], IDS[22]), limit=12, search=search),  # none of them has a vector
        Query(text="thing", embedding=embeddings[350].tolist(), limit=20, search=search),
        Query(embedding=embeddings[351].tolist(), limit=20, search=search, filter=filtered(gte=8)),
        Query(text="thing number 7", limit=10, search=search, filter=filtered(eq=3)),
        Query(text="thing number 7", limit=10, search=search, filter=filtered(lt=-1)),  # nothing
    ]


@pytest.fixture
def looks_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mixture takes all that the model has found: it looks at the model's first hundred items, in each shard."""
    monkeypatch.setattr("retriever.answering.mixing.NEAREST", LIVE)


@pytest.mark.usefixtures("looks_at_all")
@pytest.mark.parametrize("name", ["two", "three"])
@pytest.mark.parametrize("layout", ["pinned", "live"])
def test_exact_answers_of_shards_are_those_of_one_index(
    divided: dict[str, Shards], tiny_embeddings: NDArray[np.float32], name: str, layout: str
) -> None:
    settings = {"layout": layout, "beams": 30, "exact_budget": 100_000}
    [whole], shards = divided["one"].answerers(**settings), divided[name].answerers(**settings)
    shared = 0
    for query in queries(tiny_embeddings, "exact"):
        expected, own = answered(whole, query), merged(shards, query)
        assert expected.search_complete in (True, UNSET)
        assert_same(own, expected)
        shared += len({item.sid for item in own.items}) < len(own.items)
    assert shared > 1 or layout == "pinned", "no SID is shared by items of several shards"


@pytest.mark.usefixtures("looks_at_all")
@pytest.mark.parametrize("layout", ["pinned", "live", "marginal"])
def test_answers_of_beams_that_drop_nothing_are_those_of_one_index(
    divided: dict[str, Shards], tiny_embeddings: NDArray[np.float32], layout: str
) -> None:
    settings = {"layout": layout, "beams": LIVE, "exact_below": 0}
    [whole], shards = divided["one"].answerers(**settings), divided["two"].answerers(**settings)
    for query in queries(tiny_embeddings, UNSET):
        assert_same(merged(shards, query), answered(whole, query))


def test_mixture_over_shards_is_that_of_one_index_that_looks_at_more_of_what_the_model_finds(
    divided: dict[str, Shards], tiny_embeddings: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"layout": "live", "beams": LIVE, "exact_below": 0}
    [whole], shards = divided["one"].answerers(**settings), divided["two"].answerers(**settings)
    query = Query(history=(IDS[12], IDS[13], IDS[14]), limit=12, exclude_history=False)
    before, own = answered(whole, query), merged(shards, query)
    scores = {item.item_id: item.score for item in before.items}
    shared = [item for item in own.items if item.item_id in scores]
    assert len(shared) > 8
    # An item gets the model's part as well: never a lower score, and most have the same.
    assert all(item.score >= scores[item.item_id] - 2e-5 for item in shared)
    assert any(item.score > scores[item.item_id] + 1e-4 for item in shared)
    monkeypatch.setattr("retriever.answering.mixing.NEAREST", LIVE)
    assert_same(merged(shards, query), answered(whole, query))


def test_model_alone_and_vectors_alone_are_put_together_too(
    divided: dict[str, Shards], tiny_embeddings: NDArray[np.float32]
) -> None:
    settings: dict[str, Any] = {"layout": "live", "dense": False, "beams": LIVE, "exact_below": 0}
    [whole], shards = divided["one"].answerers(**settings), divided["three"].answerers(**settings)
    for query in queries(tiny_embeddings, UNSET):
        assert_same(merged(shards, query), answered(whole, query))


def test_missing_shard_is_named_by_its_partitions_and_the_rest_is_answered(divided: dict[str, Shards]) -> None:
    shards = divided["three"].answerers(beams=30)
    answer = merged(shards, Query(text="thing number 7", limit=10), silent=[1])
    assert answer.missing_partitions == (1,)
    assert "no shard that holds the partitions 1 of item-codes answered in time" in str(answer.note)
    assert len(answer.items) == 10
    assert {int(item.item_id.removeprefix("item-")) % 3 for item in answer.items} == {0, 2}
    assert sorted(answer.position) == ["item-codes/0", "item-codes/2"]


def test_shard_with_an_error_is_missing_and_its_error_is_told(divided: dict[str, Shards]) -> None:
    first, second = divided["two"].answerers(beams=30)
    question = Question("q", Query(text="thing number 7", limit=5), 2)
    question.take(answered(first, question.record()))
    refused = AnswerError(kind="RateLimited", message="ask again later")
    question.take(second.answer("q", error=refused))
    assert question.has_all
    assert question.go_on()
    question.take(answered(first, question.record()))
    assert question.has_all
    assert not question.go_on()
    answer = question.answer()
    assert (answer.missing_partitions, answer.error) == ((1,), None)
    assert "1: RateLimited: ask again later" in str(answer.note)


def test_error_of_every_shard_is_the_answers(divided: dict[str, Shards]) -> None:
    question = Question("q", Query(text="thing"), 2)
    for answerer in divided["two"].answerers():
        assert not question.has_all
        question.take(answerer.answer("q", error=AnswerError(kind="UnknownField", message="limt")))
    assert question.has_all
    assert not question.go_on()
    assert question.answer().error == AnswerError(kind="UnknownField", message="limt")


def part(partitions: str, count: int = 4, **more: Any) -> Answer:
    own = AnsweredPart(partitions=partitions, partition_count=count, step="search", **more)
    return Answer(query_id="q", bundle="b", layout=1, part=own)


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([Answer(query_id="q")], r"answers whose index holds all partitions: set it to 1"),
        ([part("0-2"), part("2-3")], r"holds the partitions 0-2, another one 2-3.*answered twice"),
        ([part("0"), part("1"), part("2-3")], r"retriever\.shards is 2, and 3 shards answer"),
        ([part("0-3")], r"retriever\.shards is 2, and 1 hold every partition"),
    ],
    ids=["whole index", "overlap", "too many", "too few"],
)
def test_shards_that_do_not_fit_together_are_refused_with_what_to_do(answers: list[Answer], message: str) -> None:
    def put_together() -> None:
        question = Question("q", Query(text="thing"), 2)
        for answer in answers:
            question.take(answer)
        assert question.has_all

    with pytest.raises(ShardsError, match=message):
        put_together()


def test_partition_that_nobody_holds_is_waited_for_and_then_named() -> None:
    question = Question("q", Query(text="thing"), 2)
    question.take(part("0", 3, sids=(), beams=1))
    question.take(part("1", 3, sids=(), beams=1))
    assert not question.has_all
    assert question.go_on()
    for one in ("0", "1"):
        question.take(part(one, 3, round=1))
    assert question.has_all
    assert not question.go_on()
    assert question.answer().missing_partitions == (2,)


@pytest.mark.parametrize("difference", [{"bundle": "other"}, {"layout": 2}])
def test_parts_of_two_bundles_or_layouts_are_asked_anew_and_never_put_together(difference: dict[str, Any]) -> None:
    question = Question("q", Query(text="thing", history=("a",)), 2)
    question.take(part("0-1"))
    question.take(msgspec.structs.replace(part("2-3"), **difference))
    assert question.has_all
    assert question.go_on()
    assert question.begun_anew == 1
    asked = question.record().part
    assert (asked.step, asked.round) == ("history", 1)
    question.take(part("0-1"))  # of the round before, late
    assert not question.has_any
    for one in ("0-1", "2-3"):
        question.take(part(one, round=1))
    assert question.go_on()
    assert question.record().part.step == "search"
    fault = AnswerError(kind=ASK_ANEW, message="promoted just now")
    question.take(part("0-1", round=2, sids=(), beams=1))
    question.take(msgspec.structs.replace(part("2-3", round=2), error=fault))
    assert question.go_on()
    assert (question.begun_anew, question.record().part.step) == (2, "history")


def test_shard_refuses_what_another_bundle_or_layout_has_found(divided: dict[str, Shards]) -> None:
    answerers = divided["two"].answerers(beams=5)
    question = Question("q", Query(text="thing"), 2)
    for answerer in answerers:
        question.take(answered(answerer, question.record()))
    assert question.go_on()
    told = question.record()
    for changed in ({"bundle": "other"}, {"layout": 99}):
        other = msgspec.structs.replace(told, part=msgspec.structs.replace(told.part, **changed))
        answer = answered(answerers[0], other)
        assert answer.error is not None
        assert (answer.error.kind, answer.items) == (ASK_ANEW, ())
