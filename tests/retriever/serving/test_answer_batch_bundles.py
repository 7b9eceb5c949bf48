"""A batch of users whom two bundles answer: each query goes to its own, under its own limits, and every answer names it."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from confluent_kafka import Message

from models.bundles.bundle import Bundle
from retriever.answering.admission import BundleLimits
from retriever.answering.asked import Asked
from retriever.serving.answer_batch import AnswerBatch
from retriever.serving.answering import Answering, CurrentAnswering
from retriever.serving.loaded_bundle import LoadedBundle
from streamer.events.outgoing import Outgoing
from streamer.events.records import ANSWER, Answer
from streamer.settings.retriever import RetrieverSettings
from support.deployed import serving, twin

BATCH = 8


class AnswererByHand:
    """Answers nothing, and notes what it is asked together."""

    def __init__(self, bundle: str) -> None:
        self.bundle = bundle
        self.together: list[list[str]] = []

    def answers(self, asked: Sequence[Asked]) -> list[Answer]:
        self.together.append([one.query_id for one in asked])
        return [self.answer(one.query_id) for one in asked]

    def answer(self, query_id: str, **fields: Any) -> Answer:
        return Answer(query_id=query_id, bundle=self.bundle, **fields)


class LoadedByHand:
    """A bundle without a model."""

    def __init__(self, bundle: str, dimension: int, layers: int) -> None:
        self.id = bundle
        self.limits = BundleLimits(dimension, layers)
        self.answerer = AnswererByHand(bundle)


class Two:
    """Main takes embeddings of 4 numbers and SIDs of 3 layers, the canary of 6 and 4; half of the users have the canary."""

    def __init__(self, first: Bundle, second: Bundle, **settings: Any) -> None:
        self.record = serving(first, second, canary=second.id, share=0.5)
        self.main, self.canary = LoadedByHand(first.id, 4, 3), LoadedByHand(second.id, 6, 4)
        answering = Answering(cast(LoadedBundle, self.main), cast(LoadedBundle, self.canary), self.record)
        self.batch = AnswerBatch(
            CurrentAnswering(answering),
            settings=RetrieverSettings(**settings),
            results_topic="results",
            dead_letter_topic="dlq",
        )

    def user_of(self, bundle: LoadedByHand, *, but: str = "") -> str:
        names = (f"user-{number}" for number in range(1_000))
        return next(name for name in names if self.record.answers(name) == bundle.id and name != but)

    def query_of(self, bundle: LoadedByHand) -> str:
        names = (f"query-{number}" for number in range(1_000))
        return next(name for name in names if self.record.answers(name) == bundle.id)


@pytest.fixture
def two(tiny_bundle: Path, tmp_path: Path) -> Two:
    first, second = (twin(tiny_bundle, tmp_path / name, name) for name in ("first", "second"))
    return Two(first, second, batch_size=BATCH)


def query(key: str, **fields: Any) -> Message:
    return Message(
        topic="queries", partition=0, offset=5, key=key.encode(), value=json.dumps(fields).encode(),
        timestamp=(1, int(time.time() * 1000)),
    )  # fmt: skip


def answers(outgoing: list[Outgoing]) -> dict[str, Answer]:
    found = [ANSWER.decode(out.value or b"") for out in outgoing if out.topic == "results"]
    assert len({answer.query_id for answer in found}) == len(found), "one answer each"
    return {answer.query_id: answer for answer in found}


def test_queries_of_a_batch_are_answered_together_with_those_of_their_own_bundle(two: Two) -> None:
    by_id = {f"q{number}": f"user-{number}" for number in range(40)}
    found = answers(two.batch([query(query_id, text="x", user=user) for query_id, user in by_id.items()]))
    assert {query_id: answer.bundle for query_id, answer in found.items()} == {
        query_id: two.record.answers(user) for query_id, user in by_id.items()
    }
    for bundle in (two.main, two.canary):
        *full, last = map(len, bundle.answerer.together)
        assert set(full) == {BATCH}
        assert last <= BATCH


def test_query_without_a_user_is_answered_by_the_bundle_that_its_id_has(two: Two) -> None:
    own = {bundle.id: two.query_of(bundle) for bundle in (two.main, two.canary)}
    found = answers(two.batch([query(query_id, text="x") for query_id in own.values()]))
    assert {found[query_id].bundle: query_id for query_id in own.values()} == own


def test_embedding_and_slate_are_held_against_the_bundle_of_their_user(two: Two) -> None:
    main, canary = two.user_of(two.main), two.user_of(two.canary)
    four_tokens = [{"per": "prefix", "tokens": 4, "most": 1}]
    outgoing = two.batch(
        [
            query("main-4", user=main, embedding=[1, 0, 0, 0]),
            query("main-6", user=main, embedding=[1, 0, 0, 0, 0, 0]),
            query("canary-4", user=canary, embedding=[1, 0, 0, 0]),
            query("canary-6", user=canary, embedding=[1, 0, 0, 0, 0, 0]),
            query("main-slate", user=main, text="x", slate=four_tokens),
            query("canary-slate", user=canary, text="x", slate=four_tokens),
        ]
    )
    found = answers(outgoing)
    refused = {query_id for query_id, answer in found.items() if answer.error is not None}
    assert refused == {"main-6", "canary-4", "main-slate"}
    assert sum(out.topic == "dlq" for out in outgoing) == 3
    for query_id, answer in found.items():
        assert answer.bundle == (two.main if query_id.startswith("main") else two.canary).id


def test_answers_to_late_and_unreadable_queries_name_the_bundle_too(two: Two) -> None:
    now = int(time.time() * 1000)
    late, broken = two.user_of(two.canary), two.query_of(two.canary)
    unreadable = Message(topic="queries", partition=0, offset=6, key=broken.encode(), value=b"{")
    found = answers(two.batch([query("late", text="x", user=late, asked_at=now - 9_000, timeout_ms=1), unreadable]))
    assert found["late"].error is not None
    assert found["late"].error.kind == "DeadlinePassed"
    assert found["late"].bundle == found[broken].bundle == two.canary.id


def test_answer_to_an_unreadable_query_without_a_key_names_one_of_them(two: Two) -> None:
    [answer] = answers(two.batch([Message(topic="queries", partition=0, offset=6, key=None, value=b"{")])).values()
    assert answer.bundle in (two.main.id, two.canary.id)
