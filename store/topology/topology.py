"""Which paths are live: the trie without its items, in memory, so that a decoding step costs the same in any catalogue.

What must hold: for any layout the children of a prefix are those of every live path and of no other. Small codebooks of
three layers are kept as bits, all others as sorted keys; both answer alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from models.sids.layout import Layout
from store.topology.bitmap_topology import BitmapTopology
from store.topology.sorted_topology import SortedTopology


class Topology(Protocol):
    """The set of live paths (c1, …, cL); it never changes."""

    layers: int
    size: int

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""

    def __len__(self) -> int:
        """Distinct live paths."""

    def with_changes(self, entered: NDArray[np.uint16], left: NDArray[np.uint16]) -> Self:
        """Another one: these paths (n, L) more and those (m, L) less; no path is in both."""

    def contains(self, paths: NDArray[np.uint16]) -> NDArray[np.bool_]:
        """Whether each path (n, L) is live: (n,)."""

    def first_tokens(self) -> NDArray[np.int32]:
        """The layer-1 tokens that a live path begins with, rising: int32 (K,)."""

    def children(self, layout: Layout, prefixes: NDArray[np.int32]) -> tuple[NDArray[np.intp], NDArray[np.int32]]:
        """Every continuation of H prefixes of SIDs of a layout.

        ``prefixes``: (H, d) SID token numbers, 1 ≤ d < L, each the beginning of a live SID that is longer. Returns ``owner``
        (C,), the row of the prefix, rising, and ``token`` int32 (C,), SID token numbers rising within a prefix.
        """


def topology_of(blocks: Iterable[NDArray[np.uint16]], layers: int, size: int) -> Topology:
    """The topology of items with these codes, (R, L) each block; codes may repeat."""
    if BitmapTopology.fits(layers, size):
        return BitmapTopology.of(blocks, size)
    return SortedTopology.of(blocks, layers, size)
