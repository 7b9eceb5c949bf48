"""The commit log as the writer keeps it: what is a commit, what it names, and how much of it is kept."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from models.sids.layout import Layout
from store.checks.verification import verify
from store.reading.facts import IndexState, read_state
from store.records import change_log
from store.records.change_log import Changes, commit_of
from store.writing import log_writer
from store.writing.writer import IndexWriter
from support.plain_index import CODEBOOK, Event, batch_of, random_events

OpenWriter = Callable[..., IndexWriter]


def state_of(writer: IndexWriter) -> IndexState:
    with writer.snapshot() as snapshot:
        assert verify(snapshot) == []
        return read_state(snapshot._read, snapshot._databases)


def commits_in_log(writer: IndexWriter) -> list[int]:
    with writer.snapshot() as snapshot:
        return sorted({commit_of(key) for key, _ in snapshot._cursor("changes").iternext()})


def changes(writer: IndexWriter, commit: int) -> Changes:
    with writer.snapshot() as snapshot:
        found = snapshot.changes_since(commit)
        assert found is not None
        return found


def test_batch_that_changes_no_item_is_no_commit(open_writer: OpenWriter) -> None:
    writer = open_writer()
    assert state_of(writer).commit == 0
    batch = batch_of([Event(b"a", (1, 2, 3))])
    writer.apply(batch, {("codes", 0): 1})
    assert state_of(writer).commit == 1
    writer.apply(batch, {("codes", 0): 2})  # once more
    writer.apply(batch_of([Event(b"nobody", None)]), {("codes", 0): 3})
    writer.put_layout(Layout(1, CODEBOOK, 3, 16, (2,)), {("layouts", 0): 1})
    writer.remember_log_ids({"codes": "x"})
    assert state_of(writer).commit == 1
    writer.apply(batch_of([Event(b"a", (1, 2, 3), title="renamed")]), {("codes", 0): 4})
    state = state_of(writer)
    assert (state.commit, state.log_items, commits_in_log(writer)) == (2, 1, [1]), "no path changed"
    assert len(changes(writer, 1).items) == 0


def test_path_is_named_left_only_when_its_last_item_left_it(open_writer: OpenWriter) -> None:
    writer = open_writer()
    writer.apply(batch_of([Event(b"a", (1, 2, 3)), Event(b"b", (1, 2, 3)), Event(b"c", (1, 4, 3))]), {})
    writer.apply(batch_of([Event(b"a", None)]), {})
    assert changes(writer, 1).left.tolist() == []
    assert changes(writer, 1).items.tolist() == [0]
    writer.apply(batch_of([Event(b"b", (1, 3, 3))]), {})
    last = changes(writer, 2)
    assert (last.entered.tolist(), last.left.tolist(), last.items.tolist()) == ([[1, 3, 3]], [[1, 2, 3]], [1])
    writer.apply(batch_of([Event(b"b", (1, 2, 3)), Event(b"d", (1, 3, 3))]), {})  # one leaves it, another one comes
    last = changes(writer, 3)
    assert (sorted(last.entered.tolist()), last.left.tolist()) == ([[1, 2, 3], [1, 3, 3]], [])
    assert changes(writer, 2).entered.tolist() == [[1, 2, 3], [1, 3, 3]]


def test_reader_that_is_ahead_or_behind_the_log_gets_nothing(open_writer: OpenWriter) -> None:
    writer = open_writer()
    for number in range(3):
        writer.apply(batch_of([Event(b"a", (number, 0, 0))]), {})
    with writer.snapshot() as snapshot:
        assert snapshot.commit == 3
        assert snapshot.changes_since(4) is None
        found = snapshot.changes_since(3)
        assert found is not None
        assert len(found.entered) + len(found.left) + len(found.items) == 0


def test_log_keeps_as_many_item_changes_as_its_bound(open_writer: OpenWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_writer, "MINIMUM_LOG_ITEMS", 25)
    writer = open_writer()
    for number in range(10):
        writer.apply(batch_of([Event(b"%d" % item, (number, 0, item % 16)) for item in range(8)]), {})
    state = state_of(writer)
    assert (state.commit, state.log_floor, state.log_items) == (10, 7, 24)
    assert commits_in_log(writer) == [8, 9, 10]
    with writer.snapshot() as snapshot:
        assert snapshot.changes_since(6) is None
        assert snapshot.changes_since(7) is not None


def test_large_index_keeps_changes_of_a_quarter_of_its_items(
    open_writer: OpenWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_writer, "MINIMUM_LOG_ITEMS", 10)
    writer = open_writer()
    for number in range(10):
        writer.apply(batch_of([Event(b"%d-%d" % (number, item), (1, 2, item)) for item in range(10)]), {})
    assert state_of(writer).log_items == 20, "a hundred items: room for 25 changes"


def test_log_keeps_as_many_commits_as_its_bound_also_without_changes_of_paths(
    open_writer: OpenWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_writer, "MAXIMUM_LOG_COMMITS", 4)
    writer = open_writer()
    for number in range(6):
        writer.apply(batch_of([Event(b"a", (number, 0, 0))]), {})
    assert (state_of(writer).log_floor, commits_in_log(writer)) == (2, [3, 4, 5, 6])
    for number in range(7):
        writer.apply(batch_of([Event(b"a", (5, 0, 0), title=f"title {number}")]), {})
    state = state_of(writer)
    assert (state.commit, state.log_floor, state.log_items, commits_in_log(writer)) == (13, 9, 0, [])


def test_few_records_are_removed_at_one_commit(open_writer: OpenWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = open_writer()
    for number in range(20):
        writer.apply(batch_of([Event(b"a", (number % 16, 0, 0))]), {})
    monkeypatch.setattr(log_writer, "MINIMUM_LOG_ITEMS", 5)
    monkeypatch.setattr(log_writer, "_TRIMMED", 3)
    sizes = []
    for number in range(12):
        writer.apply(batch_of([Event(b"b", (number, 1, 1))]), {})
        sizes.append(state_of(writer).log_items)
    assert sizes == [18, 16, 14, 12, 10, 8, 6, 5, 5, 5, 5, 5]


def test_batch_larger_than_the_log_empties_it(open_writer: OpenWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_writer, "MINIMUM_LOG_ITEMS", 50)
    writer = open_writer()
    writer.apply(batch_of(random_events(1, 40, ids=40)), {})
    writer.apply(batch_of([Event(b"%d" % item, (1, 2, item % 16)) for item in range(60)]), {})
    state = state_of(writer)
    assert (state.commit, state.log_floor, state.log_items, commits_in_log(writer)) == (2, 2, 0, [])
    with writer.snapshot() as snapshot:
        assert snapshot.changes_since(1) is None
    writer.apply(batch_of([Event(b"0", (3, 3, 3))]), {})
    assert changes(writer, 2).entered.tolist() == [[3, 3, 3]]


def test_entries_of_many_parts_are_removed_whole(open_writer: OpenWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_writer, "MINIMUM_LOG_ITEMS", 600)
    monkeypatch.setattr(change_log, "PART_BYTES", 100)
    writer = open_writer()
    random = np.random.default_rng(0)
    for _ in range(12):
        events = [Event(b"%d" % item, tuple(random.integers(16, size=3).tolist())) for item in range(250)]
        writer.apply(batch_of(events), {})
    state = state_of(writer)
    assert state.log_floor == 10
    assert commits_in_log(writer) == [11, 12]
