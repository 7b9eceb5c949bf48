"""Where a table lies: a path of this machine, or an address that ``fsspec`` knows (``s3://…``, ``memory://…``, ``https://…``).

What must hold: a path needs no ``fsspec``; what cannot be reached is refused by its name; ``pyarrow`` reads both kinds alike.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from models.data_files import DataFileError
from models.errors import first_line

_LOCAL: Final = "file://"
# What others write while they are at it, or beside their data (Spark, Hadoop, editors).
_UNFINISHED: Final = (".tmp", ".temp", ".part", ".partial", ".crdownload", ".swp", "~")


@dataclass(frozen=True)
class Location:
    """A file or a folder. ``name``: as a person gave it; ``path``: within ``remote``, an fsspec filesystem, or on this
    machine.
    """

    name: str
    path: str
    remote: Any = None

    @classmethod
    def of(cls, address: str | Path) -> Location:
        """Of a path or an address. Raises ``DataFileError`` for an address that no installed filesystem knows."""
        text = str(address)
        if text.startswith(_LOCAL):
            text = text.removeprefix(_LOCAL)
        if not is_address(text):
            return cls(text, text)
        try:
            import fsspec
        except ImportError:
            raise DataFileError(
                f"{text} is an address, and addresses are read by fsspec, which is not installed: pip install "
                "'sidstream[remote]', or give a path"
            ) from None
        try:
            remote, path = fsspec.core.url_to_fs(text)
        except Exception as error:  # whatever the filesystem of that name raises, a missing package among it
            raise DataFileError(f"{text} cannot be opened: {_said(error)}") from error
        return cls(text, path, remote)

    def is_folder(self) -> bool:
        """Raises ``DataFileError`` if there is nothing."""
        try:
            if self.remote is None:
                if not os.path.exists(self.path):
                    raise DataFileError(f"no file or folder {self.name}; check the path")
                return os.path.isdir(self.path)
            return bool(self.remote.isdir(self.path))
        except DataFileError:
            raise
        except Exception as error:
            raise self.fault(error) from error

    def files(self) -> list[Location]:
        """What lies in the folder, in the order of the names; hidden and unfinished files are left out."""
        try:
            if self.remote is None:
                found = [entry.name for entry in os.scandir(self.path) if entry.is_file()]
            else:
                self.remote.invalidate_cache()  # a look sees what is there now
                listed = self.remote.ls(self.path, detail=True)
                found = [str(one["name"]).rstrip("/").rsplit("/", 1)[-1] for one in listed if one["type"] == "file"]
        except Exception as error:
            raise self.fault(error) from error
        return [self.joined(name) for name in sorted(found) if not _is_passing(name)]

    def joined(self, name: str) -> Location:
        """A file or folder of that name in this folder."""
        return Location(f"{self.name.rstrip('/')}/{name}", f"{self.path.rstrip('/')}/{name}", self.remote)

    def exists(self) -> bool:
        """Whether there is a file or folder."""
        try:
            return os.path.exists(self.path) if self.remote is None else bool(self.remote.exists(self.path))
        except Exception as error:
            raise self.fault(error) from error

    def open(self) -> BinaryIO:
        """The bytes. Raises ``DataFileError`` if they cannot be had."""
        try:
            if self.remote is None:
                return Path(self.path).open("rb")
            opened: BinaryIO = self.remote.open(self.path, "rb")
            return opened
        except Exception as error:
            raise self.fault(error) from error

    def arrow_file(self, *, mapped: bool = True) -> Any:
        """The file for pyarrow, at any place of which it can read. ``mapped``: into memory, where it lies on this machine; a file
        that is cut short while it is mapped ends the process.
        """
        from pyarrow import fs

        if self.remote is None:
            return fs.LocalFileSystem(use_mmap=mapped).open_input_file(self.path)
        return fs.PyFileSystem(fs.FSSpecHandler(self.remote)).open_input_file(self.path)

    def signature(self) -> str:
        """What changes when the file's content does: size and time, or what the filesystem says of it (its ETag, say)."""
        try:
            if self.remote is None:
                found = os.stat(self.path)
                return f"{found.st_size}-{found.st_mtime_ns}-{found.st_ino}"
            return str(self.remote.ukey(self.path))
        except Exception as error:
            raise self.fault(error) from error

    def fault(self, error: BaseException) -> DataFileError:
        """Why the file cannot be read, for a person."""
        if isinstance(error, FileNotFoundError):
            return DataFileError(f"no file {self.name}; check the path")
        return DataFileError(f"{self.name} cannot be read: {_said(error)}")


def is_address(text: str | Path) -> bool:
    """Whether this is an address and no path.

    >>> is_address("s3://shop/items.parquet"), is_address("shop/items.parquet")
    (True, False)
    """
    return "://" in str(text) and not str(text).startswith(_LOCAL)


def _is_passing(name: str) -> bool:
    return name.startswith((".", "_")) or name.endswith(_UNFINISHED)


def _said(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return first_line(error)
