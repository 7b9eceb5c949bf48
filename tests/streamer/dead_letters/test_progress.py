"""What was replayed survives its way through an offset's metadata, and what a stranger wrote cannot reach the terminal."""

from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.commands.terminal import ascii_json, pretty, printable, printable_bytes
from streamer.dead_letters.progress import MAXIMUM_METADATA_BYTES, ReplayState, ReplayStateError
from streamer.dead_letters.reading import DeadLetterError, Place


@given(st.integers(0, 5_000), st.sets(st.integers(0, 4_999), max_size=400))
def test_state_is_read_back_as_it_was_written(scanned: int, left: set[int]) -> None:
    state = ReplayState(scanned, frozenset(offset for offset in left if offset < scanned))
    again = ReplayState.parse(state.position, state.metadata())
    assert again == state
    assert [again.was_replayed(offset) for offset in range(5_000)] == [
        offset < scanned and offset not in left for offset in range(5_000)
    ]


def test_position_is_the_first_letter_that_is_not_done() -> None:
    assert ReplayState(10, frozenset({4, 7})).position == 4
    assert ReplayState(10).position == 10
    assert ReplayState(10).metadata() == ""


def test_offset_that_another_tool_has_set_counts_as_it_is() -> None:
    assert ReplayState.parse(7, None) == ReplayState(7)
    assert ReplayState.parse(-1001, "") == ReplayState()


def test_twenty_thousand_letters_left_at_random_fit_and_what_does_not_is_refused_with_what_to_do() -> None:
    dice = random.Random(3)
    state = ReplayState(20_000, frozenset(offset for offset in range(20_000) if dice.random() < 0.5))
    assert len(state.metadata()) <= MAXIMUM_METADATA_BYTES
    scattered = ReplayState(60_000, frozenset(offset for offset in range(60_000) if dice.random() < 0.5))
    with pytest.raises(ReplayStateError, match="wider filter"):
        scattered.metadata()
    assert len(ReplayState(10_000_000, frozenset({5})).metadata()) <= MAXIMUM_METADATA_BYTES


@pytest.mark.parametrize("metadata", ["nonsense", "2:5:abc", "1:x:abc", "1:99:abc", "1:5:", "1:999999999999:c"])
def test_metadata_of_someone_else_is_refused(metadata: str) -> None:
    with pytest.raises(ReplayStateError, match="--again"):
        ReplayState.parse(3, metadata)


@pytest.mark.parametrize(
    ("text", "place"),
    [("0:17", Place(None, 0, 17)), ("item-updates.dlq/3:5", Place("item-updates.dlq", 3, 5))],
)
def test_place_is_read_and_written_alike(text: str, place: Place) -> None:
    assert Place.parse(text) == place
    assert str(place) == text


@pytest.mark.parametrize("text", ["", "17", "a/b/0:1", "0:-1", "0:1:2", "topic/0"])
def test_what_is_no_place_is_refused(text: str) -> None:
    with pytest.raises(DeadLetterError, match="PARTITION:OFFSET"):
        Place.parse(text)


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
