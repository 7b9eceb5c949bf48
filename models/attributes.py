"""The attributes of an item: what a name and a value may be, their limits, their declared types, and their canonical bytes.

What must hold: equal attributes have equal bytes, whatever wrote them: fields in the order of their names, a whole number as an
integer. Nothing is repaired in silence: what does not fit is refused by the name of its field.
"""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import msgspec

AttributeType = Literal["string", "number", "boolean", "strings"]
"""What a declared field holds; ``strings`` is a list of strings."""
AttributeValue = str | bool | int | float | list[str]
Attributes = dict[str, AttributeValue]

MAXIMUM_NAME_CHARACTERS: Final = 64
LARGEST_WHOLE_NUMBER: Final = 2**53  # above it neighbouring integers are one float64
_NAMES_REMEMBERED: Final = 10_000
_MARKS_IN_NAMES: Final = frozenset("_.-")
_JSON_SPACE: Final = b" \t\r\n"
_SAID: Final = 64  # characters of a sender's text that a message repeats
NAME_RULE: Final = f"a name has 1 to {MAXIMUM_NAME_CHARACTERS} letters, digits, _ . or -, and begins with a letter or _"
_TAKEN: Final = "an attribute is a string, a finite number, a boolean or a list of strings"
_ENCODE: Final = msgspec.msgpack.Encoder().encode
_DECODE_FIELDS: Final = msgspec.msgpack.Decoder(dict[str, msgspec.Raw]).decode
_DECODE_ENTRIES: Final = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode


class AttributeFault(ValueError):
    """Attributes that are refused; ``kind`` goes into a dead letter's class, the message names the field."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class RepeatedNameError(ValueError):
    """A map has a name twice; which of the two counts, no reader agrees on."""


def decoded_once(raw: bytes | msgspec.Raw, *, of_json: bool) -> Any:
    """The JSON or MessagePack value in ``raw``, in which no map has a name twice.

    Raises:
        msgspec.DecodeError, UnicodeDecodeError, RecursionError: undecodable.
        RepeatedNameError: names the name.
    """
    if not of_json:
        return _messagepack_once(raw)
    value = msgspec.json.decode(raw)
    # Only the second reader shows every pair; the first one has said that this is JSON.
    json.loads(bytes(raw), object_pairs_hook=_pairs_once, parse_int=len, parse_float=len)
    return value


def _pairs_once(pairs: list[tuple[str, Any]]) -> None:
    names = {name for name, _ in pairs}
    if len(names) < len(pairs):
        raise RepeatedNameError(_repeated([name for name, _ in pairs]))


def _repeated(names: list[str]) -> str:
    name = next((name for place, name in enumerate(names) if name in names[:place]), "")
    return f"the name {name[:_SAID]!r} is there twice: send each once"


def _messagepack_once(raw: bytes | msgspec.Raw) -> Any:
    value = msgspec.msgpack.decode(raw)
    if isinstance(value, dict):
        if len(value) < _pairs_in(memoryview(raw)):
            raise RepeatedNameError("a name is there twice: send each once")
        if any(map(_may_hold_maps, value.values())):
            for within in _DECODE_FIELDS(raw).values():
                _messagepack_once(within)
    elif isinstance(value, list) and _may_hold_maps(value):
        for within in _DECODE_ENTRIES(raw):
            _messagepack_once(within)
    return value


def _pairs_in(raw: memoryview) -> int:
    """The number of pairs that a MessagePack map says it has."""
    size = {0xDE: 2, 0xDF: 4}.get(raw[0], 0)
    return int.from_bytes(raw[1 : 1 + size]) if size else raw[0] & 0x0F


def _may_hold_maps(value: Any) -> bool:
    kind = type(value)
    return kind is dict or (kind is list and any(type(entry) in (dict, list) for entry in value))


def type_of(value: AttributeValue) -> AttributeType:
    """The type that a field must be declared with to be filtered on by this value."""
    match value:
        case bool():
            return "boolean"
        case str():
            return "string"
        case list():
            return "strings"
        case _:
            return "number"


def is_name(name: str) -> bool:
    """Whether a field may have this name.

    >>> [is_name(name) for name in ("price", "größe", "in_stock", "EU.size-2", "", "9", "a b", "a=b")]
    [True, True, True, True, False, False, False, False]
    """
    if not 0 < len(name) <= MAXIMUM_NAME_CHARACTERS or not (name[0].isalpha() or name[0] == "_"):
        return False
    return all(character.isalnum() or character in _MARKS_IN_NAMES for character in name) and unicodedata.is_normalized(
        "NFC", name
    )


@dataclass(frozen=True, slots=True)
class AttributeRules:
    """Limits of one item's attributes, and the declared types.

    ``types``: field → type of those that can be filtered on; others are stored whatever their type. ``maximum_bytes``: of the
    object as it came, and of its canonical form; ``maximum_characters``: of a string, also in a list.
    """

    types: Mapping[str, AttributeType]
    maximum_bytes: int
    maximum_fields: int
    maximum_characters: int
    maximum_entries: int
    _known_names: set[str] = field(default_factory=set, compare=False, repr=False)

    def read(self, raw: bytes | msgspec.Raw, *, of_json: bool) -> Attributes:
        """The attributes in JSON or MessagePack, checked, with canonical numbers.

        Raises:
            AttributeFault: ``FieldTooLarge`` beyond a limit, else ``InvalidAttributes``.
        """
        if of_json:
            raw = bytes(raw).strip(_JSON_SPACE)  # what stands before and after it in the record
        size = len(memoryview(raw))
        if size > self.maximum_bytes:
            raise _too_large("attributes", size, self.maximum_bytes, "bytes")
        try:
            found = decoded_once(raw, of_json=of_json)
        except RepeatedNameError as error:
            raise AttributeFault("InvalidAttributes", f"attributes: {error}") from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
            said = "nested too deeply" if isinstance(error, RecursionError) else error
            raise AttributeFault("InvalidAttributes", f"attributes cannot be read: {said}") from None
        return self.checked(found)

    def checked(self, found: Any) -> Attributes:
        """Attributes that came as Python objects; see ``read``."""
        if not isinstance(found, dict):
            raise AttributeFault(
                "InvalidAttributes", f'attributes is {_described(found)}: send an object such as {{"price": 30}}'
            )
        if len(found) > self.maximum_fields:
            raise _too_large("attributes", len(found), self.maximum_fields, "fields")
        attributes: Attributes = {}
        for name, value in found.items():
            if name not in self._known_names:
                self._check_name(name)
            attributes[name] = self._value(name, value)
        return attributes

    def _check_name(self, name: Any) -> None:
        if not isinstance(name, str) or not is_name(name):
            said = f"{name[:_SAID]!a}" if isinstance(name, str) else f"{name!r:.64}"
            raise AttributeFault("InvalidAttributes", f"attributes: {said} is no name of a field: {NAME_RULE}")
        if len(self._known_names) < _NAMES_REMEMBERED:
            self._known_names.add(name)

    def _value(self, name: str, value: Any) -> AttributeValue:
        kind = type(value)
        if kind is str:
            self._within(name, len(value), self.maximum_characters, "characters")
        elif kind is int:
            if not -LARGEST_WHOLE_NUMBER <= value <= LARGEST_WHOLE_NUMBER:
                raise AttributeFault(
                    "InvalidAttributes",
                    f"attributes.{name} is a whole number beyond 2^53, which a float64 does not tell from its neighbours: send "
                    "it as a string",
                )
        elif kind is float:
            if not math.isfinite(value):
                raise AttributeFault(
                    "InvalidAttributes",
                    f"attributes.{name} is {value}: send a finite number, or leave the field out if there is none",
                )
            value = canonical_number(value)
        elif kind is list:
            self._within(name, len(value), self.maximum_entries, "entries")
            for place, entry in enumerate(value):
                if type(entry) is not str:
                    raise AttributeFault(
                        "InvalidAttributes",
                        f"attributes.{name}[{place}] is {_described(entry)}: a list holds strings alone",
                    )
                self._within(f"{name}[{place}]", len(entry), self.maximum_characters, "characters")
        elif kind is not bool:
            advice = f"{_TAKEN}; leave the field out if it has no value" if value is None else _TAKEN
            raise AttributeFault("InvalidAttributes", f"attributes.{name} is {_described(value)}: {advice}")
        declared = self.types.get(name)
        if declared is not None and declared != type_of(value):
            raise AttributeFault(
                "InvalidAttributes",
                f"attributes.{name} is {_described(value)}, and attributes.filterable declares it as {_NAMES[declared]}: send "
                "that, or correct the declaration",
            )
        checked: AttributeValue = value
        return checked

    def _within(self, name: str, size: int, limit: int, unit: str) -> None:
        if size > limit:
            raise _too_large(f"attributes.{name}", size, limit, unit)


def canonical_number(value: float) -> int | float:
    """A whole number as an integer where that loses nothing, so that 30 and 30.0 are one; -0 is 0."""
    return int(value) if value.is_integer() and abs(value) <= LARGEST_WHOLE_NUMBER else value


def encode_attributes(attributes: Mapping[str, AttributeValue]) -> bytes:
    """Canonical MessagePack: the fields in the order of their names.

    >>> encode_attributes({"b": True, "a": 1}) == encode_attributes({"a": 1, "b": True})
    True
    """
    return _ENCODE(dict(sorted(attributes.items())))


_ANY: Final = dict[str, str | bool | int | float | list[str]]
_DECODE_ANY: Final = msgspec.msgpack.Decoder(_ANY).decode
_DECODE_ANY_JSON: Final = msgspec.json.Decoder(_ANY).decode


def canonical_attributes(raw: bytes | msgspec.Raw, *, of_json: bool) -> bytes:
    """Attributes that a process of ours has checked, in their canonical bytes, whatever the limits are now.

    Raises:
        msgspec.DecodeError, UnicodeDecodeError, RecursionError: none that any process of ours writes.
    """
    return encode_attributes((_DECODE_ANY_JSON if of_json else _DECODE_ANY)(raw))


_NAMES: Final = {"string": "a string", "number": "a number", "boolean": "a boolean", "strings": "a list of strings"}


def described_type(declared: AttributeType) -> str:
    """``a number``: a declared type, for a person."""
    return _NAMES[declared]


def _described(value: Any) -> str:
    """What kind of value a sender's is, for a person; never the value itself."""
    match value:
        case None:
            return "null"
        case bool() | str() | list() | int() | float():
            return _NAMES[type_of(value)] if not isinstance(value, list) else "a list"
        case dict():
            return "an object"
        case bytes():
            return "bytes"
        case _:
            return f"a value of the type {type(value).__name__}"


def _too_large(name: str, size: int, limit: int, unit: str) -> AttributeFault:
    return AttributeFault("FieldTooLarge", f"{name} has {size} {unit}; the limit is {limit}")
