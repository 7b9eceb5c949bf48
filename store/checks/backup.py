"""Copies of an index that are whole or not there: a backup made while the index is written, and its way back.

What must hold: a directory under its final name was copied from one snapshot, written to the disk, opened and verified;
whatever interrupts this leaves a directory called ``.NAME.….incomplete``, which nobody uses and anyone may delete.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import lmdb
import msgspec

from models.bundles.manifest import synchronise
from models.directories import make_directory
from store.checks.verification import verify
from store.errors import BackupError, IndexLockedError, IndexMissingError, StoreError
from store.files import environment
from store.files.data_file import require_sound_pages
from store.files.environment import LOCK_FILE, lock_directory, unlock, writer_of
from store.reading.facts import read_facts_of_any_format, renew_lineage
from store.reading.reader import IndexReader
from store.records.encoding import FORMAT_VERSION
from store.writing.transactions import in_transaction
from store.writing.upgrade import upgrade

MANIFEST_FILE: Final = "backup.json"
# What an index directory may hold without holding an index.
_LOCK_FILES: Final = frozenset({LOCK_FILE, "lock.mdb"})


class IndexCopy(msgspec.Struct, frozen=True, kw_only=True):
    """What a copied index holds; times in milliseconds since the epoch, ``position`` the next offset per topic/partition,
    ``log_ids`` what Kafka called the logs that it was read from.

    The manifest of a backup, too: a restored index must have this digest.
    """

    codebook: str
    layers: int
    size: int
    items: int
    digest: str
    position: dict[str, int]
    last_commit_at: int
    bytes: int
    log_ids: dict[str, str] = {}
    partitions: str = ""
    """Those of the topic of codes that it holds; empty: all."""


def has_index(directory: Path) -> bool:
    """Whether there is an index, or whatever else is in the way of one."""
    return directory.exists() and (not directory.is_dir() or bool(set(os.listdir(directory)) - _LOCK_FILES))


def back_up(index: Path, target: Path) -> IndexCopy:
    """Copies the index, which may be written meanwhile, to the new directory ``target``.

    The copy is one committed state. While it lasts, pages that the writer frees are not reused: the index may grow. The copy
    of an index of an older format is upgraded; the index itself stays as it is.

    Raises:
        BackupError: ``target`` exists, the disk is full, or the copy is not sound.
        IndexMissingError: there is no index.
    """
    if os.path.lexists(target):
        raise BackupError(f"{target} exists already and is left as it is: name a directory that is not there yet")
    with _incomplete(target) as unfinished:
        _copy(index, unfinished)
        with _told_of(index, unfinished):
            _bring_up(unfinished)
            copied = _inspected(unfinished)
        _write(unfinished / MANIFEST_FILE, msgspec.json.format(msgspec.json.encode(copied)) + b"\n")
        _finish(unfinished, target)
    return copied


def restore(
    backup: Path,
    index: Path,
    *,
    replace: bool = False,
    accept: Callable[[IndexCopy], None] = lambda _copy: None,
    clock: Callable[[], float] = time.time,
) -> tuple[IndexCopy, Path | None]:
    """Copies a backup, or any index that nobody writes, to the directory ``index``; where the old one is now, if any.

    One of an older format is upgraded on its way.

    ``accept`` hears what the copy holds and raises to refuse it; up to then nothing has changed.

    Raises:
        IndexLockedError: a writer runs.
        BackupError: an index is there and ``replace`` is not given, or the backup is damaged.
    """
    if not (backup / environment.DATA_FILE).exists():
        raise IndexMissingError(f"{backup} holds no index: name a directory that `sidstream backup` made")
    if os.path.realpath(backup) == os.path.realpath(index):
        raise BackupError(f"{backup} is the index itself: name the backup that is to take its place")
    if index.exists() and not index.is_dir():
        raise BackupError(f"{index} is a file and is left as it is: the index is a directory")
    make_directory(index)
    if writer := writer_of(index):
        raise IndexLockedError(
            f"The index {index} is being written by process {writer}. Stop that indexer, restore, then start it again"
        )
    lock = lock_directory(index)  # moves along with the old directory: no indexer starts on it before it is aside
    try:
        occupied = has_index(index)
        if occupied and not replace:
            raise BackupError(
                f"there is an index in {index}: with --replace it is moved aside and the backup takes its place"
            )
        with _incomplete(index) as unfinished:
            _copy(backup, unfinished)
            with _told_of(backup, unfinished):
                _bring_up(unfinished, restored=True)
                copied = _inspected(unfinished)
            _compare_with_manifest(backup, copied)
            accept(copied)
            aside = None
            try:
                if occupied:
                    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(clock()))
                    aside = _unused(index.with_name(f"{index.name}.replaced-{stamp}"))
                    os.rename(index, aside)
                else:
                    for name in _LOCK_FILES:
                        (index / name).unlink(missing_ok=True)
                    index.rmdir()
                _finish(unfinished, index)
            except OSError as error:
                if aside is not None and aside.exists() and not index.exists():
                    os.rename(aside, index)
                raise BackupError(
                    f"the directory {index} cannot be exchanged: {error}. If it is the mount point of a volume, mount the "
                    "volume one level up, so that the index is a directory inside it"
                ) from error
    finally:
        unlock(lock)
    return copied, aside


def _bring_up(copy: Path, *, restored: bool = False) -> None:
    """Upgrades a copy of an older format; ``restored``: gives it a lineage of its own.

    A restored index counts on from the backup's commit, over numbers that the index in its place has used for other changes.
    Whoever keeps something made from that one must not take the two for one history (``Snapshot.incarnation``). The commit
    log goes along: it is right for the copy.
    """
    require_sound_pages(copy / environment.DATA_FILE)
    shared = environment.acquire(copy, write=True)
    try:
        if shared.open_databases(create=False):
            with shared.lmdb.begin() as transaction:
                facts = read_facts_of_any_format(transaction, shared.databases, copy)
            if facts.format_version != FORMAT_VERSION:
                upgrade(shared, facts)
            if restored:
                in_transaction(shared, lambda transaction: renew_lineage(transaction, shared.databases))
    finally:
        environment.release(shared)
    synchronise(copy / environment.DATA_FILE)


def _inspected(directory: Path) -> IndexCopy:
    """What an index that nobody else uses, and whose pages are sound, holds, after a full check.

    Raises:
        BackupError: paths, items and census disagree.
    """
    with IndexReader(directory) as reader, reader.snapshot() as snapshot:
        faults = verify(snapshot)
        if faults:
            raise BackupError(
                f"{directory} is not sound: {' '.join(faults)} Nothing was kept of the copy. Check the index with "
                "`sidstream verify`, or rebuild it from Kafka with `sidstream rebuild`"
            )
        return IndexCopy(
            codebook=snapshot.codebook_id,
            layers=snapshot.layers,
            size=snapshot.size,
            items=snapshot.item_count,
            digest=snapshot.digest(),
            position={f"{topic}/{number}": offset for (topic, number), offset in snapshot.position.items()},
            last_commit_at=snapshot.last_commit_at,
            bytes=(directory / environment.DATA_FILE).stat().st_size,
            log_ids=snapshot.log_ids,
            partitions=snapshot.partitions,
        )


@contextmanager
def _told_of(source: Path, copy: Path) -> Iterator[None]:
    """What is wrong with a copy is told of its source, whose path a person knows: the copy is removed."""
    try:
        yield
    except StoreError as error:
        said = str(error)
        for name in sorted(
            {str(copy), os.path.realpath(copy)}, key=len, reverse=True
        ):  # one may begin within the other
            said = said.replace(name, str(source))
        raise type(error)(said) from error


def _copy(source: Path, target: Path) -> None:
    """One committed state of ``source`` into the empty directory ``target``, on the disk when this returns."""
    shared = environment.acquire(source, write=False)
    try:
        while True:
            try:
                # Never compact=True: the compacting copy of lmdb 3.0.0 ends the process with a segmentation fault on a
                # database of sorted fixed-size duplicates, and `paths` is one. A plain copy also holds the free pages.
                shared.lmdb.copy(str(target), compact=False)
                break
            except lmdb.MapResizedError:
                # The writer has grown the map since we opened it. The empty file is in the way of another attempt.
                shared.resize(0)
                (target / environment.DATA_FILE).unlink(missing_ok=True)
    except (lmdb.Error, OSError) as error:
        raise BackupError(
            f"{source} could not be copied: {error}. Is there room on the disk of {target.parent}?"
        ) from error
    finally:
        environment.release(shared)
    synchronise(target / environment.DATA_FILE)


def _compare_with_manifest(backup: Path, copied: IndexCopy) -> None:
    try:
        manifest = msgspec.json.decode((backup / MANIFEST_FILE).read_bytes(), type=IndexCopy)
    except FileNotFoundError:
        return  # an index that `sidstream rebuild` made, say
    except msgspec.DecodeError as error:
        raise BackupError(f"{backup / MANIFEST_FILE} cannot be read ({error}): the backup is damaged") from None
    if manifest.digest != copied.digest:
        raise BackupError(
            f"the backup {backup} is damaged: its items have the digest {copied.digest}, and had {manifest.digest} when it "
            "was made. Use another backup, or rebuild the index from Kafka with `sidstream rebuild`"
        )


@contextmanager
def _incomplete(target: Path) -> Iterator[Path]:
    """A new directory beside ``target`` for what is not finished; gone at the end unless it was renamed."""
    make_directory(target.parent)
    try:
        unfinished = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".incomplete", dir=target.parent))
    except OSError as error:
        raise BackupError(f"{target} cannot be written: {error.strerror or error}") from error
    unfinished.chmod(0o777 & ~_umask())
    try:
        yield unfinished
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _finish(unfinished: Path, target: Path) -> None:
    """The last step: everything is on the disk, then it gets its name, then the name is on the disk."""
    (unfinished / "lock.mdb").unlink(missing_ok=True)  # of the check, whose process ends
    synchronise(unfinished)
    os.rename(unfinished, target)
    synchronise(target.parent)


def _unused(path: Path) -> Path:
    number, candidate = 1, path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    synchronise(path)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
