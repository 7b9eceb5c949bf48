"""Writes the commit log, within the writer's transaction, and keeps it within its bounds.

What must hold: the log has every change of the commits above ``log_floor``, and of no other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from store.reading.facts import IndexState
from store.records.change_log import (
    LogEntry,
    commit_of,
    encode_entry,
    items_in,
    log_key,
)
from store.records.encoding import PathEncoding
from store.records.path_keys import distinct_paths, keys_of

# Item changes that the log keeps: a small index keeps many (3 MB), so that a reader that slept an hour need not begin anew…
MINIMUM_LOG_ITEMS: Final = 200_000
# … and a large one a quarter of its items: to roll forward over more costs more than to build from the paths.
LOG_SHARE: Final = 4
# Commits that the log keeps: an hour of batches as small as they get (50 a second), and as many as can be read in a second.
MAXIMUM_LOG_COMMITS: Final = 200_000
_TRIMMED: Final = 4_000  # records removed at one commit, or one entry: a fraction of a full batch's work


class LogWriter:
    """Adds each commit's entry to the log and removes the oldest ones."""

    def __init__(self, databases: Mapping[str, Any], layers: int, size: int) -> None:
        self._changes = databases["changes"]
        self._paths = databases["paths"]
        self._encoding = PathEncoding(layers, size)

    def append(self, transaction: Any, state: IndexState, moved: LogEntry, *, live_items: int) -> IndexState:
        """The state after one more commit, in whose transaction the paths are written already.

        ``moved``: the path of each item that entered one, (m, L), or left one, (n, L), both as they are, the items of both, and
        those whose attributes or vector changed.
        """
        commit, floor, items = state.commit + 1, state.log_floor, state.log_items
        bound = max(MINIMUM_LOG_ITEMS, live_items // LOG_SHARE)
        attributes = moved.attributes[~np.isin(moved.attributes, moved.items)]
        vectors = moved.vectors[~np.isin(moved.vectors, moved.items)]
        size = len(moved.items) + len(attributes) + len(vectors)
        if size > bound:
            transaction.drop(self._changes, delete=False)
            floor, items = commit, 0
        elif size:
            now_live = distinct_paths(moved.entered)
            left = self._emptied(transaction, moved.left, now_live)
            entry = LogEntry(now_live, left, np.sort(moved.items), np.sort(attributes), np.sort(vectors))
            transaction.cursor(self._changes).putmulti(encode_entry(commit, entry), append=True)
            items += size
        if items > bound or commit - floor > MAXIMUM_LOG_COMMITS:
            floor, items = self._trim(transaction, floor, items, bound, commit - MAXIMUM_LOG_COMMITS)
        return msgspec.structs.replace(state, commit=commit, log_floor=floor, log_items=items)

    def _emptied(self, transaction: Any, left: NDArray[np.uint16], now_live: NDArray[np.uint16]) -> NDArray[np.uint16]:
        """Those of the paths that lost an item which hold none any more; distinct."""
        left = distinct_paths(left)
        if len(now_live) and len(left):
            left = left[~np.isin(keys_of(left), keys_of(now_live))]
        if not len(left):
            return left
        lost = np.ones(len(left), np.bool_)
        cursor = transaction.cursor(self._paths)
        seek, record, same_path = cursor.set_range_dup, cursor.value, self._encoding.same_path
        for row, (key, value) in enumerate(self._encoding.first_of_paths(left)):
            # The key's first record that is not below this path: if it is of this path, an item is left.
            if seek(key, value) and same_path(record(), value):
                lost[row] = False
        return left[lost]

    def _trim(self, transaction: Any, floor: int, items: int, bound: int, last_surplus: int) -> tuple[int, int]:
        """Removes the oldest entries; the new floor and the item changes that are left."""
        removed = 0
        cursor = transaction.cursor(self._changes)
        found = cursor.first()
        while found and removed < _TRIMMED and (items > bound or commit_of(cursor.key()) <= last_surplus):
            floor = commit_of(cursor.key())
            items -= items_in(cursor.value())
            end = log_key(floor + 1)
            while found and cursor.key() < end:
                cursor.delete()
                removed += 1
                found = cursor.first()  # at the end of a page py-lmdb does not know what comes after a deleted record
        if not found or commit_of(cursor.key()) > last_surplus:
            floor = max(floor, last_surplus)
        return floor, items
