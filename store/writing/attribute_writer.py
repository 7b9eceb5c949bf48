"""Writes the attributes of items, within the writer's transaction: what came with updates, and what came alone.

What must hold: ``attributes`` has of each live item what ``store.records.item_attributes`` makes of its two sources, and of
nobody else; one that did not change is not written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from store.records import encoding
from store.records.encoding import ItemEncoding
from store.records.item_attributes import (
    AttributeRecord,
    decode_attribute_records,
    effective_attributes,
    encode_attribute_records,
    newest_record,
    with_records,
    without_old_removals,
)
from store.records.split_keys import TOMBSTONES_KEPT_MS
from store.records.sweep import Sweep

_LOOKED_AT: Final = 5_000  # entries at one pruning: a fraction of a batch's work, however many there are


class AttributeWriter:
    """Within a transaction of the one writer."""

    def __init__(self, databases: Mapping[str, Any], items: ItemEncoding) -> None:
        self._attributes = databases["attributes"]
        self._records = databases["attribute_records"]
        self._ids = databases["ids"]
        self._stored = databases["items"]
        self._items = items
        self._sweep = Sweep(self._records)

    def follow(
        self,
        transaction: Any,
        ids: Sequence[bytes],
        keys: Sequence[bytes],
        values: Sequence[bytes],
        gone: Sequence[bytes],
    ) -> NDArray[np.uint32]:
        """Attributes of items whose values have been written: ``ids`` (N), rising, their numbers as ``keys``, and ``values``.

        ``gone``: numbers, as keys, of items that were removed. Returns the numbers (K,) of live items whose attributes changed.
        """
        known = transaction.stat(self._attributes)["entries"]
        alone = transaction.stat(self._records)["entries"]
        if known:
            for key in gone:
                transaction.delete(key, b"", self._attributes)
        if not known and not alone and not self._items.with_attributes(values).any():
            return np.empty(0, np.uint32)
        records = dict(transaction.cursor(self._records).getmulti(ids)) if alone else {}
        new = dict(zip(keys, self._effective(ids, values, records), strict=True))
        return self._put(transaction, new)

    def put(
        self, transaction: Any, by_id: Mapping[bytes, Sequence[AttributeRecord]], now_ms: int
    ) -> NDArray[np.uint32]:
        """Stores records of ``item-attributes`` by item id, rising. Returns the numbers (K,) of live items that changed by it.

        Raises:
            ValueError: the index is damaged.
        """
        ids = list(by_id)
        known = dict(transaction.cursor(self._records).getmulti(ids))
        entries = {}
        for item_id, new in by_id.items():
            before = decode_attribute_records(known[item_id]) if item_id in known else []
            entries[item_id] = encode_attribute_records(with_records(before, new, now_ms))
        changed = [(item_id, entry) for item_id, entry in entries.items() if known.get(item_id) != entry]
        transaction.cursor(self._records).putmulti(changed)
        found = dict(transaction.cursor(self._ids).getmulti([item_id for item_id, _ in changed]))
        stored = dict(transaction.cursor(self._stored).getmulti(sorted(found.values())))
        if len(stored) != len(found):
            raise ValueError("an id has no item")
        values = [stored[key] for key in found.values()]
        return self._put(
            transaction, dict(zip(found.values(), self._effective(list(found), values, entries), strict=True))
        )

    def _effective(self, ids: Sequence[bytes], values: Sequence[bytes], records: Mapping[bytes, bytes]) -> list[bytes]:
        """Of each item the attributes that count, ``b""`` for none; ``records``: entries of ``attribute_records``."""
        updated = self._items.headers_of(values)["timestamp"].tolist() if len(values) else []
        effective = []
        for item_id, value, timestamp in zip(ids, values, updated, strict=True):
            entry = records.get(item_id)
            own = newest_record(decode_attribute_records(entry)) if entry is not None else None
            effective.append(effective_attributes(self._items.attributes_of(value), timestamp, own))
        return effective

    def _put(self, transaction: Any, new: Mapping[bytes, bytes]) -> NDArray[np.uint32]:
        before = dict(transaction.cursor(self._attributes).getmulti(sorted(new)))
        changed = {key: value for key, value in new.items() if before.get(key, b"") != value}
        transaction.cursor(self._attributes).putmulti(sorted((key, value) for key, value in changed.items() if value))
        for key, value in changed.items():
            if not value:
                transaction.delete(key, b"", self._attributes)
        return encoding.numbers_of(sorted(changed))

    def prune(self, transaction: Any, now_ms: int) -> None:
        """Forget removals that are older than the broker keeps them; looks at the next few thousand entries each time."""
        for item_id, entry in self._sweep.next(transaction, _LOOKED_AT):
            records = decode_attribute_records(entry)
            kept = without_old_removals(records, now_ms - TOMBSTONES_KEPT_MS)
            if not kept:
                transaction.delete(item_id, b"", self._records)
            elif len(kept) < len(records):
                transaction.put(item_id, encode_attribute_records(kept), db=self._records)
