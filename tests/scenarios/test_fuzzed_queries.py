"""Fifty thousand queries that nobody should send: each gets exactly one answer, and no exception leaves the batch."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.attributes import encode_attributes
from models.bundles.bundle import Bundle
from models.bundles.model_of_bundle import load_language_model
from models.codebooks.codebook import Codebook
from retriever.answering.asked import Found
from retriever.serving.answer_batch import AnswerBatch
from store.reading.reader import IndexReader
from store.records.batch import CodesBatch
from store.writing.writer import IndexWriter
from streamer.events.records import ANSWER
from streamer.settings.retriever import RetrieverSettings
from support.answer_batches import answer_batch_of
from support.fuzzing import Fuzzer

INPUTS = 200  # an example
EXAMPLES = 250
LIVE = 50


@pytest.fixture(scope="module")
def answer_queries(
    tiny_model_bundle: Path, tiny_embeddings: NDArray[np.float32], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[AnswerBatch]:
    """The whole transform on a real index; a search that finds nothing, as for scores that
    are not finite, stands for the beam search, which has no decoder."""
    bundle = Bundle.open(tiny_model_bundle, need_model=True)
    layout = bundle.layout
    model, prompts = load_language_model(bundle)
    with IndexWriter.open(
        tmp_path_factory.mktemp("fuzz") / "index",
        codebook_id=layout.codebook_id,
        layers=layout.layers,
        size=layout.size,
    ) as writer:
        codes = Codebook.load(bundle.codebook_path).encode(tiny_embeddings[:LIVE])
        ids = [f"item-{number}".encode() for number in range(LIVE)]
        items = CodesBatch(
            ids, codes, np.ones(LIVE, np.float32), [""] * LIVE, np.zeros(LIVE, np.int64), np.zeros(LIVE, bool),
            attributes=[encode_attributes({"price": number, "tags": ["red"]}) if number % 2 else b"" for number in range(LIVE)],
        )  # fmt: skip
        writer.apply(items, {})
        batch, answerer = answer_batch_of(
            bundle,
            model,
            prompts,
            IndexReader(writer.path),
            RetrieverSettings(user_queries_per_second=1.0, maximum_wait_seconds=1e12),
            filterable={"price": "number", "brand": "string", "in_stock": "boolean", "tags": "strings"},
        )
        answerer._searches.search = lambda asked, tries: [Found() for _ in asked]  # type: ignore[method-assign]
        yield batch


def valid_query(choose: random.Random) -> dict[str, Any]:
    history = [f"item-{choose.randrange(2 * LIVE)}" for _ in range(choose.randrange(12))]
    fields: dict[str, Any] = {"text": "electric kettle", "history": history, "limit": choose.randrange(1, 101)}
    if choose.random() < 0.5:
        fields |= {"user": f"user-{choose.randrange(5)}", "asked_at": 1_767_323_045_000, "timeout_ms": 10**15}
    if choose.random() < 0.5:
        fields |= {"filter": valid_filter(choose, 3), "exclude": history[:3], "exclude_history": choose.random() < 0.5}
    if choose.random() < 0.3:
        slate = [{"per": "brand", "most": 2}, {"per": "prefix", "most": 3, "tokens": 2}]
        fields |= {"explain": True, "why_not": [*history[:3], "item-1"], "slate": slate}
    return fields


def valid_filter(choose: random.Random, depth: int) -> dict[str, Any]:
    if depth and choose.random() < 0.5:
        parts = [valid_filter(choose, depth - 1) for _ in range(choose.randrange(1, 4))]
        return choose.choice([{"all": parts}, {"any": parts}, {"not": parts[0]}])
    return choose.choice(
        [
            {"field": "price", "gte": 1, "lt": 30},
            {"field": "brand", "in": ["Acme", "Bosch"]},
            {"field": "in_stock", "eq": True},
            {"field": "tags", "contains_any": ["red", "blue"]},
            {"field": "tags", "exists": False},
        ]
    )


@settings(max_examples=EXAMPLES, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_every_fuzzed_query_gets_one_answer_and_each_unusable_one_a_dead_letter(
    answer_queries: AnswerBatch, seed: int
) -> None:
    records = Fuzzer(seed, "queries", valid_query, lambda offset: f"query-{offset}".encode()).records(INPUTS)
    assert 1 <= answer_queries.next_batch(records) <= INPUTS
    outgoing = answer_queries(records)
    answers = [ANSWER.decode(out.value) for out in outgoing if out.topic == "results"]
    expected = Counter((record.key() or b"")[:256].decode("utf-8", "replace") for record in records)
    assert Counter(answer.query_id for answer in answers) == expected
    kinds = Counter(answer.error.kind for answer in answers)  # the search finds nothing: each has an error
    letters = [int(dict(out.headers or [])["dlq.errors.offset"]) for out in outgoing if out.topic == "dlq"]
    assert len(letters) == len(set(letters))
    well_formed = ("NotFiniteScores", "RateLimited", "DeadlinePassed", "NothingEligible")
    assert len(letters) == INPUTS - sum(kinds[kind] for kind in well_formed)
    assert all(len(out.value or b"") < 200_000 for out in outgoing if out.topic == "results")
