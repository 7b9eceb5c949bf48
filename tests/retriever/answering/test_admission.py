"""Which queries are worked on: limits, deadlines, rates, and how far one transaction reaches. No broker, no model."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from confluent_kafka import Message

from models.attributes import AttributeType
from retriever.answering.admission import Admission, BundleLimits, QueryRefused
from retriever.client import Client, ClientError
from streamer.events.formats.frames import RegistryAwayError
from streamer.events.formats.reading import Formats
from streamer.events.intake import EventError
from streamer.events.records import QUERY, Query, excludes_history
from streamer.filters.grammar import to_json
from streamer.settings import Settings
from streamer.settings.retriever import RetrieverSettings

FILTERABLE: dict[str, AttributeType] = {"price": "number", "brand": "string"}
NOW = 1_800_000_000.0  # seconds since the epoch


def record(*, age_ms: float = 0, **fields: Any) -> Message:
    value = json.dumps({"text": "kettle", **fields}).encode()
    timestamp = (1, int(NOW * 1000 - age_ms))
    return Message(topic="queries", partition=0, offset=1, key=b"q", value=value, timestamp=timestamp)


def admission(**settings: Any) -> Admission:
    return Admission(
        RetrieverSettings(**settings),
        limits_of=lambda who: BundleLimits(4),
        filterable=FILTERABLE,
        clock=lambda: NOW,
        monotonic=lambda: 0.0,
    )


@pytest.mark.parametrize(
    ("embedding", "kind"),
    [
        ([1, 2, 3], "WrongDimension"),
        ([0, 0, 0, 0], "EmbeddingZero"),
        ([1e300, 0, 0, 0], "EmbeddingNotFinite"),
        (base64.b64encode(np.ones(4, "<f2").tobytes()).decode(), "WrongDimension"),
        (base64.b64encode(np.array([1, np.nan, 0, 0], "<f4").tobytes()).decode(), "EmbeddingNotFinite"),
        ("not base64!", "InvalidEvent"),
        (3, "InvalidEvent"),
    ],
)
def test_embedding_of_a_query_is_checked_as_an_items_is(embedding: Any, kind: str) -> None:
    with pytest.raises(EventError) as refused:
        admission().admit(record(embedding=embedding))
    assert refused.value.kind == kind


@pytest.mark.parametrize("embedding", [[1, 2, 3, 4], base64.b64encode(np.ones(4, "<f4").tobytes()).decode()])
def test_embedding_alone_is_a_query(embedding: Any) -> None:
    admission().admit(record(text="", embedding=embedding))


@pytest.mark.parametrize(
    ("query", "waited"),
    [
        (record(age_ms=200), 200),
        (record(age_ms=-5_000), 0),
        (record(age_ms=200, asked_at=int(NOW * 1000) - 900), 900),
        (record(age_ms=200, asked_at=int(NOW * 1000) + 900), 0),
        (Message(topic="queries", key=b"q", value=b'{"text": "no timestamp"}'), 0),
    ],
    ids=["broker's time", "clock ahead", "asked_at", "asked_at ahead", "no time"],
)
def test_wait_counts_from_asked_at_or_the_brokers_time_and_is_never_negative(query: Message, waited: float) -> None:
    assert admission().admit(query)[1] == waited


@pytest.mark.parametrize(
    ("age_ms", "timeout_ms", "late"),
    [(999, 1_000, False), (1_001, 1_000, True), (1_999, None, False), (2_001, None, True), (2_001, 9_000, True)],
)
def test_deadline_is_the_querys_own_or_the_setting_whichever_comes_first(
    age_ms: float, timeout_ms: int | None, late: bool
) -> None:
    query = record(age_ms=age_ms, timeout_ms=timeout_ms)
    gate = admission(maximum_wait_seconds=2)
    if late:
        with pytest.raises(QueryRefused, match=rf"had waited {age_ms} ms") as refused:
            gate.admit(query)
        assert refused.value.kind == "DeadlinePassed"
    else:
        assert gate.admit(query)[0].query.text == "kettle"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text": "é" * 11}, "text has 11 characters; the limit is 10"),
        ({"history": ["a"] * 4}, "history has 4 items; the limit is 3"),
        ({"history": ["a", "é" * 129]}, r"history\[1\] has 258 bytes; the limit is 256"),
        ({"user": "é" * 3}, "user has 6 bytes; the limit is 5"),
        ({"limit": 101}, "limit 101 is not within 1..100"),
        ({"exclude": ["a"] * 5}, "exclude has 5 items; the limit is 4"),
        ({"exclude": ["é" * 129]}, r"exclude\[0\] has 258 bytes; the limit is 256"),
        ({"filter": {"field": "price", "in": [1, 2, 3]}}, "filter.in: has 3 values; the limit is 2"),
        ({"filter": {"not": {"not": {"field": "price", "lt": 1}}}}, "filter.not.not: is nested 3 deep; the limit is 2"),
        ({"filter": {"field": "price", "lt": 1, "gt": 0, "ne": 2}}, "filter: is clause 3; the limit is 2"),
    ],
)
def test_field_beyond_its_limit_is_named_with_size_and_limit(fields: dict[str, Any], message: str) -> None:
    gate = admission(
        maximum_text_characters=10,
        maximum_history=3,
        maximum_user_bytes=5,
        maximum_exclusions=4,
        maximum_filter_clauses=2,
        maximum_filter_depth=2,
        maximum_filter_entries=2,
    )
    with pytest.raises(EventError, match=f"^{message}$"):
        gate.decode(record(**fields))


def test_filter_is_read_with_the_declared_types_from_json_and_messagepack() -> None:
    asked = {"all": [{"field": "price", "lte": 30}, {"field": "brand", "eq": "Acme"}]}
    for value in (
        json.dumps({"text": "x", "filter": asked}).encode(),
        msgspec.msgpack.encode({"text": "x", "filter": asked}),
    ):
        found = admission().decode(Message(topic="queries", key=b"q", value=value))
        assert found.filter is not None
        assert to_json(found.filter) == {"all": [asked["all"][1], asked["all"][0]]}
    assert admission().decode(record()).filter is None


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            {"field": "prise", "lte": 30},
            r"filter.field: 'prise' cannot be filtered on: is price meant\? There are brand",
        ),
        ({"field": "price", "lte": "30"}, "filter.lte: is a string, and price is a number"),
        ({"field": "brand", "lte": "x"}, "filter: brand is a string, which has no lte: it has eq, ne, in and exists"),
        (None, "filter: is null: send"),
        ([], "filter: is an empty list: send"),
    ],
)
def test_filter_that_asks_for_what_is_not_declared_is_refused_by_its_place(asked: Any, message: str) -> None:
    with pytest.raises(EventError, match=f"^{message}") as caught:
        admission().decode(record(filter=asked))
    assert caught.value.kind == "InvalidFilter"


def test_query_of_an_older_client_asks_for_no_filter_and_excludes_its_history() -> None:
    query = admission().decode(record(history=["a"])).query
    assert (query.filter, query.exclude, query.exclude_history) == (msgspec.UNSET, msgspec.UNSET, msgspec.UNSET)
    assert excludes_history(query)
    assert not excludes_history(msgspec.structs.replace(query, exclude_history=False))
    assert b"exclude" not in QUERY.encode(query), "what is not used is not on the wire"


@pytest.mark.parametrize(
    ("ages_ms", "expected"),
    [
        ([0] * 10, 4),
        ([9_000] * 10, 10),
        ([9_000, 0, 9_000, 0, 9_000, 0, 9_000, 0, 9_000, 0], 8),
        ([0, 0, 0, 9_000, 9_000], 5),
        ([0, 0, 0, 0, 9_000], 4),
    ],
    ids=["fresh", "late", "mixed", "too few", "just enough"],
)
def test_transaction_reaches_to_one_batch_of_work_and_takes_the_late_ones_along(
    ages_ms: list[float], expected: int
) -> None:
    gate = admission(batch_size=4, maximum_wait_seconds=5)
    records = [record(age_ms=age) for age in ages_ms]
    assert gate.next_batch(records) == expected


def test_queries_before_one_whose_schema_cannot_be_asked_for_do_not_wait() -> None:
    class Away:
        def plain(self, *_: object) -> bytes:
            raise RegistryAwayError("away")

    gate = Admission(
        RetrieverSettings(), limits_of=lambda who: BundleLimits(4), formats=Formats(Away()), clock=lambda: NOW
    )
    framed = Message(topic="queries", key=b"q", value=b"\x00\x00\x00\x00\x07...", timestamp=(1, int(NOW * 1000)))
    assert gate.next_batch([record(), record(), framed, record()]) == 2
    with pytest.raises(RegistryAwayError):
        gate.next_batch([framed, record()])


@pytest.mark.parametrize(
    ("asked_at", "message"),
    [
        (1_700_000_000, "asked_at 1700000000 looks like seconds: send milliseconds since 1970"),
        (1_700_000_000_153_000, "looks like microseconds: send milliseconds since 1970"),
        (1_700_000_000_153_000_000, "looks like nanoseconds: send milliseconds since 1970"),
        (0, "asked_at 0 is not a time after 1990"),
        (-1, "asked_at -1 is not a time after 1990"),
        (1 << 80, "asked_at far too large is more than a day ahead"),
    ],
)
def test_asked_at_in_another_unit_is_refused_by_its_name(asked_at: int, message: str) -> None:
    with pytest.raises(EventError, match=message):
        admission().decode(record(asked_at=asked_at))
    with pytest.raises(ClientError, match=f"query 2 of 2: .*{message}"):
        Client(Settings()).ask_all([Query(text="a"), Query(text="a", asked_at=asked_at)])


@pytest.mark.parametrize(
    ("field", "meant"),
    [
        ("txt", "no field 'txt': is text meant"),
        ("Text", "is text meant"),
        ("histroy", "is history meant"),
        ("user_id", "is user meant"),
        ("timeout-ms", "is timeout_ms meant"),
        ("query", "It knows text, history, user, limit, asked_at, timeout_ms"),
        ("x" * 100_000, "It knows text"),
        ("a `quoted` name", "It knows text"),
    ],
)
@pytest.mark.parametrize("encode", [msgspec.json.encode, msgspec.msgpack.encode])
def test_unknown_field_is_refused_with_the_known_one_that_looks_like_it(
    field: str, meant: str, encode: Callable[[Any], bytes]
) -> None:
    asked = Message(topic="queries", key=b"q", value=encode({"text": "kettle", field: ["a"]}))
    with pytest.raises(EventError, match=meant) as refused:
        admission().decode(asked)
    assert refused.value.kind == "UnknownField"
    assert len(str(refused.value)) < 300
