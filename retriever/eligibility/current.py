"""The catalogue at the snapshot at hand, as queries may see it: the topology of all items, and of what a filter lets through.

What must hold: the trie of a query has exactly the SIDs that an eligible item holds, and gives the eligible items alone, so that
a search over it is the search over an index of the eligible items. AND and NOT of topologies would not be exact (two items, one
path); so a filter's topology is made from its items, and a path leaves it only when no other eligible item holds it.

A filter's topology is kept and rolled forward along the index's log as long as queries use it. For one thread.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import structlog
from numpy.typing import NDArray

from models.attributes import AttributeType
from models.sids.layout import HEAD_LAYER_INDEX, Layout
from retriever.eligibility.columns import Columns
from store.reading.snapshot import Snapshot
from store.records.change_log import Changes
from store.records.path_keys import distinct_paths, keys_of
from store.topology.current import CurrentTopology
from store.topology.layout_trie import SidItems, SnapshotTrie
from store.topology.topology import Topology, topology_of
from streamer.filters.grammar import Filter, canonical_bytes

_log = structlog.get_logger(__name__)

Paths = NDArray[np.uint16]
Numbers = NDArray[np.uint32]
_NOBODY: Final[Numbers] = np.empty(0, np.uint32)


@dataclass
class _InUse:
    """A filter that queries use: which items it lets through, by number, and their paths."""

    wanted: Filter
    mask: NDArray[np.bool_]
    topology: Topology


class EligibleTrie(SnapshotTrie):
    """The trie of a snapshot with the eligible items alone."""

    def __init__(
        self,
        snapshot: Snapshot,
        layout: Layout,
        topology: Topology,
        mask: NDArray[np.bool_] | None,
        excluded: Numbers,
    ) -> None:
        """``mask``: by item number, None for all; ``excluded``: item numbers, rising."""
        super().__init__(snapshot, layout, topology)
        self._mask = mask
        self._excluded = excluded

    def items_of(self, sids: Sequence[Sequence[int]]) -> list[SidItems]:
        """The eligible items of each SID."""
        return [self._eligible(items) for items in super().items_of(sids)]

    def _eligible(self, items: SidItems) -> SidItems:
        kept = _eligible(items.items, self._mask, self._excluded)
        return SidItems(items.items[kept], items.codes[kept], items.weights[kept])


class CurrentCatalogue:
    """One a process and index directory."""

    def __init__(self, types: Mapping[str, AttributeType], *, filters_kept: int = 16) -> None:
        """``types``: the declared attributes, none for an index without filters; ``filters_kept``: those last used."""
        self._types = dict(types)
        self._filters_kept = filters_kept
        self._topology = CurrentTopology()
        self._all: Topology | None = None
        self._commit = -1
        self._paths: Paths = np.empty((0, 0), np.uint16)  # of every item, by its number
        self._columns = Columns(self._types)
        self._in_use: OrderedDict[bytes, _InUse] = OrderedDict()

    @property
    def columns(self) -> Columns:
        """The attributes of the items of the snapshot that was rolled forward to last."""
        return self._columns

    def roll_to(self, snapshot: Snapshot) -> None:
        """Brings everything to the commit of a snapshot; what was given out for an earlier one is void."""
        step = self._topology.step(snapshot)
        self._all = step.topology
        if not self._types:
            return
        if step.changes is None or step.since != self._commit:
            self._read(snapshot)
        elif len(step.changes.items) or len(step.changes.attributes):
            self._follow(snapshot, step.changes)
        self._commit = snapshot.commit

    def trie(
        self, snapshot: Snapshot, layout: Layout, wanted: Filter | None, excluded: Numbers = _NOBODY
    ) -> SnapshotTrie:
        """The trie of the items that a filter lets through, less those with these numbers; of the snapshot rolled to."""
        assert self._all is not None
        in_use = None if wanted is None else self._filtered(wanted)
        topology, mask = (self._all, None) if in_use is None else (in_use.topology, in_use.mask)
        live, codes = snapshot.codes_where_live(excluded)
        excluded, codes = excluded[live], codes[live]
        if mask is not None:
            codes, excluded = codes[mask[excluded]], excluded[mask[excluded]]
        if len(excluded):
            order = np.argsort(excluded, kind="stable")
            excluded, codes = excluded[order], distinct_paths(codes)
            held = _still_held(snapshot, codes, mask, excluded)
            topology = topology.with_changes(codes[:0], codes[~held])
        elif mask is None:
            return SnapshotTrie(snapshot, layout, topology)
        return EligibleTrie(snapshot, layout, topology, mask, excluded)

    def eligible_count(self, wanted: Filter) -> int:
        """How many items a filter lets through."""
        return int(np.count_nonzero(self._filtered(wanted).mask))

    def mask(self, wanted: Filter) -> NDArray[np.bool_]:
        """By item number, whether a filter lets the item through: (capacity,), valid until the next roll."""
        return self._filtered(wanted).mask

    def _filtered(self, wanted: Filter) -> _InUse:
        key = canonical_bytes(wanted)
        in_use = self._in_use.get(key)
        if in_use is None:
            numbers = self._columns.eligible(wanted)
            mask = np.zeros(len(self._paths), np.bool_)
            mask[numbers] = True
            layers, size = self._shape
            in_use = _InUse(wanted, mask, topology_of([self._paths[numbers]], layers, size))
            self._in_use[key] = in_use
            while len(self._in_use) > self._filters_kept:
                self._in_use.popitem(last=False)
        self._in_use.move_to_end(key)
        return in_use

    @property
    def _shape(self) -> tuple[int, int]:
        assert self._all is not None
        return self._all.layers, self._all.size

    def _read(self, snapshot: Snapshot) -> None:
        """Reads everything anew: a second or two for a million items."""
        started = time.monotonic()
        self._in_use.clear()
        self._paths = np.zeros((snapshot.item_numbers, snapshot.layers), np.uint16)
        for codes, numbers in snapshot.all_paths():
            self._paths[numbers] = codes
        self._columns = Columns.build(self._types, snapshot.all_attributes())
        _log.info("attributes_read", items=snapshot.item_count, seconds=round(time.monotonic() - started, 2))

    def _follow(self, snapshot: Snapshot, changes: Changes) -> None:
        numbers = np.union1d(changes.items, changes.attributes)
        if (missing := int(numbers[-1]) + 1 - len(self._paths)) > 0:
            missing = max(missing, len(self._paths) // 4)  # grows by a quarter: not at every new item
            self._paths = np.concatenate((self._paths, np.zeros((missing, snapshot.layers), np.uint16)))
            for in_use in self._in_use.values():
                in_use.mask = np.concatenate((in_use.mask, np.zeros(missing, np.bool_)))
        before = self._paths[numbers]
        now = before.copy()
        moved = np.isin(numbers, changes.items)  # the others have other attributes, and the path that they had
        now[moved] = snapshot.codes_where_live(numbers[moved])[1]
        self._paths[numbers] = now
        self._columns.update(numbers, snapshot.attributes(numbers))
        for in_use in self._in_use.values():
            let_through = in_use.mask[numbers]
            in_use.mask[numbers] = passes = self._columns.lets_through(in_use.wanted, numbers)
            touched = moved | (passes != let_through)
            if not touched.any():
                continue
            entered, gone = distinct_paths(now[passes & touched]), distinct_paths(before[let_through & touched])
            gone = gone[~np.isin(keys_of(gone), keys_of(entered))]
            gone = gone[~_still_held(snapshot, gone, in_use.mask, _NOBODY)]
            in_use.topology = in_use.topology.with_changes(entered, gone)


def _eligible(numbers: Numbers, mask: NDArray[np.bool_] | None, excluded: Numbers) -> NDArray[np.bool_]:
    """Of item numbers (n,) whether the item is let through and not excluded; ``excluded`` rises."""
    kept = np.ones(len(numbers), np.bool_) if mask is None else mask[numbers]
    if len(excluded):
        place = np.minimum(np.searchsorted(excluded, numbers), len(excluded) - 1)
        kept = kept & (excluded[place] != numbers)
    return kept


def _still_held(
    snapshot: Snapshot, paths: Paths, mask: NDArray[np.bool_] | None, excluded: Numbers
) -> NDArray[np.bool_]:
    """Of paths (n, L) whether an eligible item of the snapshot holds them."""
    held = np.zeros(len(paths), np.bool_)
    if len(paths):
        below = snapshot.items_below(np.delete(paths, HEAD_LAYER_INDEX, axis=1))
        holds = below.layer2 == paths[below.owner, HEAD_LAYER_INDEX]
        holds &= _eligible(below.items, mask, excluded)
        held[below.owner[holds]] = True
    return held
