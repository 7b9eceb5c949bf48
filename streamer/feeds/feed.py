"""A feed in a directory: a snapshot in files (``current`` leads to them), ``position.json`` that says what it is of, and what
changes after it where it is followed.

What must hold: ``position.json`` is written last and names the files of one snapshot, all of them whole; a reader that loads them
and then the changes up to a line ``{"commit": …}`` has the catalogue as it was at that commit. Where changes cannot be told (the
index is another one, its log does not reach back, the layout is another one), there is a new snapshot. A title or a weight that
changes alone is no change: the index does not log it. Nothing is removed or replaced that a feed did not make: each snapshot says
in ``.snapshot.json`` what it is called and which files are the feed's.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from models.sids.layout import Layout
from store.reading.reader import IndexReader
from streamer.feeds.formats import FeedFormat
from streamer.feeds.items import FeedError, FeedFacts, FeedItems, LayoutChoice, chosen_layout, in_order, read_items

POSITION_FILE: Final = "position.json"
_CURRENT: Final = "current"
_MADE_FILE: Final = ".snapshot.json"
_CHANGES_FILE: Final = "changes.jsonl"
_PARTIAL: Final = ".snapshot.partial"
_SNAPSHOT: Final = re.compile(r"snapshot-\d+(-\d+)?")
_ENCODE: Final = msgspec.json.Encoder().encode


class FeedPosition(msgspec.Struct, frozen=True, kw_only=True):
    """``position.json``. ``position``: the next offset per topic and partition; ``files``: of the snapshot; ``changes``: the file
    of what happens after it, null where the feed is not followed; ``token_base``: token id of SID token number 0.
    """

    format: str
    loader: str
    codebook: str
    layout: int
    head_tokens: int
    layers: int
    size: int
    token_base: int
    items: int
    sids: int
    commit: int
    position: dict[str, int]
    files: tuple[str, ...]
    changes: str | None
    written_at: int


class _Made(msgspec.Struct, frozen=True):
    """``.snapshot.json`` in a snapshot: its ``name`` when it was made (a copy of it is not the feed's), and the files in it."""

    name: str
    files: tuple[str, ...]


@dataclass
class FeedLook:
    """What a look came to: a new ``snapshot``, or ``changed`` and ``gone`` items."""

    snapshot: FeedPosition | None = None
    changed: int = 0
    gone: int = 0


class Feed:
    """Writes one feed; one process at a time to a directory."""

    def __init__(
        self,
        reader: IndexReader,
        own: Layout,
        directory: Path,
        to: FeedFormat,
        *,
        layout: LayoutChoice = "pinned",
        token_base: int = 0,
        followed: bool = False,
    ) -> None:
        """``own``: the bundle's layout; ``token_base``: token id of SID token number 0; ``followed``: changes are written."""
        self._reader, self._own, self._directory, self._format = reader, own, directory, to
        self._choice, self._token_base, self._followed = layout, token_base, followed
        self._facts: FeedFacts | None = None
        self._layout: Layout | None = None
        self._changes: Path | None = None
        # Number → id, of items as the feed has them: who is gone has no name in the index any more.
        self._known: dict[int, str] = {}

    def write(self) -> FeedPosition:
        """A new snapshot. Raises ``FeedError`` for a catalogue that the format cannot hold; what was there stays."""
        with self._reader.snapshot() as snapshot:
            if snapshot.partitions:
                raise FeedError(
                    f"the index is a shard (partitions {snapshot.partitions}): export from one that holds all of them"
                )
            layout = chosen_layout(snapshot, self._own, self._choice)
            facts = FeedFacts.of(snapshot)
            items = read_items(snapshot, layout, self._token_base)
        if not len(items):
            raise FeedError("the index holds no item yet: publish some first")
        try:
            return self._put(items, facts, layout)
        except OSError as error:
            raise FeedError(f"{self._directory} cannot be written: {error.strerror or error}") from error

    def _put(self, items: FeedItems, facts: FeedFacts, layout: Layout) -> FeedPosition:
        directory = self._directory
        directory.mkdir(parents=True, exist_ok=True)
        before = read_position(directory)
        linked = _current(directory, before)
        name, taken = f"snapshot-{facts.commit}", 1
        while os.path.lexists(directory / name):  # of an index before, or written again without a change
            name, taken = f"snapshot-{facts.commit}-{taken}", taken + 1
        partial = directory / _PARTIAL
        shutil.rmtree(partial, ignore_errors=True)  # of a feed that was stopped
        partial.mkdir()
        written = self._format.write(items, partial)
        changes = directory / name / _CHANGES_FILE if self._followed else None
        if changes is not None:
            (partial / _CHANGES_FILE).touch()
        _mark(partial, _Made(name, (*written, _CHANGES_FILE)))
        partial.rename(directory / name)
        found = FeedPosition(
            format=self._format.name,
            loader=self._format.loader,
            codebook=layout.codebook_id,
            layout=layout.generation,
            head_tokens=len(layout.head_tokens),
            layers=layout.layers,
            size=layout.size,
            token_base=self._token_base,
            items=len(items),
            sids=len(items.starts),
            commit=facts.commit,
            position=dict(facts.position),
            files=tuple(f"{name}/{file}" for file in written),
            changes=None if changes is None else f"{name}/{_CHANGES_FILE}",
            written_at=int(time.time() * 1000),
        )
        new = directory / f".{POSITION_FILE}.partial"
        new.write_bytes(msgspec.json.format(_ENCODE(found), indent=2) + b"\n")
        new.replace(directory / POSITION_FILE)
        link = directory / ".current.partial"
        link.unlink(missing_ok=True)
        link.symlink_to(name, target_is_directory=True)
        link.replace(directory / _CURRENT)
        # The snapshot before this one stays for whoever is reading it; older ones go.
        kept = {name, linked}
        if before is not None:
            kept.add(_marked(directory, before))
        for path in directory.glob("snapshot-*"):
            if path.name not in kept and (made := _made(path)) is not None:
                _remove(path, made)
        self._facts, self._layout, self._changes = facts, layout, changes
        if self._followed:
            self._known = dict(zip(items.numbers.tolist(), items.ids, strict=True))
        return found

    def look(self) -> FeedLook:
        """What has changed since the last look, as lines of the changes; or a new snapshot."""
        with self._reader.snapshot() as snapshot:
            facts = FeedFacts.of(snapshot)
            known = self._facts
            if known is not None and facts.incarnation == known.incarnation:
                if facts.commit == known.commit and facts.position == known.position:
                    return FeedLook()
                layout = chosen_layout(snapshot, self._own, self._choice)
                changes = snapshot.changes_since(known.commit) if layout == self._layout else None
                if changes is not None:
                    numbers = changes.items
                    live, _ = snapshot.codes_where_live(numbers)
                    now = in_order(snapshot.items(numbers[live]), layout, self._token_base)
                    found = self._lines(numbers.tolist(), now, layout)
                    self._append(found, facts)
                    return FeedLook(changed=found.changed, gone=found.gone)
        return FeedLook(snapshot=self.write())

    def _lines(self, numbers: list[int], items: FeedItems, layout: Layout) -> _Lines:
        found, held = _Lines(), set(items.ids)
        for number in numbers:
            before = self._known.pop(number, None)
            if before is not None and before not in held:
                found.lines.append({"item_id": before, "token_ids": None})
                found.gone += 1
        for row, item in enumerate(items.ids):
            found.lines.append(
                {
                    "item_id": item,
                    "token_ids": items.token_ids(row),
                    "sid": layout.sid_tokens_text(items.tokens[row].tolist()),
                }
            )
            found.changed += 1
        self._known.update(zip(items.numbers.tolist(), items.ids, strict=True))
        return found

    def _append(self, found: _Lines, facts: FeedFacts) -> None:
        assert self._changes is not None
        last = {"commit": facts.commit, "position": dict(facts.position)}
        try:
            with self._changes.open("ab") as file:  # one write: a line is there whole
                file.write(b"".join(_ENCODE(line) + b"\n" for line in [*found.lines, last]))
        except OSError as error:
            raise FeedError(f"{self._changes} cannot be written: {error.strerror or error}") from error
        self._facts = facts


class _Lines:
    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self.changed = 0
        self.gone = 0


def read_position(directory: Path) -> FeedPosition | None:
    """What a feed says of itself; None where there is none. Raises ``FeedError`` for a file of something else."""
    try:
        return msgspec.json.decode((directory / POSITION_FILE).read_bytes(), type=FeedPosition)
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, UnicodeError) as error:
        raise FeedError(f"{directory / POSITION_FILE} is of no feed ({error}): name another directory") from error


def _current(directory: Path, before: FeedPosition | None) -> str | None:
    """The snapshot that ``current`` leads to, None before the first. Raises ``FeedError`` for one that no feed has made."""
    link = directory / _CURRENT
    if not os.path.lexists(link):
        return None
    name = os.readlink(link) if link.is_symlink() else ""
    if before is None or _SNAPSHOT.fullmatch(name) is None:
        raise FeedError(f"{link} is there and is of no feed: move it away, or name another directory")
    return name


def _mark(path: Path, made: _Made) -> None:
    (path / _MADE_FILE).write_bytes(_ENCODE(made))


def _marked(directory: Path, position: FeedPosition) -> str:
    """The name of the snapshot that ``position.json`` is of, which has a mark from now on: an older sidstream made none."""
    name = position.files[0].partition("/")[0]
    path = directory / name
    if _SNAPSHOT.fullmatch(name) is not None and path.is_dir() and not (path / _MADE_FILE).exists():
        _mark(path, _Made(name, (*(file.partition("/")[2] for file in position.files), _CHANGES_FILE)))
    return name


def _made(path: Path) -> _Made | None:
    """What a feed has made of this directory; None where it is none of a feed's."""
    if path.is_symlink():
        return None
    try:
        found = msgspec.json.decode((path / _MADE_FILE).read_bytes(), type=_Made)
    except (OSError, msgspec.DecodeError, UnicodeError):
        return None
    return found if found.name == path.name else None


def _remove(path: Path, made: _Made) -> None:
    """The feed's own files, and the directory if nothing else is in it. The mark goes last: what is stopped here goes on."""
    for file in (*made.files, _MADE_FILE):
        (path / Path(file).name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        path.rmdir()
