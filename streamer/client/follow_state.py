"""What a publisher that follows a table has published: on the disk, beside nothing else.

What must hold: an item is in here as the topic has it, whatever kills the process. So a batch is written down before it is sent
(``begin``), and counted once the broker has it (``finish``); what was begun and not finished, ``open_batch`` tells.

A SQLite database in a directory of its own, one process at a time: ``files`` (signature and how often each was read),
``items`` (digest of what was sent, and in which reading of which file it was seen last; file 0: no file has it any more),
``batch`` (the one that is begun).
"""

from __future__ import annotations

import fcntl
import secrets
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Final, NamedTuple, Self

import msgspec

from models.errors import SidstreamError

_VERSION: Final = "1"
_TABLES: Final = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS files
  (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, signature TEXT NOT NULL, reading INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS items
  (id TEXT PRIMARY KEY, digest BLOB NOT NULL, file INTEGER NOT NULL, reading INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS batch (number INTEGER PRIMARY KEY, changes BLOB NOT NULL);
"""
_LOST: Final = "items JOIN files ON number = file WHERE items.reading < files.reading"
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
    """``signature``: of its content when it was read whole last, empty before; ``reading``: the number of that reading."""

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
                known = {**wanted, "identity": secrets.token_hex(8), "finished": "0", "dimension": "0"}
                database.executemany("INSERT INTO facts VALUES (?, ?)", known.items())
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
        """The file as it is to be read now: its next reading, or the one that was stopped before its end."""
        self._database.execute("INSERT OR IGNORE INTO files (name, signature, reading) VALUES (?, '', 0)", (name,))
        row = self._database.execute("SELECT number, name, signature, reading FROM files WHERE name = ?", (name,))
        found = FollowedFile(*row.fetchone())
        return found._replace(reading=found.reading + 1)

    def end_file(self, file: FollowedFile, signature: str) -> None:
        """The file was read to its end."""
        self._database.execute(
            "UPDATE files SET signature = ?, reading = ? WHERE number = ?", (signature, file.reading, file.number)
        )

    def lose_file(self, file: FollowedFile) -> None:
        """The file is not there any more: none of its items is in it."""
        self._database.execute(
            "UPDATE files SET signature = '', reading = reading + 1 WHERE number = ?", (file.number,)
        )

    def digests(self, ids: Sequence[str]) -> dict[str, bytes]:
        """What was sent of these ids, of those that were sent."""
        marks = ",".join("?" * len(ids))
        return dict(self._database.execute(f"SELECT id, digest FROM items WHERE id IN ({marks})", ids))

    def saw(self, ids: Iterable[str], file: FollowedFile) -> None:
        """Items that are in the file as they were sent before."""
        with self._database:
            self._database.execute("BEGIN")
            self._database.executemany(
                "UPDATE items SET file = ?, reading = ? WHERE id = ?", ((file.number, file.reading, one) for one in ids)
            )

    def saw_all(self, file: FollowedFile) -> None:
        """Whatever was in the file counts as seen: a row of it names no item, and may be any of them."""
        self._database.execute("UPDATE items SET reading = ? WHERE file = ?", (file.reading, file.number))

    def any_lost(self) -> bool:
        """Whether a file has lost an item, and no other was asked for it yet."""
        return self._database.execute(f"SELECT 1 FROM {_LOST} LIMIT 1").fetchone() is not None

    def lost_of(self, ids: Sequence[str]) -> list[str]:
        """Those of these ids that their file has lost."""
        marks = ",".join("?" * len(ids))
        return [row[0] for row in self._database.execute(f"SELECT id FROM {_LOST} AND id IN ({marks})", ids)]

    def saw_lost(self, file: FollowedFile) -> None:
        """Whatever any file has lost counts as seen in this one: a row of it names no item, and may be any of them."""
        self._database.execute(
            f"UPDATE items SET file = ?, reading = ? WHERE id IN (SELECT id FROM {_LOST})", (file.number, file.reading)
        )

    def note_gone(self, ids: Sequence[str]) -> None:
        """No file has these, and they stay: none is asked for them again until it has changed."""
        with self._database:
            self._database.execute("BEGIN")
            self._database.executemany("UPDATE items SET file = 0, reading = 0 WHERE id = ?", ((one,) for one in ids))

    def missing(self) -> Iterator[list[str]]:
        """Ids of items that no file has, once all files were asked for what is lost; some thousands at a time.

        They may be finished as tombstones between two of them.
        """
        last = ""
        while True:
            rows = self._database.execute(
                "SELECT id FROM items LEFT JOIN files ON number = file WHERE (file = 0 OR items.reading < files.reading) "
                "AND id > ? ORDER BY id LIMIT ?",
                (last, _AT_ONCE),
            )
            ids = [row[0] for row in rows]
            if not ids:
                return
            last = ids[-1]
            yield ids

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
            self._database.executemany(
                "DELETE FROM items WHERE id = ?", ((one.id,) for one in changes if not one.digest)
            )
            self._database.executemany(
                "INSERT OR REPLACE INTO items VALUES (?, ?, ?, ?)", (one for one in changes if one.digest)
            )
            self._database.execute("UPDATE facts SET value = ? WHERE name = 'finished'", (str(number),))
            self._database.execute("DELETE FROM batch")

    def drop_batch(self) -> None:
        """The open batch was not sent."""
        self._database.execute("DELETE FROM batch")

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
