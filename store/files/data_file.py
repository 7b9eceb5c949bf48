"""LMDB's file as the operating system sees it: whether it is whole, how large it is, and who keeps its pages from being reused.

LMDB maps its file into memory and believes what it says: a page that is missing ends the process with SIGBUS, whoever reads
it. So header, size and pages are read here by ordinary reads, before anything is mapped.

What must hold: a file that LMDB wrote is never called damaged, even while it is written; one that was cut never gets mapped.
"""

from __future__ import annotations

import os
import shutil
import stat
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from store.errors import REBUILD_ADVICE, IndexAccessError

_PAGE_HEADER: Final = struct.Struct("<QHHHH")  # number, padding, flags, end of the node pointers, start of the nodes
_DATABASE: Final = struct.Struct("<IHHQQQQQ")  # page size or key size, flags, depth, pages (3), entries, root
_META: Final = struct.Struct("<IIQQ")  # magic, version, address, map size
_MAGIC: Final = 0xBEEFC0DE
_VERSION: Final = 1
_NO_PAGE: Final = 2**64 - 1
_BRANCH, _LEAF, _OVERFLOW, _META_PAGE, _FIXED_LEAF = 0x01, 0x02, 0x04, 0x08, 0x20
# Of a node: its value lies on overflow pages, or is the record of another tree.
_BIG_DATA, _SUBTREE = 0x01, 0x02
_ATTEMPTS: Final = 20
_ATTEMPT_SECONDS: Final = 0.05


class _Damage(Exception):
    """What is wrong with the file."""


class _Meta(NamedTuple):
    page_bytes: int
    free_root: int
    main: bytes
    last_page: int
    transaction: int


def require_whole(path: Path) -> None:
    """Return if the file may be mapped; an empty one may not, but is left to the caller.

    Raises:
        IndexAccessError: it is no file of LMDB, cannot be read, or a part of it is missing.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise _Damage("it is a directory, and should be a file" if path.is_dir() else "it is no regular file")
        with path.open("rb", buffering=0) as file:
            _require_whole(file.fileno())
    except _Damage as damage:
        raise IndexAccessError(f"The index file {path} is damaged: {damage}. {REBUILD_ADVICE}") from None
    except OSError as error:
        raise IndexAccessError(
            f"The index file {path} cannot be read: {error.strerror}. Let this user read and write it. {REBUILD_ADVICE}"
        ) from error


def _require_whole(file: int) -> None:
    for attempt in range(_ATTEMPTS):
        meta = _newest_meta(file)
        size = os.fstat(file).st_size  # after the header: a writer writes pages first
        wanted = (meta.last_page + 1) * meta.page_bytes
        if size >= wanted:
            return
        # LMDB does not write pages that a transaction took and gave back: those may be missing, if they are free.
        first_missing = size // meta.page_bytes
        try:
            free = set(_free_pages(file, meta, first_missing))
            if free.issuperset(range(first_missing, meta.last_page + 1)):
                return
            damage = _Damage(f"it has {size:,} bytes and its header says {wanted:,}; it was cut, or copied in part")
        except _Damage as found:
            damage = _Damage(f"it has {size:,} bytes and its header says {wanted:,}; {found}")
        if _newest_meta(file).transaction == meta.transaction or attempt == _ATTEMPTS - 1:
            raise damage
        time.sleep(_ATTEMPT_SECONDS)  # it was written meanwhile


def _newest_meta(file: int) -> _Meta:
    first = _meta_at(file, 0)
    second = _meta_at(file, first.page_bytes)
    if first.page_bytes != second.page_bytes:
        raise _Damage("its two headers disagree")
    return max(first, second, key=lambda meta: meta.transaction)


def _meta_at(file: int, offset: int) -> _Meta:
    header = _read(file, offset, _PAGE_HEADER.size + _META.size + 2 * _DATABASE.size + 16)
    flags = _PAGE_HEADER.unpack_from(header)[2]
    magic, version, _, _ = _META.unpack_from(header, _PAGE_HEADER.size)
    if not flags & _META_PAGE or magic != _MAGIC:
        raise _Damage("its header is not one of LMDB")
    if version != _VERSION:
        raise _Damage(f"its header is of LMDB's format {version}, this one reads {_VERSION}")
    at = _PAGE_HEADER.size + _META.size
    page_bytes, *_, root = _DATABASE.unpack_from(header, at)
    last_page, transaction = struct.unpack_from("<QQ", header, at + 2 * _DATABASE.size)
    if not 512 <= page_bytes <= 65_536 or page_bytes & (page_bytes - 1) or last_page < 1 or last_page >= 2**48:
        raise _Damage(f"its header tells of {last_page:,} pages of {page_bytes:,} bytes")
    return _Meta(page_bytes, root, header[at + _DATABASE.size : at + 2 * _DATABASE.size], last_page, transaction)


def _free_pages(file: int, meta: _Meta, pages: int) -> Iterator[int]:
    """The numbers of all free pages, out of LMDB's own list of them: a tree of pages below ``pages``."""
    if meta.free_root == _NO_PAGE:
        return
    waiting, seen = [meta.free_root], 0
    while waiting:
        number = waiting.pop()
        seen += 1
        if number >= pages or seen > pages:
            raise _Damage(f"page {number:,} is missing")
        page, flags, nodes = _page_of(file, meta, number)
        for node in nodes:
            low, high, node_flags, key_bytes = struct.unpack_from("<HHHH", page, node)
            if flags & _BRANCH:
                waiting.append(low | high << 16 | node_flags << 32)
                continue
            value = page[node + 8 + key_bytes : node + 8 + key_bytes + (low | high << 16)]
            if node_flags & _BIG_DATA:
                [first] = struct.unpack("<Q", page[node + 8 + key_bytes : node + 16 + key_bytes])
                value = _read(file, first * meta.page_bytes + _PAGE_HEADER.size, low | high << 16)
            numbers = struct.unpack(f"<{len(value) // 8}Q", value)
            yield from numbers[1 : 1 + numbers[0]] if numbers else ()


def _read(file: int, offset: int, size: int) -> bytes:
    content = os.pread(file, size, offset) if offset < 2**62 else b""
    if len(content) < size:
        raise _Damage(f"it ends at {os.fstat(file).st_size:,} bytes, before what is at {offset:,}")
    return content


def require_sound_pages(path: Path) -> None:
    """Return if every page of every tree is where it should be and of the right kind: for a file that nobody writes.

    LMDB ends the process when it comes upon another one in some places. Reads everything but the items' own bytes.

    Raises:
        IndexAccessError: names the first page that is not.
    """
    require_whole(path)
    try:
        with path.open("rb", buffering=0) as file:
            meta = _newest_meta(file.fileno())
            waiting = [(meta.main, "the list of databases")]
            while waiting:
                tree, name = waiting.pop()
                waiting.extend((subtree, "a database") for subtree in _subtrees(file.fileno(), meta, tree, name))
    except _Damage as damage:
        raise IndexAccessError(f"The index file {path} is damaged: {damage}. {REBUILD_ADVICE}") from None


def _subtrees(file: int, meta: _Meta, tree: bytes, name: str) -> Iterator[bytes]:
    """The records of the trees inside of one, all of whose pages are looked at."""
    _, _, depth, *_, root = _DATABASE.unpack(tree)
    waiting = [] if root == _NO_PAGE else [(root, 1)]
    for number, level in waiting:
        page, flags, nodes = _page_of(file, meta, number)
        if (flags & _BRANCH == 0) == (level < depth) or level > depth:
            raise _Damage(f"page {number:,} of {name} holds something else than it should")
        if flags & _FIXED_LEAF:
            continue
        for node in nodes:
            low, high, node_flags, key_bytes = struct.unpack_from("<HHHH", page, node)
            if flags & _BRANCH:
                waiting.append((low | high << 16 | node_flags << 32, level + 1))
                if len(waiting) > meta.last_page:
                    raise _Damage(f"the pages of {name} go round in a circle")
                continue
            size, start = low | high << 16, node + 8 + key_bytes
            if node_flags & _BIG_DATA:
                _require_overflow(file, meta, page[start : start + 8], size)
            elif start + size > meta.page_bytes:
                raise _Damage(f"page {number:,} of {name} holds something else than it should")
            elif node_flags & _SUBTREE:
                if size != _DATABASE.size:
                    raise _Damage(f"page {number:,} of {name} holds something else than it should")
                yield page[start : start + size]


def _page_of(file: int, meta: _Meta, number: int) -> tuple[bytes, int, tuple[int, ...]]:
    """A page of a tree, its flags and where its nodes begin."""
    page = _read(file, number * meta.page_bytes, meta.page_bytes)
    at, _, flags, lower, upper = _PAGE_HEADER.unpack_from(page)
    sound = at == number and flags & (_BRANCH | _LEAF) and _PAGE_HEADER.size <= lower <= upper <= meta.page_bytes
    if sound and flags & _FIXED_LEAF:
        return page, flags, ()
    nodes = struct.unpack_from(f"<{(lower - _PAGE_HEADER.size) // 2}H", page, _PAGE_HEADER.size) if sound else ()
    if not sound or (nodes and (min(nodes) < upper or max(nodes) + 8 > meta.page_bytes)):
        raise _Damage(f"page {number:,} holds something else than it should")
    return page, flags, nodes


def _require_overflow(file: int, meta: _Meta, pointer: bytes, size: int) -> None:
    [number] = struct.unpack("<Q", pointer) if len(pointer) == 8 else [_NO_PAGE]
    header = _read(file, number * meta.page_bytes, _PAGE_HEADER.size)
    at, _, flags, low, high = _PAGE_HEADER.unpack(header)
    pages = low | high << 16
    if at != number or not flags & _OVERFLOW or pages * meta.page_bytes < _PAGE_HEADER.size + size:
        raise _Damage(f"page {number:,} holds something else than it should")


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


def storage_of(environment: Any, directory: Path) -> IndexStorage:
    """Sizes of an open ``lmdb.Environment`` as they are now; reads no data."""
    info = environment.info()
    page = int(environment.stat()["psize"])
    return IndexStorage(
        map_bytes=int(info["map_size"]),
        used_bytes=(int(info["last_pgno"]) + 1) * page,
        disk_free_bytes=shutil.disk_usage(directory).free,
    )


def oldest_reader_of(environment: Any) -> OldestReader | None:
    """The snapshot that keeps most pages from being reused, in whatever process; ``None`` if none is open."""
    # LMDB tells its readers as a table for people: process, thread, commit; "-" for a slot that is not in use.
    rows = [line.split() for line in environment.readers().splitlines()[1:]]
    open_ = [(int(row[2]), int(row[0])) for row in rows if len(row) == 3 and row[2].isdigit()]
    if not open_:
        return None
    began = min(open_)[0]
    last = int(environment.info()["last_txnid"])
    return OldestReader(began, last - began, tuple(sorted({process for at, process in open_ if at == began})))


def readers_of(environment: Any) -> tuple[int, ...]:
    """Processes that have read from an open ``lmdb.Environment`` and have not closed it; those that died are taken out."""
    environment.reader_check()
    rows = [line.split() for line in environment.readers().splitlines()[1:]]
    return tuple(sorted({int(row[0]) for row in rows if len(row) == 3 and row[0].isdigit()}))
