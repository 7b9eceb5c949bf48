"""Values of other formats as item updates: envelopes, rows, columns; and that a plain one is what it was."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
from confluent_kafka import Message
from hypothesis import given
from hypothesis import strategies as st

from streamer.events.formats.frames import RegistryAwayError
from streamer.events.formats.reading import Formats
from streamer.events.intake import EventError, EventLimits
from streamer.events.updates.batch import Update
from streamer.events.updates.checks import UpdateLimits
from streamer.events.updates.reading import UpdateIntake
from streamer.settings.records import ColumnSettings

NOW = 1_767_323_045_000
EMBEDDING = [1.0, 2.0, 3.0, 0.5]
BYTES = np.array(EMBEDDING, "<f4").tobytes()
LIMITS = UpdateLimits(EventLimits(262_144, 64, 16_384), 8_192, 1e12, 4)
ROW = {"embedding": EMBEDDING, "title": "Kettle"}
Encode = Callable[[Any], bytes]
ENCODERS = pytest.mark.parametrize("encode", [msgspec.json.encode, msgspec.msgpack.encode], ids=["JSON", "MessagePack"])


def record(value: bytes | None, key: bytes | None = b"sku-1", **more: Any) -> Message:
    return Message(topic="item-updates", key=key, value=value, partition=2, offset=7, timestamp=(1, NOW), **more)


def read(
    value: bytes | None, key: bytes | None = b"sku-1", columns: dict[str, Any] | None = None, **more: Any
) -> Update:
    """Alone and in a batch beside a plain record, which give the same."""
    formats = Formats(None, ColumnSettings(**(columns or {})))
    alone = UpdateIntake(LIMITS, formats=formats).read(record(value, key, **more), NOW)
    batch = UpdateIntake(LIMITS, formats=formats).read_batch(
        [record(value, key, **more), record(msgspec.msgpack.encode({"embedding": BYTES}), b"plain")], NOW
    )
    found = (batch.ids[0], batch.embeddings[0], batch.titles[0], batch.updated_at[0], batch.attributes[0])
    assert found == (alone.item_id, alone.embedding, alone.title, alone.updated_at, alone.attributes)
    assert (batch.ids[1], batch.embeddings[1]) == (b"plain", BYTES)
    return alone


def refused(value: bytes | None, **more: Any) -> EventError:
    with pytest.raises(EventError) as caught:
        read(value, **more)
    return caught.value


def change(op: str, after: Any, **more: Any) -> dict[str, Any]:
    return {"before": None, "after": after, "source": {"connector": "postgresql", "ts_ms": NOW - 9}, "op": op, **more}


@ENCODERS
@pytest.mark.parametrize("op", ["c", "u", "r"])
def test_change_event_is_its_row_with_the_time_of_the_change(encode: Encode, op: str) -> None:
    found = read(encode(change(op, ROW, ts_ms=NOW - 1)))
    assert (found.embedding, found.title, found.updated_at) == (BYTES, "Kettle", NOW - 9)
    assert read(encode(change(op, {**ROW, "updated_at": NOW - 100}))).updated_at == NOW - 100, (
        "the row's own time counts"
    )


@ENCODERS
def test_change_event_of_a_deletion_deletes_and_so_does_the_tombstone_after_it(encode: Encode) -> None:
    assert read(encode({**change("d", None), "before": ROW})).embedding is None
    assert read(None).embedding is None


@ENCODERS
def test_connects_schema_is_taken_off_and_says_what_a_time_is(encode: Encode) -> None:
    micro = {"field": "updated_at", "type": "int64", "name": "io.debezium.time.MicroTimestamp"}
    fields = [{"field": "embedding", "type": "array"}, micro]
    plain = {"schema": {"type": "struct", "fields": fields}, "payload": {**ROW, "updated_at": NOW * 1_000}}
    assert read(encode(plain)).updated_at == NOW
    after = {"field": "after", "type": "struct", "fields": fields}
    payload = change("u", {**ROW, "updated_at": (NOW - 5) * 1_000})
    around = {"schema": {"type": "struct", "fields": [after]}, "payload": payload}
    assert (read(encode(around)).title, read(encode(around)).updated_at) == ("Kettle", NOW - 5)
    assert read(encode({"schema": None, "payload": None})).embedding is None, "a null payload deletes"


def test_cloudevent_around_connect_around_a_change_is_opened_to_the_row() -> None:
    data = {"schema": {}, "payload": change("c", ROW)}
    event = {
        "specversion": "1.0",
        "id": "1",
        "source": "s",
        "type": "io.debezium",
        "time": "2026-01-01T00:00:00Z",
        "data": data,
    }
    for headers in ([], [("content-type", b"application/cloudevents+json")]):
        assert read(json.dumps(event).encode(), headers=headers).title == "Kettle"
    deletion = {**event, "data": change("d", None)}
    assert read(json.dumps(deletion).encode()).embedding is None


@pytest.mark.parametrize(
    ("value", "kind", "words"),
    [
        (change("t", None), "UnsupportedChange", "op t.*one by one"),
        (change("m", None), "UnsupportedChange", "'m'.*none of c, r, u and d"),
        (change("c", None), "InvalidEvent", "no row after"),
        ({"schema": {"type": "string"}, "payload": "kettle"}, "UndecodableEvent", "single value.*struct"),
        ({"schema": {}, "payload": {"titel": 1}}, "InvalidEvent", "no embedding; it has 'titel'"),
        (change("c", {"embedding": [1.0, 2.0]}), "WrongDimension", "2 numbers"),
        ({"specversion": "1.0", "type": "t", "data": {"schema": {}, "payload": 5}}, "UndecodableEvent", "single value"),
    ],
)
def test_envelope_without_a_record_that_can_be_used_is_refused_in_words_that_help(
    value: dict[str, Any], kind: str, words: str
) -> None:
    error = refused(json.dumps(value).encode())
    assert error.kind == kind
    assert re.search(words, str(error)), error


COLUMNS = {
    "embedding": "vec", "title": "name", "weight": "score", "updated_at": "modified",
    "attributes": {"price": "price_eur", "brand": "maker"},
}  # fmt: skip


@ENCODERS
def test_columns_are_the_fields_that_the_settings_name(encode: Encode) -> None:
    row = {
        "id": 5, "vec": EMBEDDING, "name": "Kettle", "score": 2.5, "modified": "2026-01-02 03:04:05.5Z", "price_eur": 30,
        "maker": None, "internal": "not ours",
    }  # fmt: skip
    for value in (row, change("c", row), {"schema": {}, "payload": row}):
        found = read(encode(value), columns=COLUMNS)
        assert (found.embedding, found.title, found.weight) == (BYTES, "Kettle", 2.5)
        assert found.updated_at == 1_767_323_045_500
        assert msgspec.msgpack.decode(found.attributes or b"") == {"price": 30}
    assert read(encode(ROW), columns=COLUMNS).title == "Kettle", "an update of our own may share the topic"


@pytest.mark.parametrize(
    "vector",
    [EMBEDDING, json.dumps(EMBEDDING), "[1,2,3,0.5]", "AACAPwAAAEAAAEBAAAAAPw=="],
    ids=["list", "JSON", "pgvector", "base64"],
)
@ENCODERS
def test_embedding_column_may_be_a_list_or_a_text_of_one(encode: Encode, vector: Any) -> None:
    assert read(encode({"vec": vector}), columns={"embedding": "vec"}).embedding == BYTES


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"vec": "[1,2"}, "text that begins like a list of numbers"),
        ({"vec": EMBEDDING, "modified": "soon"}, "not an RFC 3339 time.*milliseconds"),
        ({"vec": EMBEDDING, "modified": NOW * 1_000}, "looks like microseconds"),
        ({"name": "Kettle"}, "no column 'vec' .columns.embedding.; it has 'name'"),
    ],
)
def test_column_that_its_field_does_not_take_is_refused(row: dict[str, Any], words: str) -> None:
    error = refused(json.dumps(row).encode(), columns={"embedding": "vec", "updated_at": "modified"})
    assert re.search(words, str(error)), error


def test_rewritten_deletion_deletes() -> None:
    for said in ("true", True):
        row = {"vec": EMBEDDING, "__deleted": said}
        assert read(json.dumps(row).encode(), columns={"embedding": "vec"}).embedding is None
    assert (
        read(json.dumps({"vec": EMBEDDING, "__deleted": "false"}).encode(), columns={"embedding": "vec"}).embedding
        == BYTES
    )


@pytest.mark.parametrize(
    ("key", "item"),
    [
        (b"sku-1", b"sku-1"),
        (b'{"id": "sku-1"}', b"sku-1"),
        (b'{"id": 17}', b"17"),
        (b'{"schema": {"type": "struct"}, "payload": {"id": "sku-1"}}', b"sku-1"),
        (b'{"schema": {"type": "string"}, "payload": "sku-1"}', b"sku-1"),
        (b'"sku-1"', b"sku-1"),
        (msgspec.msgpack.encode({"id": "sku-1"}), b"sku-1"),
    ],
)
def test_id_is_read_out_of_a_key_that_is_a_map(key: bytes, item: bytes) -> None:
    assert read(json.dumps(ROW).encode(), key, {"key": "id"}).item_id == item
    assert read(None, key, {"key": "id"}).item_id == item, "of a deletion too"


@pytest.mark.parametrize(
    ("key", "words"),
    [
        (b'{"sku": 5}', "no field 'id' .columns.key.; it has 'sku'"),
        (b'{"id": null}', "NoneType: an id is a text"),
        (b'{"id": " sku"}', "white space"),
    ],
)
def test_key_without_an_id_is_refused(key: bytes, words: str) -> None:
    error = refused(json.dumps(ROW).encode(), key=key, columns={"key": "id"})
    assert error.kind == "InvalidId"
    assert re.search(words, str(error)), error


class _Frames:
    """Takes frames off, as a registry would."""

    def __init__(self, away: bool = False) -> None:
        self.away = away

    def plain(
        self, topic: str, content: bytes, headers: Sequence[tuple[str, bytes | None]], side: str = "value"
    ) -> bytes:
        if self.away:
            raise RegistryAwayError("away")
        return content[5:]


def test_framed_values_pass_by_columns_and_are_counted_once_whatever_waits() -> None:
    frames = _Frames(away=True)
    intake = UpdateIntake(LIMITS, formats=Formats(frames, ColumnSettings()))
    unknown = json.dumps({**ROW, "titel": "x"}).encode()
    framed = b"\x00\x00\x00\x00\x07" + msgspec.msgpack.encode({"embedding": BYTES, "title": "Framed"})
    records = [record(unknown, b"a"), record(framed, b"b"), record(b"\x00\x00", b"c")]
    for _ in range(3):
        with pytest.raises(RegistryAwayError):
            intake.read_batch(records, NOW)
    assert intake.unknown_fields == {}
    frames.away = False
    batch = intake.read_batch(records, NOW)
    assert (batch.ids, batch.titles) == ([b"a", b"b"], ["Kettle", "Framed"])
    assert intake.unknown_fields == {"titel": 1}
    assert [error.kind for _, error in batch.rejected] == ["UndecodableEvent"]


NAMES = ["schema", "payload", "op", "before", "after", "source", "data", "specversion", "type", "fields", "embedding"]
VALUES = st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=3),
)


@given(st.dictionaries(st.sampled_from(NAMES), VALUES))
def test_any_envelope_is_read_or_refused_and_never_an_error_of_another_kind(value: dict[str, Any]) -> None:
    for encode in (msgspec.json.encode, msgspec.msgpack.encode):
        try:
            content = encode(value)
        except (OverflowError, UnicodeEncodeError):
            continue
        for columns in ({}, {"embedding": "payload", "updated_at": "op", "attributes": {"a": "after"}}):
            try:
                UpdateIntake(LIMITS, formats=Formats(None, ColumnSettings(**columns))).read(record(content), NOW)
            except EventError:
                continue
