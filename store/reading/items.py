"""What one committed state of the index says of its items: by number, by id, or of all of them in blocks.

What must hold: arrays and items that are returned are copies, which outlive the read transaction; items of other states are never
mixed in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.attributes import Attributes
from store.errors import REBUILD_ADVICE, IndexAccessError, IndexUsageError
from store.reading.facts import read_facts
from store.records import encoding
from store.records.batch import KeyRecord
from store.records.encoding import ItemEncoding, StoredItem
from store.records.item_attributes import decode_fields, has_attributes
from store.records.split_keys import decode_marker, decode_records

_DIGEST_CHUNK: Final = 10_000  # items hashed at a time
_SMALLER_CHUNK: Final = 2_000  # where something is to happen between two
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


def _keys_of(ids: Sequence[bytes]) -> list[bytes]:
    """Those that LMDB takes as keys, each once and rising; no item has another one."""
    return [item_id for item_id in sorted(set(ids)) if 0 < len(item_id) <= encoding.MAXIMUM_KEY_BYTES]


class ItemReads:
    """Items of one committed state. Numbers that are given must come from the same state."""

    def __init__(
        self,
        transaction: Any,
        databases: dict[str, Any],
        path: Path,
        between_blocks: Callable[[], None] | None = None,
    ) -> None:
        """``between_blocks``: called between two blocks of what is read whole, which are smaller then."""
        self._transaction = transaction
        self._between_blocks = between_blocks
        self._databases = databases
        self._path = path
        self.facts = read_facts(transaction, databases, path)
        self._items = ItemEncoding(self.facts.layers)

    @property
    def layers(self) -> int:
        """L."""
        return self.facts.layers

    @property
    def item_count(self) -> int:
        """Live items."""
        return int(self._read.stat(self._databases["items"])["entries"])

    @property
    def attribute_count(self) -> int:
        """Live items that have attributes."""
        return int(self._read.stat(self._databases["attributes"])["entries"])

    @property
    def attribute_record_count(self) -> int:
        """Item ids that ``item-attributes`` has a record of, be it one that takes attributes away."""
        return int(self._read.stat(self._databases["attribute_records"])["entries"])

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

    def find(self, ids: Sequence[bytes]) -> list[StoredItem | None]:
        """The item of each id, None where there is none."""
        keys = _keys_of(ids)
        found = dict(self._cursor("ids").getmulti(keys))
        items = dict(zip(found, self.items(encoding.numbers_of(list(found.values()))), strict=True))
        return [items.get(item_id) for item_id in ids]

    def known(self, ids: Sequence[bytes]) -> set[bytes]:
        """Those of ``ids`` that have an item."""
        keys = _keys_of(ids)
        return {item_id for item_id, _ in self._cursor("ids").getmulti(keys)}

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

    def known_attribute_ids(self, ids: Sequence[bytes]) -> set[bytes]:
        """Those of ``ids`` that ``item-attributes`` has attributes of, whether or not they have an item."""
        records = self._cursor("attribute_records").getmulti(_keys_of(ids))
        return {item_id for item_id, entry in records if has_attributes(entry)}

    def items_by_partition(self) -> dict[int, int]:
        """Partition of ``item-codes`` → live items that came from it. Reads every item: for checks."""
        counts: dict[int, int] = {}
        values = self._cursor("items").iternext(keys=False)
        while chunk := list(islice(values, _DIGEST_CHUNK)):
            partitions, items = np.unique(self._items.headers_of(chunk)["partition"], return_counts=True)
            for partition, count in zip(partitions.tolist(), items.tolist(), strict=True):
                counts[partition] = counts.get(partition, 0) + count
        return counts

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

    def _values(self, numbers: NDArray[np.uint32]) -> list[bytes]:
        distinct, inverse = np.unique(np.asarray(numbers, np.uint32), return_inverse=True)
        values = self._cursor("items").getmulti(encoding.number_keys(distinct))
        if len(values) != len(distinct):
            raise IndexUsageError(
                f"{len(distinct) - len(values)} of {len(distinct)} item numbers are not in this snapshot of {self._path}: "
                "look up numbers in the snapshot that they came from."
            )
        return [values[place][1] for place in inverse.tolist()]

    def _with_vectors(self, records: Sequence[tuple[bytes, bytes]]) -> ItemVectors:
        of = self._items.vector_of
        found = [(key, value, vector) for key, value in records if (vector := of(value))]
        return ItemVectors(
            encoding.numbers_of([key for key, _, _ in found]),
            [self._items.id_of(value) for _, value, _ in found],
            [vector for _, _, vector in found],
        )

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
