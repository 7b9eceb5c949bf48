"""A backup is one committed state of the index, whole or not there; restoring it gives that state and its position back."""

from __future__ import annotations

import gzip
import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from store.checks.backup import back_up, restore
from store.checks.verification import compare, verify
from store.errors import BackupError, IndexLockedError, IndexMismatchError, IndexMissingError, StoreError
from store.files import environment
from store.reading.reader import IndexReader
from store.writing.writer import IndexWriter
from support.paths import TESTS
from support.plain_index import CODEBOOK, Event, PlainIndex, batch_of, random_events

OpenWriter = Callable[..., IndexWriter]
PARTITION = ("item-codes", 0)
EVENTS, IDS = 400, 3_000

# Applies batch n, which is made from the number n, for ever. The map is small, so that it grows below the copy.
APPLY_FOR_EVER = f"""
import sys
from support.plain_index import CODEBOOK, batch_of, random_events
from store.writing.writer import IndexWriter
with IndexWriter.open(sys.argv[1], codebook_id=CODEBOOK, layers=3, size=16, map_size=256 * 1024) as writer:
    number = 0
    while True:
        writer.apply(batch_of(random_events(number, {EVENTS}, ids={IDS})), {{{PARTITION}: number + 1}})
        number += 1
        print(number, flush=True)
"""


def fill(writer: IndexWriter, batches: int) -> PlainIndex:
    plain = PlainIndex()
    for number in range(batches):
        events = random_events(number, EVENTS, ids=IDS)
        writer.apply(batch_of(events), {PARTITION: number + 1})
        plain.apply(events)
    return plain


def content(path: Path) -> tuple[str, dict[tuple[str, int], int]]:
    with IndexReader(path) as reader, reader.snapshot() as snapshot:
        assert verify(snapshot) == []
        return snapshot.digest(), snapshot.position


def left_behind(path: Path) -> list[str]:
    return [name for name in os.listdir(path) if "incomplete" in name]


def test_backups_of_an_index_that_is_written_all_the_while_are_whole_batches(path: Path, tmp_path: Path) -> None:
    program = f"import sys; sys.path.insert(0, {str(TESTS)!r})\n" + APPLY_FOR_EVER
    plain, applied, chance = PlainIndex(), 0, random.Random(3)
    with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            for number in range(8):
                for _ in range(chance.randrange(1, 6)):
                    assert child.stdout.readline()
                copied = back_up(path, tmp_path / f"backup-{number}")
                position = copied.position["item-codes/0"]
                assert position >= applied + 1
                for batch in range(applied, position):
                    plain.apply(random_events(batch, EVENTS, ids=IDS))
                applied = position
                assert (copied.digest, copied.items) == (plain.digest(), len(plain.items))
                assert content(tmp_path / f"backup-{number}") == (plain.digest(), {PARTITION: position})
            assert child.poll() is None, "the writer has seen nothing of it"
        finally:
            child.kill()
    assert left_behind(tmp_path) == []
    with IndexWriter.open(tmp_path / "backup-7", codebook_id=CODEBOOK, layers=3, size=16) as writer:
        assert writer.offsets() == {PARTITION: applied}, "a writer goes on from a backup"


def test_backup_leaves_an_existing_target_as_it_is(open_writer: OpenWriter, path: Path, tmp_path: Path) -> None:
    fill(open_writer(), 1)
    (tmp_path / "taken").mkdir()
    with pytest.raises(BackupError, match="exists already"):
        back_up(path, tmp_path / "taken")
    assert os.listdir(tmp_path / "taken") == []


def test_backup_of_no_index_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(IndexMissingError):
        back_up(tmp_path / "none", tmp_path / "backups" / "one")
    assert os.listdir(tmp_path / "backups") == []


def test_backup_that_is_not_sound_is_refused_and_leaves_nothing(
    open_writer: OpenWriter, path: Path, tmp_path: Path
) -> None:
    writer = open_writer()
    fill(writer, 1)
    shared = environment.acquire(path, write=False)
    with shared.lmdb.begin(write=True) as transaction:
        transaction.drop(shared.databases["paths"], delete=False)
    environment.release(shared)
    with pytest.raises(BackupError, match=rf"{re.escape(str(path))} is not sound.*missing from the paths"):
        back_up(path, tmp_path / "backup")
    assert not (tmp_path / "backup").exists()
    assert left_behind(tmp_path) == []


def test_restored_index_is_that_of_the_backup_and_a_writer_goes_on_from_it(
    open_writer: OpenWriter, path: Path, tmp_path: Path
) -> None:
    with open_writer() as writer:
        plain = fill(writer, 3)
        back_up(path, tmp_path / "backup")
        fill(writer, 5)
    later = content(path)
    copied, aside = restore(tmp_path / "backup", path, replace=True, clock=lambda: 0.0)
    assert copied.digest == plain.digest()
    assert content(path) == (plain.digest(), {PARTITION: 3})
    assert aside == path.with_name("index.replaced-19700101T000000")
    assert content(aside) == later, "the old index is kept"
    assert open_writer().offsets() == {PARTITION: 3}


def test_restored_index_is_another_incarnation_for_a_reader_that_lived_through_it(
    open_writer: OpenWriter, path: Path, tmp_path: Path
) -> None:
    """A backup of commit 3, five more, restored: what was made from commit 8 is no earlier state of this index."""
    with open_writer() as writer:
        fill(writer, 3)
        back_up(path, tmp_path / "backup")
        fill(writer, 5)
    lineages = []
    for target in (tmp_path / "backup", path):
        with IndexReader(target) as reader, reader.snapshot() as snapshot:
            lineages.append(snapshot.incarnation % 2**64)
    with IndexReader(path) as reader:
        with reader.snapshot() as snapshot:
            before, commit = snapshot.incarnation, snapshot.commit
        restore(tmp_path / "backup", path, replace=True)
        with reader.snapshot() as snapshot:
            assert snapshot.incarnation != before
            assert snapshot.commit == 3
            assert snapshot.changes_since(commit) is None, "newer than the index"
            changes = snapshot.changes_since(0)
            assert changes is not None, "the commit log goes along"
            assert len(changes.items)
            lineages.append(snapshot.incarnation % 2**64)
    assert lineages[0] == lineages[1] != lineages[2]


@pytest.mark.parametrize("version", [1, 2])
def test_index_of_an_older_format_is_backed_up_and_restored_in_this_one(
    path: Path, tmp_path: Path, version: int
) -> None:
    fixtures = TESTS / "store" / "writing" / "fixtures"
    path.mkdir()
    data = gzip.decompress((fixtures / f"format_{version}.mdb.gz").read_bytes())
    (path / environment.DATA_FILE).write_bytes(data)
    digest = json.loads((fixtures / f"format_{version}.json").read_text())["digest"]
    assert back_up(path, tmp_path / "backup").digest == digest
    assert content(tmp_path / "backup")[0] == digest
    assert (path / environment.DATA_FILE).read_bytes() == data, "the index is left as it is"
    restored, _ = restore(path, tmp_path / "restored")
    assert restored.digest == digest
    assert content(tmp_path / "restored")[0] == digest
    assert left_behind(tmp_path) == []


def test_restore_into_nothing_and_into_a_directory_with_locks_alone(
    open_writer: OpenWriter, path: Path, tmp_path: Path
) -> None:
    with open_writer() as writer:
        plain = fill(writer, 2)
    back_up(path, tmp_path / "backup")
    (tmp_path / "emptied").mkdir()
    (tmp_path / "emptied" / "lock.mdb").write_bytes(b"of an index that was deleted")
    for target in (tmp_path / "new", tmp_path / "emptied"):
        _, aside = restore(tmp_path / "backup", target)
        assert aside is None
        assert content(target) == (plain.digest(), {PARTITION: 2})


def test_restore_refuses_a_running_writer_even_with_replace(
    open_writer: OpenWriter, path: Path, tmp_path: Path
) -> None:
    writer = open_writer()
    fill(writer, 1)
    back_up(path, tmp_path / "backup")
    with pytest.raises(
        IndexLockedError, match=f"written by process {os.getpid()} on {os.uname().nodename}.*Stop that indexer"
    ):
        restore(tmp_path / "backup", path, replace=True)
    fill(writer, 2)


def test_restore_refuses_to_overwrite_and_a_refused_copy_changes_nothing(
    open_writer: OpenWriter, path: Path, tmp_path: Path
) -> None:
    with open_writer() as writer:
        fill(writer, 1)
        back_up(path, tmp_path / "backup")
        fill(writer, 2)
    before = content(path)
    with pytest.raises(BackupError, match="--replace"):
        restore(tmp_path / "backup", path)

    def refuse(_copy: object) -> None:
        raise IndexMismatchError("another codebook")

    with pytest.raises(IndexMismatchError):
        restore(tmp_path / "backup", path, replace=True, accept=refuse)
    with pytest.raises(BackupError, match="is the index itself"):
        restore(path, path, replace=True)
    with pytest.raises(IndexMissingError):
        restore(tmp_path / "none", path, replace=True)
    assert content(path) == before
    assert left_behind(tmp_path) == []


def test_damaged_backup_is_found_by_its_digest(open_writer: OpenWriter, path: Path, tmp_path: Path) -> None:
    with open_writer() as writer:
        writer.apply(batch_of([Event(b"kettle", (1, 2, 3), title="Glass kettle")]), {PARTITION: 1})
        back_up(path, tmp_path / "backup")
    data = tmp_path / "backup" / environment.DATA_FILE
    whole = data.read_bytes()
    assert b"Glass kettle" in whole
    data.write_bytes(whole.replace(b"Glass kettle", b"Brass kettle"))
    with pytest.raises(BackupError, match="is damaged"):
        restore(tmp_path / "backup", tmp_path / "other")


def test_damage_of_an_index_is_told_by_the_path_that_was_given_and_not_by_that_of_the_copy(
    open_writer: OpenWriter, path: Path, tmp_path: Path
) -> None:
    with open_writer() as writer:
        fill(writer, 3)
        back_up(path, tmp_path / "backup")
    for source, copied in ((path, partial(back_up, path, tmp_path / "copy")),
                           (tmp_path / "backup", partial(restore, tmp_path / "backup", tmp_path / "other"))):  # fmt: skip
        data = source / environment.DATA_FILE
        page = os.sysconf("SC_PAGE_SIZE")
        pages = bytearray(data.read_bytes())
        pages[2 * page :] = b"\xff" * (len(pages) - 2 * page)  # all but the two headers
        data.write_bytes(pages)
        with pytest.raises(StoreError) as told:
            copied()
        assert f"The index file {data} is damaged" in str(told.value)
        assert "incomplete" not in str(told.value)


def test_reader_of_another_process_changes_over_to_the_restored_index(
    open_writer: OpenWriter, path: Path, tmp_path: Path
) -> None:
    with open_writer() as writer:
        fill(writer, 2)
        back_up(path, tmp_path / "backup")
        fill(writer, 4)
    watch = (
        "import sys; from store.reading.reader import IndexReader\n"
        "with IndexReader(sys.argv[1]) as reader:\n"
        "    for _ in sys.stdin:\n"
        "        with reader.snapshot() as snapshot: print(snapshot.digest(), flush=True)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", watch, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None

        def digest() -> str:
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.write("\n")
            child.stdin.flush()
            return next(line.strip() for line in child.stdout if len(line.strip()) == 64)  # the rest is log

        assert digest() == content(path)[0]
        copied, _ = restore(tmp_path / "backup", path, replace=True)
        assert digest() == copied.digest
        child.stdin.close()


def test_manifest_of_a_backup_says_what_it_holds(open_writer: OpenWriter, path: Path, tmp_path: Path) -> None:
    with open_writer(clock=lambda: 1_700_000_000.0) as writer:
        plain = fill(writer, 1)
    back_up(path, tmp_path / "backup")
    manifest = json.loads((tmp_path / "backup" / "backup.json").read_text())
    assert manifest["digest"] == plain.digest()
    assert (manifest["codebook"], manifest["items"]) == (CODEBOOK, len(plain.items))
    assert manifest["position"] == {"item-codes/0": 1}
    assert manifest["last_commit_at"] == 1_700_000_000_000
    assert time.time() * 1000 > manifest["last_commit_at"]


IDENTIFIERS = st.sampled_from([b"a", b"b", b"ab", b"\x00", b"\xff", b"kettle"])
CONTENTS = st.dictionaries(IDENTIFIERS, st.tuples(st.integers(0, 2), st.sampled_from(["", "red", "blue"])))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(here=CONTENTS, there=CONTENTS)
def test_comparison_names_exactly_the_items_that_differ(
    tmp_path_factory: pytest.TempPathFactory,
    here: dict[bytes, tuple[int, str]],
    there: dict[bytes, tuple[int, str]],
) -> None:
    directory = tmp_path_factory.mktemp("comparison")
    paths = []
    for name, items in (("here", here), ("there", there)):
        with IndexWriter.open(directory / name, codebook_id=CODEBOOK, layers=3, size=16) as writer:
            events = [Event(item_id, (token, 0, 0), title=title) for item_id, (token, title) in items.items()]
            writer.apply(batch_of(events), {})
        paths.append(directory / name)
    with (
        IndexReader(paths[0]) as one,
        IndexReader(paths[1]) as other,
        one.snapshot() as mine,
        other.snapshot() as theirs,
    ):
        found = compare(mine, theirs, examples=len(here) + len(there))
        assert found.equal == (mine.digest() == theirs.digest())
    assert (found.only_here, found.only_there) == (len(here.keys() - there.keys()), len(there.keys() - here.keys()))
    differing = {item_id for item_id in here.keys() & there.keys() if here[item_id] != there[item_id]}
    assert found.different == len(differing)
    named = {example.id for example in found.examples}
    expected = (here.keys() ^ there.keys()) | differing
    assert named == {item_id.decode("utf-8", "backslashreplace") for item_id in expected}


def test_comparison_says_what_differs_in_an_item(open_writer: OpenWriter, tmp_path: Path) -> None:
    one, other = open_writer(path=tmp_path / "one"), open_writer(path=tmp_path / "other")
    one.apply(batch_of([Event(b"a", (1, 2, 3), title="red")]), {})
    other.apply(batch_of([Event(b"a", (1, 2, 4), title="blue"), Event(b"b", (1, 1, 1))]), {})
    with one.snapshot() as here, other.snapshot() as there:
        found = compare(here, there)
    assert [(example.id, example.what) for example in found.examples] == [
        ("a", "codes: (1, 2, 3) → (1, 2, 4), title: 'red' → 'blue'"),
        ("b", "only there"),
    ]
