"""The retriever's transform on a real index and a real (tiny) model: what becomes an answer, and what an error."""

from __future__ import annotations

import dataclasses
import io
import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from confluent_kafka import Message
from numpy.typing import NDArray
from prometheus_client import REGISTRY
from rich.console import Console

from models.bundles.bundle import Bundle
from models.bundles.model_of_bundle import load_language_model
from models.codebooks.codebook import Codebook
from models.sids.layout import Layout
from retriever.answering.answers import Answerer, RetrieverError
from retriever.commands import show_answer
from retriever.search.marginal_search import marginal_beam_search
from retriever.serving.answer_batch import AnswerBatch
from store.errors import IndexMismatchError
from store.reading.reader import IndexReader
from store.records.batch import CodesBatch
from store.topology.layout_trie import SnapshotTrie
from store.writing.writer import IndexWriter
from streamer.events.records import ANSWER, QUERY, Answer, AnswerItem, Query
from streamer.settings.retriever import RetrieverSettings
from support.answer_batches import answer_batch_of

LIVE = 300


@pytest.fixture
def bundle(tiny_model_bundle: Path) -> Bundle:
    return Bundle.open(tiny_model_bundle, need_model=True)


@pytest.fixture
def writer(tmp_path: Path, bundle: Bundle, tiny_embeddings: NDArray[np.float32]) -> Iterator[IndexWriter]:
    """An index of the first 300 items."""
    layout = bundle.layout
    with IndexWriter.open(
        tmp_path / "index", codebook_id=layout.codebook_id, layers=layout.layers, size=layout.size
    ) as writer:
        codes = Codebook.load(bundle.codebook_path).encode(tiny_embeddings[:LIVE])
        writer.apply(batch([f"item-{number}" for number in range(LIVE)], codes), {("item-codes", 0): LIVE})
        writer.put_layout(layout, {})
        yield writer


def batch(ids: list[str], codes: NDArray[np.uint16], *, deleted: bool = False) -> CodesBatch:
    count = len(ids)
    return CodesBatch(
        ids=[item_id.encode() for item_id in ids],
        codes=codes,
        weights=np.ones(count, np.float32),
        titles=[f"title of {item_id}" for item_id in ids],
        updated_at=np.zeros(count, np.int64),
        deleted=np.full(count, deleted),
    )


def batch_and_answerer(bundle: Bundle, writer: IndexWriter, **settings: Any) -> tuple[AnswerBatch, Answerer]:
    model, prompts = load_language_model(bundle)
    own = RetrieverSettings(**{"ranking": "weight_and_recency"} | settings)  # scores are then those of SIDs
    return answer_batch_of(bundle, model, prompts, IndexReader(writer.path), own)


def answer_batch(bundle: Bundle, writer: IndexWriter, **settings: Any) -> AnswerBatch:
    return batch_and_answerer(bundle, writer, **settings)[0]


def test_items_are_ranked_by_their_own_probability_unless_the_settings_say_otherwise(
    bundle: Bundle, writer: IndexWriter
) -> None:
    assert RetrieverSettings().ranking == "own_probability"
    everything = query(b"q", text="x", limit=LIVE)
    by_sid, by_item = (
        answers(answer_batch(bundle, writer, ranking=ranking, maximum_limit=LIVE)([everything]))[0].items
        for ranking in ("weight_and_recency", "own_probability")
    )
    sids = {item.item_id: item.score for item in by_sid}
    sharing = Counter(item.sid for item in by_sid)
    assert max(sharing.values()) > 1, "some SID is shared, or nothing is tested"
    assert [item.score for item in by_item] == sorted((item.score for item in by_item), reverse=True)
    for item in by_item:
        assert item.score == pytest.approx(sids[item.item_id] - np.log(sharing[item.sid]), abs=1e-4)


def query(key: bytes | None, value: bytes | None = None, **fields: Any) -> Message:
    return Message(
        topic="queries",
        partition=0,
        offset=5,
        key=key,
        value=json.dumps(fields).encode() if value is None else value,
        timestamp=(1, int(time.time() * 1000)),
    )


def answers(outgoing: list[Any]) -> list[Answer]:
    return [ANSWER.decode(out.value) for out in outgoing if out.topic == "results"]


def test_answer_names_live_items_with_sids_scores_layout_model_and_position(
    bundle: Bundle, writer: IndexWriter
) -> None:
    answer_queries = answer_batch(bundle, writer)
    [answer] = answers(answer_queries([query(b"q1", text="thing number 7", limit=5)]))
    assert answer.error is None
    assert answer.query_id == "q1"
    assert len(answer.items) == 5
    assert [item.score for item in answer.items] == sorted((item.score for item in answer.items), reverse=True)
    with writer.snapshot() as snapshot:
        stored = snapshot.find([item.item_id.encode() for item in answer.items])
    for item, live in zip(answer.items, stored, strict=True):
        assert live is not None
        assert item.sid == bundle.layout.sid_text(live.codes)
        assert item.title == live.title
    assert (answer.layout, answer.layout_mode) == (bundle.layout.generation, "pinned")
    assert answer.model == bundle.manifest.model_id
    assert answer.position == {"item-codes/0": LIVE}
    assert answer.milliseconds["decode"] > 0


def test_several_queries_in_a_batch_are_answered_as_one_by_one(bundle: Bundle, writer: IndexWriter) -> None:
    answer_queries = answer_batch(bundle, writer)
    queries = [
        query(b"a", text="thing number 7"),
        query(b"b", text="thing", history=["item-3", "item-4"]),
        query(b"c", history=["item-9"]),
    ]
    together = answers(answer_queries(queries))
    alone = [answers(answer_queries([one]))[0] for one in queries]
    for batched, single in zip(together, alone, strict=True):
        assert [item.item_id for item in batched.items] == [item.item_id for item in single.items]
        assert [item.score for item in batched.items] == pytest.approx([item.score for item in single.items], abs=1e-4)


def test_deleted_item_never_comes_back(bundle: Bundle, writer: IndexWriter) -> None:
    answer_queries = answer_batch(bundle, writer)
    ask = query(b"q", text="thing number 7", limit=20)
    first = [item.item_id for item in answers(answer_queries([ask]))[0].items]
    gone = first[:10]
    writer.apply(batch(gone, np.zeros((10, 3), np.uint16), deleted=True), {})
    second = [item.item_id for item in answers(answer_queries([ask]))[0].items]
    assert not set(gone) & set(second)
    assert len(second) == 20


def test_unknown_history_items_are_listed_and_skipped(bundle: Bundle, writer: IndexWriter) -> None:
    answer_queries = answer_batch(bundle, writer)
    with_unknown, without = answers(
        answer_queries([query(b"a", history=["item-1", "nope", "item-2"]), query(b"b", history=["item-1", "item-2"])])
    )
    assert with_unknown.skipped_history == ("nope",)
    assert [item.item_id for item in with_unknown.items] == [item.item_id for item in without.items]


def with_short_sids(bundle: Bundle, writer: IndexWriter) -> Layout:
    """Makes a layout live that leaves out the five fullest layer-2 tokens."""
    with writer.snapshot() as snapshot:
        fullest = np.argsort(-snapshot.census()[1])[:5]
    old = bundle.layout
    layout = Layout(
        generation=old.generation + 1,
        codebook_id=old.codebook_id,
        layers=old.layers,
        size=old.size,
        head_tokens=tuple(sorted(fullest.tolist())),
    )
    writer.put_layout(layout, {})
    return layout


def without_layer2_dropout(bundle: Bundle) -> Bundle:
    """The bundle as if its model had been trained without."""
    record = bundle.manifest.language_model
    assert record is not None
    plain = msgspec.structs.replace(record, layer2_dropout=0.0)
    return Bundle(bundle.directory, msgspec.structs.replace(bundle.manifest, language_model=plain), bundle.id)


def test_live_layout_is_followed_by_a_model_with_layer2_dropout_and_items_stay_valid(
    bundle: Bundle, writer: IndexWriter
) -> None:
    answer_queries = answer_batch(bundle, writer, layout="live")
    ask = query(b"q", text="thing number 7", limit=30)
    [before] = answers(answer_queries([ask]))
    layout = with_short_sids(bundle, writer)
    [after] = answers(answer_queries([ask]))
    assert (before.layout, after.layout) == (bundle.layout.generation, layout.generation)
    assert any("<b_" not in item.sid for item in after.items), "SIDs of head tokens are short now"
    assert not any("<b_" not in item.sid for item in before.items)
    assert {item.item_id for item in after.items} <= {f"item-{number}" for number in range(LIVE)}


def test_live_layout_is_refused_for_a_model_without_layer2_dropout(bundle: Bundle, writer: IndexWriter) -> None:
    with pytest.raises(RetrieverError, match=r"without layer-2 dropout.*'marginal'"):
        answer_batch(without_layer2_dropout(bundle), writer, layout="live")


def test_marginal_decoding_follows_the_live_layout_without_layer2_dropout(bundle: Bundle, writer: IndexWriter) -> None:
    plain = without_layer2_dropout(bundle)
    pinned, marginal = answer_batch(plain, writer), answer_batch(plain, writer, layout="marginal")
    asked = [query(b"a", text="thing", history=["item-3", "item-4"], limit=100), query(b"b", text="thing", limit=100)]
    before = answers(pinned(asked))
    for one, other in zip(before, answers(marginal(asked)), strict=True):
        assert [(item.item_id, item.score) for item in one.items] == [
            (item.item_id, item.score) for item in other.items
        ], "no head tokens yet: nothing to sum over"
    layout = with_short_sids(bundle, writer)
    after = answers(marginal(asked))
    for one, other in zip(before, after, strict=True):
        assert other.error is None
        assert (other.layout, other.layout_mode) == (layout.generation, "marginal")
        short = {item.item_id: item.score for item in other.items if "<b_" not in item.sid}
        assert short
        # The sum holds the item's own path; an item with its layer-2 token has no other.
        own = {item.item_id: item.score for item in one.items}
        assert any(item in own for item in short)
        for item in other.items:
            if item.item_id in own:
                expected = own[item.item_id]
                assert item.score == pytest.approx(expected, abs=1e-4) or (
                    item.item_id in short and item.score > expected
                )


def test_marginal_decoding_reads_histories_under_the_layout_of_the_model(bundle: Bundle, writer: IndexWriter) -> None:
    layout = with_short_sids(bundle, writer)
    model, prompts = load_language_model(bundle)
    with writer.snapshot() as snapshot:
        stored = snapshot.find([f"item-{number}".encode() for number in range(LIVE)])
        history = [item for item in stored if item is not None and item.codes[1] in layout.head_tokens][:4]
        prompt = prompts.build(history=bundle.layout.sid_tokens([item.codes for item in history]))
        (expected,) = marginal_beam_search(
            model, prompts.vocabulary, [prompt], SnapshotTrie(snapshot, layout), pinned=bundle.layout
        )
    ask = query(b"q", history=[item.id.decode() for item in history], limit=1)
    [answer] = answers(answer_batch(bundle, writer, layout="marginal")([ask]))
    assert answer.items[0].score == pytest.approx(expected[0].score, abs=1e-4)


def test_items_of_a_sid_are_ranked_by_similarity_to_the_history(bundle: Bundle, writer: IndexWriter) -> None:
    """Items that differ in the left-out token alone: the one whose token the history has comes first."""
    layout = with_short_sids(bundle, writer)
    codes = np.array([[1, token, 1] for token in layout.head_tokens], np.uint16)
    ids = [f"head-{token}" for token in layout.head_tokens]
    writer.apply(batch(ids, codes), {})
    history = np.array([[2, token, 5] for token in layout.head_tokens], np.uint16)
    writer.apply(batch([f"seen-{token}" for token in layout.head_tokens], history), {})
    reconstructed = Codebook.load(bundle.codebook_path).reconstruct(np.concatenate((codes, history)))
    reconstructed /= np.linalg.norm(reconstructed, axis=1, keepdims=True)
    cosines = reconstructed[: len(codes)] @ reconstructed[len(codes) :].T
    answer_queries = answer_batch(
        bundle, writer, layout="live", ranking="history_similarity", beams=1_000, maximum_limit=400
    )
    for place, token in enumerate(layout.head_tokens):
        [answer] = answers(answer_queries([query(b"q", history=[f"seen-{token}", "nope"], limit=400)]))
        group = [item.item_id for item in answer.items if item.item_id in ids]
        expected = [ids[number] for number in np.argsort(-cosines[:, place])]
        assert group == [item_id for item_id in expected if item_id in group]
        assert len(group) > 1
    assert answers(answer_queries([query(b"q", text="thing")]))[0].error is None, "a query without a history"


def test_empty_index_is_answered_with_an_error_that_says_what_to_do(bundle: Bundle, writer: IndexWriter) -> None:
    ids = [f"item-{number}" for number in range(LIVE)]
    writer.apply(batch(ids, np.zeros((LIVE, 3), np.uint16), deleted=True), {})
    [answer] = answers(answer_batch(bundle, writer)([query(b"q", text="thing")]))
    assert answer.items == ()
    assert answer.error is not None
    assert "publish" in answer.error.message


@pytest.mark.parametrize("layout", ["pinned", "marginal"])
def test_query_whose_scores_are_not_finite_names_the_true_cause_and_the_others_are_answered(
    bundle: Bundle, writer: IndexWriter, layout: str
) -> None:
    with_short_sids(bundle, writer)
    answer_queries, answerer = batch_and_answerer(bundle, writer, layout=layout)
    poison = answerer._prompts.tokenizer.encode("~")[-1]
    with torch.no_grad():
        answerer._model.get_input_embeddings().weight[poison] = torch.nan
        # Tied to the output rows, whose sum is the scores' divisor.
        head = answerer._model.get_output_embeddings()
        head.weight = torch.nn.Parameter(torch.nan_to_num(head.weight.detach().clone()))
    asked = [query(b"a", text="~"), query(b"b", text="thing"), query(b"c", text="~")]
    by_id = {answer.query_id: answer for answer in answers(answer_queries(asked))}
    for name in "ac":
        error = by_id[name].error
        assert error is not None
        assert error.kind == "NotFiniteScores"
        assert "train the model again" in error.message
        assert "no items" not in error.message
    assert by_id["b"].error is None
    [alone] = answers(answer_queries([query(b"a", text="~")]))
    assert alone.error == by_id["a"].error


@pytest.mark.parametrize("layout", ["pinned", "marginal"])
def test_limit_beyond_the_beams_is_answered_in_full_and_changes_no_other_answer(
    bundle: Bundle, writer: IndexWriter, layout: str
) -> None:
    with_short_sids(bundle, writer)
    answer_queries = answer_batch(bundle, writer, layout=layout, beams=4, ranking="own_probability")
    small = [query(name, text=f"thing number {name.decode()}", limit=4) for name in (b"1", b"2")]
    alone = answers(answer_queries(small))
    large = [query(b"3", text="thing", limit=100), query(b"4", text="thing", limit=33)]
    together = {answer.query_id: answer for answer in answers(answer_queries([small[0], *large, small[1]]))}
    assert len({item.item_id for item in together["3"].items}) == 100
    assert len(together["4"].items) == 33
    for answer in alone:
        assert [item.item_id for item in together[answer.query_id].items] == [item.item_id for item in answer.items]


def test_limit_beyond_the_live_items_is_answered_with_all_of_them(bundle: Bundle, writer: IndexWriter) -> None:
    ids = [f"item-{number}" for number in range(LIVE - 7)]
    writer.apply(batch(ids, np.zeros((len(ids), 3), np.uint16), deleted=True), {})
    [answer] = answers(answer_batch(bundle, writer, beams=2)([query(b"q", text="thing", limit=100)]))
    assert (len(answer.items), answer.error) == (7, None)


@pytest.mark.parametrize(
    ("record", "kind"),
    [
        (query(b"q", value=b"\xc1"), "UndecodableEvent"),
        (query(b"q", value=b"{}"), "EmptyQuery"),
        (query(b"q", value=b""), "EmptyQuery"),
        (query(b"q", text="a", limit=0), "InvalidEvent"),
        (query(b"q", text="a", limit=1_000), "InvalidEvent"),
        (query(b"q", text=5), "InvalidEvent"),
        (query(b"q", text="x" * 140_000), "EventTooLarge"),
        (query(b"q", value=b'{"text": "a", "x": ' + b"[" * 1_500), "UnknownField"),
        (query(b"q", text="a", x=1), "UnknownField"),
        (query(b"q", text="x" * 2_049), "FieldTooLarge"),
        (query(b"q", history=["a"] * 257), "FieldTooLarge"),
        (query(b"q", history=["a", "é" * 129]), "FieldTooLarge"),
        (query(b"q", text="a", user="é" * 129), "FieldTooLarge"),
        (query(b"q", text="a", timeout_ms=0), "InvalidEvent"),
        (query(b"q", text="a", asked_at=-1), "InvalidEvent"),
        (query(b"q", text="a", asked_at=10**40), "InvalidEvent"),
        (query(None, text="a"), "EmptyId"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_unusable_query_gets_an_error_answer_and_a_dead_letter_and_the_next_one_is_answered(
    bundle: Bundle, writer: IndexWriter, record: Message, kind: str
) -> None:
    outgoing = answer_batch(bundle, writer)([record, query(b"good", text="thing")])
    [letter] = [out for out in outgoing if out.topic == "dlq"]
    assert dict(letter.headers or [])["dlq.errors.class"].decode() == kind
    assert (letter.key, letter.value) == (record.key(), record.value())
    by_id = {answer.query_id: answer for answer in answers(outgoing)}
    failed = by_id["q" if record.key() else ""]
    assert failed.error is not None
    assert failed.error.kind == kind
    assert by_id["good"].error is None


def test_answer_of_any_kind_has_the_trace_of_its_query(bundle: Bundle, writer: IndexWriter) -> None:
    asked = [
        query(b"good", text="thing"),
        query(b"bad", value=b"{"),
        query(b"late", text="a", asked_at=int(time.time()) * 1000 - 60_000),
    ]
    parents = [("traceparent", f"00-{number * 32}-{number * 16}-01".encode()) for number in "123"]
    for one, parent in zip(asked, parents, strict=True):
        one.set_headers([parent])
    outgoing = answer_batch(bundle, writer)([*asked, query(b"plain", text="thing")])
    found = {out.key: dict(out.headers or []).get("traceparent") for out in outgoing if out.topic == "results"}
    assert found == {one.key(): content for one, (_, content) in zip(asked, parents, strict=True)} | {b"plain": None}
    [letter] = [out for out in outgoing if out.topic == "dlq"]
    assert (letter.headers or [])[0] == parents[1]


def test_outcomes_of_queries_and_the_time_of_decoding_are_counted(bundle: Bundle, writer: IndexWriter) -> None:
    def value(name: str, **labels: str) -> float:
        return REGISTRY.get_sample_value(name, labels) or 0.0

    def counts() -> tuple[float, ...]:
        return (
            value("sidstream_queries_total", outcome="answered", bundle=bundle.id),
            value("sidstream_queries_total", outcome="EmptyQuery", bundle=bundle.id),
            value("sidstream_dead_letters_total", **{"process": "retriever", "class": "EmptyQuery"}),
            value("sidstream_decode_seconds_count", bundle=bundle.id),
        )

    answer = answer_batch(bundle, writer)
    before = counts()
    answer([query(b"a", text="thing"), query(b"b", value=b""), query(b"c", text="other")])
    assert np.subtract(counts(), before).tolist() == [2, 1, 1, 1]
    assert value("sidstream_layout_generation", process="retriever") == bundle.layout.generation


def test_fields_at_their_limits_are_answered(bundle: Bundle, writer: IndexWriter) -> None:
    """The text is one word without an end, then tokens without an end: neither reaches the model whole."""
    for text in ("x" * 2_048, "中" * 2_048, "a b " * 512, "\ufdfa" * 2_048):
        largest = Query(text=text, history=("é" * 128,) * 256, user="u" * 256, limit=100)
        ask = query(b"q" * 256, value=QUERY.encode(largest))
        [answer] = answers(answer_batch(bundle, writer)([ask]))
        assert answer.error is None
        assert answer.skipped_history == ("é" * 128,) * 256


def test_late_query_gets_an_error_that_says_how_long_it_waited_and_costs_no_model_call(
    bundle: Bundle, writer: IndexWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_queries, answerer = batch_and_answerer(bundle, writer)
    now = int(time.time() * 1000)
    asked = [
        query(b"late", text="a", asked_at=now - 500, timeout_ms=100),
        query(b"very-late", text="a", asked_at=now - 60_000, timeout_ms=100_000),
        query(b"in-time", text="a", asked_at=now - 500, timeout_ms=5_000),
        query(b"clock-ahead", text="a", asked_at=now + 3_600_000, timeout_ms=1),
    ]
    searched: list[int] = []
    search = answerer._searches.search
    monkeypatch.setattr(
        answerer._searches, "search", lambda asked, trie: searched.append(len(asked)) or search(asked, trie)
    )
    outgoing = answer_queries(asked)
    assert [out.topic for out in outgoing] == ["results"] * 4, "nothing is wrong with a late query: no dead letter"
    assert searched == [2]
    by_id = {answer.query_id: answer for answer in answers(outgoing)}
    for name, deadline in (("late", "100 ms"), ("very-late", "30000 ms")):
        error = by_id[name].error
        assert error is not None
        assert error.kind == "DeadlinePassed"
        assert deadline in error.message
        assert f"{by_id[name].milliseconds['waited']:.0f} ms" in error.message
    assert by_id["in-time"].error is None
    assert by_id["in-time"].milliseconds["waited"] >= 500
    assert by_id["clock-ahead"].error is None
    assert by_id["clock-ahead"].milliseconds["waited"] == 0


def test_query_beyond_its_users_rate_gets_an_error_and_others_are_answered(bundle: Bundle, writer: IndexWriter) -> None:
    answer_queries = answer_batch(bundle, writer, user_queries_per_second=0.001, user_query_burst=2)
    asked = [query(f"{user}{number}".encode(), text="a", user=user) for number in range(3) for user in ("ada", "bob")]
    outgoing = answer_queries([*asked, query(b"nobody", text="a")])
    kinds = {answer.query_id: answer.error and answer.error.kind for answer in answers(outgoing)}
    assert kinds == dict.fromkeys(("ada0", "bob0", "ada1", "bob1", "nobody")) | dict.fromkeys(
        ("ada2", "bob2"), "RateLimited"
    )
    assert not [out for out in outgoing if out.topic == "dlq"]


def test_query_id_that_is_too_long_gets_a_small_error_answer(bundle: Bundle, writer: IndexWriter) -> None:
    outgoing = answer_batch(bundle, writer)([query(b"q" * 1_000_000, text="thing")])
    [answer] = [out for out in outgoing if out.topic == "results"]
    assert len(answer.value or b"") < 2_000
    [answer] = answers(outgoing)
    assert answer.error is not None
    assert (answer.query_id, answer.error.kind) == ("q" * 256, "IdTooLong")


def test_items_with_enormous_titles_are_answered_with_shortened_ones(bundle: Bundle, writer: IndexWriter) -> None:
    with writer.snapshot() as snapshot:
        stored = snapshot.find([f"item-{number}".encode() for number in range(LIVE)])
    codes = np.array([item.codes for item in stored if item is not None], np.uint16)
    events = batch([f"item-{number}" for number in range(LIVE)], codes)
    writer.apply(dataclasses.replace(events, titles=["x" * 250_000] * LIVE), {})
    outgoing = answer_batch(bundle, writer)([query(b"q", text="thing", limit=20)])
    [answer] = answers(outgoing)
    assert len(answer.items) == 20
    assert {len(item.title) for item in answer.items} == {1_000}


def test_answer_that_no_topic_would_take_becomes_an_error(
    bundle: Bundle, writer: IndexWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retriever.serving.answer_batch._ANSWER_MAXIMUM_BYTES", 500)
    [answer] = answers(answer_batch(bundle, writer)([query(b"q", text="thing", limit=20)]))
    assert answer.items == ()
    assert answer.error is not None
    assert answer.error.kind == "AnswerTooLarge"


def test_index_of_another_codebook_is_refused_before_the_first_query(bundle: Bundle, tmp_path: Path) -> None:
    layout = bundle.layout
    with (
        IndexWriter.open(
            tmp_path / "other", codebook_id="0123456789abcdef", layers=layout.layers, size=layout.size
        ) as other,
        pytest.raises(IndexMismatchError, match="use the bundle that belongs to the index"),
    ):
        answer_batch(bundle, other)


def test_markup_in_a_title_is_shown_as_it_is() -> None:
    console = Console(file=io.StringIO(), width=120)
    item = AnswerItem(item_id="a", title="Cable [2-pack] [/] 5 m", sid="<a_1><c_2>", score=-1.0)
    show_answer(console, Answer(query_id="q", items=(item,), skipped_history=("[/]",)))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "Cable [2-pack] [/] 5 m" in shown


def test_terminal_says_which_leg_found_an_item_and_why_one_answered_alone() -> None:
    console = Console(file=io.StringIO(), width=140)
    items = (
        AnswerItem(item_id="a", title="a kettle", sid="<a_1>", score=-1.0, found_by="both"),
        AnswerItem(item_id="b", title="a newcomer", sid="<a_2>", score=-1.5, found_by="dense", new=True),
    )
    show_answer(console, Answer(query_id="q", items=items, legs=("dense",), note="nearest vectors alone: [no] model"))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "found by" in shown
    assert "dense, new" in shown
    assert "nearest vectors alone: [no] model" in shown


def test_query_that_asks_for_an_exact_search_gets_one_and_its_answer_says_so(
    bundle: Bundle, writer: IndexWriter
) -> None:
    asked = [
        query(b"exact", text="x", search="exact"),
        query(b"beam", text="x", search="beam"),
        query(b"usual", text="x"),
    ]
    found = {answer.query_id: answer for answer in answers(answer_batch(bundle, writer, beams=4)(asked))}
    assert (found["exact"].search, found["exact"].search_complete) == ("exact", True)
    assert [found[name].search for name in ("beam", "usual")] == ["beam", "beam"]
    assert found["beam"].search_complete is msgspec.UNSET
    assert found["exact"].items[0].score >= found["beam"].items[0].score - 1e-4
    [usual] = answers(answer_batch(bundle, writer, search="exact")([query(b"q", text="x")]))
    assert (usual.search, usual.search_complete) == ("exact", True)


def test_exact_search_whose_budget_is_spent_says_that_it_is_not_complete(bundle: Bundle, writer: IndexWriter) -> None:
    [answer] = answers(answer_batch(bundle, writer, search="exact", exact_budget=2)([query(b"q", text="x")]))
    assert (answer.search, answer.search_complete) == ("exact", False)
    assert len(answer.items) == 10


def test_exact_search_is_refused_where_the_retriever_decodes_marginally(bundle: Bundle, writer: IndexWriter) -> None:
    answer_queries = answer_batch(bundle, writer, layout="marginal")
    outgoing = answer_queries([query(b"q", text="x", search="exact")])
    [answer] = answers(outgoing)
    assert answer.error is not None
    assert answer.error.kind == "SearchUnavailable"
    assert [out.topic for out in outgoing] == ["results"], "nothing is wrong with the query: no dead letter"
    with pytest.raises(RetrieverError, match="do not go together"):
        answer_batch(bundle, writer, layout="marginal", search="exact")
