"""What a publisher that follows a table has published: on the disk, beside nothing else.

What must hold: an item is in here as the topic has it, whatever kills the process. So a batch is written down before it is sent
(``begin``), and counted once the broker has it (``finish``); what was begun and not finished, ``open_batch`` tells. An item is
missing only when no file has it, whichever of its files was read last.

A SQLite database in a directory of its own, one process at a time: ``files`` (signature and number of the last whole reading;
numbers rise over all files), ``items`` (digest of what was sent, and the file that counts, by the reading that saw the item),
``elsewhere`` (other files that have an id, the same way; a row only for ids that stand in several files or were refused),
``batch`` (the one that is begun). A file has what its last whole reading saw, or a later one that was stopped; ``nameless``: that
reading met a row without an id.
"""

from __future__ import annotations

import fcntl
import secrets
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Final, NamedTuple, Self

import msgspec

from models.errors import SidstreamError

_VERSION: Final = "2"
_BEFORE: Final = "1"  # knew of each item the file that was read last, and no other
_TABLES: Final = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS files
  (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, signature TEXT NOT NULL, reading INTEGER NOT NULL,
   nameless INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS items
  (id TEXT PRIMARY KEY, digest BLOB NOT NULL, file INTEGER NOT NULL, reading INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS elsewhere
  (id TEXT NOT NULL, file INTEGER NOT NULL, reading INTEGER NOT NULL, PRIMARY KEY (id, file)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS batch (number INTEGER PRIMARY KEY, changes BLOB NOT NULL);
"""
_KNOWN: Final = "known"
_HELD: Final = "EXISTS (SELECT 1 FROM files WHERE number = {0}.file AND reading <= {0}.reading)"
_ITEM_HELD: Final = _HELD.format("items")
_HELD_ELSEWHERE: Final = _HELD.format("elsewhere")
_AT_ONCE: Final = 2_000


class FollowStateError(SidstreamError):
    """The state of a publisher cannot be used; says what to do."""


class ItemChange(NamedTuple):
    """``digest`` of what is sent for an item, empty for a tombstone; ``file`` and ``reading``: where it was seen."""

    id: str
    digest: bytes
    file: int
    reading: int


class FollowedFile(NamedTuple):
    """``signature``: of its content when it was read whole last, empty before; ``reading``: the number of that reading, or of
    the one that is under way.
    """

    number: int
    name: str
    signature: str
    reading: int


class FollowState:
    """The state in a directory; a context manager, and one process at a time."""

    def __init__(self, directory: Path, lock: IO[bytes], database: sqlite3.Connection) -> None:
        self._directory, self._lock, self._database = directory, lock, database

    @classmethod
    def open(cls, directory: Path, facts: Mapping[str, str]) -> Self:
        """Opens or makes it. ``facts``: what it is of (source, topic); with other ones it is refused.

        Raises ``FollowStateError``: another process has it, it is of something else, or it is damaged.
        """
        try:
            directory.mkdir(parents=True, exist_ok=True)
            lock = (directory / "lock").open("wb")
        except OSError as error:
            raise FollowStateError(f"the state {directory} cannot be written: {error.strerror or error}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            raise FollowStateError(
                f"another `sidstream publish` has the state {directory}: give each one its own --state"
            ) from None
        try:
            database = sqlite3.connect(directory / "published.sqlite", isolation_level=None)
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("PRAGMA synchronous=FULL")  # a batch that the broker has may not be forgotten
            database.executescript(_TABLES)
            known = dict(database.execute("SELECT name, value FROM facts"))
            wanted = {**facts, "version": _VERSION}
            if not known:
                known = {
                    **wanted,
                    "identity": secrets.token_hex(8),
                    "finished": "0",
                    "dimension": "0",
                    "drawn": "0",
                    "elsewhere": _KNOWN,
                }
                database.executemany("INSERT INTO facts VALUES (?, ?)", known.items())
            elif known == {**known, **facts, "version": _BEFORE}:
                _upgrade(database)
                known["version"] = _VERSION
        except sqlite3.Error as error:
            lock.close()
            raise FollowStateError(
                f"the state {directory} is damaged ({error}): name another one with --state"
            ) from error
        state = cls(directory, lock, database)
        for name, value in wanted.items():
            if known.get(name) != value:
                state.close()
                raise FollowStateError(
                    f"the state {directory} is of another {name} ({known.get(name)}, not {value}): name another one with "
                    "--state; everything is then published once more"
                )
        return state

    @property
    def identity(self) -> str:
        """Drawn when the state was made: two states are never one publisher."""
        return str(self._fact("identity"))

    @property
    def finished(self) -> int:
        """How many batches were sent."""
        return int(self._fact("finished"))

    @property
    def dimension(self) -> int | None:
        """D of the embeddings; None before the first."""
        return int(self._fact("dimension")) or None

    def note_dimension(self, dimension: int) -> None:
        """All rows have so many numbers from now on."""
        self._database.execute("UPDATE facts SET value = ? WHERE name = 'dimension'", (str(dimension),))

    def files(self) -> dict[str, FollowedFile]:
        """Every file that was read, by its name."""
        rows = self._database.execute("SELECT number, name, signature, reading FROM files")
        return {row[1]: FollowedFile(*row) for row in rows}

    def begin_file(self, name: str) -> FollowedFile:
        """The file as it is to be read now, in a reading of its own: at its end, what only a stopped one saw is not in it.

        Until then it counts as not read: if this reading is stopped, the file is read again, also where it is as it was before.
        """
        number = self._draw()
        self._database.execute(
            "INSERT OR IGNORE INTO files (number, name, signature, reading) VALUES (?, ?, '', 0)", (number, name)
        )
        self._database.execute("UPDATE files SET signature = '' WHERE name = ?", (name,))
        row = self._database.execute("SELECT number, name, signature, reading FROM files WHERE name = ?", (name,))
        return FollowedFile(*row.fetchone())._replace(reading=number)

    def begin_again(self, file: FollowedFile) -> FollowedFile:
        """The same file, to be read again as it was: what it passes on is told from the rest by this reading's number."""
        return file._replace(reading=self._draw())

    def end_file(self, file: FollowedFile, signature: str, *, nameless: bool) -> None:
        """The file was read to its end: what this reading did not see is not in it. ``nameless``: a row of it has no id."""
        self._database.execute(
            "UPDATE files SET signature = ?, reading = ?, nameless = ? WHERE number = ?",
            (signature, file.reading, nameless, file.number),
        )

    def note_nameless(self, file: FollowedFile, *, nameless: bool) -> None:
        """Whether a row of the file has no id; a state of version 1 does not know it of the files that were read by then."""
        self._database.execute("UPDATE files SET nameless = ? WHERE number = ?", (nameless, file.number))

    def any_nameless(self) -> bool:
        """Whether a file has a row without an id, which may be any item."""
        return self._database.execute("SELECT 1 FROM files WHERE nameless LIMIT 1").fetchone() is not None

    def lose_file(self, file: FollowedFile) -> None:
        """The file is not there any more: none of its items is in it. Its number is never another file's."""
        self._database.execute("DELETE FROM files WHERE number = ?", (file.number,))

    def digests(self, ids: Sequence[str]) -> dict[str, bytes]:
        """What was sent of these ids, of those that were sent."""
        return dict(self._database.execute(f"SELECT id, digest FROM items WHERE id IN ({_marks(ids)})", ids))

    def settled(self, ids: Sequence[str], file: FollowedFile) -> set[str]:
        """Those of the ids whose content is that of a file that has them; but for what this file passed on (``begin_again``)."""
        rows = self._database.execute(
            f"SELECT id FROM items WHERE id IN ({_marks(ids)}) AND {_ITEM_HELD} AND NOT (file = ? AND reading > "
            "(SELECT reading FROM files WHERE number = items.file))",
            (*ids, file.number),
        )
        return {row[0] for row in rows}

    def saw(self, ids: Sequence[str], file: FollowedFile) -> None:
        """Items that are in the file as they were sent before: this file counts for them now."""
        with self._database:
            self._database.execute("BEGIN")
            self._count_for(ids, file.number, file.reading)

    def saw_refused(self, ids: Sequence[str], file: FollowedFile) -> None:
        """Ids of rows that cannot be taken: they are in the file, and what was sent of them stays."""
        known = self.digests(ids)
        self.saw(list(known), file)
        with self._database:
            self._database.execute("BEGIN")
            self._database.executemany(
                "INSERT OR REPLACE INTO elsewhere VALUES (?, ?, ?)",
                ((one, file.number, file.reading) for one in ids if one not in known),
            )

    def saw_elsewhere(self, ids: Sequence[str], file: FollowedFile) -> None:
        """Items that are in the file, while another one counts for them."""
        self._database.execute(
            f"INSERT OR REPLACE INTO elsewhere SELECT id, ?, ? FROM items WHERE id IN ({_marks(ids)}) AND file <> ?",
            (file.number, file.reading, *ids, file.number),
        )

    def saw_all(self, file: FollowedFile) -> None:
        """Whatever was in the file counts as seen: a row of it names no item, and may be any of them."""
        with self._database:
            self._database.execute("BEGIN")
            for table in ("items", "elsewhere"):
                self._database.execute(f"UPDATE {table} SET reading = ? WHERE file = ?", (file.reading, file.number))

    @property
    def knows_elsewhere(self) -> bool:
        """Whether ``elsewhere`` is whole; it is not in a state of version 1 until all files were read again."""
        return self._fact("elsewhere") == _KNOWN

    def note_elsewhere(self) -> None:
        """All files were read again."""
        self._database.execute("UPDATE facts SET value = ? WHERE name = 'elsewhere'", (_KNOWN,))

    def heir(self) -> FollowedFile | None:
        """The file that was read last among those that have an item which the file that counted for it has no more."""
        row = self._database.execute(
            "SELECT number, name, signature, reading FROM files WHERE number IN (SELECT elsewhere.file FROM elsewhere "
            f"JOIN items USING (id) WHERE {_HELD_ELSEWHERE} AND NOT {_ITEM_HELD}) ORDER BY reading DESC LIMIT 1"
        ).fetchone()
        return None if row is None else FollowedFile(*row)

    def inherit(self, file: FollowedFile) -> None:
        """The file counts for all that it has and that the file which counted before has no more."""
        while ids := [
            row[0]
            for row in self._database.execute(
                f"SELECT id FROM elsewhere JOIN items USING (id) WHERE elsewhere.file = ? AND {_HELD_ELSEWHERE} "
                f"AND NOT {_ITEM_HELD} LIMIT ?",
                (file.number, _AT_ONCE),
            )
        ]:
            self.saw(ids, file)

    def missing(self) -> Iterator[list[str]]:
        """Ids of items that no file has; some thousands at a time. They may be finished as tombstones between two of them."""
        last = ""
        while True:
            rows = self._database.execute(
                f"SELECT id FROM items WHERE id > ? AND NOT {_ITEM_HELD} AND NOT EXISTS (SELECT 1 FROM elsewhere "
                f"WHERE elsewhere.id = items.id AND {_HELD_ELSEWHERE}) ORDER BY id LIMIT ?",
                (last, _AT_ONCE),
            )
            ids = [row[0] for row in rows]
            if not ids:
                return
            last = ids[-1]
            yield ids

    def sweep(self) -> None:
        """Forgets where ids were and are no more."""
        self._database.execute(f"DELETE FROM elsewhere WHERE NOT {_HELD_ELSEWHERE}")

    def open_batch(self) -> tuple[int, list[ItemChange]] | None:
        """The batch that was begun and not finished: its number and its changes."""
        row = self._database.execute("SELECT number, changes FROM batch").fetchone()
        return None if row is None else (row[0], msgspec.msgpack.decode(row[1], type=list[ItemChange]))

    def begin(self, changes: Sequence[ItemChange]) -> int:
        """Writes down what is to be sent now; the batch's number."""
        number = self.finished + 1
        encoded = msgspec.msgpack.encode(list(changes))
        self._database.execute("INSERT OR REPLACE INTO batch VALUES (?, ?)", (number, encoded))
        return number

    def finish(self, number: int, changes: Sequence[ItemChange]) -> None:
        """The broker has the batch."""
        with self._database:
            self._database.execute("BEGIN")
            for table in ("items", "elsewhere"):
                self._database.executemany(
                    f"DELETE FROM {table} WHERE id = ?", ((one.id,) for one in changes if not one.digest)
                )
            sent = [one for one in changes if one.digest]
            for file, reading in {(one.file, one.reading) for one in sent}:
                self._count_for([one.id for one in sent if one.file == file], file, reading)
            self._database.executemany("INSERT OR REPLACE INTO items VALUES (?, ?, ?, ?)", sent)
            self._database.execute("UPDATE facts SET value = ? WHERE name = 'finished'", (str(number),))
            self._database.execute("DELETE FROM batch")

    def drop_batch(self) -> None:
        """The open batch was not sent."""
        self._database.execute("DELETE FROM batch")

    def _count_for(self, ids: Sequence[str], file: int, reading: int) -> None:
        """The file counts for these items; one that did before has them elsewhere."""
        marks = _marks(ids)
        self._database.execute(
            f"INSERT OR REPLACE INTO elsewhere SELECT id, file, reading FROM items WHERE id IN ({marks}) AND file <> ?",
            (*ids, file),
        )
        self._database.execute(f"DELETE FROM elsewhere WHERE file = ? AND id IN ({marks})", (file, *ids))
        self._database.execute(f"UPDATE items SET file = ?, reading = ? WHERE id IN ({marks})", (file, reading, *ids))

    def _draw(self) -> int:
        """A number that was never a file's nor a reading's."""
        drawn = int(self._fact("drawn")) + 1
        self._database.execute("UPDATE facts SET value = ? WHERE name = 'drawn'", (str(drawn),))
        return drawn

    def _fact(self, name: str) -> str:
        value: str = self._database.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()[0]
        return value

    def close(self) -> None:
        """Lets another process have it."""
        self._database.close()
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _upgrade(database: sqlite3.Connection) -> None:
    """Version 1 counted the readings of each file by themselves: what is drawn from now on is above them and the files."""
    with database:
        database.execute("BEGIN")
        # One more: that of a reading that was stopped.
        database.execute(
            "INSERT INTO facts SELECT 'drawn', max(coalesce(max(reading), 0), coalesce(max(number), 0)) + 1 FROM files"
        )
        database.execute("INSERT INTO facts VALUES ('elsewhere', 'unknown')")
        database.execute("ALTER TABLE files ADD COLUMN nameless INTEGER NOT NULL DEFAULT 0")
        database.execute("UPDATE facts SET value = ? WHERE name = 'version'", (_VERSION,))


def _marks(ids: Sequence[str]) -> str:
    return ",".join("?" * len(ids))
