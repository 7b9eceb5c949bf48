"""Decodes records and counts the fields that they have beyond the known ones, exactly, and at no cost where there are none.

The decoder refuses unknown fields in msgspec's own code. A record that it refuses for one is looked at for its names, and
the decoder then knows them: the next record with the same names is decoded in one pass again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Final

import msgspec
from msgspec import UNSET

from streamer.events.records import JSON_FIRST_BYTES, Codec, decoded_each, refusing_unknown_fields
from streamer.events.values.foreign_formats import field_names

_MOST_NAMES: Final = 16
_LONGEST_NAME: Final = 64
_NOTE_BYTES: Final = 2_000  # the broker takes 4,096 bytes beside an offset
OTHER: Final = "(other)"  # names beyond the most, and long ones, together
_UNKNOWN: Final = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_INSIDE: Final = re.compile(r"Object contains unknown field `(.*)` - at `\$\.([^`]*)`", re.DOTALL)


class CountingCodec(Codec):
    """Decodes a record type and counts its unknown fields in ``counts``: name → records that had it, at most 17 names."""

    def __init__(self, record: type[msgspec.Struct]) -> None:
        super().__init__(record)
        self._record = record
        self._tolerant = Codec(record)
        self.counts: dict[str, int] = {}
        # Attribute of the decoded record → name of the field.
        self._learned: tuple[tuple[str, str], ...] = ()
        self._learn(())

    def decode(self, value: bytes) -> Any:
        """As ``Codec.decode``; fields that the record does not have are counted and passed over."""
        try:
            # Once an event: the base class' call would cost more than the rest of this method.
            record = self._from_json(value) if value[:1] in JSON_FIRST_BYTES else self._from_messagepack(value)
        except msgspec.ValidationError as error:
            if unknown_field(error) is None:
                return super().decode(value)
            record = self._decode_and_learn(value)
        for attribute, name in self._learned:
            if getattr(record, attribute, UNSET) is not UNSET:
                self.counts[name] += 1
        return record

    def decode_messagepack(self, values: Sequence[bytes]) -> list[Any]:
        """As ``Codec.decode_messagepack``; those that come back are counted, the others are when ``decode`` takes them."""
        records = decoded_each(self._from_messagepack, values)
        for attribute, name in self._learned:
            self.counts[name] += sum(getattr(record, attribute, UNSET) is not UNSET for record in records)
        return records

    def _decode_and_learn(self, value: bytes) -> Any:
        names = field_names(value)
        new = sorted(names - {name for _, name in self._learned} - set(self.fields))
        room = _MOST_NAMES - len(self._learned)
        taken = [name for name in new if _can_be_learned(name)][:room]
        if taken:
            self._learn(taken)
        if 0 < len(taken) == len(new):
            return super().decode(value)
        record = self._tolerant.decode(value)
        self.counts[OTHER] = self.counts.get(OTHER, 0) + 1
        for _, name in self._learned:
            self.counts[name] += name in names
        return record

    def _learn(self, names: Sequence[str]) -> None:
        first = len(self._learned)
        self._learned += tuple((f"unknown_{first + place}", name) for place, name in enumerate(names))
        self.counts |= dict.fromkeys(names, 0)
        learned = refusing_unknown_fields(self._record, self._learned)
        self._from_json = msgspec.json.Decoder(learned).decode
        self._from_messagepack = msgspec.msgpack.Decoder(learned).decode


def _can_be_learned(name: str) -> bool:
    """Whether msgspec takes a field of this name, and a metric a label of this length."""
    return len(name) <= _LONGEST_NAME and not any(character < " " or character in '\\"' for character in name)


def unknown_field(error: msgspec.ValidationError) -> str | None:
    """The name of the field that a strict decoder refused; None: it refused something else."""
    found = _UNKNOWN.match(str(error))
    return found[1] if found else None


def unknown_field_inside(error: msgspec.ValidationError) -> tuple[str, str] | None:
    """The name of a field that was refused inside of another one, and its place, such as ``slate[0]``."""
    found = _INSIDE.fullmatch(str(error))
    return (found[1], found[2]) if found else None


def note_of(counts: Mapping[str, int]) -> dict[str, int]:
    """The counts that fit into the note of a committed offset, the largest first."""
    note, room = {}, _NOTE_BYTES
    for name, count in sorted(counts.items(), key=lambda pair: -pair[1]):
        room -= len(msgspec.json.encode({name: count}))
        if count and room >= 0:
            note[name] = count
    return note


def nearest(name: str, known: tuple[str, ...]) -> str:
    """Words that name the known field which looks most like ``name``, and all of them."""
    similar = get_close_matches(name, known, n=1)
    meant = f"is {similar[0]} meant? " if similar else ""
    return f"{meant}It knows {', '.join(known)}"
