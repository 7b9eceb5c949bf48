"""What the writer stores, reuses and leaves alone, and every batch, codebook, format or second writer that it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import lmdb
import msgspec
import numpy as np
import pytest

from models.sids.layout import Layout
from store.checks.verification import verify
from store.errors import (
    BatchError,
    IndexFormatError,
    IndexLockedError,
    IndexMismatchError,
    IndexUsageError,
)
from store.reading.reader import IndexReader
from store.records.batch import CodesBatch
from store.writing.writer import IndexWriter
from support.plain_index import CODEBOOK, Event, PlainIndex, batch_of, random_events

OpenWriter = Callable[..., IndexWriter]


def test_reopened_index_goes_on_where_it_stopped(open_writer: OpenWriter) -> None:
    plain = PlainIndex()
    for number in range(4):
        events = random_events(number, 200, ids=150)
        plain.apply(events)
        with open_writer() as writer:
            writer.apply(batch_of(events), {("item-codes", 0): number + 1, ("item-codes", 7): 2**40})
    with open_writer() as writer, writer.snapshot() as snapshot:
        assert writer.offsets() == {("item-codes", 0): 4, ("item-codes", 7): 2**40}
        assert snapshot.digest() == plain.digest()
        assert verify(snapshot) == []


def test_numbers_of_deleted_items_are_reused(open_writer: OpenWriter) -> None:
    writer = open_writer()
    for generation in range(5):
        events = [Event(b"%d-%d" % (generation, number), (1, 2, 3)) for number in range(50)]
        writer.apply(batch_of(events), {})
        with writer.snapshot() as snapshot:
            assert max(snapshot.items_below(np.array([[1, 3]], np.uint16)).items) < 50
            assert verify(snapshot) == []
        writer.apply(batch_of([Event(event.id, None) for event in events]), {})
    with writer.snapshot() as snapshot:
        assert snapshot.item_count == 0
        assert not snapshot.census().any()
        assert snapshot.first_tokens().tolist() == []


def test_last_event_of_an_id_wins_within_a_batch(open_writer: OpenWriter) -> None:
    writer = open_writer()
    outcome = writer.apply(
        batch_of(
            [
                Event(b"a", (1, 1, 1), title="first"),
                Event(b"b", (2, 2, 2)),
                Event(b"a", None),
                Event(b"b", None),
                Event(b"a", (3, 3, 3), title="last"),
            ]
        ),
        {},
    )
    assert (outcome.upserted, outcome.deleted, outcome.items) == (1, 0, 1)
    assert outcome.changed_tokens == [(0, 3, 1), (1, 3, 1), (2, 3, 1)]
    with writer.snapshot() as snapshot:
        assert [item and item.title for item in snapshot.find([b"a", b"b"])] == ["last", None]


def test_same_content_again_changes_no_token_but_stores_offsets(open_writer: OpenWriter) -> None:
    writer = open_writer()
    events = random_events(1, 100, ids=1000)
    writer.apply(batch_of(events), {("t", 0): 1})
    outcome = writer.apply(batch_of(events), {("t", 0): 2})
    assert outcome.changed_tokens == []
    assert writer.offsets() == {("t", 0): 2}


def test_new_title_and_weight_with_the_same_codes_change_no_token(open_writer: OpenWriter) -> None:
    writer = open_writer()
    writer.apply(batch_of([Event(b"a", (1, 2, 3), 1.0, "old", 1)]), {})
    assert writer.apply(batch_of([Event(b"a", (1, 2, 3), 2.5, "new", 2)]), {}).changed_tokens == []
    with writer.snapshot() as snapshot:
        (item,) = snapshot.find([b"a"])
        assert item is not None
        assert (item.weight, item.title, item.updated_at) == (2.5, "new", 2)


def test_empty_batch_stores_offsets(open_writer: OpenWriter) -> None:
    writer = open_writer()
    outcome = writer.apply(batch_of([]), {("t", 3): 9})
    assert (outcome.upserted, outcome.deleted, outcome.items, outcome.changed_tokens) == (0, 0, 0, [])
    assert writer.offsets() == {("t", 3): 9}


def test_commit_time_comes_from_the_clock(open_writer: OpenWriter) -> None:
    writer = open_writer(clock=lambda: 1_700_000_000.5)
    with writer.snapshot() as snapshot:
        assert snapshot.last_commit_at == 0
        assert snapshot.facts.created_at == 1_700_000_000_500
    writer.apply(batch_of([]), {})
    with writer.snapshot() as snapshot:
        assert snapshot.last_commit_at == 1_700_000_000_500


def test_layouts_are_stored_once_and_their_offsets_always(open_writer: OpenWriter) -> None:
    writer = open_writer()
    layouts = [Layout(generation, CODEBOOK, 3, 16, (generation,)) for generation in (1, 2, 10)]
    for layout in layouts:
        assert writer.put_layout(layout, {("layouts", 0): layout.generation})
    assert not writer.put_layout(Layout(2, CODEBOOK, 3, 16, (5,)), {("layouts", 0): 99})
    assert not writer.put_layout(Layout(10, CODEBOOK, 3, 16, (5,)), {})
    other = Layout(300, "f" * 16, 4, 32, ())
    assert writer.put_layout(other, {})
    with writer.snapshot() as snapshot:
        assert snapshot.layouts() == layouts
        assert snapshot.live_layout() == layouts[-1]
        assert snapshot.layout(2) == layouts[1]
        assert snapshot.layout(300) is None
        assert snapshot.position == {("layouts", 0): 99}


def test_layout_of_another_shape_is_refused(open_writer: OpenWriter) -> None:
    writer = open_writer()
    with pytest.raises(IndexMismatchError, match="4 layers × 16"):
        writer.put_layout(Layout(1, CODEBOOK, 4, 16, ()), {("layouts", 0): 1})
    assert writer.offsets() == {}


def test_second_writer_is_refused_with_what_to_do(open_writer: OpenWriter, path: Path) -> None:
    open_writer()
    with pytest.raises(
        IndexLockedError, match=rf"process {os.getpid()} on \S+\. Stop that indexer, or start this one with"
    ):
        open_writer()
    program = (
        "import sys; from store.writing.writer import IndexWriter; from store.errors import IndexLockedError\n"
        "try: IndexWriter.open(sys.argv[1], codebook_id=sys.argv[2], layers=3, size=16)\n"
        "except IndexLockedError as error: print(error)"
    )
    told = subprocess.run([sys.executable, "-c", program, path, CODEBOOK], capture_output=True, text=True, check=True)
    assert f"process {os.getpid()}" in told.stdout


def test_writer_may_reopen_after_close_and_after_a_refusal(open_writer: OpenWriter) -> None:
    open_writer().close()
    with pytest.raises(IndexMismatchError):
        open_writer(size=32)
    open_writer()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codebook_id": "f" * 16}, rf"codebook {CODEBOOK}, this process has {'f' * 16}.*delete the directory"),
        ({"size": 32}, r"3 layers × 16 codewords, this process 3 × 32.*delete the directory"),
        ({"layers": 4}, r"3 layers × 16 codewords, this process 4 × 16.*delete the directory"),
    ],
)
def test_other_codebook_or_shape_is_refused_and_nothing_is_changed(
    open_writer: OpenWriter, path: Path, options: dict[str, object], message: str
) -> None:
    with open_writer() as writer:
        writer.apply(batch_of([Event(b"a", (1, 2, 3))]), {("t", 0): 1})
    before = (path / "data.mdb").read_bytes()
    with pytest.raises(IndexMismatchError, match=message):
        open_writer(**options)
    assert (path / "data.mdb").read_bytes() == before


@pytest.mark.parametrize(("layers", "size"), [(2, 16), (27, 16), (3, 0), (3, 65_537)])
def test_impossible_shape_is_refused_before_anything_is_created(path: Path, layers: int, size: int) -> None:
    with pytest.raises(IndexMismatchError, match=f"layers={layers}, size={size}"):
        IndexWriter.open(path, codebook_id=CODEBOOK, layers=layers, size=size)
    assert not path.exists()


def test_newer_format_is_refused_by_writer_and_reader(open_writer: OpenWriter, path: Path) -> None:
    path.mkdir()
    with lmdb.open(str(path), max_dbs=4) as future:
        meta = future.open_db(b"meta")
        with future.begin(write=True) as transaction:
            transaction.put(b"index", msgspec.json.encode({"format_version": 4, "shards": 7}), db=meta)
    with pytest.raises(IndexFormatError, match=r"format 4, this sidstream reads 3: update sidstream"):
        open_writer()
    with pytest.raises(IndexFormatError, match=r"format 4"):
        IndexReader(path)


def test_foreign_lmdb_directory_is_refused_and_left_alone(open_writer: OpenWriter, path: Path) -> None:
    path.mkdir()
    with lmdb.open(str(path)) as foreign, foreign.begin(write=True) as transaction:
        transaction.put(b"theirs", b"1")
    with pytest.raises(IndexFormatError, match="not sidstream's: use another path"):
        open_writer()
    with lmdb.open(str(path)) as foreign, foreign.begin() as transaction:
        assert list(transaction.cursor()) == [(b"theirs", b"1")]


def _replace(batch: CodesBatch, fields: dict[str, object]) -> CodesBatch:
    values = {name: getattr(batch, name) for name in ("ids", "codes", "weights", "titles", "updated_at", "deleted")}
    return CodesBatch(**{**values, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ids": [b"a", b""]}, "Row 1 has an id of 0 bytes"),
        ({"ids": [b"x" * 512, b"b"]}, "Row 0 has an id of 512 bytes"),
        ({"codes": np.array([[1, 2, 3], [1, 16, 3]], np.uint16)}, r"b'b' has codes \[1, 16, 3\].*0\.\.15"),
        ({"codes": np.zeros((2, 4), np.uint16)}, r"needs codes \(2, 3\)"),
        ({"titles": ["one"]}, "titles 1"),
        ({"deleted": np.zeros(3, np.bool_)}, r"deleted \(3,\)"),
    ],
)
def test_bad_batch_is_refused_and_nothing_is_stored(
    open_writer: OpenWriter, fields: dict[str, object], message: str
) -> None:
    writer = open_writer()
    batch = _replace(batch_of([Event(b"a", (1, 2, 3)), Event(b"b", (1, 2, 3))]), fields)
    with pytest.raises(BatchError, match=message):
        writer.apply(batch, {("t", 0): 1})
    with writer.snapshot() as snapshot:
        assert snapshot.item_count == 0
        assert snapshot.position == {}


def test_codes_of_a_deleted_row_are_not_even_looked_at(open_writer: OpenWriter) -> None:
    batch = _replace(batch_of([Event(b"a", None)]), {"codes": np.full((1, 3), 65_535, np.uint16)})
    assert open_writer().apply(batch, {}).items == 0


def test_closed_writer_says_so(open_writer: OpenWriter) -> None:
    writer = open_writer()
    writer.close()
    with pytest.raises(IndexUsageError, match="closed"):
        writer.apply(batch_of([]), {})


def test_storage_tells_map_pages_in_use_and_room_on_the_disk(open_writer: OpenWriter) -> None:
    writer = open_writer(map_size=1 << 20)
    empty = writer.storage()
    assert empty.map_bytes == 1 << 20
    assert 0 < empty.used_bytes < empty.map_bytes
    assert empty.disk_free_bytes > 0
    writer.apply(batch_of(random_events(1, 20_000, ids=20_000)), {})
    grown = writer.storage()
    assert grown.map_bytes > empty.map_bytes
    assert empty.used_bytes < grown.used_bytes <= grown.map_bytes


@pytest.mark.parametrize("weight", [2.5, 0.0, -0.0])
def test_weight_that_alone_changes_stands_beside_the_path_too(open_writer: OpenWriter, weight: float) -> None:
    writer = open_writer()
    writer.apply(batch_of([Event(b"a", (1, 2, 3), 0.0), Event(b"b", (1, 2, 3), 7.0)]), {})
    commit = _commit(writer)
    writer.apply(batch_of([Event(b"a", (1, 2, 3), weight)]), {})
    writer.apply(batch_of([Event(b"a", (1, 2, 3), 1.5)]), {})
    with writer.snapshot() as snapshot:
        assert snapshot.items_below(np.array([[1, 3]], np.uint16)).weights.tolist() == [1.5, 7.0]
        changes = snapshot.changes_since(commit)
        assert changes is not None
        assert (len(changes.entered), len(changes.left), len(changes.items)) == (0, 0, 0)
        assert verify(snapshot) == []


def _commit(writer: IndexWriter) -> int:
    with writer.snapshot() as snapshot:
        return snapshot.commit
