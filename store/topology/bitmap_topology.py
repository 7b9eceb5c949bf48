"""The set of live paths as bits, for small codebooks of three layers: two megabytes at M = 256, whatever the catalogue.

What must hold: a topology never changes; changes make a new one. The node of a SID that leaves out its layer-2 token is the
union of the nodes of all head tokens, so a layout stays a view.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final
from weakref import ref

import numpy as np
from numpy.typing import NDArray

from models.sids.layout import HEAD_LAYER_INDEX, Layout

_VIEWS_KEPT: Final = 2  # the pinned and the live layout
_MAXIMUM_BYTES: Final = 4 << 20  # copied at every roll forward


@dataclass(frozen=True)
class MadeOf:
    """``earlier``: the topology that was changed, if somebody still has it; ``prefixes``: c1·M + c2 of all changed paths."""

    earlier: ref[BitmapTopology]
    prefixes: NDArray[np.intp]


class BitmapTopology:
    """The live paths (c1, c2, c3) of a codebook, one bit each."""

    def __init__(
        self,
        bits: NDArray[np.uint8],
        size: int,
        views: dict[bytes, NDArray[np.uint8]] | None = None,
        made_of: MadeOf | None = None,
    ) -> None:
        """``bits``: (M, M, ⌈M / 8⌉), most significant bit first; ``views``: what is known of layouts, by head tokens."""
        self._bits = bits
        self._made_of = made_of
        self._views: dict[bytes, NDArray[np.uint8]] = views or {}
        self.layers, self.size = 3, size

    @staticmethod
    def fits(layers: int, size: int) -> bool:
        """Whether a codebook is small enough for bits to be the cheaper form."""
        return layers == 3 and size * size * ((size + 7) // 8) <= _MAXIMUM_BYTES

    @classmethod
    def of(cls, blocks: Iterable[NDArray[np.uint16]], size: int) -> BitmapTopology:
        """From the codes (R, 3) of items, block by block."""
        live = np.zeros(size**3, np.bool_)
        for codes in blocks:
            live[_flat(codes, size)] = True
        return cls(np.packbits(live.reshape(size, size, size), axis=2), size)

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return self._bits.nbytes + sum(view.nbytes for view in self._views.values())

    def __len__(self) -> int:
        return int(np.bitwise_count(self._bits).sum())

    def with_changes(self, entered: NDArray[np.uint16], left: NDArray[np.uint16]) -> BitmapTopology:
        """These paths (n, 3) more and those (m, 3) less; no path is in both."""
        if not len(entered) and not len(left):
            return self
        bits = self._bits.copy()
        for paths, change in ((entered, np.bitwise_or), (left, np.bitwise_and)):
            first, second, third = paths.T.astype(np.intp)
            mask = np.right_shift(np.uint8(128), (third & 7).astype(np.uint8))
            change.at(bits, (first, second, third >> 3), mask if change is np.bitwise_or else ~mask)
        touched = np.unique(np.concatenate((entered[:, 0], left[:, 0])))
        views = {}
        for heads, view in self._views.items():
            renewed = view.copy()
            renewed[touched] = _view(bits[touched], np.frombuffer(heads, np.bool_))
            views[heads] = renewed
        paths = np.concatenate((entered, left)).astype(np.intp)
        prefixes = np.unique(paths[:, 0] * self.size + paths[:, 1])
        return BitmapTopology(bits, self.size, views, MadeOf(ref(self), prefixes))

    @property
    def made_of(self) -> MadeOf | None:
        """What it was made of by changes; for a copy of the bits that follows them."""
        return self._made_of

    def bits_below(self, prefixes: NDArray[np.intp]) -> NDArray[np.uint8]:
        """(n, ⌈M / 8⌉): the live layer-3 tokens, most significant bit first, below c1·M + c2 (n,)."""
        below: NDArray[np.uint8] = self.bits.reshape(self.size * self.size, -1)[prefixes]
        return below

    @property
    def bits(self) -> NDArray[np.uint8]:
        """(M, M, ⌈M / 8⌉), most significant bit first; not to be written to."""
        return self._bits

    def after_first(self, layout: Layout) -> NDArray[np.uint8]:
        """(M, 2, ⌈M / 8⌉): after each layer-1 token the layer-2 tokens of a layout's SIDs, and layer 3 of its short ones."""
        return self._view(layout)

    def contains(self, paths: NDArray[np.uint16]) -> NDArray[np.bool_]:
        """Whether each path (n, 3) is live: (n,)."""
        first, second, third = paths.T.astype(np.intp)
        live: NDArray[np.bool_] = (self._bits[first, second, third >> 3] >> (7 - (third & 7)).astype(np.uint8)) & 1 == 1
        return live

    def first_tokens(self) -> NDArray[np.int32]:
        """The layer-1 tokens that a live path begins with, rising: int32 (K,)."""
        return np.flatnonzero(self._bits.any(axis=(1, 2))).astype(np.int32)

    def children(self, layout: Layout, prefixes: NDArray[np.int32]) -> tuple[NDArray[np.intp], NDArray[np.int32]]:
        """Every continuation of H prefixes (H, d) of SIDs: which prefix, rising, and the SID token number, rising within."""
        size, depth = self.size, prefixes.shape[1]
        # A prefix of two tokens has its layer-2 token: a short SID of three layers ends with its second.
        rows = self._view(layout)[prefixes[:, 0]] if depth == 1 else self._below(prefixes)
        live = np.unpackbits(rows, axis=2, count=size).reshape(len(prefixes), rows.shape[1] * size)
        places = np.flatnonzero(live)
        owner = places // max(1, live.shape[1])
        return owner, (places - owner * live.shape[1] + depth * size).astype(np.int32)

    def _below(self, prefixes: NDArray[np.int32]) -> NDArray[np.uint8]:
        """(H, 1, ⌈M / 8⌉): the live layer-3 tokens of each prefix (H, 2)."""
        rows: NDArray[np.uint8] = self._bits[prefixes[:, 0], prefixes[:, 1] - self.size]
        return rows[:, None, :]

    def _view(self, layout: Layout) -> NDArray[np.uint8]:
        """(M, 2, ⌈M / 8⌉): of each layer-1 token the layer-2 tokens that live SIDs write, and layer 3 of the short ones."""
        heads = layout.is_head.tobytes()
        if heads not in self._views:
            while len(self._views) >= _VIEWS_KEPT:
                del self._views[next(iter(self._views))]
            self._views[heads] = _view(self._bits, layout.is_head)
        return self._views[heads]


def _view(bits: NDArray[np.uint8], is_head: NDArray[np.bool_]) -> NDArray[np.uint8]:
    second = np.asarray(bits.any(axis=2))
    second[:, is_head] = False
    short = np.bitwise_or.reduce(bits[:, np.flatnonzero(is_head)], axis=1)
    return np.stack((np.packbits(second, axis=1), short), axis=1)


def _flat(codes: NDArray[np.uint16], size: int) -> NDArray[np.uint32]:
    """Place of each path (R, 3) among all M³."""
    flat = codes[:, 0].astype(np.uint32)
    for layer in (1, 2):  # in place: of a million items each copy would cost a millisecond
        flat *= np.uint32(size)
        flat += codes[:, layer]
    return flat


assert HEAD_LAYER_INDEX == 1  # the second axis of the bits
