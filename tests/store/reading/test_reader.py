"""Snapshots: isolated, outlived by what they returned, adopting a grown map and a rebuilt directory."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb
import numpy as np
import pytest

import store.writing.writer
from models.sids.layout import Layout
from store.checks.verification import verify
from store.errors import IndexFullError, IndexMismatchError, IndexMissingError, IndexUsageError
from store.reading.reader import IndexReader
from store.topology.layout_trie import LayoutTrie, SnapshotTrie
from store.writing.writer import IndexWriter
from support.patience import PATIENCE_SECONDS
from support.plain_index import CODEBOOK, Event, PlainIndex, batch_of, random_events
from support.trie_walk import sids_of_trie

OpenWriter = Callable[..., IndexWriter]
SMALL_MAP = 256 * 1024
READER = """
import sys
from store.reading.reader import IndexReader
from store.checks.verification import verify
with IndexReader(sys.argv[1]) as reader:
    for _ in sys.stdin:
        with reader.snapshot() as snapshot:
            print(snapshot.item_count, snapshot.digest(), len(verify(snapshot)), flush=True)
"""


@contextmanager
def reader_process(path: Path) -> Iterator[Callable[[], str]]:
    """A reader in a process of its own; each call takes a new snapshot there and returns what it saw."""
    command = [sys.executable, "-c", READER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def look() -> str:
            process.stdin.write("\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
            return process.stdout.readline().strip()  # type: ignore[union-attr]

        yield look
        process.stdin.close()


def test_reader_in_another_process_adopts_a_grown_map(open_writer: OpenWriter, path: Path) -> None:
    writer = open_writer(map_size=SMALL_MAP)
    plain = PlainIndex()
    with reader_process(path) as look:
        assert look() == f"0 {plain.digest()} 0"
        for seed in range(3):
            events = random_events(seed, 5_000, ids=1_000_000)
            plain.apply(events)
            writer.apply(batch_of(events), {("t", 0): seed})
            assert look() == f"{len(plain.items)} {plain.digest()} 0"
    assert (path / "data.mdb").stat().st_size > 2 * SMALL_MAP


def test_reopened_writer_keeps_the_grown_map(open_writer: OpenWriter) -> None:
    with open_writer(map_size=SMALL_MAP) as writer:
        writer.apply(batch_of(random_events(1, 5_000, ids=1_000_000)), {})
    with open_writer(map_size=SMALL_MAP) as writer:
        writer.apply(batch_of(random_events(2, 5_000, ids=1_000_000)), {})
        with writer.snapshot() as snapshot:
            assert verify(snapshot) == []


def test_growth_below_a_snapshot_of_the_same_thread_is_refused_and_the_batch_can_be_redone(
    open_writer: OpenWriter,
) -> None:
    writer = open_writer(map_size=SMALL_MAP)
    batch = batch_of(random_events(1, 5_000, ids=1_000_000))
    with writer.snapshot() as snapshot:
        with pytest.raises(IndexUsageError, match="close the snapshot"):
            writer.apply(batch, {("t", 0): 1})
        assert snapshot.item_count == 0
    assert writer.offsets() == {}
    writer.apply(batch, {("t", 0): 1})
    assert writer.offsets() == {("t", 0): 1}


def test_growth_waits_for_the_snapshot_of_another_thread(open_writer: OpenWriter) -> None:
    writer = open_writer(map_size=SMALL_MAP)
    opened, finish = threading.Event(), threading.Event()
    seen: list[int] = []

    def hold() -> None:
        with writer.snapshot() as snapshot:
            opened.set()
            finish.wait(PATIENCE_SECONDS)
            seen.append(snapshot.item_count)

    holder = threading.Thread(target=hold)
    applier = threading.Thread(target=writer.apply, args=(batch_of(random_events(1, 5_000, ids=1_000_000)), {}))
    holder.start()
    assert opened.wait(PATIENCE_SECONDS)
    applier.start()
    finish.set()
    holder.join(PATIENCE_SECONDS)
    applier.join(PATIENCE_SECONDS)
    assert seen == [0]
    with writer.snapshot() as snapshot:
        assert snapshot.item_count > 0


def test_map_that_cannot_grow_is_refused_and_nothing_is_stored(
    open_writer: OpenWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = open_writer(map_size=SMALL_MAP)
    batch = batch_of(random_events(1, 5_000, ids=1_000_000))
    full = shutil.disk_usage("/")._replace(free=0)
    with monkeypatch.context() as patch:
        patch.setattr(store.writing.transactions.shutil, "disk_usage", lambda _: full)
        with pytest.raises(IndexFullError, match=r"disk .* took no more data .*0 MB free.*make room"):
            writer.apply(batch, {("t", 0): 1})
    assert writer.offsets() == {}
    assert writer.apply(batch, {("t", 0): 1}).items > 0


def test_snapshot_does_not_see_later_batches_and_its_arrays_outlive_it(open_writer: OpenWriter, path: Path) -> None:
    writer = open_writer()
    layout = Layout(1, CODEBOOK, 3, 16, (2,))
    writer.apply(batch_of([Event(b"a", (1, 2, 3), title="old"), Event(b"b", (1, 5, 3))]), {("t", 0): 1})
    with IndexReader(path) as reader:
        with reader.snapshot() as snapshot:
            writer.apply(batch_of([Event(b"a", (4, 2, 3), title="new"), Event(b"b", None)]), {("t", 0): 2})
            writer.put_layout(layout, {})
            trie = SnapshotTrie(snapshot, layout)
            sids = sids_of_trie(trie)
            found = trie.items_of(sids)
            census, items = snapshot.census(), snapshot.items(np.concatenate([own.items for own in found]))
            assert snapshot.position == {("t", 0): 1}
            assert snapshot.live_layout() is None
        for seed in range(20):  # the pages that the snapshot saw are free now and get overwritten
            writer.apply(batch_of(random_events(seed, 200, ids=300)), {})
    assert sids_of_trie(LayoutTrie(trie.topology, layout)) == sids == [(1, 35), (1, 21, 35)]
    assert census[0].nonzero()[0].tolist() == [1]
    assert [(item.id, item.title) for item in items] == [(b"a", "old"), (b"b", "")]


def test_reader_opened_before_the_writer_of_its_process_keeps_working(open_writer: OpenWriter, path: Path) -> None:
    open_writer().close()
    with IndexReader(path) as reader:
        writer = open_writer()
        writer.apply(batch_of([Event(b"a", (1, 2, 3))]), {})
        with reader.snapshot() as snapshot:
            assert snapshot.item_count == 1
        writer.close()
        with reader.snapshot() as snapshot:
            assert snapshot.item_count == 1


def test_reader_follows_a_directory_that_was_deleted_and_rebuilt(open_writer: OpenWriter, path: Path) -> None:
    open_writer().close()
    rebuild = (
        "import sys, numpy as np; from store.records.batch import CodesBatch; from store.writing.writer import IndexWriter\n"
        "with IndexWriter.open(sys.argv[1], codebook_id='f' * 16, layers=4, size=8) as writer:\n"
        "    codes, moment = np.ones((1, 4), np.uint16), np.zeros(1, np.int64)\n"
        "    batch = CodesBatch([b'a'], codes, np.ones(1, np.float32), [''], moment, np.zeros(1, bool))\n"
        "    writer.apply(batch, {})"
    )
    with IndexReader(path) as reader:
        with reader.snapshot() as snapshot:
            assert snapshot.codebook_id == CODEBOOK
        shutil.rmtree(path)
        with pytest.raises(IndexMissingError, match="start the indexer"), reader.snapshot():
            pass
        subprocess.run([sys.executable, "-c", rebuild, path], check=True)
        with reader.snapshot() as snapshot:
            assert (snapshot.codebook_id, snapshot.layers, snapshot.item_count) == ("f" * 16, 4, 1)


def test_incarnation_is_one_while_the_files_are_and_another_once_they_are_replaced(
    open_writer: OpenWriter, path: Path, tmp_path: Path
) -> None:
    add = (
        "import sys, numpy as np\n"
        "from store.records.batch import CodesBatch\n"
        "from store.writing.writer import IndexWriter\n"
        f"with IndexWriter.open(sys.argv[1], codebook_id={CODEBOOK!r}, layers=3, size=16) as writer:\n"
        "    codes, moment = np.ones((1, 3), np.uint16), np.zeros(1, np.int64)\n"
        "    writer.apply(CodesBatch([b'b'], codes, np.ones(1, np.float32), [''], moment, np.zeros(1, bool)), {})"
    )
    with open_writer() as writer:
        writer.apply(batch_of([Event(b"a", (1, 2, 3))]), {})
    with IndexReader(path) as reader:
        with reader.snapshot() as snapshot:
            first = snapshot.incarnation
        subprocess.run([sys.executable, "-c", add, path], check=True)
        with reader.snapshot() as snapshot:
            assert (snapshot.incarnation, snapshot.commit) == (first, 2)
        shutil.copytree(path, tmp_path / "by hand")  # a copy that no command of ours made: the lineage is the same
        shutil.rmtree(path)
        (tmp_path / "by hand").rename(path)
        with reader.snapshot() as snapshot:
            assert snapshot.commit == 2
            second = snapshot.incarnation
        shutil.rmtree(path)
        subprocess.run([sys.executable, "-c", add, path], check=True)
        with reader.snapshot() as snapshot:
            third = snapshot.incarnation
    assert len({first, second, third}) == 3


def test_items_below_short_paths_in_any_order_with_repeats_and_empty_ones(open_writer: OpenWriter) -> None:
    writer = open_writer()
    events = [Event(b"a", (2, 1, 1)), Event(b"b", (5, 4, 1)), Event(b"c", (5, 3, 1)), Event(b"d", (5, 3, 1))]
    writer.apply(batch_of(events), {})
    with writer.snapshot() as snapshot:
        numbers = {item.id: item.number for item in snapshot.find([b"a", b"b", b"c", b"d"]) if item}
        five = [(3, numbers[b"c"]), (3, numbers[b"d"]), (4, numbers[b"b"])]
        for asked, expected in (
            ([(2, 1), (5, 1)], [(0, 1, numbers[b"a"]), *((1, *row) for row in five)]),
            (
                [(5, 1), (9, 9), (2, 1), (5, 1), (0, 0)],
                [*((0, *row) for row in five), (2, 1, numbers[b"a"]), *((3, *row) for row in five)],
            ),
            ([(5, 2), (15, 15)], []),
            ([], []),
        ):
            below = snapshot.items_below(np.array(asked, np.uint16).reshape(-1, 2))
            rows = zip(below.owner.tolist(), below.layer2.tolist(), below.items.tolist(), strict=True)
            assert list(rows) == expected


@pytest.mark.parametrize("other", [Layout(1, "f" * 16, 3, 16, ()), Layout(1, CODEBOOK, 3, 32, ())])
def test_trie_under_the_layout_of_another_codebook_is_refused(open_writer: OpenWriter, other: Layout) -> None:
    with open_writer().snapshot() as snapshot, pytest.raises(IndexMismatchError, match="use the bundle"):
        SnapshotTrie(snapshot, other)


def test_missing_index_is_refused_with_what_to_do(path: Path) -> None:
    with pytest.raises(IndexMissingError, match="start the indexer"):
        IndexReader(path)
    assert not path.exists()


def test_index_that_is_just_being_created_is_not_there_yet(path: Path) -> None:
    path.mkdir()
    (path / "data.mdb").touch()
    with pytest.raises(IndexMissingError, match="wait until the indexer"):
        IndexReader(path)
    (path / "data.mdb").unlink()
    lmdb.open(str(path)).close()
    with pytest.raises(IndexMissingError, match="wait until the indexer"):
        IndexReader(path)


def test_use_after_the_end_is_refused(open_writer: OpenWriter, path: Path) -> None:
    open_writer()
    reader = IndexReader(path)
    with reader.snapshot() as snapshot:
        pass
    with pytest.raises(IndexUsageError, match="'with' block ended"):
        snapshot.census()
    reader.close()
    with pytest.raises(IndexUsageError, match="closed"):
        reader.snapshot()


def test_verify_names_what_disagrees(open_writer: OpenWriter) -> None:
    writer = open_writer()
    writer.apply(batch_of([Event(b"a", (1, 2, 3)), Event(b"b", (1, 2, 3))]), {})
    shared = writer._environment
    with shared.lmdb.begin(write=True) as transaction:
        transaction.delete(b"a", b"", shared.databases["ids"])
        transaction.drop(shared.databases["paths"], delete=False)
        transaction.put(b"\x00\x00\x00\x01", b"", db=shared.databases["free"])
        transaction.delete(b"\x00\x02\x00\x00\x00\x00", b"", shared.databases["census"])
    with writer.snapshot() as snapshot:
        assert verify(snapshot) == [
            "There are 1 ids but 2 items.",
            "2 items are missing from the paths, or are there with other codes or another weight.",
            "The census of layer 3 is wrong for 1 tokens.",
            "1 item numbers are both free and in use.",
            "2 item numbers were handed out, but 1 are free and 2 in use.",
        ]


def _child_after_fork(reader: IndexReader, path: Path, answers: multiprocessing.SimpleQueue[str]) -> None:
    for attempt in (reader.snapshot, lambda: IndexReader(path).snapshot()):
        try:
            with attempt():
                answers.put("worked")
        except IndexUsageError as error:
            answers.put(str(error))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_child_is_refused_and_the_parent_goes_on(open_writer: OpenWriter, path: Path) -> None:
    writer = open_writer()
    writer.apply(batch_of([Event(b"a", (1, 2, 3))]), {})
    context = multiprocessing.get_context("fork")
    answers: multiprocessing.SimpleQueue[str] = context.SimpleQueue()
    with IndexReader(path) as reader, reader.snapshot() as snapshot:
        child = context.Process(target=_child_after_fork, args=(reader, path, answers))
        child.start()
        child.join(PATIENCE_SECONDS)
        assert child.exitcode == 0
        assert "fork before opening it" in answers.get()
        assert "fork before opening it" in answers.get()
        writer.apply(batch_of([Event(b"b", (1, 2, 3))]), {})
        assert snapshot.item_count == 1


def test_forked_child_does_not_keep_the_lock_of_a_closed_writer(open_writer: OpenWriter) -> None:
    writer = open_writer()
    context = multiprocessing.get_context("fork")
    finish = context.Event()
    child = context.Process(target=finish.wait, args=(30,))
    child.start()
    writer.close()
    open_writer()
    finish.set()
    child.join(PATIENCE_SECONDS)
    assert child.exitcode == 0
