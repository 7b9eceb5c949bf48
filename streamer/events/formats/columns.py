"""The columns of a table's row → the fields of a record, as the settings name them.

What must hold: a field that needs no conversion keeps its bytes; a row that has a field under its own name, and not under its
column's, is read by that, so that updates of ours and rows may share a topic.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

import msgspec

from streamer.events.cloudevents import CloudEventError, parsed_time
from streamer.events.formats.envelopes import NULLS, Fields, fields_of, is_json, map_of
from streamer.events.formats.frames import FormatError
from streamer.settings.records import ColumnSettings

# What rewritten deletions of Debezium's ExtractNewRecordState say.
_DELETED: Final = "__deleted"
_TRUE: Final = (True, "true", "True", "1")
_NAME_SAID: Final = 64
_NAMES_SAID: Final = 8
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_DAY: Final = date(1970, 1, 1)
_MILLISECOND: Final = timedelta(milliseconds=1)
# Connect's and Debezium's logical types of whole numbers that are times: number → milliseconds.
_TO_MILLISECONDS: Final = {
    "io.debezium.time.MicroTimestamp": lambda number: number // 1_000,
    "io.debezium.time.NanoTimestamp": lambda number: number // 1_000_000,
    "io.debezium.time.Date": lambda number: number * 86_400_000,
    "org.apache.kafka.connect.data.Date": lambda number: number * 86_400_000,
}


class Columns:
    """Reads rows as ``settings`` say; ``mapped``: whether they say anything of values, ``reads_keys``: of keys."""

    def __init__(self, settings: ColumnSettings) -> None:
        self._key = settings.key
        self._fields = {
            name: column
            for name in ("embedding", "title", "weight", "updated_at", "dtype", "embedding_model")
            if (column := getattr(settings, name))
        }
        self._attributes = settings.attributes
        self.mapped = bool(self._fields or self._attributes)
        self.reads_keys = bool(self._key)

    def record_of(self, row: bytes, types: Mapping[str, str] | None = None) -> bytes | None:
        """The record of a row, in the same of JSON and MessagePack; None: the row says that it was deleted. Columns that are null
        are left out, and with a mapping those that it does not name.

        Raises:
            FormatError: a column that is not what its field takes.
            msgspec.DecodeError: no map.
        """
        json = is_json(row)
        fields = {name: raw for name, raw in fields_of(row).items() if bytes(raw) not in NULLS}
        if _DELETED in fields and _decoded(fields.pop(_DELETED), json) in _TRUE:
            return None
        if self.mapped:
            fields = self._mapped(fields, json)
        for name, convert in _CONVERSIONS:
            if name in fields:
                raw, type_ = fields[name], (types or {}).get(self._fields.get(name, name))
                fields[name] = _encoded(convert(_decoded(raw, json), raw, type_, json), json)
        return map_of(fields, json=json)

    def _mapped(self, row: Fields, json: bool) -> Fields:
        taken = {}
        for name in ("embedding", "title", "weight", "updated_at", "dtype", "embedding_model", "record_version"):
            raw = row.get(self._fields.get(name, name), row.get(name))
            if raw is not None:
                taken[name] = raw
        if "embedding" not in taken:
            names = ", ".join(repr(name[:_NAME_SAID]) for name in list(row)[:_NAMES_SAID]) or "none that is not null"
            column = self._fields.get("embedding", "embedding")
            raise FormatError("InvalidEvent", f"the row has no column {column!r} (columns.embedding); it has {names}")
        attributes = {name: row[column] for name, column in self._attributes.items() if column in row}
        if attributes:
            taken["attributes"] = msgspec.Raw(map_of(attributes, json=json))
        elif "attributes" in row:
            taken["attributes"] = row["attributes"]
        return taken

    def item_id(self, key: bytes) -> bytes | None:
        """The id in a key that is a map, or a single value in quotes; None: it is none of these.

        Raises:
            FormatError: the map has no such field, or no id there.
        """
        try:
            found: Any = (msgspec.json.decode if key[:1] in b'{"-0123456789' else msgspec.msgpack.decode)(key)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        if isinstance(found, dict) and found.keys() == {"schema", "payload"}:
            found = found["payload"]
        if isinstance(found, dict):
            if self._key not in found:
                names = ", ".join(repr(str(name)[:_NAME_SAID]) for name in list(found)[:_NAMES_SAID])
                raise FormatError(
                    "InvalidId", f"the key has no field {self._key!r} (columns.key); it has {names or 'none'}"
                )
            found = found[self._key]
        if isinstance(found, bool) or not isinstance(found, str | int):
            raise FormatError(
                "InvalidId", f"the id in the key is a {type(found).__name__}: an id is a text or a whole number"
            )
        return str(found).encode()


def _embedding(value: Any, raw: msgspec.Raw, _type: str | None, json: bool) -> Any:
    """An embedding as a record has it: of a text that is a list of numbers (pgvector's, a JSON column's), the numbers."""
    if not isinstance(value, str):
        return raw
    text = value.strip()
    if text[:1] == "[":
        try:
            return msgspec.json.decode(text, type=list[float])
        except msgspec.DecodeError as error:
            raise FormatError(
                "InvalidEvent", f"the embedding is a text that begins like a list of numbers: {error}"
            ) from None
    if json:
        return raw  # base64, as in any JSON
    try:
        return b64decode(text, validate=True)
    except ValueError:
        raise FormatError("InvalidEvent", "the embedding is a text, and neither a list of numbers nor base64") from None


def _time(value: Any, raw: msgspec.Raw, type_: str | None, _json: bool) -> Any:
    """Milliseconds since the epoch of a time as databases have it; a number alone is left to be judged."""
    if isinstance(value, str):
        text = value if "T" in value or "t" in value else value.replace(" ", "T", 1)
        try:
            return parsed_time(text, "updated_at")
        except CloudEventError as error:
            raise FormatError("InvalidEvent", f"{error}: send milliseconds since 1970, or such a time") from None
    convert = _TO_MILLISECONDS.get(type_ or "")
    return convert(value) if convert is not None and isinstance(value, int) and not isinstance(value, bool) else raw


def _attributes(value: Any, raw: msgspec.Raw, _type: str | None, _json: bool) -> Any:
    """Attributes of a column of JSON, which arrives as a text."""
    if not isinstance(value, str):
        return raw
    try:
        return msgspec.json.decode(value, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError) as error:
        raise FormatError("InvalidAttributes", f"attributes is a text, and no JSON object: {error}") from None


_CONVERSIONS: Final = (("embedding", _embedding), ("updated_at", _time), ("attributes", _attributes))


def _decoded(raw: msgspec.Raw, json: bool) -> Any:
    try:
        return msgspec.json.decode(raw) if json else msgspec.msgpack.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _encoded(value: Any, json: bool) -> msgspec.Raw:
    if isinstance(value, msgspec.Raw):
        return value
    return msgspec.Raw(msgspec.json.encode(value) if json else msgspec.msgpack.encode(value))


def plain_map(content: Any) -> bytes:
    """A decoded value of another format as MessagePack: times as milliseconds, decimals as numbers, what is null left out.

    >>> msgspec.msgpack.decode(plain_map({"title": "Kettle", "weight": Decimal("2.5"), "updated_at": None}))
    {'title': 'Kettle', 'weight': 2.5}
    """
    if isinstance(content, dict):
        content = {str(name): _plain(value) for name, value in content.items() if value is not None}
        if isinstance(text := content.get("filter"), str):  # Avro and Protobuf have no type for what it may be
            content["filter"] = _object(text)
    try:
        return msgspec.msgpack.encode(content, enc_hook=str)
    except (OverflowError, UnicodeEncodeError, RecursionError) as error:
        raise FormatError("UndecodableEvent", f"the value cannot be read on: {error}") from None


def _object(text: str) -> Any:
    """The JSON object in a text, or the text."""
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError):
        return text


def _plain(value: Any) -> Any:
    match value:
        case datetime():
            moment = value if value.tzinfo is not None else value.replace(tzinfo=UTC)
            return (moment - _EPOCH) // _MILLISECOND
        case date():
            return (value - _DAY) // _MILLISECOND
        case Decimal():
            return float(value)
        case dict():
            return {str(name): _plain(inner) for name, inner in value.items() if inner is not None}
        case tuple() | list() if value and not isinstance(value[0], int | float | str | bytes):
            return [_plain(inner) for inner in value]
    return value
