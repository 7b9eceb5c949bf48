"""Unknown fields are counted exactly, by name, without losing the record and without growing for ever."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.events.records import ItemUpdate
from streamer.events.values.unknown_fields import OTHER, CountingCodec, nearest, note_of

FIELDS = {"embedding": [1.0, 2.0], "title": "Kettle"}
ENCODERS = (msgspec.json.encode, msgspec.msgpack.encode)


@pytest.mark.parametrize("encode", ENCODERS)
def test_record_with_unknown_fields_is_decoded_and_each_name_is_counted(encode: Any) -> None:
    codec = CountingCodec(ItemUpdate)
    for more in ({}, {"brand": "Alta"}, {"brand": None, "price ct": 17}, {"brand": {"name": [1]}}, {"title": "Pot"}):
        assert codec.decode(encode({**FIELDS, **more})).embedding == [1.0, 2.0]
    assert codec.counts == {"brand": 3, "price ct": 1}


@pytest.mark.parametrize("encode", ENCODERS)
def test_names_beyond_sixteen_and_long_ones_are_counted_together(encode: Any) -> None:
    codec = CountingCodec(ItemUpdate)
    for number in range(40):
        assert codec.decode(encode({**FIELDS, f"field {number}": 1})).title == "Kettle"
    assert len(codec.counts) == 17
    assert codec.counts[OTHER] == 24
    codec.decode(encode({**FIELDS, "field 0": 1, "field 39": 1, "x" * 500: 1}))
    assert codec.counts[OTHER] == 25, "one record, however many such names"
    assert codec.counts["field 0"] == 2


@pytest.mark.parametrize("name", ["", 'a"b', "a\\b", "a\nb", "\x00", "é", "\u202e", "`", "x" * 65])
@pytest.mark.parametrize("encode", ENCODERS)
def test_name_of_any_characters_is_counted(encode: Any, name: str) -> None:
    codec = CountingCodec(ItemUpdate)
    for _ in range(3):
        codec.decode(encode({**FIELDS, name: 1}))
    assert sum(codec.counts.values()) == 3


def test_record_that_does_not_fit_is_refused_for_what_is_wrong_and_not_for_its_unknown_field() -> None:
    codec = CountingCodec(ItemUpdate)
    with pytest.raises(msgspec.ValidationError, match="required field `embedding`"):
        codec.decode(b'{"brand": 1, "title": "Kettle"}')
    with pytest.raises(msgspec.ValidationError, match=r"\$.title"):
        codec.decode(b'{"brand": 1, "embedding": [1], "title": 5}')


@given(
    st.lists(
        st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=3), st.integers(0, 9)), max_size=30
    ),
    st.sampled_from(ENCODERS),
)
def test_counts_are_those_of_a_plain_count(events: list[dict[str, int]], encode: Any) -> None:
    codec = CountingCodec(ItemUpdate)
    known = set(codec.fields)
    expected = 0
    for more in events:
        more = {name: number for name, number in more.items() if name not in known}
        codec.decode(encode({**FIELDS, **more}))
        expected += bool(more)
    told = {name: sum(name in more for more in events) for name in codec.counts if name != OTHER}
    assert {name: count for name, count in codec.counts.items() if name != OTHER} == told
    assert sum(codec.counts.values()) >= expected
    assert any(codec.counts.values()) == bool(expected)


def test_note_has_room_beside_an_offset_and_keeps_the_largest() -> None:
    counts = {f"{number:02d}" + "é" * 62: number for number in range(17)}
    note = note_of(counts)
    assert len(msgspec.json.encode(note)) < 2_100
    assert list(note.values()) == list(range(16, 16 - len(note), -1))
    assert note_of({"brand": 3, "gone": 0}) == {"brand": 3}


def test_nearest_known_field_is_named() -> None:
    assert nearest("embeding", ("title", "embedding")).startswith("is embedding meant? ")
    assert nearest("colour", ("title", "embedding")) == "It knows title, embedding"
