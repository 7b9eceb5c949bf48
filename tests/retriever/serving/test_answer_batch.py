"""The retriever's transform on a real index and a real (tiny) model: what becomes an answer, and what it says."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter

import numpy as np
import pytest
from prometheus_client import REGISTRY

from models.bundles.bundle import Bundle
from store.writing.writer import IndexWriter
from streamer.events.records import QUERY, Query
from streamer.settings.retriever import RetrieverSettings
from support.answer_batches import (
    LIVE,
    answer_batch,
    answers,
    items_batch,
    query,
)


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
    writer.apply(items_batch(gone, np.zeros((10, 3), np.uint16), deleted=True), {})
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


def test_limit_beyond_the_live_items_is_answered_with_all_of_them(bundle: Bundle, writer: IndexWriter) -> None:
    ids = [f"item-{number}" for number in range(LIVE - 7)]
    writer.apply(items_batch(ids, np.zeros((len(ids), 3), np.uint16), deleted=True), {})
    [answer] = answers(answer_batch(bundle, writer, beams=2)([query(b"q", text="thing", limit=100)]))
    assert (len(answer.items), answer.error) == (7, None)


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


def test_items_with_enormous_titles_are_answered_with_shortened_ones(bundle: Bundle, writer: IndexWriter) -> None:
    with writer.snapshot() as snapshot:
        stored = snapshot.find([f"item-{number}".encode() for number in range(LIVE)])
    codes = np.array([item.codes for item in stored if item is not None], np.uint16)
    events = items_batch([f"item-{number}" for number in range(LIVE)], codes)
    writer.apply(dataclasses.replace(events, titles=["x" * 250_000] * LIVE), {})
    outgoing = answer_batch(bundle, writer)([query(b"q", text="thing", limit=20)])
    [answer] = answers(outgoing)
    assert len(answer.items) == 20
    assert {len(item.title) for item in answer.items} == {1_000}
