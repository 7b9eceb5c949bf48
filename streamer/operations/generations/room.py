"""What a second generation needs on this machine before anything of it is made, and whether there is room for it.

Estimates from what the first one takes: a fresh index of the same items is about as large as theirs, and so is its topic.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

from models.bundles.bundle import Bundle
from models.bundles.store import BundleStore
from models.errors import SidstreamError
from store.files.environment import DATA_FILE
from store.files.memory import available_memory
from store.reading.reader import IndexReader
from streamer.deployments.pipelines import DeploymentError
from streamer.settings import Settings

# An assigner with its encoder and an indexer; measured, without the index' pages, which the kernel takes back.
_PROCESSES_BYTES: Final = 400 << 20
_SPARE: Final = 1.1
_BYTES_A_NUMBER: Final = 4
_BYTES_A_PATH: Final = 8


class Need(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of one kind: what for, where, how many are needed and how many are free there; None where that is not known."""

    what: str
    where: str
    needed: int
    free: int | None

    @property
    def met(self) -> bool:
        return self.free is None or self.needed <= self.free


def needs(settings: Settings, bundle: Bundle, *, new_codebook: bool) -> tuple[Need, ...]:
    """Disk by file system, then memory. ``settings``: of what answers; ``new_codebook``: it gets an index too."""
    disk: dict[int, tuple[list[str], Path, int]] = {}

    def add(what: str, where: Path, size: int) -> None:
        place = _existing(where)
        device = place.stat().st_dev
        named, first, before = disk.get(device, ([], where, 0))
        disk[device] = ([*named, what], first, before + size)

    weights = sum(record.size for record in bundle.manifest.files.values())
    if bundle.id not in BundleStore(settings.bundles):
        add("the bundle", settings.bundles, weights)
    items = _items(settings.index)
    if new_codebook:
        add("an index", settings.indexes, int(_used(settings.index / DATA_FILE) * _SPARE))
        logs = settings.broker.directory
        codes = sum(_used(path) for path in logs.glob(f"**/{settings.topics.item_codes}-[0-9]*/*"))
        if codes:
            add("a topic of codes", logs, int(codes * _SPARE))
    memory = weights
    if bundle.manifest.dense is not None and settings.retriever.dense:
        memory += items * bundle.manifest.dimension * _BYTES_A_NUMBER
    memory += items * _BYTES_A_PATH + (_PROCESSES_BYTES if new_codebook else 0)
    found = [
        Need(what=" and ".join(named), where=str(where), needed=size, free=shutil.disk_usage(_existing(where)).free)
        for named, where, size in disk.values()
    ]
    what = "the retriever's second generation" + (", an assigner and an indexer" if new_codebook else "")
    return (*found, Need(what=what, where="memory", needed=memory, free=available_memory()))


def require_room(found: Iterable[Need], *, force: bool) -> None:
    """Return if it is there; what memory holds is an estimate that ``force`` overrides, a full disk stops what answers too.

    Raises:
        DeploymentError: names what is missing, and what to do.
    """
    for need in found:
        if need.met or (force and need.where == "memory"):
            continue
        more = "or --force, if other programs give theirs back" if need.where == "memory" else "or name another place"
        raise DeploymentError(
            f"{need.what} needs about {megabytes(need.needed)} ({need.where}), and {megabytes(need.free or 0)} are free: make "
            f"room (`sidstream retire` an old bundle), {more}; nothing was changed"
        )


def megabytes(count: int) -> str:
    """For a person."""
    return f"{count / 1e6:,.1f} MB"


def _items(index: Path) -> int:
    try:
        with IndexReader(index) as reader, reader.snapshot() as snapshot:
            return snapshot.item_count
    except SidstreamError:  # none yet, or none that can be read: others say so
        return 0


def _used(file: Path) -> int:
    """Bytes that a file takes, without its holes."""
    try:
        return file.stat().st_blocks * 512
    except OSError:
        return 0


def _existing(path: Path) -> Path:
    """The nearest directory that is there."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path
