"""verify, backup and restore as a person meets them, without a broker: exit status, refusals, and what they say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from models.bundles.bundle import Bundle
from store.files import environment
from store.records.batch import CodesBatch
from store.writing.writer import IndexWriter
from support.patience import PATIENCE_SECONDS

DAY_SECONDS = 86_400


def filled(path: Path, bundle: Path, *, codebook: str | None = None, days_ago: float = 0, partitions: str = "") -> Path:
    """An index of five items of partition 0 at ``path``, last written so many days ago."""
    layout = Bundle.open(bundle).layout
    written = time.time() - days_ago * DAY_SECONDS
    with IndexWriter.open(
        path,
        codebook_id=codebook or layout.codebook_id,
        layers=layout.layers,
        size=layout.size,
        clock=lambda: written,
        partitions=partitions,
    ) as writer:
        batch = CodesBatch(
            ids=[b"item-%d\x1b[2J" % number for number in range(5)],
            codes=np.arange(5 * layout.layers).reshape(5, layout.layers).astype(np.uint16),
            weights=np.ones(5, np.float32),
            titles=["kettle"] * 5,
            updated_at=np.zeros(5, np.int64),
            deleted=np.zeros(5, bool),
        )
        writer.apply(batch, {("item-codes", 0): 7})
    return path


def run(index: Path, bundle: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sidstream", "--index", str(index), "--bundle", str(bundle), *arguments],
        env={**os.environ, "SIDSTREAM_CONFIG": "", **variables},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )


def test_verify_of_a_sound_index_says_so_and_ends_with_zero(tiny_bundle: Path, tmp_path: Path) -> None:
    index = filled(tmp_path / "index", tiny_bundle)
    answer = run(index, tiny_bundle, "verify")
    assert answer.returncode == 0, answer.stderr
    assert "5 items" in answer.stdout
    assert "item-codes/0: 7" in answer.stdout
    assert "paths, items, ids, census and commit log agree; nothing is orphaned" in answer.stdout


def test_verify_of_a_shard_says_which_and_names_items_of_other_partitions(tiny_bundle: Path, tmp_path: Path) -> None:
    sound = run(filled(tmp_path / "sound", tiny_bundle, partitions="0-1"), tiny_bundle, "verify")
    assert (sound.returncode, "a shard: partitions 0-1" in sound.stdout) == (0, True)
    foreign = run(filled(tmp_path / "foreign", tiny_bundle, partitions="2-3"), tiny_bundle, "verify")
    assert foreign.returncode == 1
    assert "5 items came from the partitions 0, and the index holds 2-3" in foreign.stdout


def test_restore_refuses_another_shard_and_changes_nothing(tiny_bundle: Path, tmp_path: Path) -> None:
    copy = filled(tmp_path / "copy", tiny_bundle, partitions="0-1")
    index = filled(tmp_path / "index", tiny_bundle)
    answer = run(index, tiny_bundle, "restore", str(copy), "--replace")
    assert answer.returncode == 1
    told = " ".join(answer.stderr.split())
    assert "the backup holds the partitions 0-1 of item-codes, this host is to hold all partitions" in told, told
    assert sorted(os.listdir(tmp_path)) == ["copy", "index"]


def test_verify_names_every_fault_and_ends_with_one(tiny_bundle: Path, tmp_path: Path) -> None:
    index = filled(tmp_path / "index", tiny_bundle)
    shared = environment.acquire(index, write=True)
    shared.open_databases(create=False)
    with shared.lmdb.begin(write=True) as transaction:
        transaction.put(b"nobody", (99).to_bytes(4, "big"), db=shared.databases["ids"])
        transaction.drop(shared.databases["census"], delete=False)
    environment.release(shared)
    answer = run(index, tiny_bundle, "verify", "--json")
    assert answer.returncode == 1
    found = json.loads(answer.stdout)
    assert any("ids point to an item that is missing" in fault for fault in found["faults"])
    assert any("census of layer 1 is wrong" in fault for fault in found["faults"])
    assert found["digest"] == "", "an index with an orphan has none"
    told = run(index, tiny_bundle, "verify")
    assert told.returncode == 1
    assert told.stdout.count("✗") == len(found["faults"])


def test_verify_against_another_index_names_what_differs_without_its_escape_sequences(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    index, other = filled(tmp_path / "index", tiny_bundle), filled(tmp_path / "other", tiny_bundle)
    assert run(index, tiny_bundle, "verify", "--against", str(other)).returncode == 0
    layout = Bundle.open(tiny_bundle).layout
    with IndexWriter.open(other, codebook_id=layout.codebook_id, layers=layout.layers, size=layout.size) as writer:
        gone = CodesBatch(
            ids=[b"item-3\x1b[2J"],
            codes=np.zeros((1, layout.layers), np.uint16),
            weights=np.ones(1, np.float32),
            titles=[""],
            updated_at=np.zeros(1, np.int64),
            deleted=np.ones(1, bool),
        )
        writer.apply(gone, {("item-codes", 0): 8})
    answer = run(index, tiny_bundle, "verify", "--against", str(other))
    assert answer.returncode == 1
    assert "1 items are here only, 0 there only, 0 differ" in answer.stdout
    assert "item-3\\x1b[2J  only here" in answer.stdout
    assert "\x1b" not in answer.stdout
    assert "stands at item-codes/0: 8" in answer.stdout


def test_backup_and_restore_say_what_they_did_and_what_comes_next(tiny_bundle: Path, tmp_path: Path) -> None:
    index = filled(tmp_path / "index", tiny_bundle)
    copied = run(index, tiny_bundle, "backup", str(tmp_path / "copy"), "--json")
    assert copied.returncode == 0, copied.stderr
    assert json.loads(copied.stdout)["items"] == 5
    assert "for a week" in copied.stderr
    taken = run(index, tiny_bundle, "backup", str(tmp_path / "copy"))
    assert taken.returncode == 1
    assert "exists already" in taken.stderr
    restored = run(tmp_path / "new", tiny_bundle, "restore", str(tmp_path / "copy"))
    assert restored.returncode == 0, restored.stderr
    assert "Start the indexer" in restored.stderr
    assert run(tmp_path / "new", tiny_bundle, "verify", "--against", str(index)).returncode == 0


@pytest.mark.parametrize(
    ("codebook", "days_ago", "words"),
    [
        ("another-codebook", 0, "the backup is of codebook another-codebook"),
        (None, 8, "last written 8 days ago, and the indexer refuses it"),
    ],
)
def test_restore_refuses_what_the_indexer_would_refuse_and_changes_nothing(
    tiny_bundle: Path, tmp_path: Path, codebook: str | None, days_ago: float, words: str
) -> None:
    copy = filled(tmp_path / "copy", tiny_bundle, codebook=codebook, days_ago=days_ago)
    index = filled(tmp_path / "index", tiny_bundle)
    before = (index / "data.mdb").stat()
    answer = run(index, tiny_bundle, "restore", str(copy), "--replace")
    assert answer.returncode == 1
    assert words in answer.stderr
    assert "othing was changed" in answer.stderr
    assert (index / "data.mdb").stat().st_ino == before.st_ino
    assert sorted(os.listdir(tmp_path)) == ["copy", "index"]


def test_restore_refuses_a_backup_of_topics_that_the_settings_do_not_name(tiny_bundle: Path, tmp_path: Path) -> None:
    copy = filled(tmp_path / "copy", tiny_bundle)
    index = filled(tmp_path / "index", tiny_bundle)
    answer = run(index, tiny_bundle, "restore", str(copy), "--replace", SIDSTREAM_TOPICS__PREFIX="b-")
    assert answer.returncode == 1
    assert "was read from item-codes, and the settings name other topics" in answer.stderr
    assert "Nothing was changed" in answer.stderr
    assert sorted(os.listdir(tmp_path)) == ["copy", "index"]


@pytest.mark.parametrize("damage", ["cut at 65536", "cut at a page", "header", "middle", "directory"])
def test_damaged_index_is_one_sentence_and_exit_status_one_of_every_command(
    tiny_bundle: Path, tmp_path: Path, damage: str
) -> None:
    index, data = filled(tmp_path / "index", tiny_bundle), tmp_path / "index" / "data.mdb"
    size = data.stat().st_size
    if damage == "cut at 65536":
        with data.open("r+b") as file:
            file.truncate(65_536 if size > 65_536 else size - 4_096)
    elif damage == "cut at a page":
        os.truncate(data, 3 * 4_096)
    elif damage == "directory":
        data.unlink()
        data.mkdir()
    else:
        with data.open("r+b") as file:
            file.seek(0 if damage == "header" else 2 * 4_096)
            file.write(b"\0" * (8_192 if damage == "header" else size - 2 * 4_096))
    commands = [["verify"], ["backup", str(tmp_path / "copy")], ["restore", str(index)]]
    if damage != "middle":  # who only reads what it needs does not come upon every page
        commands.append(["status"])
    for command in commands:
        target = tmp_path / "new" if command[0] == "restore" else index
        answer = run(target, tiny_bundle, *command)
        assert answer.returncode == 1, (command, answer)
        assert "Traceback" not in answer.stderr
        assert "Bus error" not in answer.stderr
        assert "damaged" in answer.stderr, (command, answer.stderr)
    assert not (tmp_path / "copy").exists()
    assert not list(tmp_path.glob(".*.incomplete"))


def test_verify_names_split_keys_with_their_partitions(tiny_bundle: Path, tmp_path: Path) -> None:
    index = filled(tmp_path / "index", tiny_bundle)
    layout = Bundle.open(tiny_bundle).layout
    with IndexWriter.open(index, codebook_id=layout.codebook_id, layers=layout.layers, size=layout.size) as writer:
        writer.apply(
            CodesBatch(
                ids=[b"item-3\x1b[2J"],
                codes=np.zeros((1, layout.layers), np.uint16),
                weights=np.ones(1, np.float32),
                titles=[""],
                updated_at=np.zeros(1, np.int64),
                deleted=np.ones(1, bool),
                partitions=np.array([2], np.int32),
                timestamps=np.array([5], np.int64),
            ),
            {},
        )
    answer = run(index, tiny_bundle, "verify")
    assert answer.returncode == 0, answer.stderr
    assert "1 item ids have records in more than one partition" in answer.stdout
    assert "item-3\\x1b[2J  in partitions 0, 2" in answer.stdout
    assert json.loads(run(index, tiny_bundle, "verify", "--json").stdout)["split_keys"] == 1


@pytest.mark.parametrize("place", ["file", "file/below/it"])
def test_rebuild_into_a_place_that_is_no_directory_is_refused_before_a_broker_is_asked(
    place: str, tiny_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    nobody = {"SIDSTREAM_KAFKA__BOOTSTRAP_SERVERS": "localhost:1"}
    answer = run(tmp_path / "index", tiny_bundle, "rebuild", "--into", str(tmp_path / place), **nobody)
    assert answer.returncode == 1
    assert answer.stderr.startswith(f"error: {tmp_path / place} ")
    assert "name another directory" in answer.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]
