"""A table that changes is followed on the real broker: what changed is published once, whatever kills the publisher."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

import streamer.commands.publish
from models.data_files import DataFileError
from sidstream import app
from store.writing.failpoints import FAILPOINT_VARIABLE, Failpoint
from streamer.client.follow import FollowedLook, Follower, FollowOptions
from streamer.client.follow_state import FollowStateError
from streamer.events.records import ITEM_UPDATE
from streamer.kafka.partition_watch import topic_states
from streamer.settings import Settings
from support.old_follow_state import write_old_follow_state
from support.processes import committed_records

ROOT = Path(__file__).parents[3]


@contextmanager
def follower(settings: Settings, folder: Path, *, delete_missing: bool = False) -> Iterator[Follower]:
    options = FollowOptions(delete_missing=delete_missing)
    with Follower.open(settings, str(folder), folder.parent / "state", options) as found:
        yield found


def write(path: Path, **titles: str) -> None:
    lines = [json.dumps({"id": item, "embedding": [1.0, 2.0], "title": title}) for item, title in titles.items()]
    written = path.with_suffix(".tmp")
    written.write_text("".join(line + "\n" for line in lines))
    written.replace(path)


def published(settings: Settings) -> list[tuple[str, str | None]]:
    """Id and title of every update, no title for a deletion."""
    records = committed_records(settings, settings.topics.item_updates)
    titles = [None if (value := record.value()) is None else ITEM_UPDATE.decode(value).title for record in records]
    return sorted(((record.key().decode(), title) for record, title in zip(records, titles, strict=True)), key=repr)


def figures(look: FollowedLook) -> tuple[int, int, int, int, int]:
    return look.new, look.changed, look.as_before, look.deleted, look.missing


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shop").mkdir()
    return tmp_path / "shop"


def test_new_files_and_replaced_ones_are_published_by_what_changed(pipeline_settings: Settings, folder: Path) -> None:
    write(folder / "a.jsonl", a="1", b="1")
    with follower(pipeline_settings, folder) as followed:
        first = followed.look()
        assert (first.waiting, first.told) == (1, False), "somebody may be writing it"
        assert figures(followed.look()) == (2, 0, 0, 0, 0)
        assert not followed.look().told
        write(folder / "a.jsonl", b="2", c="1")
        write(folder / "b.jsonl", a="1", d="1")
        assert figures(followed.look(settled=False)) == (2, 1, 1, 0, 0), "a has moved to the other file"
        with pytest.raises(FollowStateError, match="another `sidstream publish` has the state"):
            followed.open(pipeline_settings, str(folder), folder.parent / "state", FollowOptions()).__enter__()
    expected: list[tuple[str, str | None]] = [("a", "1"), ("b", "1"), ("b", "2"), ("c", "1"), ("d", "1")]
    assert published(pipeline_settings) == expected
    with follower(pipeline_settings, folder) as followed:  # a restart
        assert not followed.look(settled=False).told
        write(folder / "a.jsonl", b="2")
        (folder / "b.jsonl").write_text(
            '{"id": "a", "embedding": [1, 2], "title": "1"}\n{"id": "d", "embedding": [1]}\n{'
        )
        found = followed.look(settled=False)
        assert figures(found) == (0, 0, 2, 0, 0), (
            "the row without an id may be c; of d no row can be taken, and it is there"
        )
        assert [str(fault).partition("b.jsonl ")[2] for fault in found.faults.first] == [
            "line 3: is no JSON object (Input data was truncated)",
            "line 2, column embedding: has 1 numbers, and the rows before it 2",
        ]
    with follower(pipeline_settings, folder, delete_missing=True) as followed:
        assert figures(followed.look(settled=False)) == (0, 0, 0, 0, 0)
        write(folder / "b.jsonl", a="1")
        assert figures(followed.look(settled=False)) == (0, 0, 1, 2, 0), "c and d"
        (folder / "a.jsonl").unlink()
        assert figures(followed.look(settled=False)) == (0, 0, 0, 1, 0)
        (folder / "b.jsonl").unlink()
        found = followed.look(settled=False)
        assert (figures(found), len(found.unreadable)) == ((0, 0, 0, 0, 0), 1), "a folder that is empty deletes nothing"
    assert published(pipeline_settings) == sorted([*expected, ("c", None), ("d", None), ("b", None)], key=repr)


@pytest.mark.parametrize("delete_missing", [False, True])
@pytest.mark.parametrize("restart", [False, True])
def test_item_that_one_file_loses_is_what_another_file_that_has_it_says_and_what_none_has_is_gone(
    pipeline_settings: Settings, folder: Path, delete_missing: bool, restart: bool
) -> None:
    write(folder / "a.jsonl", x="of a", only_a="1", y="of a")
    write(folder / "b.jsonl", x="of b", only_b="1", y="of b")
    write(folder / "c.jsonl", x="of b", z="1")
    gone = (0, 1) if not delete_missing else (1, 0)
    with ExitStack() as stack:

        def followed(*, anew: bool = restart) -> Follower:
            if anew:
                stack.close()
            return stack.enter_context(follower(pipeline_settings, folder, delete_missing=delete_missing))

        one = followed(anew=False)
        assert figures(one.look(settled=False)) == (5, 2, 1, 0, 0)
        (folder / "c.jsonl").unlink()
        one = followed() if restart else one
        assert figures(one.look(settled=False)) == (0, 0, 0, *gone), "z; x is in b as it was in c"
        write(folder / "b.jsonl", y="of b", only_b="1")
        one = followed() if restart else one
        assert figures(one.look(settled=False)) == (0, 1, 2, 0, 0 if delete_missing else 1), (
            "x is what a says; y is b's still"
        )
        (folder / "b.jsonl").unlink()
        one = followed() if restart else one
        assert figures(one.look(settled=False)) == (0, 1, 0, 1 if delete_missing else 0, 0 if delete_missing else 2)
        assert not one.look(settled=False).told
    updates = published(pipeline_settings)
    assert [title for item, title in updates if item == "x"] == ["of a", "of a", "of b"]
    assert [title for item, title in updates if item == "y"] == ["of a", "of a", "of b"]
    assert [item for item, title in updates if title is None] == (["only_b", "z"] if delete_missing else [])


def test_what_another_file_may_have_is_not_missing_while_that_one_cannot_be_read(
    pipeline_settings: Settings, folder: Path
) -> None:
    write(folder / "a.jsonl", a="1", x="1")
    write(folder / "b.jsonl", b="1", x="1")
    with follower(pipeline_settings, folder, delete_missing=True) as followed:
        followed.look(settled=False)
        (folder / "a.jsonl").write_bytes(b"\xff\xfe\x00")
        unreadable = followed.look(settled=False)
        write(folder / "b.jsonl", b="1")
        assert followed.look(settled=False).deleted == 0
        write(folder / "a.jsonl", a="1", x="1")
        assert figures(followed.look(settled=False)) == (0, 0, 2, 0, 0)
        write(folder / "a.jsonl", a="1")
        assert figures(followed.look(settled=False)) == (0, 0, 1, 1, 0)
    assert unreadable.unreadable or unreadable.faults.count


def test_row_without_an_id_in_another_file_may_be_what_a_file_has_lost(
    pipeline_settings: Settings, folder: Path
) -> None:
    write(folder / "a.jsonl", a="1")
    write(folder / "b.jsonl", b="1", x="1")
    with (folder / "a.jsonl").open("a") as file:
        file.write("{\n")
    with follower(pipeline_settings, folder, delete_missing=True) as followed:
        followed.look(settled=False)
        write(folder / "b.jsonl", b="1")
        assert figures(followed.look(settled=False)) == (0, 0, 1, 0, 0)
        write(folder / "a.jsonl", a="1")
        assert figures(followed.look(settled=False)) == (0, 0, 1, 1, 0)


def test_item_that_leaves_the_file_read_last_is_as_another_file_has_it_and_goes_with_the_last_one(
    pipeline_settings: Settings, folder: Path
) -> None:
    write(folder / "a.jsonl", x="1", y="1", only_a="1")
    write(folder / "b.jsonl", x="2", y="1", only_b="1")
    write(folder / "c.jsonl", x="3", other="1")
    with follower(pipeline_settings, folder, delete_missing=True) as followed:
        assert figures(followed.look(settled=False)) == (5, 2, 1, 0, 0)
        write(folder / "c.jsonl", other="1")
        assert figures(followed.look(settled=False)) == (0, 1, 1, 0, 0), "x is as b has it"
    with follower(pipeline_settings, folder, delete_missing=True) as followed:  # a restart knows it as well
        (folder / "b.jsonl").unlink()
        found = followed.look(settled=False)
        assert figures(found) == (0, 1, 0, 1, 0), "x is as a has it, y was the same, only_b is in no file"
        assert [Path(name).name for name in found.files] == ["a.jsonl"]
        assert not followed.look(settled=False).told
        write(folder / "a.jsonl", only_a="1")
        assert figures(followed.look(settled=False)) == (0, 0, 1, 2, 0)
    assert published(pipeline_settings) == sorted(
        [
            *(("x", title) for title in ("1", "2", "3", "2", "1", None)),
            *(("y", "1"), ("y", None), ("only_a", "1"), ("only_b", "1"), ("only_b", None), ("other", "1")),
        ],
        key=repr,
    )


def test_nothing_goes_while_a_file_cannot_be_read_or_has_a_row_that_is_refused(
    pipeline_settings: Settings, folder: Path
) -> None:
    write(folder / "a.jsonl", x="1", y="1")
    (folder / "b.jsonl").write_text('{"id": "z", "embedding": [1, 2]}\n{"id": "x", "embedding": [1]}\n')
    with follower(pipeline_settings, folder, delete_missing=True) as followed:
        assert figures(followed.look(settled=False)) == (3, 0, 0, 0, 0)
        write(folder / "a.jsonl", y="1")
        assert figures(followed.look(settled=False))[3:] == (0, 0), "b has x, though nothing can be made of it"
        (folder / "c.jsonl").write_text("no table")  # y may have moved into it
        write(folder / "a.jsonl", v="1")
        for unreadable in (1, 0):
            found = followed.look(settled=False)
            assert (len(found.unreadable), found.deleted, found.missing) == (unreadable, 0, 0)
        write(folder / "c.jsonl", w="1")
        assert figures(followed.look(settled=False)) == (1, 0, 0, 1, 0)
    assert [one for one in published(pipeline_settings) if one[1] is None] == [("y", None)]


def test_state_of_version_1_learns_which_files_have_an_item_and_publishes_what_it_deleted_by_fault(
    pipeline_settings: Settings, folder: Path
) -> None:
    write(folder / "a.jsonl", x="1", lost="1")
    write(folder / "b.jsonl", x="2", y="1")
    with follower(pipeline_settings, folder) as followed:
        followed.look(settled=False)
    as_version_1(folder.parent / "state", deleted="lost")
    (folder / "b.jsonl").unlink()
    with follower(pipeline_settings, folder, delete_missing=True) as followed:
        assert figures(followed.look(settled=False)) == (1, 1, 0, 1, 0), "x is as a has it, and y is in no file"
        assert not followed.look(settled=False).told
    as_version_1(folder.parent / "state")
    with follower(pipeline_settings, folder, delete_missing=True) as followed:
        assert figures(followed.look(settled=False)) == (0, 0, 0, 0, 0)
    assert published(pipeline_settings) == sorted(
        [("x", "1"), ("x", "2"), ("x", "1"), ("lost", "1"), ("lost", "1"), ("y", "1"), ("y", None)], key=repr
    )


def test_state_that_code_of_version_1_wrote_is_read_and_what_that_code_left_wrong_is_put_right(
    pipeline_settings: Settings, folder: Path
) -> None:
    topic = pipeline_settings.topics.item_updates
    topic_id = topic_states(pipeline_settings.kafka, [topic])[topic].topic_id
    write_old_follow_state(folder, folder.parent / "state", f"{topic} {topic_id}")
    with follower(pipeline_settings, folder, delete_missing=True) as followed:
        assert figures(followed.look(settled=False)) == (2, 1, 0, 3, 0), "b, which went, had x as it was published"
        assert not followed.look(settled=False).told
    assert published(pipeline_settings) == sorted(
        [("lost", "1"), ("e", "1"), ("x", "of a"), ("only_b", None), ("z", None), ("d", None)], key=repr
    )


def as_version_1(state: Path, deleted: str = "") -> None:
    """The state as version 1 wrote it; it has deleted an item."""
    with closing(sqlite3.connect(state / "published.sqlite", isolation_level=None)) as database:
        database.execute("DROP TABLE elsewhere")
        database.execute("ALTER TABLE files DROP COLUMN nameless")
        database.execute("DELETE FROM facts WHERE name IN ('drawn', 'elsewhere')")
        database.execute("UPDATE facts SET value = '1' WHERE name = 'version'")
        database.execute("UPDATE items SET reading = 1")
        database.execute("UPDATE files SET reading = 1")
        database.execute("DELETE FROM items WHERE id = ?", (deleted,))


def test_every_change_is_published_once_wherever_the_publisher_is_killed(
    pipeline_settings: Settings, folder: Path
) -> None:
    for name in "abc":
        write(folder / f"{name}.jsonl", **{f"{name}{number}": "1" for number in range(50)})
    kill_at_each_step(pipeline_settings, folder)
    with follower(pipeline_settings, folder) as followed:
        found = followed.look(settled=False)
    assert found.whole
    assert published(pipeline_settings) == sorted((f"{name}{number}", "1") for name in "abc" for number in range(50))


def test_item_is_passed_on_once_wherever_the_publisher_is_killed(pipeline_settings: Settings, folder: Path) -> None:
    write(folder / "a.jsonl", x="1", y="1")
    write(folder / "b.jsonl", x="2", z="1")
    with follower(pipeline_settings, folder) as followed:
        followed.look(settled=False)
    (folder / "b.jsonl").unlink()
    kill_at_each_step(pipeline_settings, folder, "--delete-missing")
    with follower(pipeline_settings, folder, delete_missing=True) as followed:
        followed.look(settled=False)
    expected = [("x", "1"), ("x", "1"), ("x", "2"), ("y", "1"), ("z", "1"), ("z", None)]
    assert published(pipeline_settings) == sorted(expected, key=repr)


def kill_at_each_step(settings: Settings, folder: Path, *options: str) -> None:
    """Publishes three times: killed before a batch is sent, while the second one is, and after one was."""
    environment = {
        **os.environ,
        "SIDSTREAM_KAFKA__BOOTSTRAP_SERVERS": settings.kafka.bootstrap_servers,
        "SIDSTREAM_TOPICS__PREFIX": settings.topics.prefix,
    }
    arguments = ["publish", str(folder), "--state", str(folder.parent / "state"), *options]
    for point in (
        f"{Failpoint.TRANSACTION_BEGUN}=1",
        f"{Failpoint.OUTPUTS_SENT}=2",
        f"{Failpoint.TRANSACTION_COMMITTED}=1",
    ):
        killed = subprocess.run(
            [sys.executable, "-m", "sidstream", *arguments],
            env={**environment, FAILPOINT_VARIABLE: point},
            cwd=ROOT,
            check=False,
        )
        assert killed.returncode == -signal.SIGKILL


def test_command_follows_until_it_is_interrupted(
    pipeline_settings: Settings, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder / "a.jsonl", a="1")
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            write(folder / "a.jsonl", a="2", b="1")
        elif len(pauses) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(streamer.commands.publish, "time", SimpleNamespace(sleep=pause))  # nobody else's
    environment = {
        "SIDSTREAM_KAFKA__BOOTSTRAP_SERVERS": pipeline_settings.kafka.bootstrap_servers,
        "SIDSTREAM_TOPICS__PREFIX": pipeline_settings.topics.prefix,
    }
    arguments = ["publish", str(folder), "--follow", "--every", "0.5", "--state", str(folder.parent / "state")]
    told = CliRunner().invoke(app, arguments, env=environment)
    assert told.exit_code == 0, told.output
    assert "1 files: 1 new items, 0 changed, 0 as before" in told.stderr
    assert "1 files: 1 new items, 1 changed, 0 as before" in told.stderr
    assert "it goes on from here" in told.stderr
    assert pauses == [0.5] * 4
    assert published(pipeline_settings) == [("a", "1"), ("a", "2"), ("b", "1")]
    for options in (["--follow", "--limit", "3"], ["--delete-missing"], ["--state", "x", "--delete"]):
        assert CliRunner().invoke(app, ["publish", str(folder), *options], env=environment).exit_code == 2


def test_state_of_something_else_and_addresses_that_tell_no_change_are_refused(
    pipeline_settings: Settings, folder: Path, tmp_path: Path
) -> None:
    with follower(pipeline_settings, folder):
        pass
    for source, kind, why in (
        (str(tmp_path), FollowStateError, "is of another source"),
        ("https://shop.example/a.parquet", DataFileError, "cannot be told at this kind of address"),
    ):
        with (
            pytest.raises(kind, match=why),
            Follower.open(pipeline_settings, source, tmp_path / "state", FollowOptions()),
        ):
            pass
