"""Damaged index files are refused with a sentence before anything is mapped; whole ones never are."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import lmdb
import pytest

from store.checks.verification import verify
from store.errors import IndexAccessError, IndexMissingError
from store.files.data_file import require_sound_pages, require_whole
from store.reading.reader import IndexReader
from store.writing.writer import IndexWriter
from support.plain_index import Event, batch_of, random_events

OpenWriter = Callable[..., IndexWriter]
PAGE = 4_096


@pytest.fixture
def index(open_writer: OpenWriter, path: Path) -> Path:
    """An index whose header says more pages than its tail needs: its last items were deleted."""
    with open_writer(map_size=1 << 20) as writer:
        for number in range(8):
            writer.apply(batch_of(random_events(number, 1_500, ids=3_000)), {("item-codes", 0): number})
    return path


def test_a_file_that_is_written_is_whole_after_every_commit(open_writer: OpenWriter, path: Path) -> None:
    writer = open_writer(map_size=1 << 20)
    for number in range(60):
        events = random_events(number, 300, ids=2_000)
        if number % 7 == 0:
            events = [Event(event.id, None) for event in events]
        writer.apply(batch_of(events), {})
        require_whole(path / "data.mdb")


def test_a_file_is_whole_in_another_process_while_it_is_written(open_writer: OpenWriter, path: Path) -> None:
    writer = open_writer(map_size=1 << 20)
    writer.apply(batch_of(random_events(0, 10, ids=10)), {})
    program = (
        "import sys; from pathlib import Path; from store.files.data_file import require_sound_pages, require_whole\n"
        "for _ in range(3_000): require_whole(Path(sys.argv[1]))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, path / "data.mdb"], stderr=subprocess.PIPE, text=True
    ) as other:
        number = 0
        while other.poll() is None:
            number += 1
            writer.apply(batch_of(random_events(number, 200, ids=2_000)), {})
        assert other.stderr is not None
        assert other.returncode == 0, other.stderr.read()
    assert number > 3


def test_missing_tail_of_free_pages_is_no_damage_and_any_other_is(tmp_path: Path) -> None:
    """LMDB does not write pages that one transaction took and gave back."""
    with lmdb.open(str(tmp_path), map_size=1 << 22) as made:
        for number in range(40):
            with made.begin(write=True) as transaction:
                transaction.put(b"%d" % number, b"x" * 9_000)
        with made.begin(write=True) as transaction:
            for number in range(20, 40):
                transaction.delete(b"%d" % number)
        with made.begin(write=True) as transaction:
            transaction.put(b"0", b"y")
    file = tmp_path / "data.mdb"
    whole = file.stat().st_size
    refused = 0
    for size in range(whole - PAGE, PAGE, -PAGE):
        os.truncate(file, size)
        try:
            require_whole(file)
        except IndexAccessError:
            refused += 1
            continue
        assert not refused, "once a page is missed, less is no better"
        with lmdb.open(str(tmp_path), readonly=True) as opened, opened.begin() as transaction:
            assert len(list(transaction.cursor())) == 20
    assert refused > 10
    assert refused < whole // PAGE - 3, "a missing free page was taken for damage"


@pytest.mark.parametrize("size", [1, 100, 4_095, 4_096, 6_000, 8_192, 12_288, 65_536, -4_096, -1])
def test_cut_file_is_refused_by_readers_and_writers_and_left_as_it_is(
    open_writer: OpenWriter, index: Path, size: int
) -> None:
    file = index / "data.mdb"
    size = size if size > 0 else file.stat().st_size + size
    os.truncate(file, size)
    before = file.read_bytes()
    with pytest.raises(IndexAccessError, match=r"damaged: .*delete the directory"):
        IndexReader(index)
    with pytest.raises(IndexAccessError, match="damaged"):
        open_writer()
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\0" * 65_536, "not one of LMDB"),
        (b"\xff" * 65_536, "not one of LMDB"),
        (b"SQLite format 3\0" * 4_096, "not one of LMDB"),
        (gzip.compress(b"an index"), "before what is at"),
        (b"version https://git-lfs.github.com/spec/v1\n" * 3, "before what is at|not one of LMDB"),
    ],
)
def test_file_of_something_else_is_refused(path: Path, content: bytes, words: str) -> None:
    path.mkdir()
    (path / "data.mdb").write_bytes(content)
    with pytest.raises(IndexAccessError, match=words):
        IndexReader(path)


def test_header_that_was_overwritten_is_refused(index: Path) -> None:
    with (index / "data.mdb").open("r+b") as file:
        file.write(os.urandom(200))
    with pytest.raises(IndexAccessError, match="damaged"):
        IndexReader(index)


def test_directory_in_the_place_of_the_file_and_a_file_in_the_place_of_the_directory(
    open_writer: OpenWriter, path: Path
) -> None:
    (path / "data.mdb").mkdir(parents=True)
    for open_ in (lambda: IndexReader(path), open_writer):
        with pytest.raises(IndexAccessError, match="it is a directory, and should be a file"):
            open_()
    taken = path.with_name("file")
    taken.write_text("mine")
    with pytest.raises(IndexMissingError):
        IndexReader(taken)
    with pytest.raises(IndexAccessError, match="cannot be used: File exists"):
        open_writer(path=taken)


@pytest.mark.parametrize("content", [b"\0" * PAGE, b"\xff" * PAGE, b"other data " * 400])
def test_page_that_was_overwritten_is_named_before_lmdb_comes_upon_it(index: Path, content: bytes) -> None:
    """LMDB aborts the process, or not, depending on which page it is; free pages may hold anything."""
    file = index / "data.mdb"
    require_sound_pages(file)
    whole = file.read_bytes()
    refused = 0
    for number in range(2, len(whole) // PAGE):
        file.write_bytes(whole[: number * PAGE] + content[:PAGE] + whole[(number + 1) * PAGE :])
        try:
            require_sound_pages(file)
        except IndexAccessError:
            refused += 1
            continue
        with IndexReader(index) as reader, reader.snapshot() as snapshot:
            assert verify(snapshot) == []
    assert refused > 50


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_file_that_may_not_be_read_is_refused(index: Path) -> None:
    (index / "data.mdb").chmod(0)
    with pytest.raises(IndexAccessError, match="Permission denied"):
        IndexReader(index)


def test_oldest_snapshot_is_known_with_its_process_and_how_much_came_since(open_writer: OpenWriter, path: Path) -> None:
    writer = open_writer()
    writer.apply(batch_of([Event(b"a", (1, 2, 3))]), {})
    assert writer.oldest_reader() is None
    program = (
        "import sys; from store.reading.reader import IndexReader\n"
        "with IndexReader(sys.argv[1]) as reader, reader.snapshot():\n"
        "    print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == "open\n"
        for number in range(5):
            writer.apply(batch_of([Event(b"%d" % number, (1, 2, 3))]), {})
        with writer.snapshot():
            oldest = writer.oldest_reader()
        assert oldest is not None
        assert (oldest.transactions, oldest.processes) == (5, (other.pid,))
        other.stdin.close()
        assert other.wait(30) == 0
    assert writer.oldest_reader() is None
