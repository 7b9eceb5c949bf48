"""The commit log's records: what was written is read back merged, the last change of a path wins, and damage is said."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from numpy.typing import NDArray

from store.records.change_log import (
    PART_BYTES,
    LogEntry,
    commit_of,
    encode_entry,
    items_in,
    log_key,
    merge_entries,
)


def paths_of(*rows: tuple[int, ...]) -> NDArray[np.uint16]:
    return np.array(rows, np.uint16).reshape(-1, 3)


def entry(entered: list[tuple[int, ...]], left: list[tuple[int, ...]], items: list[int]) -> LogEntry:
    return LogEntry(paths_of(*entered), paths_of(*left), np.array(items, np.uint32))


def test_last_change_of_a_path_wins_and_items_are_named_once() -> None:
    records = [
        *encode_entry(5, entry([(1, 2, 3), (0, 0, 9)], [(4, 4, 4)], [7, 2**32 - 1])),
        *encode_entry(6, entry([(4, 4, 4)], [(1, 2, 3)], [7])),
        *encode_entry(9, entry([], [(65_535, 0, 1)], [0])),
    ]
    assert records == sorted(records)
    changes = merge_entries(records, 3, 11)
    assert changes.entered.tolist() == [[0, 0, 9], [4, 4, 4]]
    assert changes.left.tolist() == [[1, 2, 3], [65_535, 0, 1]]
    assert changes.items.tolist() == [0, 7, 2**32 - 1]
    assert changes.commit == 11
    assert (changes.entered.dtype, changes.left.dtype, changes.items.dtype) == (np.uint16, np.uint16, np.uint32)


def test_no_records_are_no_changes() -> None:
    changes = merge_entries([], 3, 4)
    assert (changes.entered.shape, changes.left.shape, changes.items.shape) == ((0, 3), (0, 3), (0,))


def test_large_entry_is_kept_in_parts_of_which_the_first_knows_how_many_items_it_has() -> None:
    many = np.arange(3 * 5_000, dtype=np.uint16).reshape(-1, 3)
    records = encode_entry(2**40, LogEntry(many, many[:0], np.arange(5_000, dtype=np.uint32)))
    assert len(records) > 10
    assert max(len(part) for _, part in records) == PART_BYTES
    assert {commit_of(key) for key, _ in records} == {2**40}
    assert items_in(records[0][1]) == 5_000
    assert log_key(2**40) == records[0][0]
    changes = merge_entries(records, 3, 2**40)
    assert changes.entered.tolist() == many.tolist()
    assert len(changes.items) == 5_000


def test_section_of_a_kind_that_is_not_known_is_passed_over() -> None:
    value = struct.pack("<BB", 1, 3) + struct.pack("<BIBIBI", 200, 5, 1, 6, 3, 4) + b"xxxxx"
    value += np.array([1, 2, 3], "<u2").tobytes() + np.array([8], "<u4").tobytes()
    assert items_in(value) == 1
    changes = merge_entries([(log_key(1), value)], 3, 1)
    assert (changes.entered.tolist(), changes.items.tolist()) == ([[1, 2, 3]], [8])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"", "version 0"),
        (b"\x02\x00", "version 2, this sidstream reads 1"),
        (b"\x01\x03\x01\x06", "head of an entry of the commit log is cut"),
        (struct.pack("<BBBI", 1, 1, 1, 6) + b"\0" * 5, "commit 7 in the commit log has 12 bytes, not 13"),
        (struct.pack("<BBBI", 1, 1, 1, 6) + b"\0" * 7, "commit 7 in the commit log has 14 bytes, not 13"),
        (struct.pack("<BBBI", 1, 1, 1, 4) + b"\0" * 4, "reshape"),
    ],
)
def test_damaged_entry_is_refused(value: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        merge_entries([(log_key(7), value)], 3, 7)
