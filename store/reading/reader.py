"""Snapshots: everything read within one is from one committed state, and what it returned outlives it.

A snapshot is a read transaction: hold it for one batch of queries, not longer, because LMDB cannot reuse the pages
that it still sees. Readers never write; they work while the writer does, in its process or in another one.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.attributes import Attributes
from models.sids.layout import Layout
from store.errors import (
    REBUILD_ADVICE,
    IndexAccessError,
    IndexUsageError,
)
from store.files import environment
from store.reading.facts import read_facts, read_lineage, read_state
from store.reading.paths import BelowPaths, all_paths, items_below
from store.records import encoding
from store.records.batch import KeyRecord
from store.records.change_log import Changes, log_key, merge_entries
from store.records.encoding import ItemEncoding, PathEncoding, StoredItem
from store.records.item_attributes import decode_fields
from store.records.split_keys import decode_marker, decode_records

_DIGEST_CHUNK: Final = 10_000  # items hashed at a time
_SMALLER_CHUNK: Final = 2_000  # where something is to happen between two
# Told whether a thread of this process waits for its snapshots to end, as it does when the index has grown.
BetweenBlocks = Callable[[bool], None]
_OF_ATTRIBUTES: Final = 1 << 31  # marks their length in the digest: no value is as long


class ItemContent(NamedTuple):
    """What an index says of an item: ``value`` (``store.records.encoding``) and canonical ``attributes``, ``b""`` for none."""

    id: bytes
    value: bytes
    attributes: bytes


class ItemVectors(NamedTuple):
    """Items that have a vector: ``numbers`` uint32 (n,) rising, their ids, and the vectors (``models.dense.vectors``)."""

    numbers: NDArray[np.uint32]
    ids: list[bytes]
    values: list[bytes]


class Snapshot:
    """One committed state of the index. Arrays and items returned are copies and outlive it."""

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
        self._transaction = transaction
        self._opening = opening
        self._between_blocks = between_blocks
        self._databases = databases
        self._path = path
        self.facts = read_facts(transaction, databases, path)
        self._items = ItemEncoding(self.facts.layers)
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
    def layers(self) -> int:
        """L."""
        return self.facts.layers

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

    def items_by_partition(self) -> dict[int, int]:
        """Partition of ``item-codes`` → live items that came from it. Reads every item: for checks."""
        counts: dict[int, int] = {}
        values = self._cursor("items").iternext(keys=False)
        while chunk := list(islice(values, _DIGEST_CHUNK)):
            partitions, items = np.unique(self._items.headers_of(chunk)["partition"], return_counts=True)
            for partition, count in zip(partitions.tolist(), items.tolist(), strict=True):
                counts[partition] = counts.get(partition, 0) + count
        return counts

    @property
    def item_count(self) -> int:
        """Live items."""
        return int(self._read.stat(self._databases["items"])["entries"])

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

    def items(self, numbers: Sequence[int] | NDArray[np.uint32]) -> list[StoredItem]:
        """The items with these numbers, in the order asked for; numbers must come from this snapshot."""
        wanted = np.asarray(numbers, np.uint32)
        return self._items.decode(wanted.tolist(), self._values(wanted))

    def updated_at(self, numbers: NDArray[np.uint32]) -> NDArray[np.int64]:
        """``updated_at`` of the items with these numbers (n,), the rest left undecoded."""
        return self._items.headers_of(self._values(numbers))["updated_at"].astype(np.int64)

    def codes_where_live(self, numbers: NDArray[np.uint32]) -> tuple[NDArray[np.bool_], NDArray[np.uint16]]:
        """Of each item number (n,) whether it is one of a live item, and its codes (n, L): zeros where it is not."""
        distinct, inverse = np.unique(np.asarray(numbers, np.uint32), return_inverse=True)
        found = self._cursor("items").getmulti(encoding.number_keys(distinct))
        live, codes = np.zeros(len(distinct), np.bool_), np.zeros((len(distinct), self.layers), np.uint16)
        rows = np.searchsorted(distinct, encoding.numbers_of([key for key, _ in found]))
        live[rows], codes[rows] = True, self._items.codes_of([value for _, value in found])
        return live[inverse], codes[inverse]

    def _values(self, numbers: NDArray[np.uint32]) -> list[bytes]:
        distinct, inverse = np.unique(np.asarray(numbers, np.uint32), return_inverse=True)
        values = self._cursor("items").getmulti(encoding.number_keys(distinct))
        if len(values) != len(distinct):
            raise IndexUsageError(
                f"{len(distinct) - len(values)} of {len(distinct)} item numbers are not in this snapshot of {self._path}: "
                "look up numbers in the snapshot that they came from."
            )
        return [values[place][1] for place in inverse.tolist()]

    def vectors(self, numbers: Sequence[int] | NDArray[np.uint32]) -> ItemVectors:
        """The vectors of those items of these numbers that are live and have one; any others are passed over."""
        wanted = np.unique(np.asarray(numbers, np.uint32))
        return self._with_vectors(self._cursor("items").getmulti(encoding.number_keys(wanted)))

    def all_vectors(self) -> Iterator[ItemVectors]:
        """The vectors of all items that have one, in blocks, in the order of item numbers."""
        records = self._cursor("items").iternext()
        while block := list(islice(records, self._chunk)):
            yield self._with_vectors(block)
            self._pause()

    def _with_vectors(self, records: Sequence[tuple[bytes, bytes]]) -> ItemVectors:
        of = self._items.vector_of
        found = [(key, value, vector) for key, value in records if (vector := of(value))]
        return ItemVectors(
            encoding.numbers_of([key for key, _, _ in found]),
            [self._items.id_of(value) for _, value, _ in found],
            [vector for _, _, vector in found],
        )

    def find(self, ids: Sequence[bytes]) -> list[StoredItem | None]:
        """The item of each id, None where there is none."""
        keys = [item_id for item_id in sorted(set(ids)) if 0 < len(item_id) <= encoding.MAXIMUM_KEY_BYTES]
        found = dict(self._cursor("ids").getmulti(keys))
        items = dict(zip(found, self.items(encoding.numbers_of(list(found.values()))), strict=True))
        return [items.get(item_id) for item_id in ids]

    def deletion(self, item_id: bytes) -> KeyRecord | None:
        """The deletion of an id that has no item, as far as it is known: partition, Kafka time, and when it was noted. None of an
        item that lives, was never there, or whose deletion is older than ``TOMBSTONES_KEPT_MS``.
        """
        if (
            not 0 < len(item_id) <= encoding.MAXIMUM_KEY_BYTES
            or self._transaction.get(item_id, db=self._databases["ids"]) is not None
        ):
            return None
        records = []
        if (marker := self._transaction.get(item_id, db=self._databases["deleted"])) is not None:
            records.append(decode_marker(marker))
        elif (others := self._transaction.get(item_id, db=self._databases["elsewhere"])) is not None:
            records += [record for record in decode_records(others) if record.value is None]
        return max(records, key=lambda record: (record.timestamp, record.partition), default=None)

    def known(self, ids: Sequence[bytes]) -> set[bytes]:
        """Those of ``ids`` that have an item."""
        keys = [item_id for item_id in sorted(set(ids)) if 0 < len(item_id) <= encoding.MAXIMUM_KEY_BYTES]
        return {item_id for item_id, _ in self._cursor("ids").getmulti(keys)}

    def attributes(self, numbers: Sequence[int] | NDArray[np.uint32]) -> list[Attributes | None]:
        """The attributes of each of these numbers (N,): without any ``{}``, ``None`` where no item is."""
        wanted = np.asarray(numbers, np.uint32)
        keys = encoding.number_keys(np.unique(wanted))
        live = {key for key, _ in self._cursor("items").getmulti(keys)}
        found = dict(self._cursor("attributes").getmulti(keys))
        by_number = {key: decode_fields(found.get(key, b"")) if key in live else None for key in keys}
        return [by_number[key] for key in encoding.number_keys(wanted)]

    def all_attributes(self) -> Iterator[tuple[NDArray[np.uint32], list[Attributes | None]]]:
        """Item numbers uint32 (N,) and attributes of all items, in blocks, rising; those without any have ``{}``."""
        numbers = self._cursor("items").iternext(values=False)
        while keys := list(islice(numbers, self._chunk)):
            found = dict(self._cursor("attributes").getmulti(keys)) if self.attribute_count else {}
            yield encoding.numbers_of(keys), [decode_fields(found.get(key, b"")) for key in keys]
            self._pause()

    @property
    def attribute_count(self) -> int:
        """Live items that have attributes."""
        return int(self._read.stat(self._databases["attributes"])["entries"])

    def known_attribute_ids(self, ids: Sequence[bytes]) -> set[bytes]:
        """Those of ``ids`` that ``item-attributes`` has a record of, whether or not they have an item."""
        keys = [item_id for item_id in sorted(set(ids)) if 0 < len(item_id) <= encoding.MAXIMUM_KEY_BYTES]
        return {item_id for item_id, _ in self._cursor("attribute_records").getmulti(keys)}

    @property
    def attribute_record_count(self) -> int:
        """Item ids that ``item-attributes`` has a record of."""
        return int(self._read.stat(self._databases["attribute_records"])["entries"])

    def digest(self) -> str:
        """SHA-256 over the items in the order of their ids: id, codes, weight, title, updated_at, and attributes if any.

        Two indexes with the same content have the same digest, whatever batches, numbers and history made them. Each
        item is hashed as u32 length and value (``store.records.encoding``), little-endian, after the number of layers (u32);
        one that has attributes also as u32 length plus 2^31 and canonical attributes.
        """
        digest = hashlib.sha256(self.layers.to_bytes(4, "little"))
        for item in self.contents_by_id():
            digest.update(len(item.value).to_bytes(4, "little") + item.value)
            if item.attributes:
                digest.update((len(item.attributes) | _OF_ATTRIBUTES).to_bytes(4, "little") + item.attributes)
        return digest.hexdigest()

    def contents_by_id(self) -> Iterator[ItemContent]:
        """Every item in the order of ids.

        Raises:
            IndexAccessError: an id leads to no item.
        """
        ids = self._cursor("ids").iternext()
        while entries := list(islice(ids, _DIGEST_CHUNK)):
            keys = sorted(number for _, number in entries)
            values = dict(self._cursor("items").getmulti(keys))
            attributes = dict(self._cursor("attributes").getmulti(keys)) if self.attribute_count else {}
            for item_id, number in entries:
                if number not in values:
                    raise IndexAccessError(f"The index {self._path} is damaged: an id has no item. {REBUILD_ADVICE}")
                yield ItemContent(item_id, self._items.content_of(values[number]), attributes.get(number, b""))

    def decoded(self, value: bytes) -> StoredItem:
        """The item of a value of :meth:`contents_by_id`; its number is not in there and is 0."""
        return self._items.decode([0], [value])[0]

    def recount(self) -> NDArray[np.int64]:
        """The census counted again from the paths: int64 (L, M)."""
        counts = np.zeros((self.layers, self.size), np.int64)
        for codes, _ in self.all_paths():
            for layer in range(self.layers):
                counts[layer] += np.bincount(codes[:, layer], minlength=self.size)
        return counts

    @property
    def _chunk(self) -> int:
        return _DIGEST_CHUNK if self._between_blocks is None else _SMALLER_CHUNK

    def _pause(self) -> None:
        if self._between_blocks is not None:
            self._between_blocks()

    @property
    def _read(self) -> Any:
        if self._transaction is None:
            raise IndexUsageError(f"A snapshot of the index {self._path} was used after its 'with' block ended.")
        return self._transaction

    def _cursor(self, database: str) -> Any:
        return self._read.cursor(self._databases[database])


class IndexReader:
    """Reads an index directory, read-only; a context manager.

    >>> with IndexReader(path) as reader, reader.snapshot() as snapshot:  # doctest: +SKIP
    ...     snapshot.item_count
    """

    def __init__(self, path: str | os.PathLike[str], *, between_blocks: BetweenBlocks | None = None) -> None:
        """``between_blocks``: called between two blocks of what its snapshots read whole (paths, vectors, attributes); it may
        rest there, or raise.

        Raises ``IndexMissingError`` if there is no index yet, ``IndexNotUpgradedError`` (one of those) if an older sidstream
        made it, ``IndexFormatError`` if it is newer than this code."""
        self.path = Path(path)
        self._between_blocks = between_blocks
        self._environment: environment.Environment | None = environment.acquire(self.path, write=False)
        try:
            with self.snapshot():
                pass
        except BaseException:
            self.close()
            raise

    def snapshot(self) -> AbstractContextManager[Snapshot]:
        """What is committed now: ``with reader.snapshot() as snapshot``."""
        if self._environment is None:
            raise IndexUsageError(f"The reader of the index {self.path} was used after it was closed: open it again.")
        return Snapshot.of(self._environment, self._between_blocks)

    @property
    def last_transaction(self) -> int:
        """Number of the last transaction that was committed: another one says that a new snapshot may show other things.

        It reads one page and opens no snapshot, so that it may be asked a thousand times a second.
        """
        if self._environment is None:
            raise IndexUsageError(f"The reader of the index {self.path} was used after it was closed: open it again.")
        return int(self._environment.lmdb.info()["last_txnid"])

    def close(self) -> None:
        """Releases the files; closing again does nothing."""
        if self._environment is not None:
            environment.release(self._environment)
            self._environment = None

    def __enter__(self) -> IndexReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
