"""Directories that are complete only with their manifest: sizes and SHA-256 of every file, written last.

What must hold: a name in a manifest leads to a file inside the directory and never to one that can carry code; a
reader sees a directory's old manifest or its new one, whole, and never one whose files are not on the disk yet.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Final, Protocol

import msgspec

from models.directories import require_writable_directory, require_writable_file
from models.errors import SidstreamError

MANIFEST_FILE: Final = "manifest.json"
# Formats that can carry code (pickle) or that we never write: refused by name, before anything reads them.
_FORBIDDEN_SUFFIXES: Final = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".py", ".joblib", ".npy"})


class BundleError(SidstreamError):
    """A bundle (or a towers' directory) that is missing, incomplete, changed since it was written, or of another version."""


class FileRecord(msgspec.Struct, frozen=True):
    """Size in bytes and SHA-256 (hexadecimal) of one file."""

    size: int
    sha256: str


class Manifest(Protocol):
    """What every manifest has."""

    @property
    def files(self) -> dict[str, FileRecord]:
        """Name inside the directory → what it must be."""


def record_file(root: Path, name: str) -> FileRecord:
    """Size and SHA-256 of a file; refuses what must not be in a bundle."""
    path = inside(root, name)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileRecord(size=path.stat().st_size, sha256=digest)


def verify_file(root: Path, name: str, record: FileRecord, *, of: str, make_again: str, hashed: bool = True) -> None:
    """Raises ``BundleError`` if the file is missing or not what its record says; ``of``: what it belongs to."""
    path = inside(root, name)
    if not path.is_file():
        raise BundleError(f"{path} is missing: copy the {of} again, whole, or {make_again}")
    size = path.stat().st_size
    if size != record.size:
        raise BundleError(
            f"{path} has {size} bytes, the manifest says {record.size}: copy the {of} again, or {make_again}"
        )
    if hashed and record_file(root, name).sha256 != record.sha256:
        raise BundleError(f"{path} has changed since it was written (SHA-256): copy the {of} again, or {make_again}")


def write_manifest(root: Path, manifest: Manifest) -> None:
    """Makes every file durable, then the manifest, by an atomic replacement."""
    directories = {root}
    for name in manifest.files:
        path = inside(root, name)
        synchronise(path)
        directories.add(path.parent)
    temporary = root / f".{MANIFEST_FILE}-{secrets.token_hex(4)}"
    temporary.write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=1))
    synchronise(temporary)
    for directory in directories:
        synchronise(directory)
    os.replace(temporary, root / MANIFEST_FILE)
    synchronise(root)


def require_place(root: Path, names: Sequence[str], *, of: str, prefixes: Sequence[str] = ()) -> None:
    """Return if a directory may become what ``of`` names, or is one, whole or left unfinished; nothing is changed. Its files have
    these ``names``, or begin with one of ``prefixes``; hidden ones are nobody's.

    Raises:
        DirectoryError: the directory cannot be made or written to.
        FileTargetError: one of its files cannot be written.
        BundleError: without a manifest it holds something else, which would be mixed with these files.
    """
    require_writable_directory(root)
    if not root.is_dir():
        return
    if not (root / MANIFEST_FILE).exists():
        for path in sorted(root.iterdir()):
            if path.name not in names and not path.name.startswith((".", *prefixes)) and path.name != "lost+found":
                raise BundleError(
                    f"{root} is not empty and holds no {of} ({path.name} is there): choose another directory, or empty this one"
                )
    for name in (*names, MANIFEST_FILE):
        require_writable_file(root / name)


def inside(root: Path, name: str) -> Path:
    """Path of a manifest's file name; a name that leads out of the directory is refused."""
    pure = PurePosixPath(name)
    if not name or pure.is_absolute() or ".." in pure.parts or "\\" in name or "\0" in name or ":" in name:
        raise BundleError(
            f"the manifest of {root} names {name!r}, which leads out of the bundle: do not use this bundle"
        )
    if pure.suffix.lower() in _FORBIDDEN_SUFFIXES:
        raise BundleError(
            f"the manifest of {root} names {name!r}: only safetensors weights are accepted; convert the model first"
        )
    path = root / pure
    if not path.resolve().is_relative_to(root.resolve()):
        raise BundleError(f"{path} is a link out of the bundle: do not use this bundle")
    return path


def read_manifest_bytes(root: Path, *, missing: str) -> bytes:
    """The manifest as it is on the disk; ``missing``: the message for a directory without one."""
    path = root / MANIFEST_FILE
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(missing) from None
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}") from error


def synchronise(path: Path) -> None:
    """Return once a file, or the names in a directory, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
