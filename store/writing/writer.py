"""The writer: one batch of item events becomes one LMDB transaction of items, paths, commit log, census and source offsets.

What must hold: whatever kills the process, the five agree; the census is exact because old codes are read inside
the transaction that replaces them; applying a batch again changes nothing. One writer per directory.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.sids.layout import MAXIMUM_LAYERS, MAXIMUM_SIZE, MINIMUM_LAYERS, Layout
from store.errors import (
    REBUILD_ADVICE,
    IndexAccessError,
    IndexFullError,
    IndexMismatchError,
    IndexUsageError,
)
from store.files import environment
from store.files.data_file import IndexStorage, OldestReader, oldest_reader_of, storage_of
from store.files.environment import lock_directory, unlock
from store.reading.facts import (
    IndexFacts,
    IndexState,
    read_state,
)
from store.reading.snapshot import Snapshot
from store.records import encoding
from store.records.batch import BatchOutcome, CodesBatch, Order, PreparedBatch
from store.records.change_log import LogEntry
from store.records.encoding import FORMAT_VERSION, MAXIMUM_ITEMS, ItemEncoding, PathEncoding
from store.records.item_attributes import AttributesBatch
from store.records.split_keys import SplitKeys
from store.writing.attribute_writer import AttributeWriter, count_waiting
from store.writing.creation import create_or_check
from store.writing.failpoints import Failpoint, reach
from store.writing.log_writer import LogWriter
from store.writing.transactions import in_transaction
from store.writing.upgrade import upgrade

DEFAULT_MAP_SIZE: Final = 1 << 30  # bytes of address space; doubled when full
_PRUNE_MS: Final = 60_000  # how often deletions that the broker no longer has are looked for
_STALE_READER_COMMITS: Final = 256  # a killed reader's slot keeps old pages alive: look for such slots this often

_Result = TypeVar("_Result")


class IndexWriter:
    """The single writer of an index directory, for one thread; obtain it with :meth:`open`, a context manager."""

    def __init__(
        self,
        shared: environment.Environment,
        lock: int,
        facts: IndexFacts,
        clock: Callable[[], float],
        order: Order = "arrival",
    ) -> None:
        self._environment = shared
        self._lock = lock
        self._facts = facts
        self._clock = clock
        self._items = ItemEncoding(facts.layers)
        self._paths = PathEncoding(facts.layers, facts.size)
        self._log = LogWriter(shared.databases, facts.layers, facts.size)
        self._order: Order = order
        self._split_keys = SplitKeys(shared.databases, self._items, order)
        self._attributes = AttributeWriter(shared.databases, self._items)
        self._pruned_at = 0.0
        self._commits = 0
        with self.snapshot() as snapshot:
            self._census = snapshot.census()

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        codebook_id: str,
        layers: int,
        size: int,
        map_size: int = DEFAULT_MAP_SIZE,
        clock: Callable[[], float] = time.time,
        order: Order = "arrival",
        partitions: str = "",
        on_progress: Callable[[], None] = lambda: None,
    ) -> IndexWriter:
        """Opens the directory for writing, creating it where it is missing.

        An index of an older format is upgraded in place (half a minute for ten million items); ``on_progress`` is called
        every second or so of it. ``map_size``: bytes of address space to begin with. ``order``: which of two updates of a key
        counts, the later one or the one with the greater ``updated_at``. ``partitions``: of the topic of codes
        that it is to hold, in the one way to write them; empty: all.

        Raises ``IndexLockedError`` (another writer), ``IndexMismatchError`` (other codebook, layers, size or partitions),
        ``IndexFormatError`` (newer format).
        """
        if not MINIMUM_LAYERS <= layers <= MAXIMUM_LAYERS or not 1 <= size <= MAXIMUM_SIZE:
            raise IndexMismatchError(
                f"layers={layers}, size={size}: a codebook has 3 to 26 layers of 1 to 65,536 codewords."
            )
        directory = Path(path)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            lock = lock_directory(directory)
        except OSError as error:
            raise IndexAccessError(
                f"The index directory {directory} cannot be used: {error.strerror}. Name a directory that this user may "
                "write to."
            ) from error
        try:
            shared = environment.acquire(directory, write=True, map_size=map_size)
            try:
                wanted = IndexFacts(FORMAT_VERSION, codebook_id, layers, size, int(clock() * 1000), partitions)
                facts = upgrade(shared, create_or_check(shared, directory, wanted), on_progress=on_progress)
                count_waiting(shared, on_progress)
                return cls(shared, lock, facts, clock, order)
            except BaseException:
                environment.release(shared)
                raise
        except BaseException:
            unlock(lock)
            raise

    @property
    def path(self) -> Path:
        """The index directory."""
        return self._environment.path

    def apply(self, batch: CodesBatch, offsets: Mapping[tuple[str, int], int]) -> BatchOutcome:
        """Stores a batch and the next offset to read per (topic, partition) in one transaction.

        On ``BatchError``, ``IndexFullError`` and ``IndexAccessError`` nothing is written and the batch can be applied
        again. A full map grows and the batch is redone.
        """
        prepared = PreparedBatch.of(batch, self._facts.layers, self._facts.size, self._order)
        outcome, census = self._write(lambda transaction: self._apply(transaction, prepared, offsets))
        reach(Failpoint.BATCH_COMMITTED)
        self._census = census
        if abs(self._clock() * 1000 - self._pruned_at) > _PRUNE_MS:
            self._pruned_at = self._clock() * 1000
        return outcome

    def _apply(
        self, transaction: Any, batch: PreparedBatch, offsets: Mapping[tuple[str, int], int]
    ) -> tuple[BatchOutcome, NDArray[np.int64]]:
        databases = self._environment.databases
        state = read_state(transaction, databases)
        count = len(batch.ids)

        # 1. What is there: keys and values of the ids that exist. Pruning comes before all else: it holds the databases against
        # each other, and from here on they change one after the other.
        now_ms = int(self._clock() * 1000)
        if abs(now_ms - self._pruned_at) > _PRUNE_MS:
            self._split_keys.prune(transaction, now_ms)
            self._attributes.prune(transaction, now_ms)
        found = dict(transaction.cursor(databases["ids"]).getmulti(batch.ids))
        keys: list[bytes] = [found.get(item_id, b"") for item_id in batch.ids] if found else [b""] * count
        exists = np.fromiter(map(bool, keys), np.bool_, count)
        existing = np.flatnonzero(exists).tolist()
        stored = dict(transaction.cursor(databases["items"]).getmulti(sorted(found.values())))
        if len(stored) != len(found):
            raise self._damaged("an id has no item")
        values = [stored[keys[row]] for row in existing]
        headers = self._items.headers_of(values)
        old_codes = np.zeros_like(batch.codes)
        old_codes[existing] = headers["codes"]

        # 2. Of a key with records in several partitions one is the item: its row becomes that one.
        batch, stale = self._split_keys.settle(transaction, batch, existing, values, headers, now_ms)

        # 3. Item numbers for new items: those that deletions left free first, then fresh ones.
        upsert = ~batch.deleted
        added = np.flatnonzero(upsert & ~exists).tolist()
        reused = self._take_free(transaction, len(added))
        fresh = self._fresh(state.next_number, len(added) - len(reused))
        for row, key in zip(added, reused + fresh, strict=True):
            keys[row] = key
        numbers = np.zeros(count, np.uint32)
        numbers[exists | upsert] = encoding.numbers_of([key for key in keys if key])

        # 4. The paths: a record goes when its codes or its weight changed or its item left.
        gone = exists & batch.deleted
        differs = exists & upsert & (old_codes != batch.codes).any(axis=1)
        left, entered = gone | differs, differs | (upsert & ~exists)
        old_weights, weights = np.zeros(count, np.float32), np.zeros(count, np.float32)
        old_weights[existing] = headers["weight"]
        weights[upsert] = self._items.weights_of([batch.values[row] for row in np.flatnonzero(upsert).tolist()])
        # By their bits: LMDB finds a record by its bytes, and 0.0 equals -0.0.
        reweighted = exists & upsert & ~differs & (old_weights.view(np.uint32) != weights.view(np.uint32))
        paths, removed, put = databases["paths"], left | reweighted, entered | reweighted
        for key, value in self._paths.encode(old_codes[removed], numbers[removed], old_weights[removed]):
            if not transaction.delete(key, value, paths):
                raise self._damaged("a path record is missing")
        transaction.cursor(paths).putmulti(self._paths.encode(batch.codes[put], numbers[put], weights[put]))

        # 5. Items and ids. An item that did not change at all is not written: redelivery dirties no page.
        kept = [row for row in existing if upsert[row]] if gone.any() else existing
        rewritten = [row for row in kept if stored[keys[row]] != batch.values[row]]
        changed = [(keys[row], batch.values[row]) for row in rewritten]
        refilled = [(keys[row], batch.values[row]) for row in added[: len(reused)]]
        appended = [(keys[row], batch.values[row]) for row in added[len(reused) :]]
        cursor = transaction.cursor(databases["items"])
        cursor.putmulti(sorted(changed + refilled))
        cursor.putmulti(appended, append=True)  # fresh numbers are above all others; appending keeps pages full
        transaction.cursor(databases["ids"]).putmulti([(batch.ids[row], keys[row]) for row in added])
        for row in np.flatnonzero(gone).tolist():
            transaction.delete(batch.ids[row], b"", databases["ids"])
            transaction.delete(keys[row], b"", databases["items"])
            transaction.put(keys[row], b"", db=databases["free"])

        # 6. The attributes of items that came or changed, out of both of their sources.
        rows = sorted(added + rewritten)
        attributes = self._attributes.follow(
            transaction,
            [batch.ids[row] for row in rows],
            [keys[row] for row in rows],
            [batch.values[row] for row in rows],
            came=[batch.ids[row] for row in added],
            gone={batch.ids[row]: keys[row] for row in np.flatnonzero(gone).tolist()},
        )

        # 7. The commit log, once the paths are written: a batch that changed no item is no commit.
        items = transaction.stat(databases["items"])["entries"]
        state = msgspec.structs.replace(
            _with_waiting(state, attributes.waiting), next_number=state.next_number + len(fresh)
        )
        if changed or added or gone.any():
            before, after = [stored[key] for key, _ in changed], [value for _, value in changed]
            with_other_vector = numbers[np.asarray(rewritten, np.intp)[self._items.other_vectors(before, after)]]
            moved = LogEntry(
                batch.codes[entered],
                old_codes[left],
                numbers[left | entered],
                attributes.items,
                with_other_vector,
            )
            state = self._logged(transaction, state, moved, items)

        # 8. Census, offsets and state.
        census = self._census.copy()
        for layer in range(self._facts.layers):
            census[layer] += np.bincount(batch.codes[entered, layer], minlength=self._facts.size)
            census[layer] -= np.bincount(old_codes[left, layer], minlength=self._facts.size)
        moved = census != self._census
        transaction.cursor(databases["census"]).putmulti(encoding.census_chunks(census, moved))
        self._put_offsets(transaction, offsets)
        self._put_state(transaction, state)
        layer_indexes, tokens = np.nonzero(moved)
        outcome = BatchOutcome(
            upserted=int(upsert.sum()),
            deleted=int(gone.sum()),
            changed_tokens=list(
                zip(layer_indexes.tolist(), tokens.tolist(), census[layer_indexes, tokens].tolist(), strict=True)
            ),
            items=items,
            stale=stale,
            split_keys=transaction.stat(databases["elsewhere"])["entries"],
        )
        reach(Failpoint.BATCH_WRITTEN)
        return outcome, census

    def _logged(self, transaction: Any, state: IndexState, moved: LogEntry, items: int) -> IndexState:
        try:
            return self._log.append(transaction, state, moved, live_items=items)
        except ValueError as error:
            raise self._damaged(str(error)) from error

    def apply_attributes(self, batch: AttributesBatch, offsets: Mapping[tuple[str, int], int]) -> int:
        """Stores records of ``item-attributes`` and the next offset to read per (topic, partition) in one transaction.

        Returns how many live items have other attributes now. Errors and a full map: as in ``apply``.
        """
        by_id = batch.by_id()

        def write(transaction: Any) -> int:
            # 1. Records by item id, also of items that are not there yet. 2. What counts now, of those that are.
            try:
                changed, waiting = self._attributes.put(transaction, by_id, int(self._clock() * 1000))
            except ValueError as error:
                raise self._damaged(str(error)) from error
            # 3. The commit log, offsets and state.
            state = _with_waiting(read_state(transaction, self._environment.databases), waiting)
            if len(changed):
                nothing = np.empty((0, self._facts.layers), np.uint16)
                items = transaction.stat(self._environment.databases["items"])["entries"]
                entry = LogEntry(nothing, nothing, np.empty(0, np.uint32), changed)
                state = self._logged(transaction, state, entry, items)
            self._put_offsets(transaction, offsets)
            self._put_state(transaction, state)
            reach(Failpoint.ATTRIBUTES_WRITTEN)
            return len(changed)

        changed = self._write(write)
        reach(Failpoint.ATTRIBUTES_COMMITTED)
        return changed

    def _take_free(self, transaction: Any, count: int) -> list[bytes]:
        """Takes up to ``count`` item numbers, as keys, that deletions left free."""
        free = self._environment.databases["free"]
        if not count or not transaction.stat(free)["entries"]:
            return []
        taken = list(islice(transaction.cursor(free).iternext(values=False), count))
        for key in taken:
            transaction.delete(key, b"", free)
        return taken

    def _fresh(self, next_number: int, count: int) -> list[bytes]:
        """The next ``count`` item numbers, as keys, that no item ever had."""
        if next_number + count > MAXIMUM_ITEMS:
            raise IndexFullError(f"The index {self.path} is full at {MAXIMUM_ITEMS:,} items: split the catalogue.")
        return encoding.number_keys(np.arange(next_number, next_number + count, dtype=np.uint32))

    def put_layout(self, layout: Layout, offsets: Mapping[tuple[str, int], int]) -> bool:
        """Stores a layout with its offsets; True if it is new. A generation ≤ the codebook's newest changes nothing."""
        if layout.codebook_id == self._facts.codebook_id and (layout.layers, layout.size) != (
            self._facts.layers,
            self._facts.size,
        ):
            raise IndexMismatchError(
                f"Layout {layout.generation} is for {layout.layers} layers × {layout.size} codewords, the index "
                f"{self.path} for {self._facts.layers} × {self._facts.size}: issue the layout for this codebook again."
            )

        def write(transaction: Any) -> bool:
            layouts = self._environment.databases["layouts"]
            prefix = layout.codebook_id.encode() + b"\x00"
            cursor = transaction.cursor(layouts)
            newest = max(
                (
                    int.from_bytes(key[len(prefix) :], "big")
                    for key in (cursor.iternext(values=False) if cursor.set_range(prefix) else ())
                    if key.startswith(prefix)
                ),
                default=-1,
            )
            fresh = layout.generation > newest
            if fresh:
                key = encoding.layout_key(layout.codebook_id, layout.generation)
                transaction.put(key, msgspec.json.encode(layout.to_dict()), db=layouts)
            self._put_offsets(transaction, offsets)
            self._put_state(transaction, read_state(transaction, self._environment.databases))
            reach(Failpoint.LAYOUT_WRITTEN)
            return fresh

        fresh = self._write(write)
        reach(Failpoint.LAYOUT_COMMITTED)
        return fresh

    def remember_log_ids(self, log_ids: Mapping[str, str]) -> None:
        """Stores, beside those of other topics, the id that Kafka gave each topic that the index is read from."""

        def write(transaction: Any) -> None:
            meta = self._environment.databases["meta"]
            known = msgspec.json.decode(transaction.get(b"log_ids", b"{}", meta), type=dict[str, str])
            transaction.put(b"log_ids", msgspec.json.encode(known | dict(log_ids)), db=meta)

        self._write(write)

    def remember_partition_count(self, count: int) -> None:
        """Stores how many partitions the topic of codes has: this index may hold some of them."""
        self._write(
            lambda transaction: transaction.put(
                b"partition_count", count.to_bytes(4, "big"), db=self._environment.databases["meta"]
            )
        )

    def offsets(self) -> dict[tuple[str, int], int]:
        """The next offset to read per (topic, partition), as of the last commit."""
        with self.snapshot() as snapshot:
            return snapshot.position

    def waiting_attributes(self) -> int:
        """Ids that have attributes of ``item-attributes`` and no item, as of the last commit."""
        with self._environment.read() as transaction:
            return read_state(transaction, self._environment.databases).waiting_attributes or 0

    def census(self) -> NDArray[np.int64]:
        """Live items per (layer, token), int64 (L, M): a copy."""
        return self._census.copy()

    def snapshot(self) -> AbstractContextManager[Snapshot]:
        """A snapshot of what is committed, without a second environment."""
        return Snapshot.of(self._environment)

    def storage(self) -> IndexStorage:
        """How large the index is now; asks the operating system once, and reads no data."""
        return storage_of(self._environment.lmdb, self.path)

    def oldest_reader(self) -> OldestReader | None:
        """The snapshot that keeps most pages from being reused, in whatever process; ``None`` if none is open."""
        return oldest_reader_of(self._environment.lmdb)

    def close(self) -> None:
        """Releases the files and the writer's lock; closing again does nothing."""
        if self._lock >= 0:
            environment.release(self._environment)
            unlock(self._lock)
            self._lock = -1

    def __enter__(self) -> IndexWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _put_offsets(self, transaction: Any, offsets: Mapping[tuple[str, int], int]) -> None:
        database = self._environment.databases["offsets"]
        for (topic, partition), offset in offsets.items():
            transaction.put(encoding.offset_key(topic, partition), offset.to_bytes(8, "big"), db=database)

    def _put_state(self, transaction: Any, state: IndexState) -> None:
        state = msgspec.structs.replace(state, last_commit_at=int(self._clock() * 1000))
        transaction.put(b"state", msgspec.json.encode(state), db=self._environment.databases["meta"])

    def _write(self, work: Callable[[Any], _Result]) -> _Result:
        """Runs ``work`` in one transaction; grows a full map and runs it again."""
        if self._lock < 0:
            raise IndexUsageError(f"The writer of the index {self.path} is closed: open it again.")
        self._commits += 1
        if self._commits % _STALE_READER_COMMITS == 0:
            self._environment.lmdb.reader_check()
        return in_transaction(self._environment, work)

    def _damaged(self, what: str) -> IndexAccessError:
        return IndexAccessError(f"The index {self.path} is damaged: {what}. Nothing was written. {REBUILD_ADVICE}")


def _with_waiting(state: IndexState, more: int) -> IndexState:
    """The opening has counted them."""
    return msgspec.structs.replace(state, waiting_attributes=(state.waiting_attributes or 0) + more)
