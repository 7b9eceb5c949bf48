"""The assigner's transform: what becomes a dead letter and what it says, what is taken with a warning. No broker needed."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from streamer.assigner.assign_batch import AssignBatch
from streamer.events.dead_letter import VERBATIM_MAXIMUM_BYTES
from streamer.settings.pipeline import AssignerSettings
from support.assigned import LIMIT, LIMITS, SignEncoder, codes_of, fault, record, update


def _sample(name: str, labels: dict[str, str] | None = None) -> float:
    return REGISTRY.get_sample_value(name, labels or {}) or 0.0


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


@pytest.mark.parametrize(
    "header",
    [("ce_specversion", b"0.3"), ("content-type", b"application/avro")],
    ids=["old specification", "another format"],
)
def test_unsupported_cloudevent_is_a_dead_letter(assign: AssignBatch, header: tuple[str, bytes]) -> None:
    [letter] = assign([record(b"a", update(1, 2, 3, 0), headers=[header])])
    assert fault(letter) == "UnsupportedCloudEvent"


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
