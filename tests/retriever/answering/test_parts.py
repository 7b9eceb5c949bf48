"""What a shard is told is checked before it is used; what does not fit together does not start; what needs all is refused."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest
from confluent_kafka import Message

from models.dense.vectors import quantise
from retriever.answering.admission import Admission, BundleLimits, QueryRefused
from retriever.answering.parts import ShardError, require_own_shard
from streamer.events.intake import EventError
from streamer.settings import load_settings
from streamer.settings.retriever import RetrieverSettings

VECTOR = base64.b64encode(quantise(np.ones((1, 4), np.float32)).encode()[0]).decode()
ITEM = {"item_id": "a", "codes": [1, 2, 3]}


def record(**fields: Any) -> Message:
    value = json.dumps({"text": "kettle", **fields}).encode()
    return Message(topic="queries", partition=0, offset=1, key=b"q", value=value, timestamp=(1, 1_800_000_000_000))


def admission(partitions: str = "0-1", **settings: Any) -> Admission:
    return Admission(
        RetrieverSettings(**settings),
        limits_of=lambda _who: BundleLimits(4, 3, 16),
        partitions=partitions,
        clock=lambda: 1_800_000_000.0,
        monotonic=lambda: 0.0,
    )


@pytest.mark.parametrize(
    "part",
    [
        {"step": "history"},
        {"step": "search", "round": 3, "history": [ITEM, {**ITEM, "vector": VECTOR}]},
        {"step": "items", "sids": [[[1, 17, 40], -2.5, 3.0], [[1, 40], -3, 0.0]], "sums": {"together": 1.5}},
    ],
)
def test_part_that_a_shard_can_be_asked_is_admitted(part: dict[str, Any]) -> None:
    assert admission().admit(record(part=part))[0].query.part.step == part["step"]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"step": "items", "sids": [[[1, 17], -2.5, 3.0]]}, "no SID"),
        ({"step": "items", "sids": [[[1, 40, 17], -2.5, 3.0]]}, "no SID"),
        ({"step": "items", "sids": [[[1, 17, 48], -2.5, 3.0]]}, "no SID"),
        ({"step": "items", "sids": [[[-1, 17, 40], -2.5, 3.0]]}, "no SID"),
        ({"step": "items", "sids": [[[], -2.5, 3.0]]}, "no SID"),
        ({"step": "items", "sids": [[[1, 40], -2.5, -3.0]]}, "weight is no number"),
        ({"step": "items", "sids": [[[1, 40], -2.5, 3.0]] * 101}, "more than 100 SIDs"),
        ({"step": "search", "history": [{**ITEM, "codes": [1, 2]}]}, "no codes of 3 layers"),
        ({"step": "search", "history": [{**ITEM, "codes": [1, 2, 16]}]}, "no codes of 3 layers"),
        ({"step": "search", "history": [{**ITEM, "vector": VECTOR[:-4]}]}, "vector of the history is none"),
        ({"step": "search", "history": [{**ITEM, "vector": "AAAAAAEBAQE="}]}, "vector of the history is none"),
        ({"step": "search", "history": [ITEM] * 300}, "more than 256 items"),
        ({"step": "items", "sums": {"together": -1.0}}, "the sums are no numbers"),
        ({"step": "everything"}, "everything"),
    ],
)
def test_part_that_no_shard_can_have_said_is_refused_by_what_is_wrong(part: dict[str, Any], message: str) -> None:
    with pytest.raises(EventError, match=message):
        admission().admit(record(part=part))


def test_whole_index_refuses_a_part_and_a_shard_what_needs_all_shards() -> None:
    with pytest.raises(QueryRefused, match=r"retriever\.shards of the client to 1") as refused:
        admission("").admit(record(part={"step": "search"}))
    assert refused.value.kind == "NoShard"
    for fields in ({"explain": True}, {"why_not": ["a"]}, {"slate": [{"per": "sid", "most": 1}]}):
        with pytest.raises(QueryRefused, match=f"{next(iter(fields))} is not answered over shards") as refused:
            admission().admit(record(**fields))
        assert refused.value.kind == "NotOverShards"
        admission("").admit(record(**fields))


def test_user_is_counted_once_for_all_rounds_of_a_query() -> None:
    rounds = admission(user_queries_per_second=0.001, user_query_burst=1)
    for step in ("history", "search", "items"):
        rounds.admit(record(user="ada", part={"step": step}))
    with pytest.raises(QueryRefused, match="more than"):
        rounds.admit(record(user="ada", part={"step": "search"}))


@pytest.mark.parametrize(
    ("held", "indexer", "retriever", "message"),
    [
        (
            "0-1",
            {"partitions": "2-3"},
            {"shards": 2},
            r"holds the partitions 0-1 and this host is to hold the partitions 2-3",
        ),
        ("", {"partitions": "2-3"}, {"shards": 2}, r"holds all partitions and this host is to hold the partitions 2-3"),
        ("0-1", {"partitions": "0-1"}, {}, r"holds the partitions 0-1 alone, and retriever\.shards is 1"),
        ("", {}, {"shards": 3}, r"retriever\.shards is 3, and the index holds all partitions"),
        ("0-1", {"partitions": "0-1"}, {"shards": 2, "ranking": "weight_and_recency"}, r"set it to 'own_probability'"),
    ],
)
def test_index_and_settings_that_do_not_fit_are_refused_with_what_to_set(
    held: str, indexer: dict[str, Any], retriever: dict[str, Any], message: str
) -> None:
    with pytest.raises(ShardError, match=message):
        require_own_shard(held, load_settings(indexer=indexer, retriever=retriever))


def test_shard_and_whole_index_that_fit_their_settings_are_taken() -> None:
    require_own_shard("", load_settings())
    require_own_shard("0-1", load_settings(indexer={"partitions": [0, 1]}, retriever={"shards": 2}))
