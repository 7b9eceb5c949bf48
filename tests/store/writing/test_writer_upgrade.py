"""Indexes that the code before wrote (formats 1 and 2, fixtures): the writer upgrades them in place, nobody else reads them."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import msgspec
import numpy as np
import pytest
from structlog.testing import capture_logs

from store.checks.verification import verify
from store.errors import IndexAccessError, IndexFullError, IndexMismatchError, IndexNotUpgradedError
from store.files import environment
from store.reading.facts import IndexFacts, read_facts_of_any_format
from store.reading.reader import IndexReader
from store.reading.snapshot import Snapshot
from store.writing import transactions
from store.writing.failpoints import FAILPOINT_VARIABLE
from store.writing.upgrade import upgrade
from store.writing.writer import IndexWriter
from support.plain_index import CODEBOOK, Event, batch_of

FIXTURES = Path(__file__).parent / "fixtures"
OpenWriter = Callable[..., IndexWriter]
UPGRADE_IN_SMALL_STEPS = """
import sys
from pathlib import Path
from store.files import environment
from store.reading.facts import read_facts_of_any_format
from store.writing.upgrade import upgrade
shared = environment.acquire(Path(sys.argv[1]), write=True)
shared.open_databases(create=False)
with shared.lmdb.begin() as transaction:
    facts = read_facts_of_any_format(transaction, shared.databases, shared.path)
upgrade(shared, facts, records=50)
"""


def unpack(version: int, path: Path) -> None:
    path.mkdir()
    (path / environment.DATA_FILE).write_bytes(gzip.decompress((FIXTURES / f"format_{version}.mdb.gz").read_bytes()))


@pytest.fixture(params=[1, 2])
def version(request: pytest.FixtureRequest, path: Path) -> int:
    """The format of the index that is in ``path``."""
    unpack(request.param, path)
    return int(request.param)


@pytest.fixture
def expected(version: int) -> dict[str, Any]:
    return dict(json.loads((FIXTURES / f"format_{version}.json").read_text()))


def check(snapshot: Snapshot, expected: dict[str, Any]) -> None:
    assert snapshot.facts.format_version == 3
    assert snapshot.digest() == expected["digest"]
    assert snapshot.census().tolist() == expected["census"]
    assert snapshot.recount().tolist() == expected["census"]
    assert {f"{topic}/{number}": offset for (topic, number), offset in snapshot.position.items()} == expected[
        "position"
    ]
    assert (snapshot.item_count, snapshot.split_keys) == (expected["items"], expected.get("split_keys", 0))
    assert snapshot.last_commit_at == expected["last_commit_at"]
    live = snapshot.live_layout()
    assert live is not None
    assert live.generation == expected["live_layout"]
    for item_id, fields in expected["examples"].items():
        (item,) = snapshot.find([item_id.encode()])
        assert item is not None
        assert item.id == item_id.encode()
        title = item.title.encode("utf-8", "surrogatepass").hex()
        assert [list(item.codes), item.weight, title, item.updated_at] == fields
        below = snapshot.items_below(np.array([[item.codes[0], *item.codes[2:]]], np.uint16))
        assert (item.codes[1], item.number) in list(zip(below.layer2.tolist(), below.items.tolist(), strict=True))
    assert verify(snapshot) == []


def crowd(path: Path) -> int:
    """So many records in the trie that the map has no room for them and their paths; how many there are then."""
    with lmdb.open(str(path), max_dbs=32, map_size=0) as opened:  # 0: as large as the code before left it
        trie = opened.open_db(b"trie", dupsort=True, dupfixed=True, create=False)
        items = opened.open_db(b"items", create=False)
        with opened.begin(write=True) as transaction:
            for place in range(45_000):
                first, second, third = place % 16, place // 16 % 16, place // 256 % 16
                number = (1_000 + place // 4_096).to_bytes(4, "big")
                transaction.put(number, bytes(10), db=items)  # as much as the upgrade looks at
                value = np.array([second, third], ">u2").tobytes() + number
                transaction.put(first.to_bytes(2, "big"), value, db=trie)
            return int(transaction.stat(trie)["entries"])


def databases_in(path: Path) -> set[str]:
    with lmdb.open(str(path), max_dbs=32, readonly=True, lock=False) as opened, opened.begin() as transaction:
        return {key.decode() for key, _ in transaction.cursor()}


def test_reader_of_an_index_that_is_not_upgraded_says_so_and_leaves_it(version: int, path: Path) -> None:
    before = (path / environment.DATA_FILE).read_bytes()
    with pytest.raises(IndexNotUpgradedError, match=rf"format {version}, this sidstream reads 3: the indexer upgrades"):
        IndexReader(path)
    assert (path / environment.DATA_FILE).read_bytes() == before


def test_writer_upgrades_in_place_and_says_so_once(
    open_writer: OpenWriter, path: Path, version: int, expected: dict[str, Any]
) -> None:
    with capture_logs() as told, open_writer() as writer, writer.snapshot() as snapshot:
        check(snapshot, expected)
        assert snapshot.commit == 0
        changes = snapshot.changes_since(0)
        assert changes is not None
        assert (len(changes.entered), len(changes.left), len(changes.items)) == (0, 0, 0)
    assert [(line["event"], line["items"]) for line in told] == [
        ("index_upgrade_begun", 0),
        ("index_upgraded", expected["items"]),
    ]
    assert {(line["from_format"], line["to_format"]) for line in told} == {(version, 3)}
    assert "trie" not in databases_in(path)
    with capture_logs() as told, open_writer():
        pass
    assert told == []


def test_reader_that_waits_sees_the_index_once_it_is_upgraded(
    open_writer: OpenWriter, path: Path, version: int, expected: dict[str, Any]
) -> None:
    shared = environment.acquire(path, write=False)  # of a process that asks again and again
    try:
        with pytest.raises(IndexNotUpgradedError), Snapshot.of(shared):
            pass
        open_writer().close()
        with Snapshot.of(shared) as snapshot:
            check(snapshot, expected)
    finally:
        environment.release(shared)


@pytest.mark.parametrize("point", ["upgrade-written", "upgrade-committed"])
@pytest.mark.parametrize("passing", [1, 4, 7, 8])
def test_upgrade_that_was_killed_goes_on_where_it_stood(
    open_writer: OpenWriter, path: Path, version: int, expected: dict[str, Any], point: str, passing: int
) -> None:
    """346 or 330 records in steps of 50 are seven transactions, and the last one that turns the format over."""
    variables = {**os.environ, FAILPOINT_VARIABLE: f"{point}={passing}"}
    ended = subprocess.run([sys.executable, "-c", UPGRADE_IN_SMALL_STEPS, path], env=variables, check=False)
    assert ended.returncode == -signal.SIGKILL
    if (point, passing) != ("upgrade-committed", 8):
        with pytest.raises(IndexNotUpgradedError):
            IndexReader(path)
    with open_writer() as writer, writer.snapshot() as snapshot:
        check(snapshot, expected)
    assert "trie" not in databases_in(path)


def test_killed_upgrade_moves_no_record_again(path: Path, version: int, expected: dict[str, Any]) -> None:
    variables = {**os.environ, FAILPOINT_VARIABLE: "upgrade-committed=4"}
    subprocess.run([sys.executable, "-c", UPGRADE_IN_SMALL_STEPS, path], env=variables, check=False)
    shared = environment.acquire(path, write=True)
    try:
        transactions_done = []
        upgrade(shared, _facts(shared), on_progress=lambda: transactions_done.append(1), records=50)
        assert len(transactions_done) == -(-expected["items"] // 50) - 4
        with Snapshot.of(shared) as snapshot:
            check(snapshot, expected)
    finally:
        environment.release(shared)


def test_half_built_paths_are_thrown_away_if_the_code_before_has_written_since(
    open_writer: OpenWriter, path: Path, version: int
) -> None:
    """Somebody went back to it in the middle of an upgrade: here it moved an item in the trie, the items and the census."""
    variables = {**os.environ, FAILPOINT_VARIABLE: "upgrade-committed=4"}
    subprocess.run([sys.executable, "-c", UPGRADE_IN_SMALL_STEPS, path], env=variables, check=False)
    with lmdb.open(str(path), max_dbs=32) as opened:
        names = {"trie": {"dupsort": True, "dupfixed": True}, "items": {}, "census": {}}
        trie, items, census = (opened.open_db(name.encode(), create=False, **flags) for name, flags in names.items())
        with opened.begin(write=True) as transaction:
            key, value = next(transaction.cursor(items).iternext())
            old, new = np.frombuffer(value[:6], "<u2").tolist(), [15, 15, 15]
            old_bytes, new_bytes = (np.array(codes, ">u2").tobytes() for codes in (old, new))
            assert transaction.delete(old_bytes[:2], old_bytes[2:] + key, trie)
            transaction.put(new_bytes[:2], new_bytes[2:] + key, db=trie)
            transaction.put(key, np.array(new, "<u2").tobytes() + value[6:], db=items)
            for codes, step in ((old, -1), (new, 1)):
                for layer, token in enumerate(codes):
                    chunk = layer.to_bytes(2, "big") + b"\0\0\0\0"
                    counts = np.frombuffer(transaction.get(chunk, db=census), "<i8").copy()
                    counts[token] += step
                    transaction.put(chunk, counts.tobytes(), db=census)
    with open_writer() as writer, writer.snapshot() as snapshot:
        assert verify(snapshot) == []
        assert int.from_bytes(key, "big") in snapshot.items_below(np.array([[15, 15]], np.uint16)).items


def test_upgrade_grows_a_map_that_has_no_room_for_both(
    open_writer: OpenWriter, path: Path, version: int, expected: dict[str, Any]
) -> None:
    records = crowd(path)
    with capture_logs() as told, open_writer(map_size=0) as writer, writer.snapshot() as snapshot:
        assert sum(len(items) for _, items in snapshot.all_paths()) == records
        assert snapshot.digest() == expected["digest"]
    assert "index_map_grown" in [line["event"] for line in told]


def test_upgrade_onto_a_full_disk_is_refused_and_the_index_stays_as_it_was(
    open_writer: OpenWriter, path: Path, version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = crowd(path)
    full = shutil.disk_usage("/")._replace(free=0)
    with monkeypatch.context() as patch:
        patch.setattr(transactions.shutil, "disk_usage", lambda _: full)
        with pytest.raises(IndexFullError, match="make room"):
            open_writer(map_size=0)
    with pytest.raises(IndexNotUpgradedError):
        IndexReader(path)
    with open_writer() as writer, writer.snapshot() as snapshot:
        assert sum(len(items) for _, items in snapshot.all_paths()) == records


def test_upgrade_says_every_few_seconds_how_far_it_is(path: Path, version: int, expected: dict[str, Any]) -> None:
    seconds = iter(range(0, 10_000, 2))
    shared = environment.acquire(path, write=True)
    try:
        with capture_logs() as told:
            upgrade(shared, _facts(shared), clock=lambda: float(next(seconds)), records=50)
    finally:
        environment.release(shared)
    lines = [(line["items"], line["total"]) for line in told if line["event"] == "index_upgrade_progress"]
    assert len(lines) >= 3
    assert lines == sorted(lines)
    assert {total for _, total in lines} == {expected["items"]}


def test_damaged_trie_is_refused_and_nothing_is_dropped(open_writer: OpenWriter, path: Path, version: int) -> None:
    with lmdb.open(str(path), max_dbs=32) as opened:
        trie = opened.open_db(b"trie", dupsort=True, dupfixed=True, create=False)
        with opened.begin(write=True) as transaction:  # a token that the codebook does not have
            transaction.put(b"\x00\x7f", b"\x00" * 8, db=trie)
    with pytest.raises(
        IndexAccessError, match=r"is damaged: \d+ of \d+ records of its trie became paths.*not upgraded"
    ):
        open_writer()
    with pytest.raises(IndexNotUpgradedError):
        IndexReader(path)
    assert "trie" in databases_in(path)


def test_index_of_another_codebook_is_refused_before_it_is_upgraded(
    open_writer: OpenWriter, path: Path, version: int
) -> None:
    with pytest.raises(IndexMismatchError):
        open_writer(codebook_id="f" * 16)
    assert "paths" not in databases_in(path)


def test_upgraded_items_change_and_leave_like_any_other(open_writer: OpenWriter, path: Path) -> None:
    unpack(1, path)
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
        assert snapshot.commit == 1
        assert verify(snapshot) == []
    writer.apply(batch_of([Event(b"item-000003", None, partition=1, timestamp=4)]), {})
    with writer.snapshot() as snapshot:
        assert snapshot.split_keys == 1
        assert [item and item.title for item in snapshot.find([b"item-000003"])] == ["new"]
        assert verify(snapshot) == []


def test_upgraded_index_tells_the_code_before_that_it_is_newer(
    open_writer: OpenWriter, path: Path, version: int
) -> None:
    """That code opens ten databases at most, leaves out what is not there, and reads the version before anything else."""
    open_writer().close()
    with lmdb.open(str(path), max_dbs=10, readonly=True) as opened:
        meta = opened.open_db(b"meta", create=False)
        with pytest.raises(lmdb.NotFoundError):
            opened.open_db(b"trie", create=False)
        with opened.begin(db=meta) as transaction:
            assert msgspec.json.decode(transaction.get(b"index"))["format_version"] == 3


def _facts(shared: environment.Environment) -> IndexFacts:
    shared.open_databases(create=False)
    with shared.lmdb.begin() as transaction:
        facts = read_facts_of_any_format(transaction, shared.databases, shared.path)
    assert facts.codebook_id == CODEBOOK
    return facts
