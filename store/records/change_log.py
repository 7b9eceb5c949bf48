"""The commit log's records: which paths and items a commit changed, as bytes, and many of them merged into one change.

What must hold: whoever has made something from the index at commit A, and applies the merged changes of all commits after A,
has what the index holds now. A path's last change wins; nothing is counted.

Database ``changes``: the key is the commit (u64) and the number of a part (u32), big-endian. The parts of a commit, joined,
are its *entry*: version (u8) and number of sections (u8), then of each section its kind (u8) and length in bytes (u32), then
the contents one after another, little-endian. An unknown kind of section is passed over: what a later version adds (changed
attributes, say) is no concern of a reader that does not keep it. Parts are small, because a value that does not fit into a
page needs pages side by side, which a much-written index has ever fewer of.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from store.records.path_keys import distinct_sorted, keys_of

_VERSION: Final = 1
# Kinds of sections: paths (u16 a token), paths, item numbers (u32), item numbers.
_ENTERED, _LEFT, _ITEMS, _ATTRIBUTES, _VECTORS = 1, 2, 3, 4, 5
_NO_ITEMS: Final = np.empty(0, np.uint32)
_HEAD: Final = struct.Struct("<BB")
_SECTION: Final = struct.Struct("<BI")
_KEY: Final = struct.Struct(">QI")
PART_BYTES: Final = 1_980  # two to a page of 4 KiB, with their keys


@dataclass(frozen=True)
class Changes:
    """What happened between an earlier commit and ``commit``, in sum.

    entered: uint16 (n, L), distinct paths that hold an item now and were named by a change; left: uint16 (m, L), distinct
    paths that hold none any more, disjoint from ``entered``; items: uint32 (k,) rising, numbers of the items that entered,
    moved or left (a number may belong to another item now). attributes: uint32 (j,) rising, numbers of items whose attributes
    changed, less those in ``items``: whoever keeps attributes reads both. vectors: the same of items whose vector changed.
    """

    entered: NDArray[np.uint16]
    left: NDArray[np.uint16]
    items: NDArray[np.uint32]
    commit: int
    attributes: NDArray[np.uint32] = field(default_factory=lambda: _NO_ITEMS)
    vectors: NDArray[np.uint32] = field(default_factory=lambda: _NO_ITEMS)


class LogEntry(NamedTuple):
    """One commit's changes: ``entered`` and ``left`` uint16 (n, L) and (m, L), distinct and disjoint, ``items`` uint32 (k,), and
    ``attributes`` and ``vectors``, uint32, numbers of other items whose attributes or vector changed.
    """

    entered: NDArray[np.uint16]
    left: NDArray[np.uint16]
    items: NDArray[np.uint32]
    attributes: NDArray[np.uint32] = _NO_ITEMS
    vectors: NDArray[np.uint32] = _NO_ITEMS


def log_key(commit: int, part: int = 0) -> bytes:
    """Key of the ``changes`` database."""
    return _KEY.pack(commit, part)


def commit_of(key: bytes) -> int:
    """The commit of a key of the ``changes`` database."""
    return int(_KEY.unpack(key)[0])


def encode_entry(commit: int, entry: LogEntry) -> list[tuple[bytes, bytes]]:
    """Records of the ``changes`` database for one commit, in order."""
    sections = [
        (_ENTERED, entry.entered.astype("<u2").tobytes()),
        (_LEFT, entry.left.astype("<u2").tobytes()),
        (_ITEMS, entry.items.astype("<u4").tobytes()),
        (_ATTRIBUTES, entry.attributes.astype("<u4").tobytes()),
        (_VECTORS, entry.vectors.astype("<u4").tobytes()),
    ]
    sections = [(kind, content) for kind, content in sections if content]
    heads = [_SECTION.pack(kind, len(content)) for kind, content in sections]
    value = b"".join([_HEAD.pack(_VERSION, len(sections)), *heads, *(content for _, content in sections)])
    return [
        (log_key(commit, part), value[start : start + PART_BYTES])
        for part, start in enumerate(range(0, len(value), PART_BYTES))
    ]


def items_in(first_part: bytes) -> int:
    """How many item changes, of attributes too, the entry has whose first part this is.

    Raises:
        ValueError: it is damaged.
    """
    lengths = _lengths(first_part)
    return sum(lengths.get(kind, 0) for kind in (_ITEMS, _ATTRIBUTES, _VECTORS)) // 4


def _lengths(value: bytes) -> Mapping[int, int]:
    """Length in bytes of each section, in order, from the beginning of an entry."""
    version, count = _HEAD.unpack_from(value) if len(value) >= _HEAD.size else (0, 0)
    if version != _VERSION:
        raise ValueError(f"an entry of the commit log has version {version}, this sidstream reads {_VERSION}")
    if len(value) < _HEAD.size + count * _SECTION.size:
        raise ValueError("the head of an entry of the commit log is cut")
    return dict(_SECTION.unpack_from(value, _HEAD.size + number * _SECTION.size) for number in range(count))


def merge_entries(records: Iterable[tuple[bytes, bytes]], layers: int, commit: int) -> Changes:
    """The changes of records of the ``changes`` database, in their order, in sum; ``commit``: what they lead to.

    Raises:
        ValueError: a record is damaged.
    """
    kinds = (_ENTERED, _LEFT, _ITEMS, _ATTRIBUTES, _VECTORS)
    contents: dict[int, list[bytes]] = {kind: [] for kind in kinds}
    commits: dict[int, list[int]] = {kind: [] for kind in kinds}
    for number, parts in groupby(records, key=lambda record: commit_of(record[0])):
        value = b"".join([part for _, part in parts])
        lengths = _lengths(value)
        start = _HEAD.size + len(lengths) * _SECTION.size
        for kind, length in lengths.items():
            if kind in contents:
                contents[kind].append(value[start : start + length])
                commits[kind].append(number)
            start += length
        if start != len(value):
            raise ValueError(f"the entry of commit {number} in the commit log has {len(value)} bytes, not {start}")
    paths = {
        kind: np.frombuffer(b"".join(contents[kind]), "<u2").astype(np.uint16).reshape(-1, layers)
        for kind in (_ENTERED, _LEFT)
    }
    # One row per naming of a path, oldest first; within a commit the two kinds are disjoint.
    named = np.concatenate([paths[_ENTERED], paths[_LEFT]])
    when = np.concatenate([_repeated(commits[kind], contents[kind], 2 * layers) for kind in (_ENTERED, _LEFT)])
    live = np.arange(len(named)) < len(paths[_ENTERED])
    keys = keys_of(named)
    order = np.lexsort((when, keys))
    keys = keys[order]
    newest = np.ones(len(keys), np.bool_)
    newest[:-1] = keys[1:] != keys[:-1]
    last = order[newest]
    items, attributes, vectors = (
        distinct_sorted(np.frombuffer(b"".join(contents[kind]), "<u4").astype(np.uint32))
        for kind in (_ITEMS, _ATTRIBUTES, _VECTORS)
    )
    return Changes(
        entered=named[last[live[last]]],
        left=named[last[~live[last]]],
        items=items,
        commit=commit,
        attributes=attributes[~np.isin(attributes, items)],
        vectors=vectors[~np.isin(vectors, items)],
    )


def _repeated(commits: Sequence[int], contents: Sequence[bytes], width: int) -> NDArray[np.int64]:
    """The commit of each record of ``width`` bytes in ``contents``."""
    return np.repeat(np.array(commits, np.int64), np.array([len(content) // width for content in contents], np.intp))
