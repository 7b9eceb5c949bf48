"""The retriever's transform and what it cannot answer: an error that says why, and the others are answered."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from confluent_kafka import Message

from models.bundles.bundle import Bundle
from store.errors import IndexMismatchError
from store.writing.writer import IndexWriter
from support.answer_batches import (
    LIVE,
    answer_batch,
    answers,
    batch_and_answerer,
    items_batch,
    query,
    with_short_sids,
)


def test_empty_index_is_answered_with_an_error_that_says_what_to_do(bundle: Bundle, writer: IndexWriter) -> None:
    ids = [f"item-{number}" for number in range(LIVE)]
    writer.apply(items_batch(ids, np.zeros((LIVE, 3), np.uint16), deleted=True), {})
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
