"""The vectors in memory, kept current: read whole at the start, then rolled forward along the index's commit log.

What must hold: after ``at(snapshot)`` the table has the vectors of that snapshot, whatever happened since the last one, be it a
restore, a rebuild, or more changes than the log keeps. A value that is no vector of this bundle's dimension is none.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import structlog

from models.dense.space import DenseSpace, id_hashes
from models.dense.vectors import SCALE_BYTES, QuantisedVectors, bytes_an_item
from retriever.dense.item_vectors import SCREENED_FROM, ItemVectors
from store.reading.items import ItemVectors as StoredVectors
from store.reading.snapshot import Snapshot

_READ_AT_ONCE: Final = 10_000

log = structlog.get_logger(__name__)


class CurrentVectors:
    """For one thread, as its ``ItemVectors``."""

    def __init__(self, space: DenseSpace, *, screened_from: int = SCREENED_FROM) -> None:
        self._space = space
        self._screened_from = screened_from
        self._bytes = bytes_an_item(space.dimension)
        self._table = ItemVectors(space, screened_from=screened_from)
        self._commit: int | None = None
        self._incarnation = 0
        self._told = False

    def at(self, snapshot: Snapshot) -> ItemVectors:
        """The table as of a snapshot; the one that was returned before is no longer of any."""
        incarnation, commit = snapshot.incarnation, snapshot.commit
        if self._commit is not None and incarnation == self._incarnation:
            if commit == self._commit:
                return self._table
            changes = snapshot.changes_since(self._commit)
            if changes is not None:
                self._commit = None  # what is cut short by a fault is read anew
                numbers = np.union1d(changes.items, changes.vectors)
                for start in range(0, len(numbers), _READ_AT_ONCE):
                    part = numbers[start : start + _READ_AT_ONCE]
                    found = self._usable(snapshot.vectors(part))
                    self._table.remove(part[~np.isin(part, found.numbers)])
                    self._put(found)
                self._commit = commit
                return self._table
        self._commit = None
        self._table = ItemVectors(self._space, screened_from=self._screened_from)
        for block in snapshot.all_vectors():
            self._put(self._usable(block))
        self._commit, self._incarnation = commit, incarnation
        return self._table

    def _put(self, found: StoredVectors) -> None:
        kept = QuantisedVectors.decode(found.values, self._space.dimension)
        self._table.put(found.numbers, kept, id_hashes(found.ids))

    def _usable(self, found: StoredVectors) -> StoredVectors:
        """Without the values that another process than an assigner of ours has written."""
        long_enough = [row for row, value in enumerate(found.values) if len(value) == self._bytes]
        scales = np.frombuffer(b"".join([found.values[row][:SCALE_BYTES] for row in long_enough]), "<f4")
        good = [row for row, usable in zip(long_enough, np.isfinite(scales) & (scales > 0), strict=True) if usable]
        if len(good) == len(found.values):
            return found
        if not self._told:
            self._told = True
            log.warning(
                "vectors_of_another_form",
                items=len(found.values) - len(good),
                bytes_expected=self._bytes,
                advice="who else writes to item-codes? these items are found by the model alone until they are published again",
            )
        return StoredVectors(found.numbers[good], [found.ids[row] for row in good], [found.values[row] for row in good])
