"""From a raw record to an update or to the reason why it cannot be used: ids, times, forms, fields."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec
import numpy as np
import pytest
from confluent_kafka import Message

from streamer.events.intake import (
    AttributesIntake,
    EventError,
    EventLimits,
    checked_id,
    checked_item_id,
    checked_time,
    decode_event,
)
from streamer.events.records import Codec, Query
from streamer.events.updates.batch import Update
from streamer.events.updates.checks import UpdateLimits
from streamer.events.updates.reading import UpdateIntake
from streamer.settings.records import AttributeSettings

DIMENSION = 4
NOW = 1_767_323_045_000
KAFKA_TIME = 1_766_000_000_000
LIMITS = UpdateLimits(EventLimits(4_096, 8, 1_000), title_characters=100, weight=1e12, dimension=DIMENSION)
EMBEDDING = [1.0, 2.0, 3.0, 0.5]
STRUCTURED = [("content-type", b"application/cloudevents+json")]


def record(value: bytes | None, key: bytes | None = b"sku-1", **more: Any) -> Message:
    arguments = {"partition": 2, "offset": 7, "timestamp": (1, KAFKA_TIME), **more}
    return Message(topic="item-updates", key=key, value=value, **arguments)


def read(value: bytes | None, *, strict: bool = False, **more: Any) -> Update:
    return UpdateIntake(LIMITS, strict=strict).read(record(value, **more), NOW)


def update(**fields: Any) -> bytes:
    return json.dumps({"embedding": EMBEDDING, **fields}).encode()


def refused(value: bytes | None, **more: Any) -> EventError:
    with pytest.raises(EventError) as caught:
        read(value, **more)
    return caught.value


def test_update_is_read_in_one_visit() -> None:
    raw = record(update(title="Kettle", weight=2.5, updated_at=NOW - 5))
    found = UpdateIntake(LIMITS).read(raw, NOW)
    assert found.embedding is not None
    assert np.frombuffer(found.embedding, "<f4").tolist() == EMBEDDING
    assert (found.record, found.item_id, found.guessed) == (raw, b"sku-1", False)
    assert (found.title, found.weight, found.updated_at) == ("Kettle", 2.5, NOW - 5)
    assert read(None).embedding is None, "a null value deletes"


@pytest.mark.parametrize("value", [update(), None], ids=["update", "deletion"])
@pytest.mark.parametrize(
    ("key", "kind"),
    [
        (None, "EmptyId"),
        (b"", "EmptyId"),
        (b"x" * 257, "IdTooLong"),
        (b"\xff\xfe", "UndecodableId"),
        ((5).to_bytes(8), "InvalidId"),
        (b'"sku-1"', "InvalidId"),
        (b'{"id":5}', "InvalidId"),
        (b"sku-1 ", "InvalidId"),
        (b"sku\n1", "InvalidId"),
    ],
)
def test_key_that_is_no_item_id_is_refused_of_updates_and_deletions_alike(
    key: bytes | None, kind: str, value: bytes | None
) -> None:
    error = refused(value, key=key)
    assert error.kind == kind
    assert str(error).startswith(("the key is the item id, but it ", "the record has no key", "the item id has"))


def test_ids_of_queries_are_their_askers_and_stay_as_they_are() -> None:
    for key in (b'"q"', b"q 1 ", b'{"id":5}'):
        assert checked_id(key, "query") == key
    assert checked_item_id("商品-17".encode()) == "商品-17".encode()


@pytest.mark.parametrize(
    ("time", "words"),
    [
        (NOW // 1000, "looks like seconds: send milliseconds since 1970, so multiply by 1,000"),
        (NOW * 1000, "looks like microseconds.*divide by 1,000"),
        (NOW * 1_000_000, "looks like nanoseconds.*divide by 1,000,000"),
        (NOW // 86_400_000, "looks like days"),
        (0, "0 is not a time after 1990"),
        (-5, "-5 is not a time after 1990"),
        (NOW + 25 * 3_600_000, "more than a day ahead"),
        (10**40, "far too large"),
        (-(10**4_000), "far too large"),
    ],
)
def test_time_in_another_unit_is_refused_with_the_guess(time: int, words: str) -> None:
    with pytest.raises(EventError, match=words) as caught:
        checked_time(time, "updated_at", NOW)
    assert caught.value.kind == "InvalidEvent"
    assert str(caught.value).startswith("updated_at ")


@pytest.mark.parametrize("time", [631_152_000_000, NOW, NOW + 23 * 3_600_000])
def test_plausible_times_pass(time: int) -> None:
    assert checked_time(time, "updated_at", NOW) == time
    assert read(update(updated_at=time)).updated_at == time


def test_time_is_the_events_or_its_cloudevents_or_its_records() -> None:
    headers = [("ce_specversion", b"1.0"), ("ce_time", b"2026-01-01t00:00:00z")]
    assert read(update(updated_at=NOW), headers=headers).updated_at == NOW
    assert read(update(updated_at=None), headers=headers).updated_at == 1_767_225_600_000
    assert read(update()).updated_at == KAFKA_TIME


@pytest.mark.parametrize("timestamp", [(0, -1), (1, -1), (1, 0)])
def test_record_without_a_timestamp_is_used_without_a_time(timestamp: tuple[int, int]) -> None:
    assert read(update(), timestamp=timestamp).updated_at == 0
    assert read(update(updated_at=NOW), timestamp=timestamp).updated_at == NOW


def test_implausible_time_is_refused_by_the_name_of_where_it_stands() -> None:
    assert "updated_at 1767323045 looks like seconds" in str(refused(update(updated_at=NOW // 1000)))
    old = [("ce_specversion", b"1.0"), ("ce_time", b"1970-01-21T00:00:00Z")]
    assert "the CloudEvent's time" in str(refused(update(), headers=old))
    assert "the record's Kafka timestamp 1767323045 looks like seconds" in str(
        refused(update(), timestamp=(1, NOW // 1000))
    )


@pytest.mark.parametrize("name", ["id", "item_id"])
@pytest.mark.parametrize("given", ["sku-1", None, {"$oid": "1"}, True])
def test_id_in_the_value_may_repeat_the_key(name: str, given: Any) -> None:
    assert read(update(**{name: given})).item_id == b"sku-1"


def test_whole_number_as_id_in_the_value_is_compared_as_text() -> None:
    assert read(update(id=5), key=b"5").item_id == b"5"
    assert refused(update(id=6), key=b"5").kind == "ContradictingId"


@pytest.mark.parametrize(
    "fields", [{"id": "sku-2"}, {"item_id": "sku-2"}, {"id": "sku-1", "item_id": "sku-2"}, {"id": 10**30}]
)
def test_id_in_the_value_that_contradicts_the_key_is_refused(fields: dict[str, Any]) -> None:
    error = refused(update(**fields))
    assert error.kind == "ContradictingId"
    assert "the key is 'sku-1'" in str(error)


@pytest.mark.parametrize("content_type", [b"application/msgpack; dtype=float16", b"application/json;dtype=float16"])
def test_dtype_comes_from_the_event_or_its_media_type(content_type: bytes) -> None:
    half = np.array(EMBEDDING, "<f2").tobytes()
    for encode in (msgspec.json.encode, msgspec.msgpack.encode):
        assert read(encode({"embedding": half})).guessed
        assert not read(encode({"embedding": half, "dtype": "float16"})).guessed
        assert not read(encode({"embedding": half}), headers=[("content-type", content_type)]).guessed
        both = encode({"embedding": half, "dtype": "float32"})
        assert "'float32' and that of its content-type 'float16'" in str(
            refused(both, headers=[("content-type", content_type)])
        )
        assert refused(encode({"embedding": half, "dtype": "float32"})).kind == "WrongDimension"
        assert refused(encode({"embedding": half, "dtype": "bfloat16"})).kind == "UnsupportedDtype"


@pytest.mark.parametrize(
    ("value", "kind", "words"),
    [
        (b"", "UndecodableEvent", "empty"),
        (b"null", "UndecodableEvent", "send a null value"),
        (b"\x00\x00\x00\x00\x01{}", "UndecodableEvent", "schema registry"),
        (b"\xef\xbb\xbf" + update(), "UndecodableEvent", "byte order mark"),
        (b'{"embedding": [NaN]}', "UndecodableEvent", "NaN"),
        (b'{"embedding": [1], "title": "\\ud800"}', "UndecodableEvent", "surrogate"),
        (b'{"embedding": [1] "title"', "UndecodableEvent", "begins like a JSON object, but is none"),
        (b"\x83\xa9embedding", "UndecodableEvent", "begins like a MessagePack map"),
        (b"\xc1\xc1\xc1", "UndecodableEvent", "3 bytes that begin with c1 c1 c1, is neither JSON nor MessagePack"),
        (bytes.fromhex("3dcccccd" * 8), "UndecodableEvent", "32 bytes that begin with 3d cc cc cd"),
        (b'{"x":' + b"[" * 1_500, "UndecodableEvent", "nested too deeply"),
        (update(title=5), "InvalidEvent", "does not fit.*title"),
        (b'{"title": "Kettle"}', "InvalidEvent", "required field `embedding`"),
        (b"{}", "InvalidEvent", "empty map, without embedding.*send a null value"),
        (b"\x80", "InvalidEvent", "empty map, without embedding.*send a null value"),
        (b'{"embeding": [1], "titel": 1}', "InvalidEvent", "no embedding; it has 'embeding', 'titel'"),
        (b'{"schema": {}, "payload": {"vec": 1}}', "InvalidEvent", "no embedding; it has 'vec'"),
        (b'{"before": null, "after": {"id": 5}, "op": "c"}', "InvalidEvent", "required field `embedding`"),
        (b'{"before": null, "after": null, "op": "t"}', "UnsupportedChange", "empties the whole table"),
        (update(record_version=2), "UnsupportedVersion", "update sidstream"),
    ],
)
def test_value_that_is_no_update_is_refused_in_words_that_help(value: bytes, kind: str, words: str) -> None:
    error = refused(value)
    assert error.kind == kind
    assert re.search(words, str(error)), str(error)


def test_structured_cloudevent_is_understood() -> None:
    envelope = {"specversion": "1.0", "id": "1", "type": "t", "source": "s", "time": "2026-01-01T00:00:00Z"}
    value = json.dumps({**envelope, "data": {"embedding": EMBEDDING, "title": "Kettle"}}).encode()
    found = read(value, headers=STRUCTURED)
    assert (found.title, found.updated_at) == ("Kettle", 1_767_225_600_000)
    assert read(value).title == "Kettle", "and where its content-type does not say so"
    for wrong, kind in ((b"[]", "UnsupportedCloudEvent"), (b"{", "UndecodableEvent"), (b"", "UndecodableEvent")):
        assert refused(wrong, headers=STRUCTURED).kind == kind


def test_strict_intake_refuses_an_unknown_field_and_names_the_nearest_known_one() -> None:
    error = refused(update(titel="Kettle"), strict=True)
    assert error.kind == "UnknownField"
    assert "'titel'" in str(error)
    assert "is title meant?" in str(error)
    assert read(update(title="Kettle"), strict=True).title == "Kettle"
    assert len(str(refused(update(**{"x" * 900: 1}), strict=True))) < 300


def test_lenient_intake_counts_the_unknown_field() -> None:
    intake = UpdateIntake(LIMITS)
    assert intake.read(record(update(titel="Kettle")), NOW).title == ""
    assert intake.unknown_fields == {"titel": 1}


def test_any_strict_codec_names_the_unknown_field() -> None:
    codec = Codec(Query, json=True, strict=True)
    with pytest.raises(EventError, match=r"'txt'.*is text meant") as caught:
        decode_event(codec, record(b""), b'{"txt": "kettle"}', LIMITS.event)
    assert caught.value.kind == "UnknownField"


ATTRIBUTES = AttributeSettings(filterable={"price": "number"}, maximum_bytes=300, maximum_headers=2)


@pytest.mark.parametrize("encode", [msgspec.json.encode, msgspec.msgpack.encode], ids=["json", "messagepack"])
def test_attributes_of_an_update_are_checked_and_canonical(encode: Any) -> None:
    value = encode({"embedding": EMBEDDING, "attributes": {"price": 30.0, "brand": "Acme"}})
    found = read(value).attributes
    assert found == msgspec.msgpack.encode({"brand": "Acme", "price": 30})
    assert read(encode({"embedding": EMBEDDING})).attributes is None
    assert read(encode({"embedding": EMBEDDING, "attributes": {}})).attributes == b"\x80"


@pytest.mark.parametrize(
    ("attributes", "kind", "said"),
    [
        ({"price": None}, "InvalidAttributes", "attributes.price is null"),
        ({"a": {"b": 1}}, "InvalidAttributes", "attributes.a is an object"),
        ([], "InvalidAttributes", "attributes is a list"),
        ({"a": "x" * 1_025}, "FieldTooLarge", "attributes.a has 1025 characters; the limit is 1024"),
    ],
)
def test_attributes_that_do_not_fit_refuse_the_update(attributes: Any, kind: str, said: str) -> None:
    error = refused(update(attributes=attributes))
    assert error.kind == kind
    assert said in str(error)


def read_attributes(value: bytes | None, **more: Any) -> bytes | None:
    return AttributesIntake(ATTRIBUTES).read(record(value, **more)).attributes


def test_record_of_attributes_is_read_in_every_form_of_an_event() -> None:
    event = {"attributes": {"price": 30}}
    canonical = msgspec.msgpack.encode({"price": 30})
    assert read_attributes(json.dumps(event).encode()) == canonical
    assert read_attributes(msgspec.msgpack.encode(event)) == canonical
    envelope = {"specversion": "1.0", "type": "t", "source": "s", "id": "1", "data": event}
    assert read_attributes(json.dumps(envelope).encode(), headers=STRUCTURED) == canonical
    assert read_attributes(None) is None, "a null value takes them away"


@pytest.mark.parametrize(
    ("value", "kind", "said"),
    [
        (
            b'{"price": 30}',
            "UnknownField",
            """there is no field 'price'.*fields go inside, as {"attributes": {"price": 30}}""",
        ),
        (b'{"attributes": {}, "price": 3}', "UnknownField", "there is no field 'price'"),
        (b'{"attributes": {"price": "30"}}', "InvalidAttributes", "attributes.price is a string, and .* as a number"),
        (b"null", "UndecodableEvent", "to take an item's attributes away, send a null value"),
        (b"{}", "InvalidEvent", "without attributes: to take an item's attributes away"),
        (b'{"attributes": {"a": "' + b"x" * 5_000 + b'"}}', "EventTooLarge", "the limit is 4396"),
        (
            b'{"attributes": {"a": "' + b"x" * 500 + b'"}}',
            "FieldTooLarge",
            "attributes has 509 bytes; the limit is 300",
        ),
        (b'{"attributes": {}, "record_version": 2}', "UnsupportedVersion", "update sidstream"),
    ],
)
def test_record_of_attributes_that_cannot_be_used_says_why(value: bytes, kind: str, said: str) -> None:
    with pytest.raises(EventError) as caught:
        read_attributes(value)
    assert caught.value.kind == kind
    assert re.search(said, str(caught.value)), str(caught.value)


def test_key_and_headers_of_attributes_are_checked_as_those_of_updates() -> None:
    for more, kind in (({"key": b""}, "EmptyId"), ({"headers": [("a", b"")] * 3}, "FieldTooLarge")):
        with pytest.raises(EventError) as caught:
            read_attributes(b'{"attributes": {}}', **more)
        assert caught.value.kind == kind
