"""An index that the code before wrote (format 1, a fixture): read as it is, and upgraded in place by the writer."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import msgspec
import pytest
from structlog.testing import capture_logs

from store.checks.verification import verify
from store.files import environment
from store.reading.reader import IndexReader, Snapshot
from store.writing.writer import IndexWriter
from support.plain_index import Event, batch_of

FIXTURES = Path(__file__).parent / "fixtures"
EXPECTED: dict[str, Any] = json.loads((FIXTURES / "format_1.json").read_text())
OpenWriter = Callable[..., IndexWriter]


@pytest.fixture
def old(path: Path) -> Path:
    path.mkdir()
    (path / environment.DATA_FILE).write_bytes(gzip.decompress((FIXTURES / "format_1.mdb.gz").read_bytes()))
    return path


def check(snapshot: Snapshot) -> None:
    assert snapshot.digest() == EXPECTED["digest"]
    assert snapshot.census().tolist() == EXPECTED["census"]
    assert {f"{topic}/{number}": offset for (topic, number), offset in snapshot.position.items()} == EXPECTED[
        "position"
    ]
    assert (snapshot.item_count, snapshot.split_keys) == (EXPECTED["items"], 0)
    live = snapshot.live_layout()
    assert live is not None
    assert live.generation == EXPECTED["live_layout"]
    for item_id, fields in EXPECTED["examples"].items():
        (item,) = snapshot.find([item_id.encode()])
        assert item is not None
        assert item.id == item_id.encode()
        title = item.title.encode("utf-8", "surrogatepass").hex()
        assert [list(item.codes), item.weight, title, item.updated_at] == fields
    assert verify(snapshot) == []


def test_format_1_is_read_without_an_upgrade(old: Path) -> None:
    before = (old / environment.DATA_FILE).read_bytes()
    with IndexReader(old) as reader, reader.snapshot() as snapshot:
        assert snapshot.facts.format_version == 1
        assert snapshot.split_key_examples(3) == []
        check(snapshot)
    assert (old / environment.DATA_FILE).read_bytes() == before


def test_writer_upgrades_format_1_in_place_and_says_so_once(open_writer: OpenWriter, old: Path) -> None:
    with IndexReader(old) as reader:  # a retriever that runs meanwhile
        with capture_logs() as told, open_writer() as writer, writer.snapshot() as snapshot:
            assert snapshot.facts.format_version == 2
            check(snapshot)
        assert [line["event"] for line in told] == ["index_upgraded"]
        with reader.snapshot() as snapshot:
            assert snapshot.facts.format_version == 2
            check(snapshot)
    with capture_logs() as told, open_writer():
        pass
    assert told == []


def test_upgraded_items_change_and_leave_like_any_other(open_writer: OpenWriter, old: Path) -> None:
    writer = open_writer()
    events = [
        Event(b"item-000003", (1, 2, 3), title="new", partition=2, timestamp=5),
        Event(b"item-000007", None, partition=3, timestamp=5),
        Event("käse 🧀".encode(), (1, 2, 3), partition=1, timestamp=5),
    ]
    writer.apply(batch_of(events), {})
    with writer.snapshot() as snapshot:
        assert snapshot.split_keys == 0, "an item without a known partition is taken for one of the record's"
        assert [item and item.title for item in snapshot.find([event.id for event in events])] == ["new", None, ""]
        assert verify(snapshot) == []
    writer.apply(batch_of([Event(b"item-000003", None, partition=1, timestamp=4)]), {})
    with writer.snapshot() as snapshot:
        assert snapshot.split_keys == 1
        assert [item and item.title for item in snapshot.find([b"item-000003"])] == ["new"]
        assert verify(snapshot) == []


def test_upgrade_that_was_cut_short_is_finished_by_the_next_start(open_writer: OpenWriter, old: Path) -> None:
    shared = environment.acquire(old, write=True)
    shared.open_databases(create=True)  # the databases are there, the version is the old one
    environment.release(shared)
    with IndexReader(old) as reader, reader.snapshot() as snapshot:
        check(snapshot)
    with open_writer() as writer, writer.snapshot() as snapshot:
        check(snapshot)


def test_upgraded_index_tells_the_code_before_that_it_is_newer(open_writer: OpenWriter, old: Path) -> None:
    """That code opens eight databases at most, and reads the version before anything else."""
    open_writer().close()
    with lmdb.open(str(old), max_dbs=8, readonly=True) as opened:
        names = ["meta", "trie", "items", "ids", "free", "census", "offsets", "layouts"]
        databases = [opened.open_db(name.encode(), create=False) for name in names]
        with opened.begin(db=databases[0]) as transaction:
            assert msgspec.json.decode(transaction.get(b"index"))["format_version"] == 2
