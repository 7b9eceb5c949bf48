"""A catalogue's trie in memory: what ``store.topology.trie_view.TrieView`` gives the beam search, without an index on disk.

What must hold: same paths in the same order as a ``TrieView`` of an index with these items (tested against it).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from models.sids.layout import Layout
from store.topology.trie_view import SidPaths, lexicographic_order


class CatalogueTrie:
    """All items of codes (N, L) read under a layout; item numbers are rows."""

    def __init__(
        self, codes: npt.NDArray[np.uint16], layout: Layout, rows: npt.NDArray[np.integer] | None = None
    ) -> None:
        """``rows``: only these items."""
        self.layout = layout
        items = np.arange(len(codes)) if rows is None else np.asarray(rows)
        items = items[np.lexsort((items, *codes[items].T[::-1]))]
        tokens = layout.sid_tokens(codes[items])
        if layout.head_tokens:
            order = lexicographic_order(tokens, layout.layers * layout.size)
            items, tokens = items[order], tokens[order]
        self._all = SidPaths(tokens, items.astype(np.uint32), codes[items])
        self._bounds = np.searchsorted(tokens[:, 0], np.arange(layout.size + 1))

    def first_tokens(self) -> npt.NDArray[np.int32]:
        """Layer-1 tokens with at least one item, ascending."""
        return np.flatnonzero(np.diff(self._bounds)).astype(np.int32)

    def paths(self, first: npt.NDArray[Any]) -> SidPaths:
        """All SIDs below these layer-1 tokens (ascending)."""
        rows = np.concatenate([np.arange(self._bounds[token], self._bounds[token + 1]) for token in first.tolist()])
        return SidPaths(self._all.tokens[rows], self._all.items[rows], self._all.codes[rows])
