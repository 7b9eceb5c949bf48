"""The bits of live topologies on the device, and what of them a batch's queries need: the index changes all the time.

What must hold: what a query may follow is exactly its own topology, that of its snapshot, filter and exclusions. A topology never
changes, so a copy of it is right as long as one knows whose copy it is. A query's topology is a table here, or one that a few
changes made of a table: then the rows of the changed prefixes go with the batch, read from the query's own topology, and lie over
the table's. Many changes make a new table, of a few megabytes; the one that was not used for longest gives way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from models.sids.layout import Layout
from store.topology.bitmap_topology import BitmapTopology

ROWS_CHANGED: Final = 64  # of a query's topology against its table: a history of twenty items, and some commits
_NO_PREFIX: Final = -1


@dataclass(frozen=True, eq=False)
class Legal:
    """What B queries may follow. ``after_first``: uint8 (B, M, 2, ⌈M / 8⌉), of each layer-1 token the layer-2 tokens, and layer 3
    of the SIDs without; ``table``: int64 (B,); ``prefixes``: int64 (B, E) c1·M + c2 of rows that ``rows``, uint8 (B, E, ⌈M / 8⌉),
    stands for instead of the table's.
    """

    after_first: torch.Tensor
    table: torch.Tensor
    prefixes: torch.Tensor
    rows: torch.Tensor


class DeviceTopology:
    """Tables (S, M, M, ⌈M / 8⌉) of the topologies that were asked for last; for one thread."""

    def __init__(self, size: int, device: torch.device, tables: int = 8) -> None:
        """``tables``: topologies that one batch may have, those counted once that few changes part."""
        width = (size + 7) // 8
        self.tables = torch.zeros((tables, size, size, width), dtype=torch.uint8, device=device)
        self._size, self._width = size, width
        self._held: dict[int, BitmapTopology] = {}  # by table, least lately used first

    def legal(self, topologies: Sequence[BitmapTopology], layout: Layout, queries: int) -> Legal | None:
        """For a batch padded to so many queries, on the processor; None if it has more topologies than there are tables."""
        tables = np.zeros(queries, np.int64)
        prefixes = np.full((queries, ROWS_CHANGED), _NO_PREFIX, np.int64)
        rows = np.zeros((queries, ROWS_CHANGED, self._width), np.uint8)
        after_first = np.zeros((queries, self._size, 2, self._width), np.uint8)
        in_use: set[int] = set()
        for row, topology in enumerate(topologies):
            found = self._table_of(topology, in_use)
            if found is None:
                return None
            table, changed = found
            in_use.add(table)
            tables[row], prefixes[row, : len(changed)] = table, changed
            rows[row, : len(changed)] = topology.bits_below(changed)
            after_first[row] = topology.after_first(layout)
        return Legal(*(torch.from_numpy(each) for each in (after_first, tables, prefixes, rows)))

    def _table_of(self, topology: BitmapTopology, in_use: set[int]) -> tuple[int, NDArray[np.intp]] | None:
        """The table that a topology is read from, and the prefixes by which it differs at the most."""
        changed = np.empty(0, np.intp)
        to_copy, changed_since = topology, changed
        at: BitmapTopology | None = topology
        while at is not None:
            for table, held in self._held.items():
                if held is at:
                    self._held[table] = self._held.pop(table)
                    return table, changed
            to_copy, changed_since = at, changed
            if at.made_of is None:
                break
            changed = np.union1d(changed, at.made_of.prefixes)
            if len(changed) > ROWS_CHANGED:
                break
            at = at.made_of.earlier()
        free = self._free(in_use)
        if free is None:
            return None
        self.tables[free].copy_(torch.from_numpy(to_copy.bits))
        self._held[free] = to_copy
        return free, changed_since

    def _free(self, in_use: set[int]) -> int | None:
        for table in range(len(self.tables)):
            if table not in self._held:
                return table
        for table in self._held:
            if table not in in_use:
                del self._held[table]
                return table
        return None
