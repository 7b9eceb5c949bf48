"""A catalogue's trie in memory: what ``store.topology.layout_trie.SnapshotTrie`` gives the retriever, without an index on disk.

What must hold: same children and same items in the same order as a ``SnapshotTrie`` of an index with these items (tested against
it), all of one weight.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from models.sids.layout import PADDING, Layout
from store.topology.layout_trie import LayoutTrie, SidItems
from store.topology.topology import topology_of


class CatalogueTrie(LayoutTrie):
    """All items of codes (N, L) read under a layout; item numbers are rows."""

    def __init__(
        self, codes: npt.NDArray[np.uint16], layout: Layout, rows: npt.NDArray[np.integer] | None = None
    ) -> None:
        """``rows``: only these items."""
        items = np.arange(len(codes)) if rows is None else np.asarray(rows)
        items = items[np.lexsort((items, *codes[items].T[::-1]))]
        super().__init__(topology_of([codes[items]], layout.layers, layout.size), layout)
        tokens = layout.sid_tokens(codes[items])
        order = np.lexsort(tokens.T[::-1])  # stable: items of one SID stay in the order of their codes
        tokens, items = tokens[order], items[order]
        begins = np.flatnonzero(np.concatenate(([True] * bool(len(items)), (tokens[1:] != tokens[:-1]).any(axis=1))))
        equal = np.ones(len(codes), np.float32)
        found = [
            SidItems(rows.astype(np.uint32), codes[rows], equal[: len(rows)]) for rows in np.split(items, begins[1:])
        ]
        sids = [tuple(token for token in row if token != PADDING) for row in tokens[begins].tolist()]
        self._items = dict(zip(sids, found, strict=False))
        self._none = SidItems(np.empty(0, np.uint32), np.empty((0, layout.layers), np.uint16), equal[:0])

    def items_of(self, sids: Sequence[Sequence[int]]) -> list[SidItems]:
        """The items of each SID, given by its SID token numbers."""
        return [self._items.get(tuple(tokens), self._none) for tokens in sids]
