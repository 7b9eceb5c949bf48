"""Envelopes around a record: Kafka Connect's JSON with its schema, Debezium's change events, structured CloudEvents.

What must hold: the inner value's bytes stay as they are, whichever of JSON and MessagePack they are in; an envelope is told by
fields that no record of ours has.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import msgspec

from streamer.events.cloudevents import EventAttributes, unwrapped
from streamer.events.formats.frames import FormatError

Fields = dict[str, msgspec.Raw]

_JSON_FIRST: Final = b"{ \t\r\n"
_FROM_JSON: Final = msgspec.json.Decoder(Fields).decode
_FROM_MESSAGEPACK: Final = msgspec.msgpack.Decoder(Fields).decode
NULLS: Final = frozenset({b"null", b"\xc0"})
_DEEPEST: Final = 4  # a CloudEvent around Connect's around Debezium's around the row
_CONNECT: Final = frozenset({"schema", "payload"})
_CHANGE: Final = frozenset({"op", "after"})
_CHANGE_BESIDE: Final = frozenset({"before", "source", "ts_ms"})
_CLOUD_EVENT: Final = frozenset({"specversion", "type"})
_UPSERTS: Final = ("c", "r", "u")  # created, read (a snapshot), updated
_NO_TIME: Final = 0


class Row(NamedTuple):
    """What lies in the envelopes. ``value``: a map as JSON or MessagePack, None deletes; ``said``: what a CloudEvent says of it;
    ``time``: milliseconds since the epoch of the change, None if nobody says; ``types``: column → Connect's logical type.
    """

    value: bytes | None
    said: EventAttributes | None = None
    time: int | None = None
    types: Mapping[str, str] = MappingProxyType({})


def is_json(value: bytes) -> bool:
    """Whether a map's bytes are JSON's; else they are MessagePack's."""
    return value[:1] in _JSON_FIRST


def fields_of(value: bytes) -> Fields:
    """The fields of a map, undecoded. Raises ``msgspec.DecodeError`` or UnicodeDecodeError."""
    return _FROM_JSON(value) if is_json(value) else _FROM_MESSAGEPACK(value)


def map_of(fields: Fields, *, json: bool) -> bytes:
    """The bytes of a map of undecoded fields."""
    return msgspec.json.encode(fields) if json else msgspec.msgpack.encode(fields)


def opened(value: bytes) -> Row | None:
    """What lies inside the envelopes around a value; None: there is none around it.

    Raises:
        FormatError: an envelope that holds no record.
        CloudEventError: a CloudEvent that holds none that we can read.
    """
    row = Row(value)
    found = False
    for _ in range(_DEEPEST):
        if row.value is None:
            return row
        try:
            fields = fields_of(row.value)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            break
        inner = _open(row, fields)
        if inner is None:
            break
        row, found = inner, True
    return row if found else None


def _open(row: Row, fields: Fields) -> Row | None:
    names = fields.keys()
    if names >= _CHANGE and names & _CHANGE_BESIDE:
        return _of_change(row, fields)
    if names == _CONNECT:
        return _of_connect(row, fields)
    if names >= _CLOUD_EVENT and (names & {"data", "data_base64"}):
        value, said = unwrapped(bytes(row.value or b""))
        return row._replace(value=value, said=said)
    return None


def _of_connect(row: Row, fields: Fields) -> Row:
    payload = bytes(fields["payload"])
    if payload in NULLS:
        return row._replace(value=None)
    if not payload or not (is_json(payload) or payload[0] >= 0x80):
        raise FormatError(
            "UndecodableEvent",
            "the payload of Kafka Connect's JSON is a single value: send a struct, whose fields are the record's",
        )
    return row._replace(value=payload, types=_types_of(bytes(fields["schema"]), is_json(row.value or b"")) or row.types)


def _of_change(row: Row, fields: Fields) -> Row:
    """The row of a change event, or its deletion."""
    json = is_json(row.value or b"")
    op = _decoded(bytes(fields["op"]), json)
    time = _change_time(fields, json)
    if op == "d":
        return row._replace(value=None, time=time)
    if op == "t":
        raise FormatError(
            "UnsupportedChange",
            "the change event empties the whole table (op t), and a record is of one item: delete the items one by one",
        )
    if op not in _UPSERTS:
        raise FormatError("UnsupportedChange", f"op {str(op)[:40]!r} of the change event is none of c, r, u and d")
    after = bytes(fields["after"])
    if after in NULLS:
        raise FormatError("InvalidEvent", f"the change event (op {op}) has no row after the change")
    return row._replace(value=after, time=time)


def _change_time(fields: Fields, json: bool) -> int | None:
    """When the row was changed, or else when the connector saw it."""
    source = _decoded(bytes(fields.get("source", b"")), json)
    times = [source.get("ts_ms") if isinstance(source, dict) else None, _decoded(bytes(fields.get("ts_ms", b"")), json)]
    return next((time for time in times if isinstance(time, int) and time > _NO_TIME), None)


def _types_of(schema: bytes, json: bool) -> dict[str, str]:
    """Column → its logical type, of a Connect schema: of a change event's, those of the row after it."""
    fields = _schema_fields(_decoded(schema, json))
    after = next((field for field in fields if field.get("field") == "after"), None)
    if after is not None:
        fields = _schema_fields(after)
    return {
        field["field"]: field["name"]
        for field in fields
        if isinstance(field.get("field"), str) and isinstance(field.get("name"), str)
    }


def _schema_fields(schema: Any) -> list[dict[str, Any]]:
    fields = schema.get("fields") if isinstance(schema, dict) else None
    return [field for field in fields if isinstance(field, dict)] if isinstance(fields, list) else []


def _decoded(raw: bytes, json: bool) -> Any:
    """A single field; None if it cannot be decoded."""
    try:
        return msgspec.json.decode(raw) if json else msgspec.msgpack.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
