"""Who has an index open, and its end: files go only when nobody reads or writes them."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from store.errors import IndexAccessError, IndexMissingError
from store.files.data_file import readers_of
from store.files.environment import DATA_FILE, LOCK_FILE, acquire, release, writer_of


def users_of(directory: Path) -> tuple[str, ...]:
    """Processes that have the index open: its writer as it calls itself, readers by their number; none for no index."""
    writer = writer_of(directory)
    found = [f"its indexer, process {writer}"] if writer else []
    try:
        environment = acquire(directory, write=False)
    except (IndexMissingError, IndexAccessError):  # none that anybody could read
        return tuple(found)
    try:
        own = {os.getpid(), int(writer.split()[0]) if writer and writer.split()[0].isdigit() else 0}
        found += [f"process {number}" for number in readers_of(environment.lmdb) if number not in own]
    finally:
        release(environment)
    return tuple(found)


def remove_index(directory: Path) -> bool:
    """Deletes the files of an index, and its directory if nothing else is in it; whether there was an index."""
    there = (directory / DATA_FILE).exists()
    for name in (DATA_FILE, "lock.mdb", LOCK_FILE):
        (directory / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        directory.rmdir()
    return there
