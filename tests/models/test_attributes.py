"""Attributes: what is taken, what is refused with which words, and that equal ones have equal bytes."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.attributes import (
    AttributeFault,
    AttributeRules,
    Attributes,
    RepeatedNameError,
    decoded_once,
    encode_attributes,
    is_name,
    type_of,
)

RULES = AttributeRules(
    {"price": "number", "brand": "string", "in_stock": "boolean", "tags": "strings"},
    maximum_bytes=200,
    maximum_fields=4,
    maximum_characters=10,
    maximum_entries=3,
)
WIDE = AttributeRules({}, 1 << 20, 1_000, 10_000, 1_000)
NAMES = st.text(st.sampled_from("abczäß_.-09"), min_size=1, max_size=8).filter(is_name)
VALUES = (
    st.text(max_size=10)
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.lists(st.text(max_size=5), max_size=4)
)
ATTRIBUTES = st.dictionaries(NAMES, VALUES, max_size=6)


def refused(raw: bytes, *, of_json: bool = True) -> tuple[str, str]:
    with pytest.raises(AttributeFault) as caught:
        RULES.read(raw, of_json=of_json)
    return caught.value.kind, str(caught.value)


@given(ATTRIBUTES)
def test_json_and_messagepack_of_equal_attributes_are_the_same_bytes_and_come_back(attributes: Attributes) -> None:
    from_json = WIDE.read(json.dumps(attributes).encode(), of_json=True)
    shuffled = dict(reversed(attributes.items()))
    from_messagepack = WIDE.read(msgspec.msgpack.encode(shuffled), of_json=False)
    assert from_json == from_messagepack == attributes
    assert encode_attributes(from_json) == encode_attributes(from_messagepack)
    assert msgspec.msgpack.decode(encode_attributes(from_json)) == attributes


def test_whole_numbers_are_one_however_they_are_written() -> None:
    read = [WIDE.read(raw, of_json=True) for raw in (b'{"a":30}', b'{"a": 30.0}', b'{"a":3e1}')]
    assert len({encode_attributes(one) for one in read}) == 1
    zeros = [WIDE.read(raw, of_json=True) for raw in (b'{"a":0}', b'{"a":-0.0}')]
    assert len({encode_attributes(one) for one in zeros}) == 1
    assert WIDE.read(b'{"a":1e300}', of_json=True) == {"a": 1e300}


@pytest.mark.parametrize(
    ("raw", "kind", "said"),
    [
        (b"[]", "InvalidAttributes", 'attributes is a list: send an object such as {"price": 30}'),
        (b"null", "InvalidAttributes", "attributes is null: send an object"),
        (b'{"colour": null}', "InvalidAttributes", "attributes.colour is null: .* leave the field out"),
        (b'{"size": {"eu": 4}}', "InvalidAttributes", "attributes.size is an object: an attribute is a string"),
        (b'{"tags": ["a", 1]}', "InvalidAttributes", r"attributes.tags\[1\] is a number: a list holds strings alone"),
        (b'{"tags": ["a", ["b"]]}', "InvalidAttributes", r"attributes.tags\[1\] is a list"),
        (b'{"price": "30"}', "InvalidAttributes", "attributes.price is a string, and .* declares it as a number"),
        (b'{"price": true}', "InvalidAttributes", "attributes.price is a boolean, and .* as a number"),
        (b'{"tags": "red"}', "InvalidAttributes", "attributes.tags is a string, and .* as a list of strings"),
        (b'{"in_stock": 1}', "InvalidAttributes", "attributes.in_stock is a number, and .* as a boolean"),
        (b'{"a": 9007199254740993}', "InvalidAttributes", "attributes.a is a whole number beyond 2.53.*as a string"),
        (b'{"a": 1e999}', "InvalidAttributes", "attributes cannot be read: Number out of range"),
        (b'{"": 1}', "InvalidAttributes", "attributes: '' is no name of a field: a name has 1 to 64 letters"),
        (b'{"a=b": 1}', "InvalidAttributes", "'a=b' is no name"),
        ('{"a\u0308": 1}'.encode(), "InvalidAttributes", "is no name"),
        (b'{"a": 1, "b": 2, "a": 3}', "InvalidAttributes", "the name 'a' is there twice: send each once"),
        (b'{"a":' + b"[" * 150 + b"}", "InvalidAttributes", "attributes cannot be read"),
        (b'{"a": "' + b"x" * 11 + b'"}', "FieldTooLarge", "attributes.a has 11 characters; the limit is 10"),
        (b'{"a": ["' + b"x" * 11 + b'"]}', "FieldTooLarge", r"attributes.a\[0\] has 11 characters; the limit is 10"),
        (b'{"a": ["", "", "", ""]}', "FieldTooLarge", "attributes.a has 4 entries; the limit is 3"),
        (b'{"a": 1, "b": 1, "c": 1, "d": 1, "e": 1}', "FieldTooLarge", "attributes has 5 fields; the limit is 4"),
        (b'{"a": "' + b" " * 200 + b'"}', "FieldTooLarge", "attributes has 209 bytes; the limit is 200"),
    ],
)
def test_what_does_not_fit_is_refused_by_the_name_of_its_field(raw: bytes, kind: str, said: str) -> None:
    found, message = refused(raw)
    assert found == kind
    assert re.search(said, message), message


def test_messagepack_that_json_cannot_say_is_refused_too() -> None:
    assert "is nan: send a finite number" in refused(msgspec.msgpack.encode({"a": math.nan}), of_json=False)[1]
    assert "a is bytes" in refused(msgspec.msgpack.encode({"a": b"x"}), of_json=False)[1]
    assert "a name is there twice" in refused(b"\x82\xa1a\x01\xa1a\x02", of_json=False)[1]
    assert "a name is there twice" in refused(b"\xde\x00\x02\xa1a\x01\xa1a\x02", of_json=False)[1]
    assert "1 is no name of a field" in refused(b"\x81\x01\x02", of_json=False)[1]
    assert "cannot be read" in refused(b"", of_json=False)[1]


@pytest.mark.parametrize("of_json", [True, False])
def test_name_that_is_there_twice_is_found_at_any_depth(of_json: bool) -> None:
    value = {"all": [{"not": {"field": "a", "in": [1, {"x": [{"y": 2}]}]}}], "b": [[{"c": 1}]]}
    encode = msgspec.json.encode if of_json else msgspec.msgpack.encode
    assert decoded_once(encode(value), of_json=of_json) == value
    twice = encode(value).replace(b'"y":2', b'"y":2,"y":3') if of_json else encode(value).replace(
        b"\x81\xa1y\x02", b"\x82\xa1y\x02\xa1y\x03"
    )  # fmt: skip
    with pytest.raises(RepeatedNameError):
        decoded_once(twice, of_json=of_json)


@given(st.binary(max_size=60))
def test_noise_is_refused_by_the_one_error(noise: bytes) -> None:
    for of_json in (True, False):
        try:
            found = WIDE.read(noise, of_json=of_json)
        except AttributeFault:
            continue
        assert WIDE.checked(found) == found


def test_any_value_has_one_type() -> None:
    values: list[Any] = ["a", 1, 1.5, True, ["a"], []]
    assert [type_of(value) for value in values] == ["string", "number", "number", "boolean", "strings", "strings"]
