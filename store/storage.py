"""How large an index is on its disk, and which open snapshot keeps its pages from being reused."""

from __future__ import annotations

import shutil
from typing import NamedTuple

from store import environment


class IndexStorage(NamedTuple):
    """Bytes of address space, of the pages that were ever in use (the file grows no smaller), and free on its disk."""

    map_bytes: int
    used_bytes: int
    disk_free_bytes: int


class OldestReader(NamedTuple):
    """The oldest snapshot that is open: the commit ``began`` that it sees, how many came since, and whose it is."""

    began: int
    transactions: int
    processes: tuple[int, ...]


def storage_of(index: environment.Environment) -> IndexStorage:
    """Sizes as they are now; reads no data."""
    info = index.lmdb.info()
    page = int(index.lmdb.stat()["psize"])
    return IndexStorage(
        map_bytes=int(info["map_size"]),
        used_bytes=(int(info["last_pgno"]) + 1) * page,
        disk_free_bytes=shutil.disk_usage(index.path).free,
    )


def oldest_reader_of(index: environment.Environment) -> OldestReader | None:
    """The snapshot that keeps most pages from being reused, in whatever process; ``None`` if none is open."""
    # LMDB tells its readers as a table for people: process, thread, commit; "-" for a slot that is not in use.
    rows = [line.split() for line in index.lmdb.readers().splitlines()[1:]]
    open_ = [(int(row[2]), int(row[0])) for row in rows if len(row) == 3 and row[2].isdigit()]
    if not open_:
        return None
    began = min(open_)[0]
    last = int(index.lmdb.info()["last_txnid"])
    return OldestReader(began, last - began, tuple(sorted({process for at, process in open_ if at == began})))
