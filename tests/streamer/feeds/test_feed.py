"""A feed of a living index: snapshot and changes, applied in order, are the index at every commit."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

import streamer.commands.exports
from models.bundles.bundle import Bundle
from models.sids.layout import Layout
from sidstream import app
from store.reading.reader import IndexReader
from store.writing.writer import IndexWriter
from streamer.feeds.feed import Feed, FeedPosition, read_position
from streamer.feeds.formats import format_named
from streamer.feeds.items import FeedError
from support.plain_index import CODEBOOK, Event, batch_of

LAYOUT = Layout(0, CODEBOOK, 3, 16, (2,))
EVENTS = [Event(f"i{n}".encode(), (n % 4, n % 3, n % 16), weight=n, title=f"t{n}") for n in range(50)]


def apply(writer: IndexWriter, offset: int, *events: Event) -> None:
    writer.apply(batch_of(events), {("item-codes", 0): offset})


def snapshot_of(directory: Path, found: FeedPosition) -> dict[str, list[int]]:
    lines = (directory / found.files[0]).read_text().splitlines()
    return {record["item_id"]: record["token_ids"] for record in map(json.loads, lines)}


def replayed(directory: Path) -> tuple[dict[str, list[int]], int]:
    """What a reader of the feed has, and at which offset: all up to the last line that says a position."""
    found = read_position(directory)
    assert found is not None
    assert found.changes is not None
    items, offset, waiting = snapshot_of(directory, found), found.position["item-codes/0"], []
    for line in map(json.loads, (directory / found.changes).read_text().splitlines()):
        if "item_id" in line:
            waiting.append(line)
            continue
        for change in waiting:
            if change["token_ids"] is None:
                del items[change["item_id"]]
            else:
                items[change["item_id"]] = change["token_ids"]
        offset, waiting = line["position"]["item-codes/0"], []
    assert not waiting
    return items, offset


def in_the_index(reader: IndexReader) -> dict[str, list[int]]:
    with reader.snapshot() as snapshot:
        stored = [item for _, numbers in snapshot.all_paths() for item in snapshot.items(numbers)]
    return {item.id.decode(): [7 + token for token in LAYOUT.sid_of(item.codes)] for item in stored}


def test_snapshot_and_changes_are_the_index_at_each_commit(tmp_path: Path) -> None:
    index, out = tmp_path / "index", tmp_path / "feed"
    with IndexWriter.open(index, codebook_id=CODEBOOK, layers=3, size=16) as writer, IndexReader(index) as reader:
        feed = Feed(reader, LAYOUT, out, format_named("nvidia-jsonl"), token_base=7, followed=True)
        with pytest.raises(FeedError, match="holds no item yet"):
            feed.write()
        apply(writer, 50, *EVENTS)
        first = feed.write()
        assert (first.items, first.position, first.head_tokens) == (50, {"item-codes/0": 50}, 1)
        assert (out / "current").resolve() == (out / first.files[0]).parent.resolve()
        assert replayed(out) == (in_the_index(reader), 50)
        found = feed.look()
        assert (found.changed, found.gone, found.snapshot) == (0, 0, None)
        moved = Event(b"i1", (9, 9, 9))
        apply(
            writer,
            54,
            moved,
            Event(b"i2", None),
            Event(b"new", (1, 2, 3)),
            Event(b"i3", EVENTS[3].codes, title="other"),
        )
        found = feed.look()
        assert (found.changed, found.gone) == (2, 1), "a title alone is no change of the feed"
        assert replayed(out) == (in_the_index(reader), 54)
        # Deleted and back again under another number, and another item under the number of one that is gone.
        apply(writer, 55, Event(b"i4", None))
        apply(writer, 57, Event(b"later", (5, 5, 5)), Event(b"i4", (6, 6, 6)))
        apply(writer, 58, Event(b"i5", None))
        feed.look()
        assert replayed(out) == (in_the_index(reader), 58)
        second = feed.write()
        assert second.commit > first.commit
        assert replayed(out) == (in_the_index(reader), 58)
        assert {path.name for path in out.glob("snapshot-*")} == {
            first.files[0].split("/")[0],
            second.files[0].split("/")[0],
        }
        third = feed.write()
        assert third.files != second.files, "whoever reads the one before can go on"
        assert len(list(out.glob("snapshot-*"))) == 2


def test_folders_that_a_feed_did_not_make_stay_whatever_they_are_called(tmp_path: Path) -> None:
    index, out = tmp_path / "index", tmp_path / "backups"
    others = [out / "snapshot-2026-11-01", out / "snapshot-7", out / "snapshot-2026"]
    for other in others:
        other.mkdir(parents=True)
        (other / "photos.tar").touch()
    (out / "snapshot-8").touch()
    with IndexWriter.open(index, codebook_id=CODEBOOK, layers=3, size=16) as writer, IndexReader(index) as reader:
        apply(writer, 50, *EVENTS)
        feed = Feed(reader, LAYOUT, out, format_named("nvidia-jsonl"), token_base=7)
        made = [feed.write() for _ in range(4)]
    assert all((other / "photos.tar").exists() for other in others)
    assert (out / "snapshot-8").exists()
    kept = {path.name for path in out.glob("snapshot-1*")}
    assert kept == {one.files[0].partition("/")[0] for one in made[-2:]}, "of its own, the last and the one before"


def test_folders_and_files_that_the_feed_did_not_make_stay_as_they_are(tmp_path: Path) -> None:
    index, out = tmp_path / "index", tmp_path / "backups"
    own = [out / name / "photos.tar" for name in ("snapshot-2026-11-01", "snapshot-5", "snapshot-5-1", "snapshot-1")]
    for path in own:
        path.parent.mkdir(parents=True)
        path.write_text("mine")
    (out / "snapshot-empty").mkdir()
    (out / "snapshot-link").symlink_to(out / "snapshot-2026-11-01", target_is_directory=True)
    with IndexWriter.open(index, codebook_id=CODEBOOK, layers=3, size=16) as writer, IndexReader(index) as reader:
        apply(writer, 50, *EVENTS)
        feed = Feed(reader, LAYOUT, out, format_named("nvidia-jsonl"), followed=True)
        first = (out / feed.write().files[0]).parent
        shutil.copytree(first, out / "snapshot-77")
        (first / "notes.txt").write_text("mine")
        made = [(out / feed.write().files[0]).parent for _ in range(3)]
    assert [path.read_text() for path in own] == ["mine"] * 4
    assert (out / "snapshot-empty").is_dir()
    assert (out / "snapshot-link").is_symlink()
    assert (out / "snapshot-77" / "catalogue.jsonl").exists(), "somebody's copy"
    assert [path.name for path in first.iterdir()] == ["notes.txt"], "the feed's own files alone are gone"
    assert [path.exists() for path in made] == [False, True, True]


def test_snapshot_that_an_older_version_made_goes_when_its_time_comes(tmp_path: Path) -> None:
    index, out = tmp_path / "index", tmp_path / "feed"
    with IndexWriter.open(index, codebook_id=CODEBOOK, layers=3, size=16) as writer, IndexReader(index) as reader:
        apply(writer, 50, *EVENTS)
        feed = Feed(reader, LAYOUT, out, format_named("nvidia-jsonl"), followed=True)
        first = (out / feed.write().files[0]).parent
        (first / ".snapshot.json").unlink()
        feed.write()
        assert first.exists(), "somebody may be reading it"
        feed.write()
    assert not first.exists()


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
@pytest.mark.parametrize("fed_before", [False, True])
def test_current_that_no_feed_made_is_refused_and_left(tmp_path: Path, kind: str, fed_before: bool) -> None:
    index, out = tmp_path / "index", tmp_path / "feed"
    out.mkdir()
    with IndexWriter.open(index, codebook_id=CODEBOOK, layers=3, size=16) as writer, IndexReader(index) as reader:
        apply(writer, 50, *EVENTS)
        feed = Feed(reader, LAYOUT, out, format_named("nvidia-jsonl"))
        if fed_before:
            feed.write()
            (out / "current").unlink()
        match kind:
            case "file":
                (out / "current").write_text("mine")
            case "folder":
                (out / "current").mkdir()
            case _:
                (out / "current").symlink_to("elsewhere")
        before = sorted(path.relative_to(out) for path in out.rglob("*"))
        with pytest.raises(FeedError, match="is of no feed: move it away, or name another directory"):
            feed.write()
    assert sorted(path.relative_to(out) for path in out.rglob("*")) == before, "and nothing was written"


def test_snapshot_that_current_leads_to_yet_stays_where_a_feed_was_killed_before_it_led_on(tmp_path: Path) -> None:
    index, out = tmp_path / "index", tmp_path / "feed"
    with IndexWriter.open(index, codebook_id=CODEBOOK, layers=3, size=16) as writer, IndexReader(index) as reader:
        apply(writer, 50, *EVENTS)
        feed = Feed(reader, LAYOUT, out, format_named("nvidia-jsonl"))
        first = (out / feed.write().files[0]).parent
        feed.write()
        (out / "current").unlink()
        (out / "current").symlink_to(first.name)
        feed.write()
        assert first.exists(), "somebody may be reading it"
        feed.write()
    assert not first.exists()
    assert len(list(out.glob("snapshot-*"))) == 2


def test_another_layout_or_another_index_is_a_new_snapshot(tmp_path: Path) -> None:
    index, out = tmp_path / "index", tmp_path / "feed"
    with IndexWriter.open(index, codebook_id=CODEBOOK, layers=3, size=16) as writer, IndexReader(index) as reader:
        apply(writer, 50, *EVENTS)
        writer.put_layout(LAYOUT, {})
        feed = Feed(reader, LAYOUT, out, format_named("nvidia-jsonl"), layout="live", followed=True)
        first = feed.write()
        writer.put_layout(Layout(1, CODEBOOK, 3, 16, (0, 2)), {})
        apply(writer, 51, Event(b"new", (1, 0, 3)))
        found = feed.look().snapshot
        assert found is not None
        assert (first.layout, found.layout, found.items) == (0, 1, 51)
        assert snapshot_of(out, found)["new"] == [1, 2 * 16 + 3]
        full = Feed(reader, LAYOUT, tmp_path / "full", format_named("flashrec"), layout="full").write()
        assert (full.head_tokens, full.changes) == (0, None)
        assert np.sum([len(one) for one in json.loads((tmp_path / "full" / full.files[0]).read_text()).values()]) == 51
        with pytest.raises(FeedError, match="decodes SIDs of one length"):
            Feed(reader, LAYOUT, tmp_path / "full", format_named("flashrec")).write()
        assert read_position(tmp_path / "full") == full, "what was there stays"


def test_command_writes_the_index_and_follows_it_until_it_is_interrupted(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout, out = Bundle.open(tiny_bundle).layout, tmp_path / "feed"
    with IndexWriter.open(tmp_path / "index", codebook_id=layout.codebook_id, layers=3, size=16) as writer:
        apply(writer, 50, *EVENTS)
        pauses: list[float] = []

        def pause(seconds: float) -> None:
            pauses.append(seconds)
            if len(pauses) == 3:
                raise KeyboardInterrupt
            apply(writer, 50 + len(pauses), Event(f"new{len(pauses)}".encode(), (1, 2, 3)))

        clock = SimpleNamespace(sleep=pause, monotonic=time.monotonic)  # nobody else's
        monkeypatch.setattr(streamer.commands.exports, "time", clock)
        environment = {"SIDSTREAM_BUNDLE": str(tiny_bundle), "SIDSTREAM_INDEX": str(tmp_path / "index")}
        arguments = ["export", str(out), "--format", "nvidia-jsonl", "--follow", "--token-base", "7"]
        told = CliRunner().invoke(app, arguments, env=environment)
        assert told.exit_code == 0, told.output
        assert told.stderr.count("1 items are new or other, 0 are gone") == 2
        items, offset = replayed(out)
        assert (len(items), offset, items["new2"]) == (52, 52, [7 + 1, 7 + 16 + 2, 7 + 32 + 3])
        once = CliRunner().invoke(app, ["export", str(out), "--format", "parquet"], env=environment)
        assert once.exit_code == 0, once.output
        found = read_position(out)
        assert found is not None
        assert (found.format, found.items, found.token_base) == ("parquet", 52, 0), "the bundle has no model"
