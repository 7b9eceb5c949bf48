"""Writes the attributes of items, within the writer's transaction: what came with updates, and what came alone.

What must hold: ``attributes`` has of each live item what ``store.records.item_attributes`` makes of its two sources, and of
nobody else; one that did not change is not written. The state says how many ids have attributes and no item: a batch adds what
it changes of that, so that nobody counts them but a writer that finds no count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from store.files.environment import Environment
from store.reading.facts import read_state
from store.records import encoding
from store.records.encoding import ItemEncoding
from store.records.item_attributes import (
    AttributeRecord,
    decode_attribute_records,
    effective_attributes,
    encode_attribute_records,
    has_attributes,
    newest_record,
    with_records,
    without_old_removals,
)
from store.records.split_keys import TOMBSTONES_KEPT_MS
from store.records.sweep import Sweep
from store.writing.transactions import in_transaction

_CHUNK: Final = 50_000  # entries counted at a time: a tenth of a second
_LOOKED_AT: Final = 5_000  # entries at one pruning: a fraction of a batch's work, however many there are


class AttributeChange(NamedTuple):
    """``items``: live items (K,) whose attributes changed; ``waiting``: how many more ids have attributes and no item."""

    items: NDArray[np.uint32]
    waiting: int


def count_waiting(shared: Environment, on_progress: Callable[[], None]) -> None:
    """Puts into the state how many ids have attributes and no item, unless it says so; ``on_progress``: between two chunks."""
    databases = shared.databases
    with shared.lmdb.begin() as transaction:
        if read_state(transaction, databases).waiting_attributes is not None:
            return

    def count(transaction: Any) -> None:
        waiting = 0
        entries = transaction.cursor(databases["attribute_records"]).iternext()
        while chunk := list(islice(entries, _CHUNK)):
            ids = [item_id for item_id, entry in chunk if has_attributes(entry)]
            waiting += len(ids) - len(transaction.cursor(databases["ids"]).getmulti(ids))
            on_progress()
        state = msgspec.structs.replace(read_state(transaction, databases), waiting_attributes=waiting)
        transaction.put(b"state", msgspec.json.encode(state), db=databases["meta"])

    in_transaction(shared, count)


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
        came: Sequence[bytes],
        gone: Mapping[bytes, bytes],
    ) -> AttributeChange:
        """Attributes of items whose values have been written: ``ids`` (N), rising, their numbers as ``keys``, and ``values``.

        ``came``: those of ``ids`` that had no item before; ``gone``: ids of items that were removed, with their numbers as keys.
        """
        known = transaction.stat(self._attributes)["entries"]
        alone = transaction.stat(self._records)["entries"]
        if known:
            for key in gone.values():
                transaction.delete(key, b"", self._attributes)
        if not known and not alone and not self._items.with_attributes(values).any():
            return AttributeChange(np.empty(0, np.uint32), 0)
        records = dict(transaction.cursor(self._records).getmulti(ids)) if alone else {}
        left = dict(transaction.cursor(self._records).getmulti(sorted(gone))) if alone else {}
        waiting = sum(map(has_attributes, left.values()))
        waiting -= sum(has_attributes(records[item_id]) for item_id in came if item_id in records)
        new = dict(zip(keys, self._effective(ids, values, records), strict=True))
        return AttributeChange(self._put(transaction, new), waiting)

    def put(self, transaction: Any, by_id: Mapping[bytes, Sequence[AttributeRecord]], now_ms: int) -> AttributeChange:
        """Stores records of ``item-attributes`` by item id, rising.

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
        effective = dict(zip(found.values(), self._effective(list(found), values, entries), strict=True))
        waiting = 0
        for item_id, entry in changed:
            if item_id not in found:
                waiting += has_attributes(entry) - (item_id in known and has_attributes(known[item_id]))
        return AttributeChange(self._put(transaction, effective), waiting)

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
        """Forget removals that are older than the broker keeps them; looks at the next few thousand entries each time.

        What counts of an entry stays as it is: as many ids have attributes as before.
        """
        for item_id, entry in self._sweep.next(transaction, _LOOKED_AT):
            records = decode_attribute_records(entry)
            kept = without_old_removals(records, now_ms - TOMBSTONES_KEPT_MS)
            if not kept:
                transaction.delete(item_id, b"", self._records)
            elif len(kept) < len(records):
                transaction.put(item_id, encode_attribute_records(kept), db=self._records)
