"""What is no JSON object and no id is named by what it looks like, with what its sender does about it."""

from __future__ import annotations

import base64
import bz2
import codecs
import gzip
import json
import lzma
import pickle
import re
import zlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.events.values.foreign_formats import foreign_key, foreign_value
from streamer.events.values.plain_ids import is_plain_id

OBJECT = json.dumps({"embedding": [0.25, 1.0, 2.0, 3.0], "title": "Kettle"}).encode()
TEXT = OBJECT.decode()
SNAPPY_BLOCK = bytes([len(OBJECT), (len(OBJECT) - 1) << 2 & 0xFF]) + OBJECT  # one literal
PROTOBUF = b"\x0a\x10" + b"\x00\x00\x80?" * 4 + b"\x12\x06Kettle" + b"\x1d\x00\x00 @" + b"\x20\x80\xe5\xd5\x9a\xbf3"


@pytest.mark.parametrize(
    ("value", "words"),
    {
        "nothing": (b"", "empty.*send a null value"),
        "null as text": (b"null", "text `null`.*send a null value"),
        "null in white space": (b" null\n", "text `null`.*send a null value"),
        "null as a string": (b'"null"', "text `\"null\"`.*send a null value"),
        "None": (b"None", "text `None`.*send a null value"),
        "base64 of JSON": (base64.b64encode(OBJECT), "base64 of JSON.*JSON itself"),
        "nil": (b"\xc0", "nil.*send a null value"),
        "JSON registry frame": (b"\x00\x00\x00\x00\x07" + OBJECT, "schema registry.*id 7, JSON Schema.*without"),
        "Avro registry frame": (b"\x00\x00\x01\x86\xa0\x02\x0cKettle", "schema registry.*id 100000, Avro or Protobuf"),
        "Glue frame": (b"\x03\x05" + bytes(range(16)) + OBJECT, "AWS Glue"),
        "UTF-8 mark": (codecs.BOM_UTF8 + OBJECT, "UTF-8 byte order mark.*without"),
        "UTF-16 with mark": (TEXT.encode("utf-16"), "UTF-16.*UTF-8"),
        "UTF-16LE": (TEXT.encode("utf-16-le"), "UTF-16.*UTF-8"),
        "UTF-16BE": (TEXT.encode("utf-16-be"), "UTF-16.*UTF-8"),
        "UTF-32 with mark": (TEXT.encode("utf-32"), "UTF-32.*UTF-8"),
        "UTF-32BE": (TEXT.encode("utf-32-be"), "UTF-32.*UTF-8"),
        "gzip": (gzip.compress(OBJECT), "gzip.*Kafka compresses"),
        "zlib": (zlib.compress(OBJECT), "zlib.*Kafka compresses"),
        "bzip2": (bz2.compress(OBJECT), "bzip2.*Kafka compresses"),
        "xz": (lzma.compress(OBJECT), "xz.*Kafka compresses"),
        "zstd": (b"\x28\xb5\x2f\xfd\x20\x04" + OBJECT, "zstd.*Kafka compresses"),
        "lz4 frame": (b"\x04\x22\x4d\x18\x64\x40\xa7" + OBJECT, "lz4.*Kafka compresses"),
        "lz4 block": (b"\xf0\x30" + OBJECT, "lz4.*Kafka compresses"),
        "snappy frame": (b"\xff\x06\x00\x00sNaPpY" + OBJECT, "snappy.*Kafka compresses"),
        "snappy of Java": (b"\x82SNAPPY\x00\x00\x00\x00\x01" + OBJECT, "snappy.*Kafka compresses"),
        "snappy block": (SNAPPY_BLOCK, "snappy.*Kafka compresses"),
        "string of JSON": (json.dumps(TEXT).encode(), "string that holds JSON.*inner JSON"),
        "MessagePack string of JSON": (msgspec.msgpack.encode(TEXT), "string that holds JSON.*inner JSON"),
        "MessagePack bytes of JSON": (msgspec.msgpack.encode(OBJECT), "string that holds JSON.*inner JSON"),
        "string": (b'"kettle"', "JSON string.*JSON object"),
        "array": (b"[" + OBJECT + b"]", "JSON array.*each event as a record"),
        "MessagePack array": (msgspec.msgpack.encode([0.5, "Kettle"]), "MessagePack array.*map with"),
        "number": (b"-12.5e3", "JSON number -12.5e3"),
        "truth": (b"true", "JSON value true"),
        "MessagePack number": (msgspec.msgpack.encode(300), "single MessagePack value"),
        "XML": (b"<item><id>5</id></item>", "XML.*JSON object"),
        "Avro container": (b"Obj\x01\x04\x14avro.codec", "Avro object container"),
        "Avro single object": (b"\xc3\x01" + bytes(8) + b"\x02a", "Avro's single-object"),
        "Java object": (b"\xac\xed\x00\x05sr\x00\x04Item", "serialized Java object"),
        "pickle": (pickle.dumps({"embedding": [1.0]}), "pickle"),
        "Protobuf": (PROTOBUF, "Protobuf"),
        "CBOR": (b"\xa2\x69embedding\x81\xfa?\x80\x00\x00\x65title\x61a", "CBOR"),
        "BSON": (b"\x14\x00\x00\x00\x02title\x00\x04\x00\x00\x00abc\x00\x00", "BSON"),
        "NumPy": (b"\x93NUMPY\x01\x00v\x00", "NumPy file"),
        "text": (b"sku-1;Kettle;12.50", "plain text.*sku-1;Kettle"),
        "text of several lines": (b"title: Kettle\nweight: 2\n", "plain text"),
        "white space": (b" \n ", "white space alone"),
        "NaN": (b'{"embedding": [NaN, 1]}', "NaN, which JSON does not have"),
        "Infinity": (b'{"weight": -Infinity}', "-Infinity, which JSON does not have"),
        "lone surrogate": (b'{"title": "\\ud83d"}', "half of a surrogate pair"),
        "lone low surrogate": (b'{"title": "a\\udc00b"}', "half of a surrogate pair"),
        "Latin-1": ('{"title": "Bouilloire à thé"}'.encode("latin-1"), "not UTF-8"),
        "Python dict": (b"{'title': 'Kettle'}", "Python dict"),
        "two objects": (OBJECT + b"\n" + OBJECT, "more than one JSON value.*record of its own"),
        "cut off": (OBJECT[:30], "cut off after 30 bytes"),
        "cut off in a text": (OBJECT[:-4], "cut off after"),
    }.values(),
)  # fmt: skip
def test_value_is_named_with_what_to_do(value: bytes, words: str) -> None:
    said = foreign_value(value)
    assert said is not None
    assert re.search(words, said), said
    assert said.isprintable()


@pytest.mark.parametrize(
    ("key", "words"),
    {
        "long": ((5).to_bytes(8), "8-byte integer, 5 .*LongSerializer.*as text"),
        "large long": ((1_767_323_045_000).to_bytes(8), "8-byte integer, 1767323045000"),
        "negative long": ((-5).to_bytes(8, signed=True), "8-byte integer, -5"),
        "integer": ((5).to_bytes(4), "4-byte integer, 5 .*IntegerSerializer"),
        "short": ((5).to_bytes(2), "2-byte integer, 5"),
        "framed": (b"\x00\x00\x00\x00\x2a\x0asku-1", "schema registry.*schema id 42.*StringSerializer"),
        "framed of eight bytes": (b"\x00\x00\x00\x00\x2a\x04ab", "schema registry.*schema id 42"),
        "framed JSON": (b'\x00\x00\x00\x00\x2a"sku-1"', "schema registry.*schema id 42"),
        "Avro string": (b"\x0asku-1", "Avro string.*StringSerializer"),
        "Avro string of more": (b"\x16sku-0000001", "Avro string"),
        "MessagePack string": (msgspec.msgpack.encode("sku-1"), "MessagePack string"),
        "Protobuf string": (b"\x0a\x05sku-1", "Protobuf string"),
        "Java's writeUTF": (b"\x00\x05sku-1", "Java's modified UTF-8"),
        "quoted": (b'"sku-1"', "JSON string, quotes and all.*id itself"),
        "quoted in white space": (b' "sku-1"', "white space"),
        "Debezium": (b'{"id":5}', "JSON object.*Debezium.*ExtractField"),
        "Connect with schema": (b'{"schema":{"type":"string"},"payload":"sku-1"}', "Kafka Connect.*StringConverter"),
        "array": (b'["sku-1"]', "JSON array"),
        "new line": (b"sku-1\n", "white space around it"),
        "new line within": (b"sku\n1", "control characters"),
        "tabulator": (b"\tsku-1", "white space around it"),
        "null byte": (b"sku-1\x00", "control characters"),
        "delete": (b"sku\x7f1", "control characters"),
        "C1 control": ("sku\x85-1".encode(), "control characters"),
        "line separator": ("sku\u2028-1".encode(), "control characters"),
        "new line in four bytes": (b"ab\nc", "control characters"),
        "space before": (b" sku-1", "white space around it.*trim"),
        "space after": (b"sku-1 ", "white space around it.*trim"),
        "no-break space": ("sku-1\u00a0".encode(), "white space around it.*trim"),
        "space alone": (b"  ", "white space around it"),
        "UTF-16LE": ("sku-1".encode("utf-16-le"), "UTF-16.*sku-1"),
        "UTF-16BE": ("sku-1".encode("utf-16-be"), "UTF-16.*sku-1"),
        "UTF-16 with mark": ("sku-1".encode("utf-16"), "UTF-16"),
        "UTF-8 with mark": (codecs.BOM_UTF8 + b"sku-1", "byte order mark"),
        "lone surrogate": ("sku\ud800".encode("utf-8", "surrogatepass"), "half of a surrogate pair"),
        "Latin-1": ("thé".encode("latin-1"), "not UTF-8"),
        "UUID": (bytes.fromhex("f81d4fae7dec11d0a76500a0c91e6bf6"), "16 bytes of a UUID"),
        "Java object": (b"\xac\xed\x00\x05t\x00\x05sku-1", "serialized Java object"),
    }.values(),
)  # fmt: skip
def test_key_is_named_with_what_to_do(key: bytes, words: str) -> None:
    said = foreign_key(key)
    assert said is not None
    assert re.search(words, said), said
    assert said.isprintable()


@pytest.mark.parametrize(
    "key",
    [
        "sku-1", "5", "0", "B00-ÄÖ", "商品-17", "a b", "null", "shop/1?x=y&z", "{3F2504E0-4F89-11D3-9A0C-0305E82C3301}",
        "[old] 5", '"5" wide', "👩‍🚀", "ab\u200bcd", "name\u00a0with", "x" * 256, "12345678", "abcd",
    ],
)  # fmt: skip
def test_id_of_any_text_stays_an_id(key: str) -> None:
    assert foreign_key(key.encode()) is None


@given(st.binary(max_size=80))
def test_any_bytes_are_looked_at_without_an_error_of_another_kind(value: bytes) -> None:
    said = foreign_value(value)
    assert said is None or said.isprintable()
    if value:
        said = foreign_key(value)
        assert said is None or said.isprintable()


@given(st.text(min_size=1, max_size=20))
def test_text_is_an_id_or_named_and_never_both(text: str) -> None:
    try:
        key = text.encode()
    except UnicodeEncodeError:
        return
    assert not (is_plain_id(key) and foreign_key(key))


@pytest.mark.parametrize("value", [b"[" * 30_000, b'{"a":' * 30_000, b'"' + b"[" * 30_000 + b'"', b"\x91" * 30_000])
def test_deep_nesting_is_no_trap(value: bytes) -> None:
    foreign_value(value)
    foreign_key(value)
