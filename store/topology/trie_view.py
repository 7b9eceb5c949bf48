"""A layout's view of the trie: which SIDs exist and which items each of them names. Nothing here is stored.

What must hold: for any layout the paths are those of every live item and of no other, read in one vectorised pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.sids.layout import Layout
from store.errors import IndexMismatchError
from store.reading.reader import Snapshot


@dataclass(frozen=True)
class SidPaths:
    """R live items with their SIDs, rows in lexicographic order of the tokens; several rows may share a SID.

    tokens: int32 (R, L) SID token numbers, a short SID padded at the end with -1; items: uint32 (R,) item numbers;
    codes: uint16 (R, L).
    """

    tokens: NDArray[np.int32]
    items: NDArray[np.uint32]
    codes: NDArray[np.uint16]


class TrieView:
    """The trie of a snapshot read under a layout; valid while the snapshot is open."""

    def __init__(self, snapshot: Snapshot, layout: Layout) -> None:
        """Raises ``IndexMismatchError`` if the layout is for another codebook."""
        mine = (snapshot.codebook_id, snapshot.layers, snapshot.size)
        if (layout.codebook_id, layout.layers, layout.size) != mine:
            raise IndexMismatchError(
                f"Layout {layout.generation} is for codebook {layout.codebook_id} ({layout.layers} × {layout.size}), the "
                f"index for {mine[0]} ({mine[1]} × {mine[2]}): use the bundle that belongs to the index."
            )
        self.layout = layout
        self._snapshot = snapshot

    def first_tokens(self) -> NDArray[np.int32]:
        """SID token numbers with which a SID can begin, rising: int32 (K,)."""
        return self._snapshot.first_tokens()

    def paths(self, first: NDArray[Any]) -> SidPaths:
        """All SIDs that begin with one of these first-layer tokens (K,); unknown tokens are skipped."""
        blocks = [
            (codes[below], items[below])
            for codes, items in self._snapshot.all_paths()
            if (below := np.isin(codes[:, 0], first)).any()
        ]
        codes = np.concatenate([codes for codes, _ in blocks] or [np.empty((0, self.layout.layers), np.uint16)])
        items = np.concatenate([items for _, items in blocks] or [np.empty(0, np.uint32)])
        tokens = self.layout.sid_tokens(codes)
        order = lexicographic_order(tokens, self.layout.layers * self.layout.size)
        return SidPaths(tokens[order], items[order], codes[order])


def lexicographic_order(tokens: NDArray[np.int32], token_count: int) -> NDArray[np.intp]:
    """Stable order of rows (R, L); packed into one 64-bit key where that fits."""
    bits = token_count.bit_length()  # tokens are shifted by one so that the padding -1 becomes 0
    layers = tokens.shape[1]
    if bits * layers > 64:
        return np.lexsort(tokens.T[::-1])
    key = np.zeros(len(tokens), np.uint64)
    for layer in range(layers):
        key = (key << np.uint64(bits)) | (tokens[:, layer] + 1).astype(np.uint64)
    return np.argsort(key, kind="stable")
