"""What an item's attributes are, out of its update's and its own; and which record of several partitions counts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.attributes import Attributes, encode_attributes
from store.records.item_attributes import (
    AttributeRecord,
    decode_attribute_records,
    decode_fields,
    effective_attributes,
    encode_attribute_records,
    newest_record,
    with_records,
    without_old_removals,
)

FIELDS = st.dictionaries(st.sampled_from("abc"), st.integers(0, 3), max_size=3)
RECORDS = st.lists(
    st.builds(AttributeRecord, st.integers(0, 2), st.integers(0, 3), st.none() | st.just(b"\x80"), st.integers(1, 9)),
    max_size=6,
)


def effective(of_update: Attributes | None, updated: int, alone: Attributes | None, at: int) -> Attributes:
    own = AttributeRecord(0, at, None if alone is None else encode_attributes(alone))
    value = b"" if of_update is None else encode_attributes(of_update)
    return decode_fields(effective_attributes(value, updated, own))


@pytest.mark.parametrize(
    ("updated", "at", "expected"),
    [
        (5, 9, {"price": 20, "brand": "Acme", "in_stock": False}),
        (5, 5, {"price": 20, "brand": "Acme", "in_stock": False}),
        (9, 5, {"price": 30, "brand": "Acme", "in_stock": False}),
    ],
    ids=["alone is later", "equal times", "update is later"],
)
def test_of_a_field_in_both_the_later_source_counts_and_a_field_of_one_is_there(
    updated: int, at: int, expected: Attributes
) -> None:
    found = effective({"price": 30, "brand": "Acme"}, updated, {"price": 20, "in_stock": False}, at)
    assert found == expected


@given(st.none() | FIELDS, st.integers(0, 9), st.none() | FIELDS, st.integers(0, 9))
def test_effective_attributes_are_canonical_and_field_by_field(
    of_update: Attributes | None, updated: int, alone: Attributes | None, at: int
) -> None:
    found = effective(of_update, updated, alone, at)
    older, newer = (of_update, alone) if at >= updated else (alone, of_update)
    assert found == {**(older or {}), **(newer or {})}
    value = b"" if of_update is None else encode_attributes(of_update)
    own = AttributeRecord(0, at, None if alone is None else encode_attributes(alone))
    assert effective_attributes(value, updated, own) == (encode_attributes(found) if found else b"")


def test_without_a_record_of_their_own_the_updates_count() -> None:
    assert effective_attributes(encode_attributes({"a": 1}), 5, None) == encode_attributes({"a": 1})
    assert effective_attributes(encode_attributes({}), 5, None) == b""
    assert effective_attributes(b"", 5, None) == b""


@given(RECORDS, RECORDS)
def test_the_last_record_of_each_partition_is_known_and_the_newest_of_these_counts(
    known: list[AttributeRecord], new: list[AttributeRecord]
) -> None:
    before = with_records([], known, 7)
    records = with_records(before, new, 8)
    last = {record.partition: record for record in [*known, *new]}
    assert [(one.partition, one.timestamp, one.value) for one in records] == [
        (last[partition].partition, last[partition].timestamp, last[partition].value) for partition in sorted(last)
    ]
    assert all(record.noted_at in (7, 8) for record in records if record.value is None)
    assert decode_attribute_records(encode_attribute_records(records)) == records
    assert with_records(records, new, 9) == records, "what comes again changes nothing"
    winner = newest_record(records)
    assert winner == max(records, key=lambda one: (one.timestamp, one.partition), default=None)


@given(RECORDS, st.integers(0, 12))
def test_forgetting_old_removals_changes_nothing_that_an_older_record_could_bring_back(
    some: list[AttributeRecord], oldest: int
) -> None:
    records = with_records([], some, 5)
    kept = without_old_removals(records, oldest)
    assert [record for record in records if record.value is not None] == [one for one in kept if one.value is not None]
    before, after = newest_record(records), newest_record(kept)
    assert (before.value if before else None) == (after.value if after else None)
    if oldest <= 5:
        assert kept == records
