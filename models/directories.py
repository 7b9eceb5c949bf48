"""A directory or a file that a person has named as a place to write to: made, tried or held, or refused in a sentence."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from models.errors import SidstreamError


class DirectoryError(SidstreamError):
    """A directory cannot be made, or written to, where it was asked for; says why."""


class FileTargetError(SidstreamError):
    """A file cannot be written where it was asked for; says why."""


def make_directory(directory: Path) -> Path:
    """``directory``, with those above it, made where it is not there yet.

    Raises:
        DirectoryError: something else has the name, or this user may not write there.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_be_made(directory, error) from error
    return directory


@contextmanager
def held_alone(directory: Path) -> Iterator[None]:
    """Holds a directory that is there for one process, until it ends; nothing is written. Where the file system has no locks,
    nobody is refused.

    Raises:
        DirectoryError: another process holds it.
    """
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        with suppress(OSError):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DirectoryError(
                    f"another sidstream writes into {directory}: wait until it has ended, or use another copy"
                ) from None
        yield
    finally:
        os.close(descriptor)


def require_writable_directory(directory: Path) -> None:
    """Return if ``directory`` can be made and written to; nothing is made and nothing stays behind. Ask before long work.

    Raises:
        DirectoryError: something else has the name, or this user may not write there.
    """
    try:
        if _is_there(directory) and not directory.is_dir():
            raise DirectoryError(f"{directory} is a file, not a directory: name another directory")
        _try_to_write(directory)
    except OSError as error:
        raise _cannot_be_made(directory, error) from error


def require_writable_file(file: Path) -> None:
    """Return if ``file`` can be written, whether it is there or not; what it holds stays as it is. Ask before long work.

    Raises:
        FileTargetError: a directory has the name, or this user may not write there.
    """
    try:
        if not _is_there(file):
            _try_to_write(file.parent)
        elif file.is_dir():
            raise FileTargetError(f"{file} is a directory, and a file is to be written: name another file")
        elif file.is_file():
            os.close(os.open(file, os.O_WRONLY | os.O_APPEND))
        elif not os.access(file, os.W_OK):  # a pipe, say: who opens one takes it from its reader
            raise PermissionError("this user may not write there")
    except OSError as error:
        raise FileTargetError(f"{file} cannot be written: {error.strerror or error}; name another file") from error


def _cannot_be_made(directory: Path, error: OSError) -> DirectoryError:
    what = "written to" if _is_directory(directory) else "made"
    return DirectoryError(f"{directory} cannot be {what}: {error.strerror or error}; name another directory")


def _is_directory(path: Path) -> bool:
    with suppress(OSError):
        return path.is_dir()
    return False


def _is_there(path: Path) -> bool:
    """Raises ``OSError`` where that cannot be found out, other than ``Path.exists`` also below a plain file."""
    try:
        path.stat()
    except FileNotFoundError:
        return False
    return True


def _try_to_write(directory: Path) -> None:
    """Writes a file without a name into ``directory``, or the nearest one above it that is there. Raises ``OSError``."""
    place = Path(os.path.realpath(directory))
    while not _is_there(place):
        place = place.parent
    with tempfile.TemporaryFile(dir=place):
        pass
