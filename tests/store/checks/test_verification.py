"""The full check finds paths and a commit log that do not belong to the items; each test damages one thing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import numpy as np
import pytest

from store.checks.verification import verify
from store.errors import IndexAccessError
from store.reading.facts import read_state
from store.records.change_log import LogEntry, encode_entry, log_key
from store.writing import log_writer
from store.writing.writer import IndexWriter
from support.plain_index import Event, batch_of

OpenWriter = Callable[..., IndexWriter]
Change = Callable[[Any, dict[str, Any]], None]
LIVE, GONE = (1, 2, 3), (4, 5, 6)


@pytest.fixture
def writer(open_writer: OpenWriter) -> IndexWriter:
    """Items a and b on LIVE, one that came to GONE and left it; three commits."""
    writer = open_writer()
    writer.apply(batch_of([Event(b"a", LIVE), Event(b"c", GONE)]), {})
    writer.apply(batch_of([Event(b"b", LIVE)]), {})
    writer.apply(batch_of([Event(b"c", None)]), {})
    return writer


@contextmanager
def damaged(writer: IndexWriter) -> Iterator[tuple[Any, dict[str, Any]]]:
    """A transaction and the databases."""
    shared = writer._environment
    with shared.lmdb.begin(write=True) as transaction:
        yield transaction, shared.databases


def faults(writer: IndexWriter) -> list[str]:
    with writer.snapshot() as snapshot:
        return verify(snapshot)


def log_entry(commit: int, entered: list[tuple[int, ...]], left: list[tuple[int, ...]], items: list[int]) -> Any:
    paths = [np.array(rows, np.uint16).reshape(-1, 3) for rows in (entered, left)]
    return encode_entry(commit, LogEntry(paths[0], paths[1], np.array(items, np.uint32)))


def key_and_value(codes: tuple[int, int, int], number: int, weight: float = 1.0) -> tuple[bytes, bytes]:
    """Of ``paths``, at L = 3 and M = 16."""
    first, second, third = codes
    tail = second.to_bytes(2, "big") + number.to_bytes(4, "big") + np.float32(weight).tobytes()
    return np.array([first, third], ">u2").tobytes(), tail


def test_sound_index_has_no_fault(writer: IndexWriter) -> None:
    assert faults(writer) == []


def test_weight_beside_a_path_that_is_not_the_items_is_found(writer: IndexWriter) -> None:
    with damaged(writer) as (transaction, databases):
        key, value = key_and_value(LIVE, 0)
        assert transaction.delete(key, value, databases["paths"])
        transaction.put(*key_and_value(LIVE, 0, weight=2.0), db=databases["paths"])
    assert faults(writer) == [
        "1 items are missing from the paths, or are there with other codes or another weight.",
        "1 path records name an item that is missing or has other codes or another weight.",
    ]


def test_missing_path_is_found(writer: IndexWriter) -> None:
    with damaged(writer) as (transaction, databases):
        assert transaction.delete(*key_and_value(LIVE, 0), databases["paths"])
    assert faults(writer) == ["1 items are missing from the paths, or are there with other codes or another weight."]


def test_surplus_path_is_found(writer: IndexWriter) -> None:
    with damaged(writer) as (transaction, databases):
        transaction.put(*key_and_value((1, 3, 3), 0), db=databases["paths"])
    assert faults(writer) == ["1 path records name an item that is missing or has other codes or another weight."]


def test_item_under_another_path_is_found(writer: IndexWriter) -> None:
    with damaged(writer) as (transaction, databases):
        assert transaction.delete(*key_and_value(LIVE, 0), databases["paths"])
        transaction.put(*key_and_value((1, 2, 4), 0), db=databases["paths"])
    assert len(faults(writer)) == 2


@pytest.mark.parametrize(
    ("commit", "entry", "message"),
    [
        (2, ([GONE], [], [2]), []),  # it left later
        (2, ([LIVE], [], [9]), ["The commit log names item 9, which was never handed out."]),
        (2, ([(7, 7, 7)], [], [2]), ["1 paths that the commit log says hold an item hold none."]),
        (2, ([], [LIVE], [2]), ["1 paths that the commit log says hold no item hold one."]),
        (3, ([GONE], [], [1]), ["1 paths that the commit log says hold an item hold none."]),
        (3, ([], [GONE, LIVE], [1]), ["1 paths that the commit log says hold no item hold one."]),
        (3, ([], [], [1, 2]), ["The commit log has 5 item changes, and should have 4.",
                               "1 paths that the commit log says hold an item hold none."]),
    ],
)  # fmt: skip
def test_entry_that_says_something_else_is_found(
    writer: IndexWriter, commit: int, entry: tuple[Any, Any, Any], message: list[str]
) -> None:
    with damaged(writer) as (transaction, databases):
        for key, value in log_entry(commit, *entry):
            transaction.put(key, value, db=databases["changes"])
    assert faults(writer) == message


def test_missing_entry_is_found(writer: IndexWriter) -> None:
    with damaged(writer) as (transaction, databases):
        assert transaction.delete(log_key(3), b"", databases["changes"])
    assert faults(writer) == [
        "The commit log has 3 item changes, and should have 4.",
        "1 paths that the commit log says hold an item hold none.",
    ]


def test_cut_entry_is_found_and_no_reader_rolls_forward_over_it(writer: IndexWriter) -> None:
    with damaged(writer) as (transaction, databases):
        value = transaction.get(log_key(3), db=databases["changes"])
        transaction.put(log_key(3), value[:-1], db=databases["changes"])
    [fault] = faults(writer)
    assert "is damaged: the entry of commit 3 in the commit log has" in fault
    with writer.snapshot() as snapshot:
        with pytest.raises(IndexAccessError, match=r"commit 3 in the commit log.*rebuilds it"):
            snapshot.changes_since(1)
        assert snapshot.changes_since(3) is not None


def test_unreadable_entry_is_found_and_stops_the_writer_that_has_to_remove_it(
    writer: IndexWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    with damaged(writer) as (transaction, databases):
        transaction.put(log_key(1), b"\xff\xff", db=databases["changes"])
    assert faults(writer) == [
        "A record cannot be read (ValueError: an entry of the commit log has version 255, this sidstream reads 1)."
    ]
    monkeypatch.setattr(log_writer, "MINIMUM_LOG_ITEMS", 1)
    with pytest.raises(IndexAccessError, match=r"is damaged: an entry of the commit log has version 255.*Nothing was"):
        writer.apply(batch_of([Event(b"d", LIVE)]), {("codes", 0): 9})
    assert writer.offsets() == {}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"commit": 2}, "1 commits are in the commit log and should not be: it has those above 0, up to 2."),
        ({"log_floor": 1}, "1 commits are in the commit log and should not be: it has those above 1, up to 3."),
        ({"log_items": 7}, "The commit log has 4 item changes, and should have 7."),
    ],
)
def test_state_that_does_not_fit_to_the_log_is_found(
    writer: IndexWriter, changed: dict[str, int], message: str
) -> None:
    with damaged(writer) as (transaction, databases):
        state = msgspec.structs.replace(read_state(transaction, databases), **changed)
        transaction.put(b"state", msgspec.json.encode(state), db=databases["meta"])
    assert faults(writer) == [message]


def test_floor_after_the_last_commit_is_found(writer: IndexWriter) -> None:
    with damaged(writer) as (transaction, databases):
        state = msgspec.structs.replace(read_state(transaction, databases), log_floor=9, log_items=0)
        transaction.put(b"state", msgspec.json.encode(state), db=databases["meta"])
        transaction.drop(databases["changes"], delete=False)
    assert faults(writer) == ["The commit log begins at 9, after the last commit 3."]
