"""One writer per index directory: a lock that the kernel gives back when its process ends, however it ends.

What must hold: neither a ``kill -9`` nor a forked child keeps a lock that nobody uses.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Final

from store.errors import IndexLockedError

LOCK_FILE: Final = "writer.lock"


def lock_directory(directory: Path) -> int:
    """Takes the writer's lock; the kernel releases it when the process ends, however it ends."""
    descriptor = os.open(directory / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        raise IndexLockedError(
            f"The index {directory} is already being written by process {holder}. "
            "Stop that indexer, or start this one with another path."
        ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    _locks.add(descriptor)
    return descriptor


def writer_of(directory: Path) -> str | None:
    """The process id of the writer that runs on this directory, as it wrote it down; ``None`` if none does."""
    try:
        descriptor = os.open(directory / LOCK_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        # Held for an instant: only a writer that starts in it would be refused, and start again. Shared, so that two who
        # ask do not see each other.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
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
