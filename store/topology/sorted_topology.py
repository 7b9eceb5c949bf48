"""The set of live paths as sorted keys, for any codebook: four bytes a distinct path with three layers.

What must hold: a topology never changes; changes make a new one that shares all segments that they do not touch. A segment
holds the paths below one layer-1 token. It is sorted, and changes are merged into it, when a search first comes there: a
topology costs little until it is read, and a roll forward what it touches.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from models.sids.layout import HEAD_LAYER_INDEX, MINIMUM_LAYERS, Layout
from store.records.path_keys import PathKeys, distinct, distinct_sorted, path_keys

_VIEWS_KEPT: Final = 2  # the pinned and the live layout
_CHANGES_KEPT: Final = 32  # batches of changes that a segment no search comes to keeps unmerged


@dataclass(frozen=True)
class _View:
    """A segment under a layout. ``first``: SID token numbers after the layer-1 token, rising; ``short``: keys of the distinct
    (c3, …, cL) of short SIDs, and ``full``: keys of the (c2, …, cL) of the others. Both sorted.
    """

    first: NDArray[np.int32]
    short: NDArray[Any]
    full: NDArray[Any]


class _Segment:
    """The paths (c2, …, cL) below one layer-1 token, as sorted distinct keys once they are asked for."""

    __slots__ = ("_changes", "_is_sorted", "_keys", "views")

    def __init__(
        self,
        keys: NDArray[Any],
        changes: tuple[tuple[NDArray[Any], NDArray[Any]], ...] = (),
        *,
        is_sorted: bool = False,
    ) -> None:
        """``keys``: in any order and repeated, unless ``is_sorted``; ``changes``: sorted distinct keys entered and left."""
        self._keys = keys
        self._changes = changes
        self._is_sorted = is_sorted
        self.views: dict[bytes, _View] = {}

    @property
    def keys(self) -> NDArray[Any]:
        """The keys, all changes merged."""
        if self._changes or not self._is_sorted:
            keys = self._keys if self._is_sorted else distinct_sorted(self._keys)
            for entered, left in self._changes:
                keys = _merged(keys, entered, left)
            self._keys, self._changes, self._is_sorted = keys, (), True
        return self._keys

    def with_changes(self, entered: NDArray[Any], left: NDArray[Any]) -> _Segment:
        """Sorted distinct keys more and less; none is in both."""
        segment = _Segment(self._keys, (*self._changes, (entered, left)), is_sorted=self._is_sorted)
        if len(segment._changes) > _CHANGES_KEPT:
            segment.keys  # noqa: B018
        return segment

    def is_empty(self) -> bool:
        """Whether there is no path; nothing is merged where the numbers say it already."""
        if self._is_sorted and len(self._keys) > sum(len(left) for _, left in self._changes):
            return False
        return len(self.keys) == 0


class SortedTopology:
    """The live paths of a codebook of any size; below each layer-1 token a segment."""

    def __init__(self, segments: list[_Segment], live: NDArray[np.bool_], layers: int, size: int) -> None:
        """``live``: (M,), which segments hold a path."""
        self._segments = segments
        self._live = live
        self._keys: PathKeys = path_keys(layers - 1)
        self._short_keys: PathKeys = path_keys(layers - 2)
        self._no_short = self._short_keys.encode(np.empty((0, layers - 2), np.uint16))
        self.layers, self.size = layers, size

    @classmethod
    def of(cls, blocks: Iterable[NDArray[np.uint16]], layers: int, size: int) -> SortedTopology:
        """From the codes (R, L) of items, block by block."""
        keys = path_keys(layers - 1)
        firsts, rests = [np.empty(0, np.uint16)], [keys.encode(np.empty((0, layers - 1), np.uint16))]
        for codes in blocks:
            firsts.append(codes[:, 0])
            rests.append(keys.encode(codes[:, 1:]))
        first, rest = np.concatenate(firsts), np.concatenate(rests)
        order = np.argsort(first, kind="stable")  # a radix sort: linear
        bounds = np.searchsorted(first[order], np.arange(size + 1))
        rest = rest[order]
        segments = [
            _Segment(rest[begin:end]) for begin, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)
        ]
        return cls(segments, np.diff(bounds) > 0, layers, size)

    @property
    def nbytes(self) -> int:
        """Bytes of memory of the paths, without what is cached of layouts."""
        return sum(segment.keys.nbytes for segment in self._segments)

    def __len__(self) -> int:
        return sum(len(segment.keys) for segment in self._segments)

    def with_changes(self, entered: NDArray[np.uint16], left: NDArray[np.uint16]) -> SortedTopology:
        """These paths (n, L) more and those (m, L) less; no path is in both."""
        if not len(entered) and not len(left):
            return self
        paths = np.concatenate((entered, left))
        keys = self._keys.encode(paths[:, 1:])
        leaves = np.arange(len(paths)) >= len(entered)
        order = np.lexsort((keys, leaves, paths[:, 0]))
        first, keys, leaves = paths[order, 0].astype(np.int32), keys[order], leaves[order]
        begins = np.flatnonzero(np.diff(first, prepend=-1))
        middles = begins + np.add.reduceat(~leaves, begins)
        segments, live = list(self._segments), self._live.copy()
        for token, begin, middle, end in zip(
            first[begins].tolist(), begins.tolist(), middles.tolist(), [*begins[1:].tolist(), len(first)], strict=True
        ):
            segments[token] = segments[token].with_changes(keys[begin:middle], keys[middle:end])
            live[token] = not segments[token].is_empty()
        return SortedTopology(segments, live, self.layers, self.size)

    def contains(self, paths: NDArray[np.uint16]) -> NDArray[np.bool_]:
        """Whether each path (n, L) is live: (n,)."""
        keys = self._keys.encode(paths[:, 1:])
        live = np.zeros(len(paths), np.bool_)
        for token in np.unique(paths[:, 0]).tolist():
            rows = np.flatnonzero(paths[:, 0] == token)
            live[rows] = _among(self._segments[token].keys, keys[rows])
        return live

    def first_tokens(self) -> NDArray[np.int32]:
        """The layer-1 tokens that a live path begins with, rising: int32 (K,)."""
        return np.flatnonzero(self._live).astype(np.int32)

    def children(self, layout: Layout, prefixes: NDArray[np.int32]) -> tuple[NDArray[np.intp], NDArray[np.int32]]:
        """Every continuation of H prefixes (H, d) of SIDs: which prefix, rising, and the SID token number, rising within."""
        heads = layout.is_head.tobytes()
        depth = prefixes.shape[1]
        if depth == 1:
            found = [self._view(token, heads).first for token in prefixes[:, 0].tolist()]
        else:
            found = self._below(heads, prefixes)
        counts = np.fromiter(map(len, found), np.intp, len(found))
        tokens = np.concatenate(found) if found else np.empty(0, np.int32)
        return np.repeat(np.arange(len(found)), counts), tokens

    def _below(self, heads: bytes, prefixes: NDArray[np.int32]) -> list[NDArray[np.int32]]:
        """The continuations of each prefix of two tokens or more."""
        depth = prefixes.shape[1]
        is_short = prefixes[:, 1] >= (HEAD_LAYER_INDEX + 1) * self.size
        codes = (prefixes[:, 1:] % self.size).astype(np.uint16)
        found: list[NDArray[np.int32]] = [np.empty(0, np.int32)] * len(prefixes)
        for short, keys in ((False, self._keys), (True, self._short_keys)):
            rows = np.flatnonzero(is_short == short)
            if not len(rows):
                continue
            low, high = keys.bounds(codes[rows])
            layer_index = depth + short
            begin, end = np.empty(len(rows), np.intp), np.empty(len(rows), np.intp)
            arrays: list[NDArray[Any]] = []
            groups = _groups(prefixes[rows, 0])
            for which, group in groups:
                view = self._view(which, heads)
                sorted_keys = view.short if short else view.full
                begin[group] = sorted_keys.searchsorted(low[group])
                end[group] = sorted_keys.searchsorted(high[group], side="right")
                arrays += [sorted_keys] * len(group)
            places = np.concatenate([group for _, group in groups])
            slices = [
                array[first:last]
                for array, first, last in zip(arrays, begin[places].tolist(), end[places].tolist(), strict=True)
            ]
            bounds = np.cumsum([0, *map(len, slices)])
            fields = keys.field(np.concatenate(slices), depth - 1)
            # Of equal neighbours of one prefix the first: below the last layer there are none.
            is_new = np.ones(len(fields), np.bool_)
            is_new[1:] = fields[1:] != fields[:-1]
            is_new[bounds[:-1][bounds[:-1] < len(fields)]] = True
            tokens = fields + np.int32(layer_index * self.size)
            for place, first, last in zip(places.tolist(), bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
                found[int(rows[place])] = tokens[first:last][is_new[first:last]]
        return found

    def _view(self, token: int, heads: bytes) -> _View:
        segment = self._segments[token]
        view = segment.views.get(heads)
        if view is None:
            while len(segment.views) >= _VIEWS_KEPT:
                del segment.views[next(iter(segment.views))]
            view = segment.views[heads] = self._viewed(segment.keys, np.frombuffer(heads, np.bool_))
        return view

    def _viewed(self, keys: NDArray[Any], is_head: NDArray[np.bool_]) -> _View:
        """A step's cost where no search has been lately, so it does not sort what it can count."""
        second = self._keys.field(keys, 0)
        short = self._no_short
        full = keys
        short_rows = is_head[second]
        if short_rows.any():
            left_out, full, second = keys[short_rows], keys[~short_rows], second[~short_rows]
            if self.layers == MINIMUM_LAYERS:  # what is left of such a path is one token
                third = _distinct_tokens(self._keys.field(left_out, 1), self.size)
                short = third.astype(short.dtype)
            else:
                short = distinct_sorted(self._short_keys.encode(self._keys.decode(left_out)[:, 1:]))
                third = distinct(self._short_keys.field(short, 0))
            first = np.concatenate((distinct(second) + self.size, third + (HEAD_LAYER_INDEX + 1) * self.size))
        else:
            first = distinct(second) + self.size
        return _View(first.astype(np.int32), short, full)


def _groups(values: NDArray[np.int32]) -> list[tuple[int, NDArray[np.intp]]]:
    """Each distinct value with the places where it stands."""
    order = np.argsort(values, kind="stable")
    begins = np.flatnonzero(np.diff(values[order], prepend=-1))
    return list(zip(values[order[begins]].tolist(), np.split(order, begins[1:]), strict=True))


def _distinct_tokens(tokens: NDArray[np.int32], size: int) -> NDArray[np.int32]:
    """The distinct ones of tokens below ``size``, rising."""
    there = np.zeros(size, np.bool_)
    there[tokens] = True
    return np.flatnonzero(there).astype(np.int32)


def _among(ordered: NDArray[Any], keys: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether each key is one of ``ordered``."""
    if not len(ordered):
        return np.zeros(len(keys), np.bool_)
    found: NDArray[np.bool_] = ordered[np.minimum(ordered.searchsorted(keys), len(ordered) - 1)] == keys
    return found


def _merged(keys: NDArray[Any], entered: NDArray[Any], left: NDArray[Any]) -> NDArray[Any]:
    if len(left):
        keys = np.delete(keys, keys.searchsorted(left[_among(keys, left)]))
    if len(entered):
        entered = entered[~_among(keys, entered)]
        keys = np.insert(keys, keys.searchsorted(entered), entered)
    return keys
