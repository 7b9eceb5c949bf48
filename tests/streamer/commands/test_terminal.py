"""What a stranger wrote cannot reach the terminal as anything but text."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from models.terminal import printable, printable_bytes
from streamer.commands.terminal import ascii_json, pretty


def shown_safely(text: str) -> bool:
    return all(character.isprintable() or character == "\n" for character in text)


@given(st.text())
def test_printable_text_cannot_move_the_cursor(text: str) -> None:
    assert printable(text).isprintable()


@given(st.binary())
def test_printable_bytes_cannot_move_the_cursor(content: bytes) -> None:
    assert printable_bytes(content).isprintable()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(0, 9), inner),
    max_leaves=10,
)


@given(st.one_of(st.binary(), VALUES.map(msgspec.msgpack.encode), VALUES.map(msgspec.json.encode)))
def test_any_value_is_shown_and_safely(value: bytes) -> None:
    assert shown_safely(pretty(value))


def test_values_are_decoded_where_they_can_be() -> None:
    assert pretty(b'{"title": "\\u001b[2J", "n": [1, 2.5, -3]}').splitlines() == [
        "JSON",
        "{",
        '  "title": "\\u001b[2J",',
        '  "n": [',
        "    1, 2.5, -3",
        "  ]",
        "}",
    ]
    assert '"embedding": "4 bytes, base64 AAECAw=="' in pretty(msgspec.msgpack.encode({"embedding": b"\0\1\2\3"}))
    assert pretty(b'{"embedding": "').splitlines() == [
        "15 bytes",
        '00000000  7b 22 65 6d 62 65 64 64 69 6e 67 22 3a 20 22     {"embedding": "',
    ]
    assert pretty(b"[" * 100_000).count("\n") < 5, "nested too deeply: dumped, and repeated lines folded"


@given(st.text())
def test_json_output_is_ascii_without_control_characters(text: str) -> None:
    assert ascii_json({"a": text}).isprintable()
    assert ascii_json({"a": text}).isascii()
