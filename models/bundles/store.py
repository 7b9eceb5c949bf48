"""The bundle store: several bundles side by side, ``<store>/<id>/``, each named by its content and never changed.

What must hold: a name leads to a whole bundle or to none, whenever the process that adds or removes one dies; a bundle that is
there stays as it is, so that whoever serves from it needs no copy of its own.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from models.bundles.bundle import Bundle
from models.bundles.manifest import MANIFEST_FILE, BundleError, synchronise

_ID: Final = re.compile(r"[0-9a-f]{16}")
_COMING: Final = ".coming-"
_GOING: Final = ".going-"
_STALE_SECONDS: Final = 86_400.0


class BundleStore:
    """Bundles of one directory, which is made when the first one is added."""

    def __init__(self, directory: Path | str) -> None:
        self.directory = Path(directory)

    def path(self, bundle_id: str) -> Path:
        """Where a bundle lies, or would. Raises ``BundleError`` for what is no id."""
        if not _ID.fullmatch(bundle_id):
            raise BundleError(
                f"{bundle_id!r} is no id of a bundle: one has 16 hexadecimal digits, as in {self.directory}"
            )
        return self.directory / bundle_id

    def __contains__(self, bundle_id: str) -> bool:
        return (self.path(bundle_id) / MANIFEST_FILE).is_file()

    def ids(self) -> tuple[str, ...]:
        """Of every bundle that is there, ascending."""
        if not self.directory.is_dir():
            return ()
        names = (path.name for path in self.directory.iterdir())
        return tuple(sorted(name for name in names if _ID.fullmatch(name) and name in self))

    def open(self, bundle_id: str, *, need_model: bool = False) -> Bundle:
        """The bundle, verified as ``Bundle.open`` does. Raises ``BundleError`` for one that is not there, or not itself."""
        path = self.path(bundle_id)
        if bundle_id not in self:
            raise BundleError(
                f"the bundle {bundle_id} is not in {self.directory}: copy it there from the machine that deployed it, whole"
            )
        bundle = Bundle.open(path, need_model=need_model)
        if bundle.id != bundle_id:
            raise BundleError(
                f"{path} holds the bundle {bundle.id}: it was changed in place; copy {bundle_id} there again"
            )
        return bundle

    def add(self, directory: Path | str) -> Bundle:
        """Copies the bundle of a directory into the store, unless it is there; every file's SHA-256 is checked.

        Raises ``BundleError`` if it is no bundle, or not whole, or changes meanwhile; the store stays as it was.
        """
        source = Bundle.open(directory)
        if source.id in self:
            return self.open(source.id, need_model=source.manifest.language_model is not None)
        self._sweep()
        self.directory.mkdir(parents=True, exist_ok=True)
        coming = self.directory / f"{_COMING}{secrets.token_hex(4)}"
        try:
            for name in (*source.manifest.files, MANIFEST_FILE):
                target = coming / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source.directory / name, target)
                synchronise(target)
                synchronise(target.parent)
            synchronise(coming)
            copied = Bundle.open(coming, need_model=source.manifest.language_model is not None)
            if copied.id != source.id:
                raise BundleError(f"the bundle {directory} was changed while it was copied: try again")
            try:
                os.rename(coming, self.directory / source.id)
            except OSError:  # another process was faster, with the same bytes
                if source.id not in self:
                    raise
            synchronise(self.directory)
        except FileNotFoundError as error:
            raise BundleError(f"the bundle {directory} was changed while it was copied ({error}): try again") from error
        finally:
            shutil.rmtree(coming, ignore_errors=True)
        return self.open(source.id)

    def find(self, name: str) -> Bundle:
        """The bundle that a person means: the path of a directory, an id of the store, or the beginning of just one.

        Raises ``BundleError`` with what there is.
        """
        if (Path(name) / MANIFEST_FILE).is_file():
            return Bundle.open(name)
        found = [bundle_id for bundle_id in self.ids() if bundle_id.startswith(name)] if name else []
        if len(found) == 1:
            return self.open(found[0])
        there = ", ".join(found or self.ids()) or "none"
        what = "begins several ids" if found else "is neither a bundle's directory nor an id"
        raise BundleError(f"{name!r} {what} of {self.directory}, which has: {there}")

    def remove(self, bundle_id: str) -> bool:
        """Takes a bundle away, at once for whoever looks for it; whether it was there."""
        path = self.path(bundle_id)
        if not path.exists():
            return False
        going = self.directory / f"{_GOING}{secrets.token_hex(4)}"
        os.rename(path, going)
        synchronise(self.directory)
        shutil.rmtree(going, ignore_errors=True)
        self._sweep()
        return True

    def size(self, bundle_id: str) -> int:
        """Bytes of its files, the manifest among them."""
        return sum(path.stat().st_size for path in self._files(self.path(bundle_id)))

    @staticmethod
    def _files(root: Path) -> Iterator[Path]:
        return (path for path in root.rglob("*") if path.is_file())

    def _sweep(self) -> None:
        """Removes what processes that died have left; what is coming may still come, unless it has been coming for a day."""
        if not self.directory.is_dir():
            return
        for path in self.directory.iterdir():
            old = path.name.startswith(_COMING) and time.time() - path.stat().st_mtime > _STALE_SECONDS
            if old or path.name.startswith(_GOING):
                shutil.rmtree(path, ignore_errors=True)
