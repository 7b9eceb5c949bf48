"""The assigner's transform: what becomes codes, what becomes a dead letter, and in which order. No broker needed."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
from confluent_kafka import Message
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from models.dense.vectors import QuantisedVectors, quantise
from streamer.assigner.assign_batch import AssignBatch
from streamer.events.dead_letter import VERBATIM_MAXIMUM_BYTES
from streamer.events.outgoing import Outgoing
from streamer.events.records import ITEM_CODES, ItemCodes
from streamer.settings.pipeline import AssignerSettings
from streamer.settings.records import AttributeSettings

DIMENSION = 4
LIMIT = 4_096
LIMITS = AssignerSettings(
    maximum_event_bytes=LIMIT, maximum_title_characters=100, maximum_headers=8, maximum_header_bytes=300
)


class SignEncoder:
    """Three codes that can be read off the embedding: its first three numbers, rounded."""

    codebook_id = "cafe0123cafe0123"
    dimension = DIMENSION

    def encode(self, embeddings: NDArray[np.float32], ids: Sequence[bytes]) -> NDArray[np.uint16]:
        return (np.rint(embeddings[:, :3]) % 1_000).astype(np.uint16)


@pytest.fixture
def assign() -> AssignBatch:
    return AssignBatch(SignEncoder(), codes_topic="codes", dead_letter_topic="dlq", limits=LIMITS)


_offsets = iter(range(1_000_000))


def record(key: bytes | None, value: bytes | None, **more: Any) -> Message:
    arguments = {"partition": 2, "offset": next(_offsets), "timestamp": (1, 1_700_000_000_000), **more}
    return Message(topic="item-updates", key=key, value=value, **arguments)


def update(*numbers: float, **more: Any) -> bytes:
    return json.dumps({"embedding": list(numbers), **more}).encode()


def codes_of(outgoing: Outgoing) -> ItemCodes:
    assert outgoing.topic == "codes"
    assert outgoing.value is not None
    decoded: ItemCodes = ITEM_CODES.decode(outgoing.value)
    return decoded


def fault(outgoing: Outgoing) -> str:
    assert outgoing.topic == "dlq"
    return dict(outgoing.headers or [])["dlq.errors.class"].decode()


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


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [
        (b"a", b"\xc1 nonsense", "UndecodableEvent"),
        (b"a", b"", "UndecodableEvent"),
        (b"a", b"{", "UndecodableEvent"),
        (b"a", b'{"x":' + b"[" * 1_500, "UndecodableEvent"),
        (b"a", b"\x81\xa1x" + b"\x91" * 1_500 + b"\xc0", "UndecodableEvent"),
        (b"a", b'{"title": "no embedding"}', "InvalidEvent"),
        (b"a", update(1, 2, 3), "WrongDimension"),
        (b"a", msgspec.msgpack.encode({"embedding": b"12345"}), "WrongDimension"),
        (
            b"a",
            msgspec.msgpack.encode({"embedding": np.array([1, np.nan, 3, 0], "<f4").tobytes()}),
            "EmbeddingNotFinite",
        ),
        (
            b"a",
            msgspec.msgpack.encode({"embedding": np.array([1, np.inf, 3, 0], "<f2").tobytes()}),
            "EmbeddingNotFinite",
        ),
        (b"a", update(1, 2, 3e38, 3e38), "EmbeddingNotFinite"),
        (b"a", update(1, 2, 3, 0, weight=-1), "InvalidEvent"),
        (b"a", msgspec.msgpack.encode({"embedding": [1.0, 2.0, 3.0, 0.0], "weight": float("nan")}), "InvalidEvent"),
        (b"a", update(1, 2, 3, 0, updated_at=-5), "InvalidEvent"),
        (b"a", update(1, 2, 3, 0, title="x" * LIMIT), "EventTooLarge"),
        (b"a", update(1, 2, 3, 0, weight=1.1e12), "InvalidEvent"),
        (b"a", update(1, 2, 3, 0, title="x" * 101), "FieldTooLarge"),
        (b"", update(1, 2, 3, 0), "EmptyId"),
        (None, update(1, 2, 3, 0), "EmptyId"),
        (b"x" * 257, update(1, 2, 3, 0), "IdTooLong"),
        (b"\xff\xfe", update(1, 2, 3, 0), "UndecodableId"),
    ],
)
def test_unusable_event_becomes_a_dead_letter_and_the_next_one_goes_on(
    assign: AssignBatch, key: bytes | None, value: bytes, kind: str
) -> None:
    outs = assign([record(key, value, offset=41, headers=[("trace", b"t1")]), record(b"good", update(1, 2, 3, 0))])
    assert codes_of(outs[0]).codes == (1, 2, 3)
    [letter] = outs[1:]
    headers = dict(letter.headers or [])
    assert (letter.key, letter.value) == (key, value), "key and value stay verbatim"
    assert headers["trace"] == b"t1"
    assert headers["dlq.errors.topic"] == b"item-updates"
    assert (headers["dlq.errors.partition"], headers["dlq.errors.offset"]) == (b"2", b"41")
    assert headers["dlq.errors.stage"] == b"assigner"
    assert headers["dlq.errors.class"].decode() == kind
    assert len(headers["dlq.errors.message"]) > 10


def test_event_too_large_to_be_copied_leaves_a_letter_that_says_where_it_lies(assign: AssignBatch) -> None:
    [letter] = assign([record(b"a", b"x" * (VERBATIM_MAXIMUM_BYTES + 1))])
    assert letter.value is None
    assert b"bytes of value" in dict(letter.headers or [])["dlq.errors.omitted"]


@pytest.mark.parametrize(
    ("key", "headers", "omitted"),
    [
        (b"a", [("trace", b"x" * VERBATIM_MAXIMUM_BYTES)], [b"bytes of value", b"bytes of headers"]),
        (b"a", [("h", b"")] * 200_000, [b"bytes of value", b"bytes of headers"]),
        (b"k" * (VERBATIM_MAXIMUM_BYTES + 1), None, [b"bytes of value", b"bytes of key"]),
    ],
    ids=["one large header", "many headers", "large key"],
)
def test_large_headers_and_keys_leave_a_letter_that_can_be_produced(
    assign: AssignBatch, key: bytes, headers: list[tuple[str, bytes]] | None, omitted: list[bytes]
) -> None:
    [letter] = assign([record(key, b"\xc1", headers=headers)])
    size = len(letter.key or b"") + sum(len(name) + len(content) for name, content in letter.headers or [])
    assert size < 1_000
    assert letter.value is None
    said = dict(letter.headers or [])["dlq.errors.omitted"]
    assert all(part in said for part in omitted)


def test_letter_does_not_repeat_a_large_header_in_its_message() -> None:
    limits = AssignerSettings(maximum_header_bytes=2_000_000)
    assign = AssignBatch(SignEncoder(), codes_topic="codes", dead_letter_topic="dlq", limits=limits)
    headers = [("content-type", b"x" * 1_500_000)]
    [letter] = assign([record(b"a", update(1, 2, 3, 0), headers=headers)])
    assert fault(letter) == "UnsupportedCloudEvent"
    found = dict(letter.headers or [])
    assert found["content-type"] == headers[0][1], "verbatim"
    assert len(found["dlq.errors.message"]) < 1_000


@pytest.mark.parametrize(
    ("headers", "title", "message"),
    [
        ([("h", b"")] * 9, "", "the record has 9 headers; the limit is 8"),
        ([("trace", b"x" * 400)], "", "the set of its headers has 415 bytes; the limit is 300"),
        (None, "x" * 101, "title has 101 characters; the limit is 100"),
    ],
    ids=["number of headers", "size of headers", "title"],
)
def test_letter_of_a_field_beyond_its_limit_names_field_size_and_limit(
    assign: AssignBatch, headers: list[tuple[str, bytes]] | None, title: str, message: str
) -> None:
    [letter] = assign([record(b"a", update(1, 2, 3, 0, title=title), headers=headers)])
    assert fault(letter) == "FieldTooLarge"
    assert dict(letter.headers or [])["dlq.errors.message"].decode() == message


def test_fields_at_their_limits_pass(assign: AssignBatch) -> None:
    headers = [("h", b"")] * 8
    [out] = assign([record(b"x" * 256, update(1, 2, 3, 0, title="é" * 100, weight=1e12), headers=headers)])
    assert codes_of(out).codes == (1, 2, 3)


def test_cloudevent_time_is_used_when_the_event_has_none(assign: AssignBatch) -> None:
    headers = [("ce_specversion", b"1.0"), ("ce_time", b"2026-01-02T03:04:05Z"), ("content-type", b"application/json")]
    [out] = assign([record(b"a", update(1, 2, 3, 0), headers=headers)])
    assert codes_of(out).updated_at == 1_767_323_045_000


@pytest.mark.parametrize(
    "header",
    [("ce_specversion", b"0.3"), ("content-type", b"application/avro")],
    ids=["old specification", "another format"],
)
def test_unsupported_cloudevent_is_a_dead_letter(assign: AssignBatch, header: tuple[str, bytes]) -> None:
    [letter] = assign([record(b"a", update(1, 2, 3, 0), headers=[header])])
    assert fault(letter) == "UnsupportedCloudEvent"


def test_update_without_any_time_is_used(assign: AssignBatch) -> None:
    [out] = assign([record(b"a", update(1, 2, 3, 0), timestamp=(0, -1))])
    assert codes_of(out).updated_at == 0


@pytest.mark.parametrize(
    ("key", "value", "kind", "words"),
    [
        (b"a", b"null", "UndecodableEvent", "send a null value"),
        (b"a", b"\x00\x00\x00\x00\x07\x02a", "UndecodableEvent", "schema registry"),
        (b"a", update(1, 2, 3, 0, updated_at=1_767_323_045), "InvalidEvent", "looks like seconds"),
        (b"a", update(0, 0, 0, 0), "EmbeddingZero", "every number of the embedding is zero"),
        (
            b"a",
            msgspec.msgpack.encode({"embedding": np.array([0.5, 1], "<f4").tobytes()}),
            "AmbiguousEmbedding",
            "float32",
        ),
        (b"a", update(1, 2, 3, 0, id="b"), "ContradictingId", "the key is 'a'"),
        ((5).to_bytes(8), update(1, 2, 3, 0), "InvalidId", "8-byte integer, 5"),
        ((5).to_bytes(8), None, "InvalidId", "8-byte integer, 5"),
    ],
)
def test_letter_says_what_the_sender_does_about_it(
    assign: AssignBatch, key: bytes, value: bytes | None, kind: str, words: str
) -> None:
    [letter] = assign([record(key, value)])
    assert fault(letter) == kind
    assert words in dict(letter.headers or [])["dlq.errors.message"].decode()
    assert (letter.key, letter.value) == (key, value)


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


def _sample(name: str, labels: dict[str, str] | None = None) -> float:
    return REGISTRY.get_sample_value(name, labels or {}) or 0.0


def test_unknown_fields_are_counted_logged_once_a_name_and_noted_for_status(assign: AssignBatch) -> None:
    before = _sample("sidstream_unknown_fields_total", {"field": "titel"})
    with capture_logs() as logs:
        for _ in range(2):
            outs = assign([record(b"a", update(1, 2, 3, 0, titel="Kettle")), record(b"b", update(1, 2, 3, 0))])
            assert [codes_of(out).codes for out in outs] == [(1, 2, 3)] * 2
    [line] = logs
    assert (line["event"], line["field"]) == ("unknown_field", "'titel'")
    assert "is title meant?" in line["advice"]
    assert _sample("sidstream_unknown_fields_total", {"field": "titel"}) == before + 2
    assert assign.commit_note() == {"unknown_fields": {"titel": 2}}


def test_strict_assigner_refuses_an_unknown_field_and_names_the_nearest_known_one() -> None:
    limits = LIMITS.model_copy(update={"strict": True})
    assign = AssignBatch(SignEncoder(), codes_topic="codes", dead_letter_topic="dlq", limits=limits)
    letter, out = reversed(assign([record(b"a", update(1, 2, 3, 0, titel="x")), record(b"b", update(1, 2, 3, 0))]))
    assert codes_of(out).codes == (1, 2, 3)
    assert fault(letter) == "UnknownField"
    assert "'titel': is title meant?" in dict(letter.headers or [])["dlq.errors.message"].decode()
    assert assign.commit_note() == {"unknown_fields": {}}


def test_implausible_norms_are_taken_counted_and_warned_of_once_a_minute() -> None:
    now = 1_767_323_045_000
    assign = AssignBatch(
        SignEncoder(),
        codes_topic="codes",
        dead_letter_topic="dlq",
        limits=LIMITS,
        norms=(1.0, 1.0, 1.0, 1.0, 1.0),
        clock=lambda: now,
    )
    before = _sample("sidstream_implausible_norms_total")
    strange, usual = record(b"strange", update(90, 0, 0, 0)), record(b"usual", update(1, 0, 0, 0))
    with capture_logs() as logs:
        for _ in range(3):
            assert [codes_of(out).codes[0] for out in assign([usual, strange])] == [1, 90]
        now += 60_000
        assign([strange])
    assert [(line["event"], line["item"], line["norm"]) for line in logs] == [
        ("implausible_norms", "'strange'", 90.0)
    ] * 2
    assert _sample("sidstream_implausible_norms_total") == before + 4


_VALUES = st.one_of(
    st.none(),
    st.binary(max_size=40),
    st.lists(st.floats(width=32) | st.integers(0, 60_000), min_size=3, max_size=5).map(
        lambda numbers: msgspec.msgpack.encode({"embedding": numbers})
    ),
)


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
