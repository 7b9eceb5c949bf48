"""An FM-index over the SIDs of a layout: which tokens may follow a prefix, and which items hold a SID.

Built as SEAL (Bevilacqua et al. 2022) builds it, of reversed sequences, with a separator behind each: so appending a
token to a prefix is one step of backward search, and the symbols of the Burrows-Wheeler transform in a prefix's range
of rows are its continuations. A free FM-index also finds what stands in the middle of a SID; a search from ``root`` begins at
a separator, which makes it the same constraint as the prefix tree. What must hold: exactly the prefix tree's answers.

No Python package serves as it is (November 2026): SEAL's own is SWIG around sdsl-lite without a release, ``fm-index``
4.0 indexes text only and tells counts but not continuations. So the static index is written here with NumPy, in the
layout of sdsl's ``wt_int`` and ``rank_support_v``, all beams at once. ``wavelet-matrix`` 4.0 (Rust, integers) has the
rank structure alone, also as a dynamic one: where it is installed, ``DynamicFmIndex`` takes insertions through it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from models.sids.layout import Layout

wavelet_package: Any = import_module("wavelet_matrix") if find_spec("wavelet_matrix") else None

Rows = NDArray[np.int64]

BLOCK_BITS: Final = 512  # sdsl's rank_support_v: an absolute count per block, 9 bits for each word within
WORDS: Final = BLOCK_BITS // 64


@dataclass(frozen=True)
class WaveletMatrix:
    """Rank over n symbols of B bits (Claude, Navarro & Ordóñez 2015), a bit vector per bit, highest first.

    words: uint64 (B, 8 K); before: uint32 (B, K) ones before each block of 512 bits; within: uint64 (B, K) ones of the
    block before its word w, 9 bits each from bit 9 (w - 1); zeros: int64 (B,) zeros of each level.
    """

    words: NDArray[np.uint64]
    before: NDArray[np.uint32]
    within: NDArray[np.uint64]
    zeros: Rows

    @classmethod
    def of(cls, symbols: NDArray[np.unsignedinteger[Any]], bits: int) -> WaveletMatrix:
        """The matrix of ``symbols`` (n,), each below 2 ** bits."""
        blocks = len(symbols) // BLOCK_BITS + 1  # a spare bit at the end: rank(n) needs no special case
        words = np.zeros((bits, blocks * WORDS), np.uint64)
        before, within = np.zeros((bits, blocks), np.uint32), np.zeros((bits, blocks), np.uint64)
        zeros = np.zeros(bits, np.int64)
        for level in range(bits):
            one = ((symbols >> (bits - 1 - level)) & 1).astype(np.bool_)
            packed = np.packbits(one, bitorder="little")
            words[level].view(np.uint8)[: len(packed)] = packed
            running = np.cumsum(np.bitwise_count(words[level]).reshape(blocks, WORDS), axis=1, dtype=np.uint64)
            before[level, 1:] = np.cumsum(running[:-1, -1])
            for word in range(1, WORDS):
                within[level] |= running[:, word - 1] << np.uint64(9 * (word - 1))
            zeros[level] = len(one) - np.count_nonzero(one)
            symbols = np.concatenate((symbols[~one], symbols[one]))
        return cls(words, before, within, zeros)

    def ones(self, level: int, end: Rows) -> Rows:
        """Ones before each position ``end`` of one level."""
        word = end >> 6
        block = word >> 3
        shift = (np.maximum(word & 7, 1) - 1) * 9
        inside = (self.within[level, block] >> shift.astype(np.uint64)) & np.uint64(511)
        inside[(word & 7) == 0] = 0
        below = (np.uint64(1) << (end & 63).astype(np.uint64)) - np.uint64(1)
        ones: NDArray[np.uint64] = (
            self.before[level, block] + inside + np.bitwise_count(self.words[level, word] & below)
        )
        return ones.astype(np.int64)

    def distinct(self, low: Rows, high: Rows) -> tuple[NDArray[np.intp], Rows, Rows, Rows]:
        """Distinct symbols of H ranges [low, high): range number, symbol (both rising), and low and high of the symbol
        on the lowest level.
        """
        owner, symbol = np.arange(len(low)), np.zeros(len(low), np.int64)
        for level, zeros in enumerate(self.zeros.tolist()):
            ones_low, ones_high = self.ones(level, low), self.ones(level, high)
            low = np.stack((low - ones_low, ones_low + zeros), axis=1).ravel()
            high = np.stack((high - ones_high, ones_high + zeros), axis=1).ravel()
            kept = np.flatnonzero(high > low)
            low, high, parent = low[kept], high[kept], kept >> 1
            owner, symbol = owner[parent], 2 * symbol[parent] + (kept & 1)
        return owner, symbol, low, high

    def follow(self, position: Rows, symbol: Rows) -> Rows:
        """Where the symbol's occurrences before ``position`` end on the lowest level."""
        for level, zeros in enumerate(self.zeros.tolist()):
            ones = self.ones(level, position)
            bit = (symbol >> (len(self.zeros) - 1 - level)) & 1
            position = np.where(bit == 1, ones + zeros, position - ones)
        return position

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return self.words.nbytes + self.before.nbytes + self.within.nbytes + self.zeros.nbytes


@dataclass(frozen=True)
class FmIndex:
    """An FM-index over the SIDs of N items under one layout; a prefix of SIDs is a range of rows.

    The rows are the suffixes of the reversed SIDs in order: first the N separators, then by token. The layer-L rows
    need no symbol (a SID ends there), and the separator none (nothing is appended to it). start: int64 (L M + 1,)
    first row of each token; shift: int64 (L M,) from the wavelet matrix' lowest level to the token's rows; items:
    uint32 (N,) item numbers of the layer-L rows.
    """

    symbols: WaveletMatrix
    start: Rows
    shift: Rows
    items: NDArray[np.uint32]

    @classmethod
    def of(cls, codes: NDArray[np.uint16], items: NDArray[np.uint32], layout: Layout) -> FmIndex:
        """Builds it from codes (N, L) and item numbers (N,)."""
        symbols, start, items = transform(codes, items, layout)
        count = layout.layers * layout.size
        bits = max(1, (count - 1).bit_length())
        # The lowest level orders symbols by their bits in reverse.
        reverse = np.zeros(count, np.int64)
        for bit in range(bits):
            reverse = 2 * reverse + ((np.arange(count) >> bit) & 1)
        order = np.argsort(reverse)
        leaf = np.zeros(count, np.int64)
        leaf[order[1:]] = np.cumsum(np.diff(start)[order])[:-1]
        return cls(WaveletMatrix.of(symbols, bits), start, start[:-1] - leaf, items)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return self.symbols.nbytes + self.start.nbytes + self.shift.nbytes + self.items.nbytes

    def root(self) -> tuple[Rows, Rows]:
        """The empty prefix: the separators' rows, (1,) each."""
        return np.zeros(1, np.int64), np.full(1, len(self.items), np.int64)

    def children(self, low: Rows, high: Rows) -> tuple[NDArray[np.intp], Rows, Rows, Rows]:
        """Allowed next tokens of H prefixes: prefix number, token (both rising), and the longer prefix' rows."""
        owner, token, low, high = self.symbols.distinct(low, high)
        return owner, token, low + self.shift[token], high + self.shift[token]

    def extend(self, low: Rows, high: Rows, token: Rows) -> tuple[Rows, Rows]:
        """Rows of H prefixes with one token (H,) appended, empty where it is not allowed."""
        shift = self.shift[token]
        return self.symbols.follow(low, token) + shift, self.symbols.follow(high, token) + shift

    def items_of(self, low: int, high: int) -> NDArray[np.uint32]:
        """Item numbers of a whole SID's rows."""
        base = int(self.start[-1]) - len(self.items)
        return self.items[low - base : high - base]


def transform(
    codes: NDArray[np.uint16], items: NDArray[np.uint32], layout: Layout
) -> tuple[NDArray[np.uint16], Rows, NDArray[np.uint32]]:
    """The Burrows-Wheeler transform of the reversed SIDs: symbols of all rows but layer L's, ``start``, ``items``.

    Every SID has a separator of its own, as collections of strings are indexed, and SIDs come in the order of their
    reversal; so suffixes need no general sort: by token, then by the row of what follows, layer by layer.
    """
    tokens = codes.astype(np.int64) + layout.layer_offsets
    present = np.ones(tokens.shape, np.bool_)
    present[:, 1] = ~layout.is_head[codes[:, 1]]
    # A left-out token sorts first: what follows it is of a lower layer.
    order = np.lexsort((items, *np.where(present, tokens, -1).T))
    tokens, present, items = tokens[order], present[order], items[order]
    counts = np.bincount(tokens[present], minlength=layout.layers * layout.size)
    start = len(items) + np.concatenate(([0], np.cumsum(counts)))
    symbols = np.zeros(int(start[-1]) - len(items), np.uint16)
    row = np.arange(len(items))
    for layer in range(layout.layers):
        held = np.flatnonzero(present[:, layer])
        symbols[row[held]] = tokens[held, layer]
        if layer + 1 < layout.layers:
            sorted_ = held[np.lexsort((row[held], tokens[held, layer]))]
            row[sorted_] = start[layer * layout.size] + np.arange(len(held))
    return symbols, start, items


class DynamicFmIndex:
    """An FM-index whose symbols take insertions, through ``wavelet-matrix``; without item numbers, in its favour."""

    def __init__(self, codes: NDArray[np.uint16], layout: Layout) -> None:
        symbols, self.start, items = transform(codes, np.arange(len(codes), dtype=np.uint32), layout)
        bits = max(1, (layout.layers * layout.size - 1).bit_length())
        self.symbols = wavelet_package.DynamicWaveletMatrix(symbols.tolist(), max_bit=bits)
        self.count = len(items)

    def insert(self, sids: Iterable[tuple[int, ...]]) -> None:
        """Adds SIDs: the separator after all others, then token by token where the last one sent it."""
        for sid in sids:
            row = self.count
            self.count += 1
            self.start += 1
            for token in sid:
                self.symbols.insert(row, token)
                row = int(self.start[token]) + self.symbols.rank(token, row)
                self.start[token + 1 :] += 1

    def children(self, low: int, high: int) -> list[tuple[int, int, int]]:
        """Allowed next tokens of a prefix, with the longer prefix' rows."""
        found = [(entry["value"], entry["count"]) for entry in self.symbols.range_list(low, high)]
        lows = [int(self.start[token]) + self.symbols.rank(token, low) for token, _ in found]
        return [(token, first, first + count) for (token, count), first in zip(found, lows, strict=True)]
