"""The trie as a search sees it: a topology read under a layout, and the items of the SIDs that it found.

What must hold: every SID below ``children`` is held by a live item, and ``items_of`` gives all live items of a SID and no
other. Nothing here is stored; re-shortening is another layout over the same topology.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from models.attributes import Attributes
from models.sids.layout import HEAD_LAYER_INDEX, PADDING, Layout
from store.errors import IndexMismatchError
from store.reading.snapshot import Snapshot
from store.records.encoding import StoredItem
from store.topology.topology import Topology, topology_of


@dataclass(frozen=True)
class SidItems:
    """The live items of one SID. items: uint32 (n,) item numbers; codes: uint16 (n, L), row by row, in the order of codes
    and numbers; weights: float32 (n,).
    """

    items: NDArray[np.uint32]
    codes: NDArray[np.uint16]
    weights: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.items)


class LayoutTrie:
    """A topology under a layout."""

    def __init__(self, topology: Topology, layout: Layout) -> None:
        self.topology = topology
        self.layout = layout

    def first_tokens(self) -> NDArray[np.int32]:
        """SID token numbers with which a SID can begin, rising: int32 (K,)."""
        return self.topology.first_tokens()

    def warm_up(self) -> None:
        """Works out what follows every layer-1 token, a tenth of a second for the largest: else the first searches do it."""
        self.children(self.first_tokens()[:, None])

    def children(self, prefixes: NDArray[np.int32]) -> tuple[NDArray[np.intp], NDArray[np.int32]]:
        """Every continuation of prefixes (H, d), as ``Topology.children``."""
        return self.topology.children(self.layout, prefixes)


class SnapshotTrie(LayoutTrie):
    """The trie of a snapshot, with its items; valid while the snapshot is open."""

    def __init__(self, snapshot: Snapshot, layout: Layout, topology: Topology | None = None) -> None:
        """``topology``: that of this snapshot (``store.topology.current``); read from it if not given.

        Raises ``IndexMismatchError`` if the layout is for another codebook.
        """
        require_layout(snapshot, layout)
        if topology is None:
            topology = topology_of((codes for codes, _ in snapshot.all_paths()), snapshot.layers, snapshot.size)
        super().__init__(topology, layout)
        self._snapshot = snapshot

    def items_of(self, sids: Sequence[Sequence[int]]) -> list[SidItems]:
        """The items of each SID, given by its SID token numbers: one read for all of them."""
        rows = np.full((len(sids), self.layout.layers), PADDING, np.int32)
        for row, tokens in enumerate(sids):
            rows[row, : len(tokens)] = tokens
        wanted = self.layout.codes_of_array(rows)
        without_layer_2 = np.delete(wanted, HEAD_LAYER_INDEX, axis=1).astype(np.uint16)
        below = self._snapshot.items_below(without_layer_2)
        layer_2 = wanted[below.owner, HEAD_LAYER_INDEX]
        kept = np.where(layer_2 == PADDING, self.layout.is_head[below.layer2], layer_2 == below.layer2)
        owner, items, weights = below.owner[kept], below.items[kept], below.weights[kept]
        codes = wanted[owner].astype(np.uint16)
        codes[:, HEAD_LAYER_INDEX] = below.layer2[kept]
        bounds = np.searchsorted(owner, np.arange(len(sids) + 1)).tolist()
        return [SidItems(items[begin:end], codes[begin:end], weights[begin:end]) for begin, end in pairwise(bounds)]

    def updated_at(self, numbers: NDArray[np.uint32]) -> NDArray[np.int64]:
        """``updated_at`` of items (n,) of this snapshot, milliseconds since the epoch."""
        return self._snapshot.updated_at(numbers)

    def items(self, numbers: NDArray[np.uint32]) -> list[StoredItem]:
        """These items of this snapshot, in the order asked for."""
        return self._snapshot.items(numbers)

    def attributes(self, numbers: NDArray[np.uint32]) -> list[Attributes | None]:
        """The attributes of these items of this snapshot, in the order asked for."""
        return self._snapshot.attributes(numbers)


def require_layout(snapshot: Snapshot, layout: Layout) -> None:
    """Raises ``IndexMismatchError`` if a layout is for another codebook than the index."""
    mine = (snapshot.codebook_id, snapshot.layers, snapshot.size)
    if (layout.codebook_id, layout.layers, layout.size) != mine:
        raise IndexMismatchError(
            f"Layout {layout.generation} is for codebook {layout.codebook_id} ({layout.layers} × {layout.size}), the "
            f"index for {mine[0]} ({mine[1]} × {mine[2]}): use the bundle that belongs to the index."
        )
