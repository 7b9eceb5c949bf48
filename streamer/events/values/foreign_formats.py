"""Names what a key or a value looks like that is not what we take, and says what its sender does about it.

Asked only of what was refused, or of a key that might be no id: an event that can be used pays nothing for it. A guess
is worded as one; no guess makes an event usable.
"""

from __future__ import annotations

import codecs
import json
import re
import zlib
from base64 import b64decode
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from streamer.events.values.plain_ids import is_plain_id

_TAKEN: Final = "send a JSON object or a MessagePack map"
_UNCOMPRESSED: Final = "send it as it is; Kafka compresses by itself (the producer's compression.type)"
_PLAIN_JSON: Final = "send plain JSON or MessagePack, without the serializer's frame"
_OR_REGISTRY: Final = "name the registry in registry.url (docs/formats.md), or " + _PLAIN_JSON
# What begins with these bytes; the longer ones first where one begins another.
_MAGIC: Final = (
    (codecs.BOM_UTF8, "a UTF-8 byte order mark", "send UTF-8 without it"),
    (codecs.BOM_UTF32_LE, "text in UTF-32", "encode it as UTF-8"),
    (codecs.BOM_UTF32_BE, "text in UTF-32", "encode it as UTF-8"),
    (codecs.BOM_UTF16_LE, "text in UTF-16", "encode it as UTF-8"),
    (codecs.BOM_UTF16_BE, "text in UTF-16", "encode it as UTF-8"),
    (b"\x1f\x8b", "a value that was compressed with gzip", _UNCOMPRESSED),
    (b"\x28\xb5\x2f\xfd", "a value that was compressed with zstd", _UNCOMPRESSED),
    (b"\x04\x22\x4d\x18", "a value that was compressed with lz4", _UNCOMPRESSED),
    (b"\x02\x21\x4c\x18", "a value that was compressed with lz4", _UNCOMPRESSED),
    (b"LZ4Block", "a value that was compressed with lz4", _UNCOMPRESSED),
    (b"\xff\x06\x00\x00sNaPpY", "a value that was compressed with snappy", _UNCOMPRESSED),
    (b"\x82SNAPPY\x00", "a value that was compressed with snappy", _UNCOMPRESSED),
    (b"BZh", "a value that was compressed with bzip2", _UNCOMPRESSED),
    (b"\xfd7zXZ\x00", "a value that was compressed with xz", _UNCOMPRESSED),
    (b"PK\x03\x04", "a ZIP archive", _TAKEN),
    (b"Obj\x01", "an Avro object container", _TAKEN),
    (b"\xc3\x01", "Avro's single-object encoding", _TAKEN),
    (b"\xac\xed\x00", "a serialized Java object", f"{_TAKEN}: use the StringSerializer or ByteArraySerializer"),
    (b"\x93NUMPY", "a NumPy file", _TAKEN),
    (b"PAR1", "a Parquet file", _TAKEN),
    (b"ARROW1", "an Arrow file", _TAKEN),
    (b"\xd9\xd9\xf7", "CBOR", _TAKEN),
)
_JSON_SPACE: Final = b" \t\r\n"
_NUMBER: Final = re.compile(rb"-?\d+(\.\d+)?([eE][-+]?\d+)?")
_NOTHING: Final = frozenset({b"null", b"none", b"nil", b"undefined"})
_LONE_SURROGATE: Final = re.compile(
    rb"\\u[dD](?:[89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD])[c-fC-F][0-9a-fA-F]{2})"
)
_NO_TEXT: Final = re.compile(rb"[\x00-\x08\x0e-\x1f]")
_FRAME_BYTES: Final = 5  # magic byte 0, then the schema's id as four bytes
_GLUE_BYTES: Final = 18  # header version, compression, then the schema's UUID
_PROTOBUF_LARGEST_FIELD: Final = 1 << 12


def foreign_value(value: bytes) -> str | None:
    """What a value that is no JSON object and no MessagePack map looks like, and what to do; None: nothing that we know.

    >>> foreign_value(b"null")
    'the value is the text `null`: to delete an item, send a null value (no bytes at all), not its JSON'
    """
    for guess in (_by_magic, _by_frame, _by_text, _by_messagepack, _by_structure):
        found = guess(value)
        if found:
            return found
    return None


def field_names(value: bytes) -> frozenset[str]:
    """The names of a JSON object or MessagePack map; none if it is neither."""
    decode = msgspec.json.decode if value.lstrip(_JSON_SPACE)[:1] == b"{" else msgspec.msgpack.decode
    try:
        return frozenset(decode(value, type=dict[str, msgspec.Raw]))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return frozenset()


def _by_magic(value: bytes) -> str | None:
    if not value:
        return (
            "the value is empty (0 bytes), which is not a null value: to delete an item, send a null value; else "
            + _TAKEN
        )
    for magic, name, advice in _MAGIC:
        if value.startswith(magic):
            return f"the value begins like {name}: {advice}"
    if value[0] == 0x80 and len(value) > 2 and 2 <= value[1] <= 5 and value.endswith(b"."):
        return f"the value looks like a Python pickle: {_TAKEN}"
    if value[0] & 0x0F == 8 and len(value) > 2 and int.from_bytes(value[:2]) % 31 == 0 and _inflates(value):
        return f"the value looks as if it was compressed with zlib (deflate): {_UNCOMPRESSED}"
    for encoding in ("utf-32-be", "utf-32-le", "utf-16-be", "utf-16-le"):
        text = _text_of(value, encoding)
        if text and text.lstrip()[:1] in {"{", "[", '"'} and text.isascii():
            return f"the value looks like text in {encoding[:6].upper()}: encode it as UTF-8"
    return None


def _by_frame(value: bytes) -> str | None:
    if value[0] == 0 and len(value) >= _FRAME_BYTES:
        schema, body = int.from_bytes(value[1:_FRAME_BYTES]), value[_FRAME_BYTES:]
        kind = "JSON Schema" if body.lstrip(_JSON_SPACE)[:1] in {b"{", b"["} else "Avro or Protobuf"
        return f"the value looks like the frame of a schema registry (magic byte 0, schema id {schema}, {kind}): {_OR_REGISTRY}"
    if value[0] == 3 and len(value) >= _GLUE_BYTES and value[1] in (0, 5):
        return f"the value looks like the frame of the AWS Glue schema registry: {_PLAIN_JSON}"
    return None


def _by_text(value: bytes) -> str | None:
    text = value.strip(_JSON_SPACE)
    if not text:
        return f"the value is white space alone: {_TAKEN}"
    if text.strip(b"\"'").lower() in _NOTHING:
        said = text.decode()
        return f"the value is the text `{said}`: to delete an item, send a null value (no bytes at all), not its JSON"
    if text in {b"true", b"false"}:
        return f"the value is the JSON value {text.decode()}: {_TAKEN}"
    if _NUMBER.fullmatch(text):
        return f"the value is the JSON number {text[:40].decode()}: {_TAKEN}"
    match text[:1]:
        case b"{":
            return _broken_object(text)
        case b"[":
            return "the value looks like a JSON array: send each event as a record of its own, a JSON object"
        case b'"':
            return _string(text)
        case b"<":
            return f"the value looks like XML: {_TAKEN}"
    decoded = _text_of(value, "utf-8")
    if text.startswith(b"eyJ") and _is_base64_of_json(text):
        return "the value looks like base64 of JSON: send the JSON itself"
    if decoded is not None and (decoded.replace("\n", "").replace("\t", "").replace("\r", "").isprintable()):
        return f"the value looks like plain text ({_quoted(decoded)}): {_TAKEN}"
    return None


def _is_base64_of_json(text: bytes) -> bool:
    try:
        return b64decode(text, validate=True)[:1] == b"{"
    except ValueError:
        return False


def _string(text: bytes) -> str:
    try:
        inner: Any = json.loads(text)
    except (ValueError, RecursionError):
        inner = None
    if isinstance(inner, str) and inner.strip()[:1] in {"{", "["}:
        return "the value is a JSON string that holds JSON, as if it was encoded twice: send the inner JSON itself"
    return f"the value looks like a JSON string: {_TAKEN}"


def _broken_object(text: bytes) -> str | None:
    """What is wrong with what begins as a JSON object, where the decoder's own words do not say it."""
    decoded = _text_of(text, "utf-8")
    if decoded is None:
        return "the JSON is not UTF-8: encode it as UTF-8"
    constants: list[str] = []

    def note(name: str) -> float:
        constants.append(name)
        return 0.0

    try:
        json.loads(decoded, parse_constant=note)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            return "the value holds more than one JSON value: send each event as a record of its own"
        if re.match(r"\{\s*'", decoded):
            return "the value looks like the text of a Python dict (single quotes): encode it as JSON (json.dumps)"
        if error.pos >= len(decoded) or error.msg.startswith("Unterminated string"):
            return f"the JSON is cut off after {len(text)} bytes: send all of it"
        return None
    except (ValueError, RecursionError):
        return None
    if constants:
        return f"the JSON holds {constants[0]}, which JSON does not have: send finite numbers, or leave the field out"
    if _LONE_SURROGATE.search(text):
        return (
            "the JSON holds half of a surrogate pair (an escape \\ud800 to \\udfff alone), which is no character: cut texts "
            "between characters"
        )
    return None


def _by_messagepack(value: bytes) -> str | None:
    try:
        found = msgspec.msgpack.decode(value)
    except (ValueError, RecursionError):
        return None
    match found:
        case None:
            return "the value is MessagePack's nil: to delete an item, send a null value (no bytes at all), not its MessagePack"
        case str() | bytes():
            inner = found.encode("utf-8", "replace") if isinstance(found, str) else found
            if inner.lstrip(_JSON_SPACE)[:1] == b"{":
                return "the value is a MessagePack string that holds JSON, as if it was encoded twice: send the inner JSON itself"
            return f"the value is a MessagePack string or binary: {_TAKEN}"
        case list():
            return (
                "the value is a MessagePack array: send each event as a record of its own, a map with the fields' names"
            )
        case dict():
            return None
        case _:
            return f"the value is a single MessagePack value (a number, truth value or extension): {_TAKEN}"


def _by_structure(value: bytes) -> str | None:
    if value[0] in range(0xA1, 0xB8) and len(value) > 2 and value[1] in range(0x61, 0x78) and value[2:3].isalpha():
        return f"the value looks like CBOR: {_TAKEN}"
    if len(value) > 5 and int.from_bytes(value[:4], "little") == len(value) and value[-1] == 0:
        return f"the value looks like BSON: {_TAKEN}"
    if (start := value.find(b'{"', 1, 8)) > 0:
        codec = "snappy" if _is_snappy(value, start) else "lz4"
        return f"the value looks as if it was compressed (a bare block of {codec}): {_UNCOMPRESSED}"
    if _is_protobuf(value):
        return f"the value looks like Protobuf: {_TAKEN}"
    return None


def _is_snappy(value: bytes, start: int) -> bool:
    """Whether the bytes before ``start`` are a length as a varint and the tag of a literal."""
    end = next((place for place, byte in enumerate(value[:start]) if byte < 0x80), start)
    return end + 1 < start and value[end + 1] & 3 == 0


def _is_protobuf(value: bytes) -> bool:
    try:
        fields = list(_protobuf_fields(value))
    except (IndexError, ValueError):
        return False
    return bool(fields) and all(0 < field < _PROTOBUF_LARGEST_FIELD for field in fields)


def _protobuf_fields(value: bytes) -> Iterator[int]:
    """Field numbers of a message; ValueError or IndexError if the bytes are none."""

    at = 0

    def varint() -> int:
        nonlocal at
        number = shift = 0
        while True:
            byte = value[at]
            at += 1
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number
            shift += 7
            if shift > 63:
                raise ValueError

    while at < len(value):
        field, wire = divmod(varint(), 8)
        match wire:
            case 0:
                varint()
            case 1:
                at += 8
            case 2:
                length = varint()
                at += length
            case 5:
                at += 4
            case _:
                raise ValueError
        if at > len(value):
            raise ValueError
        yield field


def _inflates(value: bytes) -> bool:
    try:
        return bool(zlib.decompressobj().decompress(value, 64))
    except zlib.error:
        return False


_LINE_SEPARATORS: Final = frozenset("\u2028\u2029")


def foreign_key(key: bytes) -> str | None:
    """What a key looks like that is no id, and what to do; None: it is an id.

    >>> foreign_key(b"sku-1") is None
    True
    >>> foreign_key((5).to_bytes(8))
    "looks like an 8-byte integer, 5 (Java's LongSerializer): send the id as text"
    """
    try:
        text = key.decode()
    except UnicodeDecodeError:
        return _binary_key(key) or "is not UTF-8: send the id as text in UTF-8"
    if is_plain_id(key):
        return None
    if text[0] == "\ufeff":
        return "begins with a byte order mark: send UTF-8 without it"
    if any(_is_control(character) for character in text):
        trimmed = text.strip()
        if (name := _length_before_text(key)) is not None:
            return f"looks like {name}, with its length before it: send the id as plain text (StringSerializer)"
        if trimmed and not any(_is_control(character) for character in trimmed):
            return f"has white space around it ({_quoted(text)}): trim it"
        return _binary_key(key) or f"holds control characters ({_quoted(text)}): send the id as text without them"
    if text != text.strip():
        return f"has white space around it ({_quoted(text)}): trim it"
    return _json_key(text)


def _is_control(character: str) -> bool:
    return character < " " or "\x7f" <= character <= "\x9f" or character in _LINE_SEPARATORS


def _binary_key(key: bytes) -> str | None:
    """The name of a key of bytes that are no text."""
    if key.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "looks like text in UTF-16: send it as UTF-8"
    for encoding in ("utf-32-be", "utf-32-le", "utf-16-be", "utf-16-le"):
        text = _text_of(key, encoding)
        if text and text.isascii() and text.isprintable():
            return f"looks like text in {encoding[:6].upper()} ({_quoted(text)}): send it as UTF-8"
    if re.search(rb"\xed[\xa0-\xbf]", key) and _text_of(key, "utf-8", "surrogatepass") is not None:
        return "holds half of a surrogate pair, which is no character: send the id in UTF-8"
    body = key[_FRAME_BYTES:]
    of_avro = bool(body) and body[0] == 2 * (len(body) - 1)  # a string's length, zigzag
    if key[0] == 0 and len(key) > _FRAME_BYTES and (of_avro or len(key) != 8):
        schema = int.from_bytes(key[1:_FRAME_BYTES])
        return (
            f"looks like the frame of a schema registry (magic byte 0, schema id {schema}): send the id as plain text "
            "(StringSerializer)"
        )
    if (name := _length_before_text(key)) is not None:
        return f"looks like {name}, with its length before it: send the id as plain text (StringSerializer)"
    serializers = {2: "ShortSerializer", 4: "IntegerSerializer", 8: "LongSerializer"}
    if len(key) in serializers and (_NO_TEXT.search(key) or _text_of(key, "utf-8") is None):
        number = int.from_bytes(key, signed=True)
        article = "an" if len(key) == 8 else "a"
        return f"looks like {article} {len(key)}-byte integer, {number} (Java's {serializers[len(key)]}): send the id as text"
    if len(key) == 16:
        return "looks like the 16 bytes of a UUID: send the id as text"
    if key.startswith(b"\xac\xed"):
        return "looks like a serialized Java object: send the id as plain text (StringSerializer)"
    return None


def _length_before_text(key: bytes) -> str | None:
    """The name of a text as other serializers write it: its length in one or two bytes, then the text."""
    for prefix, name in (
        (bytes([2 * (len(key) - 1) & 0xFF]), "an Avro string"),
        (bytes([0xA0 | (len(key) - 1) & 0x1F]), "a MessagePack string"),
        (bytes([0xD9, (len(key) - 2) & 0xFF]), "a MessagePack string"),
        (bytes([0x0A, (len(key) - 2) & 0xFF]), "a Protobuf string"),
        (bytes([0x00, (len(key) - 2) & 0xFF]), "Java's modified UTF-8"),
    ):
        text = _text_of(key[len(prefix) :], "utf-8") if key.startswith(prefix) and len(key) < 32 else None
        if text and len(text) > 2 and text.isprintable():
            return name
    return None


def _json_key(text: str) -> str | None:
    if text[0] not in '"{[':
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None  # an id may begin with a bracket
    match found:
        case str():
            return f"is a JSON string, quotes and all ({_quoted(text)}): send the id itself"
        case {"schema": _, "payload": _}:
            return "is Kafka Connect's JSON with its schema: set key.converter=org.apache.kafka.connect.storage.StringConverter"
        case dict():
            return (
                f"is a JSON object ({_quoted(text)}), as Debezium and Kafka Connect send keys: send the id alone, as text "
                "(the transform ExtractField$Key and the StringConverter), or name the field in columns.key (docs/formats.md)"
            )
        case _:
            return f"is a JSON array ({_quoted(text)}): send the id itself"


def _text_of(value: bytes, encoding: str, errors: str = "strict") -> str | None:
    try:
        return value.decode(encoding, errors)
    except UnicodeDecodeError:
        return None


def _quoted(text: str) -> str:
    """The beginning of a stranger's text, safe to print."""
    return ascii(text if len(text) <= 40 else text[:39] + "…")
