"""The assigner's transform: what becomes codes, and in which order. No broker needed."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.dense.vectors import QuantisedVectors, quantise
from streamer.assigner.assign_batch import AssignBatch
from streamer.events.outgoing import Outgoing
from streamer.events.records import ITEM_CODES, ItemCodes
from streamer.settings.records import AttributeSettings
from support.assigned import DIMENSION, LIMITS, SignEncoder, codes_of, fault, record, update

_VALUES = st.one_of(
    st.none(),
    st.binary(max_size=40),
    st.lists(st.floats(width=32) | st.integers(0, 60_000), min_size=3, max_size=5).map(
        lambda numbers: msgspec.msgpack.encode({"embedding": numbers})
    ),
)


def test_update_becomes_codes_in_the_partition_it_came_from(assign: AssignBatch) -> None:
    [out] = assign([record(b"sku-1", update(1, 2, 3, 0, title="Kettle", weight=2.5, updated_at=1_767_000_000_077))])
    assert out.key == b"sku-1"
    assert out.partition == 2
    assert codes_of(out) == ItemCodes(
        codebook="cafe0123cafe0123",
        codes=(1, 2, 3),
        title="Kettle",
        weight=2.5,
        updated_at=1_767_000_000_077,
        vector=quantise(np.array([[1, 2, 3, 0]], dtype=np.float32)).encode()[0],
    )


def test_vector_is_that_of_the_update_that_wins_and_a_deletion_has_none(assign: AssignBatch) -> None:
    outgoing = assign(
        [
            record(b"a", update(1, 2, 3, 0)),
            record(b"b", update(7, 7, 7, 7)),
            record(b"c", b"no update"),
            record(b"a", update(0, 4, 0, -3)),
            record(b"b", None),
        ]
    )
    kept = {out.key: out.value for out in outgoing if out.topic == "codes"}
    assert kept[b"b"] is None
    vector = ITEM_CODES.decode(kept[b"a"]).vector
    np.testing.assert_allclose(QuantisedVectors.decode([vector], DIMENSION).unit()[0], [0, 0.8, 0, -0.6], atol=0.01)


@pytest.mark.parametrize(("takes", "taken"), [(None, b"unnamed"), ("model-b", b"named"), ("model-c", None)])
def test_updates_of_another_embedding_model_are_passed_over_and_deletions_are_for_all(
    takes: str | None, taken: bytes | None
) -> None:
    assign = AssignBatch(
        SignEncoder(), codes_topic="codes", dead_letter_topic="dlq", limits=LIMITS, embedding_model=takes
    )
    outgoing = assign(
        [
            record(b"unnamed", update(1, 2, 3, 0)),
            record(b"named", update(1, 2, 3, 0, 9, 9, 9, embedding_model="model-b") if takes != "model-b" else
                   update(1, 2, 3, 0, embedding_model="model-b")),
            record(b"gone", None),
        ]
    )  # fmt: skip
    assert {(out.topic, out.key) for out in outgoing} == {("codes", key) for key in (taken, b"gone") if key}


def test_vectors_are_left_out_where_the_settings_say_so() -> None:
    without = LIMITS.model_copy(update={"vectors": False})
    [out] = AssignBatch(SignEncoder(), codes_topic="codes", dead_letter_topic="dlq", limits=without)(
        [record(b"a", update(1, 2, 3, 0))]
    )
    assert codes_of(out).vector is msgspec.UNSET


@pytest.mark.parametrize(
    "embedding",
    [
        np.array([1, 2, 3, 0], "<f4").tobytes(),
        np.array([1, 2, 3, 0], "<f2").tobytes(),
        [1.0, 2.0, 3.0, 0.0],
    ],
    ids=["float32", "float16", "numbers"],
)
@pytest.mark.parametrize("encode", [msgspec.json.encode, msgspec.msgpack.encode], ids=["json", "messagepack"])
def test_every_form_of_an_embedding_gives_the_same_codes(assign: AssignBatch, embedding: Any, encode: Any) -> None:
    [out] = assign([record(b"a", encode({"embedding": embedding}))])
    assert codes_of(out).codes == (1, 2, 3)


def test_attributes_of_an_update_go_along_with_its_codes_and_wrong_ones_make_it_a_dead_letter() -> None:
    rules = AttributeSettings(filterable={"price": "number"}).rules()
    assign = AssignBatch(SignEncoder(), codes_topic="codes", dead_letter_topic="dlq", limits=LIMITS, attributes=rules)
    without, with_them, wrong = assign(
        [
            record(b"a", update(1, 1, 1, 0)),
            record(b"b", update(1, 1, 1, 0, attributes={"price": 30.0, "brand": "Acme"})),
            record(b"c", update(1, 1, 1, 0, attributes={"price": "30"})),
        ]
    )
    assert b"attributes" not in (without.value or b""), "what is not used costs nothing"
    assert msgspec.msgpack.decode(codes_of(with_them).attributes) == {"brand": "Acme", "price": 30}
    assert fault(wrong) == "InvalidAttributes"
    assert b"attributes.price is a string" in dict(wrong.headers or [])["dlq.errors.message"]


def test_codes_have_the_kafka_timestamp_of_their_update_unless_it_is_of_the_future(assign: AssignBatch) -> None:
    future = int(time.time() * 1000) + 60_000
    records = [
        record(b"a", update(1, 1, 1, 1), timestamp=(1, 1_700_000_000_123)),
        record(b"b", update(1, 1, 1, 1), timestamp=(1, future)),
        record(b"c", None, timestamp=(2, 1_700_000_000_456)),
        record(b"d", update(1, 1, 1, 1), timestamp=(0, -1)),
    ]
    assert {one.key: one.timestamp for one in assign(records)} == {
        b"a": 1_700_000_000_123,
        b"b": 0,
        b"c": 1_700_000_000_456,
        b"d": 0,
    }


def test_tombstone_passes_as_tombstone(assign: AssignBatch) -> None:
    assert assign([record(b"a", None)]) == [Outgoing("codes", b"a", None, 2, timestamp=1_700_000_000_000)]


def test_last_event_of_an_item_in_a_batch_wins(assign: AssignBatch) -> None:
    outs = assign(
        [
            record(b"a", update(1, 1, 1, 0)),
            record(b"b", update(5, 5, 5, 0)),
            record(b"a", None),
            record(b"a", update(2, 2, 2, 0)),
            record(b"b", None),
        ]
    )
    assert {out.key: None if out.value is None else codes_of(out).codes for out in outs} == {
        b"a": (2, 2, 2),
        b"b": None,
    }


def test_unusable_last_event_leaves_the_usable_one_before_it(assign: AssignBatch) -> None:
    outs = assign([record(b"a", update(1, 1, 1, 0)), record(b"a", update(1, 1)), record(b"a", update(9, 9, 9, 1e39))])
    assert [codes_of(out).codes for out in outs if out.topic == "codes"] == [(1, 1, 1)]
    assert [fault(out) for out in outs if out.topic == "dlq"] == ["WrongDimension", "EmbeddingNotFinite"]


def test_cloudevent_time_is_used_when_the_event_has_none(assign: AssignBatch) -> None:
    headers = [("ce_specversion", b"1.0"), ("ce_time", b"2026-01-02T03:04:05Z"), ("content-type", b"application/json")]
    [out] = assign([record(b"a", update(1, 2, 3, 0), headers=headers)])
    assert codes_of(out).updated_at == 1_767_323_045_000


def test_update_without_any_time_is_used(assign: AssignBatch) -> None:
    [out] = assign([record(b"a", update(1, 2, 3, 0), timestamp=(0, -1))])
    assert codes_of(out).updated_at == 0


def test_last_event_of_an_item_in_each_partition_is_sent_on_in_its_partition(assign: AssignBatch) -> None:
    """A key in two partitions: which of them holds is for the indexer to judge, which sees both."""
    outs = assign(
        [
            record(b"a", update(1, 1, 1, 0), partition=0),
            record(b"a", update(2, 2, 2, 0), partition=0),
            record(b"a", update(3, 3, 3, 0), partition=1),
        ]
    )
    assert [(out.partition, codes_of(out).codes) for out in outs] == [(0, (2, 2, 2)), (1, (3, 3, 3))]


@given(st.lists(st.tuples(st.sampled_from([b"a", b"b", b"c", b""]), _VALUES), max_size=12))
def test_any_batch_gives_each_item_one_output_and_each_unusable_event_one_letter(
    events: list[tuple[bytes, bytes | None]],
) -> None:
    assign = AssignBatch(SignEncoder(), codes_topic="codes", dead_letter_topic="dlq", limits=LIMITS)
    alone = [assign([record(key, value)])[0] for key, value in events]
    outs = assign([record(key, value) for key, value in events])
    expected = {out.key: out.value for out in alone if out.topic == "codes"}
    assert {out.key: out.value for out in outs if out.topic == "codes"} == expected
    assert len([out for out in outs if out.topic == "codes"]) == len(expected)
    assert len([out for out in outs if out.topic == "dlq"]) == sum(out.topic == "dlq" for out in alone)


def test_codes_have_the_trace_of_their_update_and_a_dead_letter_its_headers_as_they_came(assign: AssignBatch) -> None:
    first, last, bad = (("traceparent", f"00-{number * 32}-{number * 16}-01".encode()) for number in "123")
    outgoing = assign(
        [
            record(b"twice", update(1, 2, 3, 0), headers=[first]),
            record(b"plain", update(1, 2, 3, 0)),
            record(b"twice", update(4, 5, 6, 0), headers=[last, ("tracestate", b"shop=7"), ("source", b"erp")]),
            record(b"bad", b"{", headers=[bad]),
            record(b"odd", update(1, 2, 3, 0), headers=[("traceparent", b"nonsense")]),
            record(b"gone", None, headers=[first]),
        ]
    )
    *codes, letter = outgoing
    assert {one.key: one.headers for one in codes} == {
        b"plain": None,
        b"twice": [last, ("tracestate", b"shop=7")],
        b"odd": None,
        b"gone": [first],
    }
    assert fault(letter) == "UndecodableEvent"
    assert letter.headers is not None
    assert letter.headers[0] == bad
