"""The one LMDB environment that a process may have for a directory, shared by its readers and its writer; one writer a directory.

What must hold: never two environments for one directory in a process (LMDB's locks belong to the process), never use
across a fork, never a change of the map below an open snapshot. Growth of the map by another process is adopted here. The
kernel gives a writer's lock back when its process ends, however it ends: neither a ``kill -9`` nor a forked child keeps it.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import lmdb
import structlog

from store.errors import (
    REBUILD_ADVICE,
    IndexAccessError,
    IndexFullError,
    IndexLockedError,
    IndexMissingError,
    IndexUsageError,
)
from store.files.data_file import require_whole

MAXIMUM_READERS: Final = 256  # slots in the lock file: snapshots open at once on a host
DATA_FILE: Final = "data.mdb"
LOCK_FILE: Final = "writer.lock"
_DATABASES: Final[dict[str, dict[str, bool]]] = {
    "meta": {},  # first: all are created in one transaction, so who finds it finds the others
    "paths": {"dupsort": True, "dupfixed": True},  # since format 3
    "items": {},
    "ids": {},
    "free": {},
    "census": {},
    "offsets": {},
    "layouts": {},
    "deleted": {},  # since format 2, like the next
    "elsewhere": {},
    "changes": {},  # since format 3, like the next
    "attributes": {},
    "attribute_records": {},
}
# Of older formats, opened by the upgrade alone.
_FORMER_DATABASES: Final[dict[str, dict[str, bool]]] = {"trie": {"dupsort": True, "dupfixed": True}}
_SNAPSHOT_WAIT_SECONDS: Final = 30.0  # how long a change of the map waits for other threads' snapshots

_WAIT: Final = "wait until the indexer has created it."

_log = structlog.get_logger(__name__)


class Environment:
    """LMDB environment of one directory with its databases (``.databases[name]``); obtain it with :func:`acquire`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.databases: dict[str, Any] = {}
        self.references = 0
        self.writable = False
        self.opening = 0  # which opening of files by this process the current one is; 0 before the first
        self._environment: Any = None
        self._process = os.getpid()
        self._file: tuple[int, int] | None = None
        self._condition = threading.Condition(threading.RLock())
        self._snapshots: list[int] = []  # thread of each open snapshot
        self._awaiting = 0  # threads that wait for all of these to end

    @property
    def lmdb(self) -> Any:
        """The ``lmdb.Environment``; an error after close or in a forked child."""
        self.require_own_process()
        if self._environment is None:
            raise IndexUsageError(f"The index {self.path} was used after it was closed: open it again.")
        return self._environment

    def require_own_process(self) -> None:
        """Raises ``IndexUsageError`` in a forked child: whatever LMDB did there would damage the parent's locks."""
        if self._process != os.getpid():
            raise IndexUsageError(
                f"The index {self.path} was open when this process was forked, and LMDB does not survive a fork: "
                "fork before opening it, or start processes with 'spawn'."
            )

    def open(self, *, write: bool, map_size: int = 0) -> None:
        """Opens the files; ``write`` creates them where they are missing. ``map_size`` in bytes, 0 adopts the file's."""
        data = self.path / DATA_FILE
        try:
            exists = os.path.lexists(data) and data.stat().st_size >= 0
            empty = exists and data.is_file() and data.stat().st_size == 0
        except OSError as error:
            raise self._refused(error) from error
        if not write and not exists:
            raise IndexMissingError(f"There is no index in {self.path}: start the indexer with this path first.")
        if not write and empty:  # LMDB would try to write to it
            raise IndexMissingError(f"{self.path} holds no index yet: {_WAIT}")
        if exists and not empty:
            require_whole(data)
        try:
            self._environment = lmdb.open(
                str(self.path),
                map_size=0 if exists else map_size,  # 0 adopts the size that the last writer chose
                readonly=not write,
                metasync=False,  # a power failure may undo the last batch; its offsets are undone with it
                max_readers=MAXIMUM_READERS,
                max_dbs=len(_DATABASES) + len(_FORMER_DATABASES),
                max_spare_txns=2,
                readahead=False,  # an index larger than memory is read at random
            )
            if map_size > self._environment.info()["map_size"]:
                self._environment.set_mapsize(map_size)
            self._environment.reader_check()
        except (lmdb.Error, OSError) as error:
            self._environment = None
            raise self._refused(error) from error
        self.writable = write
        self.opening = next(_openings)
        self._file = self._file_now()

    def _refused(self, error: Exception) -> IndexAccessError:
        return IndexAccessError(
            f"The index {self.path} cannot be opened: {error}. Check that this user may write to the directory "
            f"(readers too: LMDB registers them in lock.mdb). {REBUILD_ADVICE}"
        )

    def open_databases(self, *, create: bool) -> bool:
        """Opens the databases that are there, or creates them; False as long as the directory holds no index."""
        if len(self.databases) == len(_DATABASES):
            return True
        databases = dict(self.databases)
        missing = {name: flags for name, flags in _DATABASES.items() if name not in databases}
        if create:
            with self.lmdb.begin(write=True) as transaction:
                for name, flags in missing.items():
                    databases[name] = self.lmdb.open_db(name.encode(), txn=transaction, **flags)
        else:
            for name, flags in missing.items():
                with suppress(lmdb.NotFoundError):  # another format may lack one: its version is read from "meta"
                    databases[name] = self.lmdb.open_db(name.encode(), create=False, **flags)
        if "meta" in databases:
            self.databases = databases
        return "meta" in databases

    def former_database(self, name: str) -> Any | None:
        """A database that only an older format has; ``None`` if it is not there (any more)."""
        try:
            return self.lmdb.open_db(name.encode(), create=False, **_FORMER_DATABASES[name])
        except lmdb.NotFoundError:
            return None

    @contextmanager
    def read(self) -> Iterator[Any]:
        """A read transaction (values as bytes); adopts a grown map and a directory that was replaced."""
        transaction = self._begin_read()
        thread = threading.get_ident()
        try:
            yield transaction
        except lmdb.Error as error:
            raise IndexAccessError(
                f"The index {self.path} is damaged, or its disk fails: {error}. {REBUILD_ADVICE}"
            ) from error
        finally:
            if self._process == os.getpid():  # an abort in a forked child would free the parent's reader slot
                transaction.abort()
            with self._condition:
                self._snapshots.remove(thread)
                self._condition.notify_all()

    def _begin_read(self) -> Any:
        with self._condition:
            self.require_own_process()
            if not self.writable and self.references and (not self._environment or self._file != self._file_now()):
                self._reopen()
            for attempt in range(3):
                try:
                    if not self.open_databases(create=False):
                        raise IndexMissingError(f"{self.path} holds no index yet: {_WAIT}")
                    transaction = self.lmdb.begin()
                    break
                except lmdb.MapResizedError:
                    self.resize(0)  # the writer has grown the map: 0 adopts its size
                except lmdb.ReadersFullError as error:
                    if attempt or not self.lmdb.reader_check():
                        raise IndexFullError(
                            f"All {MAXIMUM_READERS} reader slots of the index {self.path} are taken: "
                            "close snapshots, or run fewer readers on this host."
                        ) from error
                except lmdb.Error as error:
                    raise IndexAccessError(
                        f"The index {self.path} cannot be read: {error}. {REBUILD_ADVICE}"
                    ) from error
            else:
                raise IndexAccessError(f"The map of the index {self.path} grew three times during one read: try again.")
            self._snapshots.append(threading.get_ident())
            return transaction

    def resize(self, map_size: int) -> None:
        """Changes the size of the map (bytes; 0 adopts the writer's) once no snapshot of this process is open."""
        with self._condition:
            self._await_no_snapshots()
            self.lmdb.set_mapsize(map_size)

    def become_writable(self, map_size: int) -> None:
        """Reopens a read-only environment for the writer of the same process."""
        with self._condition:
            self._await_no_snapshots()
            if self._environment is not None:
                self._environment.close()
            self._environment, self.databases = None, {}
            self.open(write=True, map_size=map_size)

    @property
    def snapshots_are_awaited(self) -> bool:
        """Whether a thread of this process can go on only once its snapshots have ended."""
        return self._awaiting > 0

    def _await_no_snapshots(self) -> None:
        if threading.get_ident() in self._snapshots:
            raise IndexUsageError(
                f"The map of the index {self.path} must change while this thread holds a snapshot of it: "
                "close the snapshot before writing or before opening another one."
            )
        self._awaiting += 1
        try:
            if not self._condition.wait_for(lambda: not self._snapshots, _SNAPSHOT_WAIT_SECONDS):
                raise IndexUsageError(
                    f"A snapshot of the index {self.path} has been open for more than {_SNAPSHOT_WAIT_SECONDS:.0f} s "
                    "while its map must change: hold snapshots for one batch at most."
                )
        finally:
            self._awaiting -= 1

    def _reopen(self) -> None:
        """The directory was deleted and rebuilt, as our own messages advise: leave the old file, open the new one."""
        self._await_no_snapshots()
        if self._environment is not None:
            self._environment.close()
        self._environment, self.databases = None, {}
        self.open(write=False)
        _log.warning("index_replaced", path=str(self.path))

    def _file_now(self) -> tuple[int, int] | None:
        try:
            status = (self.path / DATA_FILE).stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino

    def close(self) -> None:
        """Closes the files; open snapshots become invalid."""
        if self._environment is not None and self._process == os.getpid():
            self._environment.close()
        self._environment, self.databases = None, {}


_openings = itertools.count(1)
_environments: dict[str, Environment] = {}
_guard = threading.RLock()


def acquire(path: Path, *, write: bool, map_size: int = 0) -> Environment:
    """The environment of a directory, opened on first use; every call needs its :func:`release`."""
    key = os.path.realpath(path)
    with _guard:
        environment = _environments.get(key)
        if environment is None:
            environment = Environment(Path(key))
            environment.open(write=write, map_size=map_size)
            _environments[key] = environment
        environment.require_own_process()
        if write and not environment.writable:
            environment.become_writable(map_size)
        environment.references += 1
        return environment


def release(environment: Environment) -> None:
    """Gives an environment back; the last one closes it."""
    with _guard:
        environment.references -= 1
        if environment.references == 0:
            environment.close()
            key = str(environment.path)
            if _environments.get(key) is environment:
                del _environments[key]


_HOLDER_BYTES: Final = 300


def lock_directory(directory: Path) -> int:
    """Takes the writer's lock; the kernel releases it when the process ends, however it ends."""
    descriptor = os.open(directory / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, _HOLDER_BYTES).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        raise IndexLockedError(
            f"The index {directory} is already being written by process {holder}. "
            "Stop that indexer, or start this one with another path."
        ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()} on {os.uname().nodename}\n".encode(), 0)
    _locks.add(descriptor)
    return descriptor


def writer_of(directory: Path) -> str | None:
    """The writer that runs on this directory, as it wrote it down, such as ``17 on shop-1``; ``None`` if none does.

    Two containers may have processes of one number: the host's name tells them apart.
    """
    try:
        descriptor = os.open(directory / LOCK_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        # Held for an instant: only a writer that starts in it would be refused, and start again. Shared, so that two who
        # ask do not see each other.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.read(descriptor, _HOLDER_BYTES).decode(errors="replace").strip() or "unknown"
    finally:
        os.close(descriptor)
    return None


def unlock(descriptor: int) -> None:
    """Gives the lock back; again does nothing."""
    if descriptor in _locks:
        _locks.discard(descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # also for a child forked a moment ago that still has it open
        os.close(descriptor)


_locks: set[int] = set()


def _after_fork_in_child() -> None:
    # A forked child shares the lock's file description: unless closed here, it would outlive a killed writer.
    for descriptor in _locks:
        os.close(descriptor)
    _locks.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
