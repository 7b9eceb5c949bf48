"""Reads the ``paths`` database: the items of some short paths, and all of them.

What must hold: items come in the order of short path, layer-2 token and number, whichever part of a short path is the key.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice, takewhile
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from store.records.encoding import PathEncoding
from store.records.path_keys import keys_of

_BLOCK_RECORDS: Final = 1_000_000  # of ``all_paths``: 10 MB
_FIRST_KEYS: Final = 64  # of its first block, which tells how many records a key has


@dataclass(frozen=True)
class BelowPaths:
    """The items below some short paths (c1, c3, …, cL), sorted by owner, layer-2 token and number.

    owner: intp (R,) row of the short path asked for; layer2: uint16 (R,) the token left out; items: uint32 (R,) numbers;
    weights: float32 (R,) of the items.
    """

    owner: NDArray[np.intp]
    layer2: NDArray[np.uint16]
    items: NDArray[np.uint32]
    weights: NDArray[np.float32]


def items_below(cursor: Any, encoding: PathEncoding, short_paths: NDArray[np.uint16]) -> BelowPaths:
    """The items of short paths (K, L-1); the rows may repeat and come in any order."""
    wanted = keys_of(short_paths)
    order = np.argsort(wanted, kind="stable")
    first = np.ones(len(wanted), np.bool_)
    first[1:] = wanted[order[1:]] != wanted[order[:-1]]
    distinct = order[first]  # a row of each short path, in LMDB's order
    read = _read_keys if encoding.whole_keys else _read_ranges
    counts, tails = read(cursor, encoding, short_paths[distinct])
    layer2, items = tails["layer2"].astype(np.uint16), tails["number"].astype(np.uint32)
    weights = tails["weight"].astype(np.float32)
    if len(distinct) == len(wanted) and bool((np.diff(distinct) > 0).all()):
        return BelowPaths(np.repeat(np.arange(len(distinct)), counts), layer2, items, weights)
    starts = np.cumsum(counts) - counts
    of_row = np.empty(len(wanted), np.intp)
    of_row[order] = np.cumsum(first) - 1
    counts, starts = counts[of_row], starts[of_row]
    owner = np.repeat(np.arange(len(wanted)), counts)
    places = np.arange(len(owner)) + np.repeat(starts - np.cumsum(counts) + counts, counts)
    return BelowPaths(owner, layer2[places], items[places], weights[places])


def _read_keys(
    cursor: Any, encoding: PathEncoding, short_paths: NDArray[np.uint16]
) -> tuple[NDArray[np.intp], NDArray[Any]]:
    """How many items each of the distinct short paths has, rising, each of which is a key; and the tails of their records."""
    joined = cursor.getmulti(
        encoding.keys(short_paths), dupdata=True, dupfixed_bytes=encoding.value_bytes, keyfixed=True
    )
    records = np.frombuffer(joined, encoding.record)
    begins = np.ones(len(records), np.bool_)
    begins[1:] = False
    for token in records["short"].T:
        begins[1:] |= token[1:] != token[:-1]
    starts = np.flatnonzero(begins)
    which = np.searchsorted(keys_of(short_paths), keys_of(records["short"][starts].astype(np.uint16)))
    counts = np.zeros(len(short_paths), np.intp)
    counts[which] = np.diff(starts, append=len(records))
    return counts, records


def _read_ranges(
    cursor: Any, encoding: PathEncoding, short_paths: NDArray[np.uint16]
) -> tuple[NDArray[np.intp], NDArray[Any]]:
    """The same where many short paths share a key: each has few items then, and they lie side by side."""
    counts = np.zeros(len(short_paths), np.intp)
    values: list[bytes] = []
    for row, (key, lowest) in enumerate(encoding.first_records(short_paths)):
        if not cursor.set_range_dup(key, lowest):
            continue
        before = len(values)
        values += takewhile(partial(encoding.same_short_path, lowest), cursor.iternext_dup())
        counts[row] = len(values) - before
    return counts, encoding.decode_tails(values)


def all_paths(
    keys_cursor: Any, cursor: Any, encoding: PathEncoding
) -> Iterator[tuple[NDArray[np.uint16], NDArray[np.uint32], NDArray[np.float32]]]:
    """Codes uint16 (R, L), numbers uint32 and weights float32 (R,) of every item, in blocks of about a million; the cursors
    are two of one database.

    LMDB reads all records of a key at once: ten million items take 0.3 to 0.5 s on a busy core, be they 150 to a key
    (M = 256) or 2,400 (M = 4,096); half of that is LMDB's. One by one they would take 4 s.
    """
    keys = keys_cursor.iternext_nodup()
    count = _FIRST_KEYS
    while block := list(islice(keys, count)):
        joined = cursor.getmulti(block, dupdata=True, dupfixed_bytes=encoding.value_bytes, keyfixed=True)
        codes, numbers, weights = encoding.decode(joined)
        yield codes, numbers, weights
        count = max(1, _BLOCK_RECORDS * len(block) // max(len(numbers), 1))
