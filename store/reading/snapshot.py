"""Snapshots: everything read within one is from one committed state, and what it returned outlives it.

A snapshot is a read transaction: hold it for one batch of queries, not longer, because LMDB cannot reuse the pages
that it still sees. Readers never write; they work while the writer does, in its process or in another one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.sids.layout import Layout
from store.errors import REBUILD_ADVICE, IndexAccessError
from store.files import environment
from store.reading.facts import read_lineage, read_state
from store.reading.items import ItemReads
from store.reading.paths import BelowPaths, all_paths, items_below
from store.records import encoding
from store.records.change_log import Changes, log_key, merge_entries
from store.records.encoding import PathEncoding
from store.records.split_keys import decode_records

# Told whether a thread of this process waits for its snapshots to end, as it does when the index has grown.
BetweenBlocks = Callable[[bool], None]


class Snapshot(ItemReads):
    """One committed state of the index: its items, its paths, and what is counted and noted of the whole."""

    def __init__(
        self,
        transaction: Any,
        databases: dict[str, Any],
        path: Path,
        opening: int = 0,
        between_blocks: Callable[[], None] | None = None,
    ) -> None:
        """``opening``: which opening of the files by this process this is (``Environment.opening``); ``between_blocks``: called
        between two blocks of what is read whole, which are smaller then."""
        super().__init__(transaction, databases, path, between_blocks)
        self._opening = opening
        self._paths = PathEncoding(self.facts.layers, self.facts.size)
        self._census: NDArray[np.int64] | None = None
        self._changes: dict[int, Changes | None] = {}
        self._layouts: dict[int, Layout] | None = None

    @classmethod
    @contextmanager
    def of(cls, shared: environment.Environment, between_blocks: BetweenBlocks | None = None) -> Iterator[Snapshot]:
        """A snapshot of an environment; it ends with the ``with`` block. ``between_blocks``: see ``IndexReader``."""
        paused = None if between_blocks is None else lambda: between_blocks(shared.snapshots_are_awaited)
        with shared.read() as transaction:
            snapshot = cls(transaction, shared.databases, shared.path, shared.opening, paused)
            try:
                yield snapshot
            finally:
                snapshot._transaction = None

    @property
    def codebook_id(self) -> str:
        """Id of the codebook that made the codes."""
        return self.facts.codebook_id

    @property
    def size(self) -> int:
        """M."""
        return self.facts.size

    @property
    def position(self) -> dict[tuple[str, int], int]:
        """The next offset to read per (topic, partition): all before it is in this snapshot."""
        return {
            encoding.topic_partition(bytes(key)): int.from_bytes(value, "big")
            for key, value in self._cursor("offsets").iternext()
        }

    @property
    def log_ids(self) -> dict[str, str]:
        """The id that Kafka gave each topic that the index was read from; empty if an older sidstream made the index."""
        value = self._read.get(b"log_ids", db=self._databases["meta"])
        return {} if value is None else msgspec.json.decode(value, type=dict[str, str])

    @property
    def partitions(self) -> str:
        """The partitions of the topic of codes that the index holds, as its writer named them; empty: all."""
        return self.facts.partitions

    @property
    def partition_count(self) -> int:
        """How many partitions the topic of codes had when its indexer looked last; 0 if that was not noted."""
        return int.from_bytes(self._read.get(b"partition_count", b"", db=self._databases["meta"]), "big")

    @property
    def item_numbers(self) -> int:
        """One more than the greatest item number that was ever given: the length of a table by item number."""
        return read_state(self._read, self._databases).next_number

    @property
    def split_keys(self) -> int:
        """Keys that have records in more than one partition of ``item-codes``: none, while one partitioner writes."""
        return int(self._read.stat(self._databases["elsewhere"])["entries"])

    def split_key_examples(self, count: int) -> list[tuple[bytes, list[int]]]:
        """The first ``count`` split keys, each with the partitions that hold a record of it."""
        if not self.split_keys:
            return []
        examples = []
        for item_id, value in islice(self._cursor("elsewhere").iternext(), count):
            partitions = {record.partition for record in decode_records(value)}
            number = self._read.get(item_id, db=self._databases["ids"])
            if number is not None:
                stored = self._read.get(number, db=self._databases["items"])
                partitions.add(int(self._items.headers_of([stored])["partition"][0]))
            examples.append((item_id, sorted(partitions)))
        return examples

    @property
    def last_commit_at(self) -> int:
        """When the last batch was committed, milliseconds since the epoch; 0 before the first."""
        return read_state(self._read, self._databases).last_commit_at

    def census(self) -> NDArray[np.int64]:
        """Live items per (layer, token): int64 (L, M)."""
        return self._counts().copy()

    def _counts(self) -> NDArray[np.int64]:
        if self._census is None:
            records = list(self._cursor("census").iternext())
            self._census = encoding.census_of(records, self.layers, self.size)
        return self._census

    def layouts(self) -> list[Layout]:
        """The layouts of this codebook, oldest generation first."""
        return list(self._all_layouts().values())

    def layout(self, generation: int) -> Layout | None:
        """One layout of this codebook."""
        return self._all_layouts().get(generation)

    def live_layout(self) -> Layout | None:
        """The newest layout of this codebook."""
        layouts = self._all_layouts()
        return layouts[max(layouts)] if layouts else None

    def _all_layouts(self) -> dict[int, Layout]:
        if self._layouts is None:
            prefix = self.codebook_id.encode() + b"\x00"
            found = (
                Layout.from_dict(msgspec.json.decode(value))
                for key, value in self._cursor("layouts").iternext()
                if key.startswith(prefix)
            )
            self._layouts = {layout.generation: layout for layout in found}
        return self._layouts

    def first_tokens(self) -> NDArray[np.int32]:
        """The first-layer tokens that hold a live item, rising: int32 (K,)."""
        return np.flatnonzero(self._counts()[0]).astype(np.int32)

    def items_below(self, short_paths: NDArray[np.uint16]) -> BelowPaths:
        """The items of short paths, which are paths without their layer-2 token: uint16 (K, L-1).

        The rows may repeat and come in any order; one that holds no item gives none. Read at once, whatever the layout.
        """
        return items_below(self._cursor("paths"), self._paths, short_paths)

    def all_paths(self) -> Iterator[tuple[NDArray[np.uint16], NDArray[np.uint32]]]:
        """Codes uint16 (R, L) and numbers uint32 (R,) of every item, in blocks of about a million, sorted by (c1, c3, …,
        cL, c2, number). What that costs: ``store.reading.paths.all_paths``.
        """
        return ((codes, numbers) for codes, numbers, _ in self.all_path_records())

    def all_path_records(self) -> Iterator[tuple[NDArray[np.uint16], NDArray[np.uint32], NDArray[np.float32]]]:
        """As ``all_paths``, and the weights float32 (R,) that stand beside the numbers."""
        for block in all_paths(self._cursor("paths"), self._cursor("paths"), self._paths):
            yield block
            self._pause()

    @property
    def commit(self) -> int:
        """Which commit this is; it rises with every batch that changes an item."""
        return read_state(self._read, self._databases).commit

    @property
    def incarnation(self) -> int:
        """Equal for snapshots whose commits are of one history; what is kept of another one is worth nothing.

        It differs once the files were opened anew, because the directory was replaced, and once the index was restored from
        a backup, which draws a new lineage: the commits of a backup and of the index that it was made of fork.
        """
        return self._opening << 64 | read_lineage(self._read, self._databases)

    def changes_since(self, commit: int) -> Changes | None:
        """What the commits after ``commit`` changed, in sum; ``commit`` must be of this incarnation.

        ``None`` if the log does not reach back to it, or if it is newer than this snapshot: build from :meth:`all_paths`. The log
        is read once for all who ask from the same commit, as the topology and the vectors of a retriever do.

        Raises:
            IndexAccessError: the log is damaged.
        """
        if commit not in self._changes:
            self._changes[commit] = self._read_changes(commit)
        return self._changes[commit]

    def _read_changes(self, commit: int) -> Changes | None:
        state = read_state(self._read, self._databases)
        if not state.log_floor <= commit <= state.commit:
            return None
        cursor = self._cursor("changes")
        records = cursor.iternext() if cursor.set_range(log_key(commit + 1)) else iter(())
        try:
            return merge_entries(records, self.layers, state.commit)
        except ValueError as error:
            raise IndexAccessError(f"The index {self._path} is damaged: {error}. {REBUILD_ADVICE}") from error

    def recount(self) -> NDArray[np.int64]:
        """The census counted again from the paths: int64 (L, M)."""
        counts = np.zeros((self.layers, self.size), np.int64)
        for codes, _ in self.all_paths():
            for layer in range(self.layers):
                counts[layer] += np.bincount(codes[:, layer], minlength=self.size)
        return counts
