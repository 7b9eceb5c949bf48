"""The items of one snapshot under one layout, as every format writes them.

What must hold: all is of one snapshot, whose position is told; the items of a SID lie side by side, SIDs in the order of their
tokens, the item with the greatest weight first, as the retriever ranks them; the same snapshot gives the same files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from models.errors import SidstreamError
from models.sids.layout import PADDING, Layout
from store.reading.snapshot import Snapshot
from store.records.encoding import StoredItem
from store.topology.layout_trie import require_layout

_AT_ONCE: Final = 10_000  # items that are decoded at a time


class FeedError(SidstreamError):
    """A catalogue that a format cannot hold, or a place that cannot be written; says what to do."""


LayoutChoice = Literal["pinned", "live", "full"]


@dataclass(frozen=True, eq=False)
class FeedItems:
    """N items: ``numbers`` uint32 (N,) in the index, ``ids``, ``titles``, ``weights`` float32 (N,), ``updated_at`` int64 (N,) in
    milliseconds, ``codes`` uint16 (N, L), and ``tokens`` int32 (N, L): SID token numbers under ``layout``, where a short SID's
    row ends with ``PADDING``. ``token_base``: what an engine's token ids add to SID token numbers.
    """

    layout: Layout
    token_base: int
    numbers: NDArray[np.uint32]
    ids: list[str]
    titles: list[str]
    codes: NDArray[np.uint16]
    tokens: NDArray[np.int32]
    weights: NDArray[np.float32]
    updated_at: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def starts(self) -> NDArray[np.intp]:
        """The first row of each SID, rising."""
        if not len(self):
            return np.empty(0, np.intp)
        differs = np.ones(len(self), np.bool_)
        differs[1:] = (self.tokens[1:] != self.tokens[:-1]).any(axis=1)
        return np.flatnonzero(differs)

    def token_ids(self, row: int) -> list[int]:
        """The token ids of a row's SID, without padding."""
        return [int(token) + self.token_base for token in self.tokens[row] if token != PADDING]

    def require_one_length(self, engine: str) -> None:
        """Raises ``FeedError`` where SIDs are of two lengths."""
        short = int((self.tokens[:, -1] == PADDING).sum())
        if short:
            raise FeedError(
                f"{engine} decodes SIDs of one length, and {short:,} items have a short one (layout {self.layout.generation}): "
                "write full SIDs with --layout full, for a model that has learnt them (sidstream train --layer2-dropout)"
            )

    def require_layers(self, engine: str, layers: int) -> None:
        """Raises ``FeedError`` for a codebook of another depth."""
        if self.layout.layers != layers:
            raise FeedError(
                f"{engine} reads SIDs of {layers} tokens, and this codebook has {self.layout.layers} layers: take another format"
            )


@dataclass(frozen=True)
class FeedFacts:
    """What a feed is of: the index's ``commit`` and ``incarnation``, and the next offset to read per topic and partition."""

    commit: int
    incarnation: int
    position: Mapping[str, int]

    @classmethod
    def of(cls, snapshot: Snapshot) -> FeedFacts:
        position = {f"{topic}/{partition}": offset for (topic, partition), offset in sorted(snapshot.position.items())}
        return cls(snapshot.commit, snapshot.incarnation, position)


def chosen_layout(snapshot: Snapshot, own: Layout, choice: LayoutChoice) -> Layout:
    """How codes are read: as the bundle's model was trained (pinned), as the index does now (live), or in full.

    Raises ``SidstreamError`` where index and bundle have two codebooks.
    """
    require_layout(snapshot, own)
    if choice == "full":
        return Layout(own.generation, own.codebook_id, own.layers, own.size)
    return own if choice == "pinned" else snapshot.live_layout() or own


def read_items(snapshot: Snapshot, layout: Layout, token_base: int) -> FeedItems:
    """All items of a snapshot. Memory holds them all, without their vectors and attributes."""
    parts = [numbers for _, numbers in snapshot.all_paths()]
    numbers = np.concatenate(parts) if parts else np.empty(0, np.uint32)
    found: list[StoredItem] = []
    for start in range(0, len(numbers), _AT_ONCE):
        found += snapshot.items(numbers[start : start + _AT_ONCE])
    return in_order(found, layout, token_base)


def in_order(stored: Iterable[StoredItem], layout: Layout, token_base: int) -> FeedItems:
    """Items in the order of a feed."""
    found = sorted(stored, key=lambda item: item.id)
    codes = np.array([item.codes for item in found], np.uint16).reshape(len(found), layout.layers)
    tokens = layout.sid_tokens(codes)
    weights = np.array([item.weight for item in found], np.float32)
    order = np.lexsort((-weights, *tokens.T[::-1]))  # stable: equal weights in the order of their ids
    return FeedItems(
        layout=layout,
        token_base=token_base,
        numbers=np.array([found[row].number for row in order], np.uint32),
        ids=[found[row].id.decode() for row in order],
        titles=[found[row].title for row in order],
        codes=codes[order],
        tokens=tokens[order],
        weights=weights[order],
        updated_at=np.array([found[row].updated_at for row in order], np.int64),
    )
