"""One key with records in several partitions: which of them is the item, whatever order the partitions are read in.

What must hold: of a key and a partition counts the last record by offset, as Kafka's compaction keeps it. The item is the
one of these records that has the greatest (Kafka timestamp, partition); if that is a deletion, there is no item. A stream,
a rebuild and any mixture of batches then end in the same items.

The ``items`` database has the record that is the item, and names its partition. All other records of a key lie in
``elsewhere``: that database is empty while one partitioner writes, and its entries are the *split keys*. ``deleted`` holds
a marker of each key whose only record is a deletion, since an older record may still come from another partition. Markers
go after ``TOMBSTONES_KEPT_MS``, when the broker may have removed the deletion itself.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from store.records.batch import KeyRecord, Order, PreparedBatch
from store.records.encoding import NO_PARTITION, ItemEncoding
from store.records.sweep import Sweep

TOMBSTONES_KEPT_MS: Final = 7 * 24 * 60 * 60 * 1000
_MARKER: Final = struct.Struct("<iqq")  # partition, Kafka timestamp, when it was noted
_MARKERS_LOOKED_AT: Final = 5_000  # at one pruning: a fraction of a batch's work, however many there are
_ENCODE: Final = msgspec.msgpack.Encoder().encode
_DECODE: Final = msgspec.msgpack.Decoder(list[KeyRecord]).decode


def decode_records(value: bytes) -> list[KeyRecord]:
    """The records of one entry of ``elsewhere``."""
    return _DECODE(value)


def decode_marker(value: bytes) -> KeyRecord:
    """The deletion of one entry of ``deleted``."""
    partition, timestamp, noted_at = _MARKER.unpack(value)
    return KeyRecord(partition, timestamp, None, 0, noted_at)


def newest(records: Iterable[KeyRecord], order: Order) -> KeyRecord:
    """The record that decides what the item is; there is one a partition."""
    if order == "arrival":
        return max(records, key=lambda record: (record.timestamp, record.partition))
    # A deletion has no time of its own but the broker's.
    return max(
        records,
        key=lambda record: (
            record.timestamp if record.value is None else record.updated_at,
            record.timestamp,
            record.partition,
        ),
    )


class Settled(NamedTuple):
    """``batch``: each row is what the item becomes. ``stale``: updates left out because a newer ``updated_at`` was there."""

    batch: PreparedBatch
    stale: int


class SplitKeys:
    """Settles batches within the writer's transactions; ``order`` as in ``IndexWriter.open``."""

    def __init__(self, databases: Mapping[str, Any], items: ItemEncoding, order: Order) -> None:
        self._elsewhere = databases["elsewhere"]
        self._deleted = databases["deleted"]
        self._ids = databases["ids"]
        self._stored = databases["items"]
        self._items = items
        self._order = order
        self._of_deleted, self._of_elsewhere = Sweep(self._deleted), Sweep(self._elsewhere)

    def settle(
        self,
        transaction: Any,
        batch: PreparedBatch,
        existing: Sequence[int],
        stored: Sequence[bytes],
        headers: NDArray[Any],
        now_ms: int,
    ) -> Settled:
        """What each row of ``batch`` does to the index; markers and split keys are written here.

        ``existing``: rows whose items exist, with their values ``stored`` and the values' ``headers``.
        """
        contested = self._contested(batch, existing, headers)
        markers: dict[bytes, bytes] = {}
        others: dict[bytes, bytes] = {}
        if transaction.stat(self._elsewhere)["entries"]:
            others = dict(transaction.cursor(self._elsewhere).getmulti(batch.ids))
            if others:
                contested |= {row for row, item_id in enumerate(batch.ids) if item_id in others}
        if transaction.stat(self._deleted)["entries"]:
            markers = dict(transaction.cursor(self._deleted).getmulti(batch.ids))
            if markers:
                for row, item_id in enumerate(batch.ids):
                    marker = markers.get(item_id)
                    if marker is not None and decode_marker(marker).partition != batch.partitions[row]:
                        contested.add(row)
        stale = 0
        deletions: list[tuple[bytes, bytes]] = []
        if contested:
            batch = batch.copy()
            position = dict(zip(existing, stored, strict=True))
            for row in sorted(contested):
                item_id = batch.ids[row]
                known = self._known(item_id, position.get(row), markers, others)
                for record in batch.records_of(row):
                    stale += not self._take(known, record)
                self._decide(transaction, batch, row, known, item_id in others, now_ms, deletions)
        plain = batch.deleted.copy()
        plain[list(contested)] = False
        for row in np.flatnonzero(plain).tolist():
            marker = _MARKER.pack(int(batch.partitions[row]), int(batch.timestamps[row]), now_ms)
            deletions.append((batch.ids[row], marker))
        noted = {item_id for item_id, _ in deletions}
        for item_id in markers.keys() - noted:  # updated since, or split now
            transaction.delete(item_id, b"", self._deleted)
        if deletions:
            transaction.cursor(self._deleted).putmulti(sorted(deletions))
        return Settled(batch, stale)

    def _contested(self, batch: PreparedBatch, existing: Sequence[int], headers: NDArray[Any]) -> set[int]:
        """Rows that cannot simply take the place of what is there, from the batch and the items alone."""
        contested = set(batch.repeated)
        if len(existing):
            rows = np.asarray(existing)
            unlike = (headers["partition"] != NO_PARTITION) & (headers["partition"] != batch.partitions[rows])
            if self._order == "updated_at":
                unlike |= ~batch.deleted[rows] & (batch.updated_at[rows] < headers["updated_at"])
            if unlike.any():
                contested.update(rows[unlike].tolist())
        return contested

    def _known(
        self, item_id: bytes, stored: bytes | None, markers: Mapping[bytes, bytes], others: Mapping[bytes, bytes]
    ) -> dict[int, KeyRecord]:
        """The last record of each partition, as far as the index knows."""
        records = decode_records(others[item_id]) if item_id in others else []
        if item_id in markers:
            records.append(decode_marker(markers[item_id]))
        if stored is not None:
            records.append(self._record_of(stored))
        return {record.partition: record for record in records}

    def _record_of(self, stored: bytes) -> KeyRecord:
        header = self._items.headers_of([stored])[0]
        return KeyRecord(int(header["partition"]), int(header["timestamp"]), stored, int(header["updated_at"]))

    def _take(self, known: dict[int, KeyRecord], record: KeyRecord) -> bool:
        """Put the next record of a partition in the place of its last one; ``False`` if that one is newer."""
        # An item of format 1 is taken for one of this partition: it nearly always is.
        earlier = known.get(record.partition) or known.get(NO_PARTITION)
        if (
            self._order == "updated_at"
            and earlier is not None
            and earlier.value is not None
            and record.value is not None
            and record.updated_at < earlier.updated_at
        ):
            return False
        known.pop(NO_PARTITION, None)
        known[record.partition] = record
        return True

    def _decide(
        self,
        transaction: Any,
        batch: PreparedBatch,
        row: int,
        known: Mapping[int, KeyRecord],
        was_split: bool,
        now_ms: int,
        deletions: list[tuple[bytes, bytes]],
    ) -> None:
        """Writes the winner into ``row`` and the others into ``elsewhere``."""
        item_id = batch.ids[row]
        winner = newest(known.values(), self._order)
        if winner.value is None:
            batch.deleted[row] = True
            rest = list(known.values())
            if len(rest) == 1:
                marker = _MARKER.pack(winner.partition, winner.timestamp, winner.noted_at or now_ms)
                deletions.append((item_id, marker))
                rest = []
        else:
            batch.deleted[row] = False
            batch.values[row] = winner.value
            batch.codes[row] = self._items.codes_of([winner.value])[0]
            rest = [record for record in known.values() if record is not winner]
        self._put_others(transaction, item_id, rest, was_split, now_ms)

    def _put_others(
        self, transaction: Any, item_id: bytes, records: list[KeyRecord], was_split: bool, now_ms: int
    ) -> None:
        if records:
            noted = [msgspec.structs.replace(record, noted_at=record.noted_at or now_ms) for record in records]
            noted.sort(key=lambda record: record.partition)
            transaction.put(item_id, _ENCODE(noted), db=self._elsewhere)
        elif was_split:
            transaction.delete(item_id, b"", self._elsewhere)

    def prune(self, transaction: Any, now_ms: int) -> None:
        """Forget deletions that are older than the broker keeps them; looks at the next few thousand each time.

        All databases must be as a batch left them: which deletions matter is told by whether the item is there. A sidstream that
        pruned in the midst of a batch left markers of items that are there, and lone deletions in ``elsewhere``: they are put
        right.
        """
        oldest = now_ms - TOMBSTONES_KEPT_MS
        markers = self._of_deleted.next(transaction, _MARKERS_LOOKED_AT)
        live = dict(transaction.cursor(self._ids).getmulti([item_id for item_id, _ in markers]))
        for item_id, value in markers:
            if item_id in live:
                self._put_beside_item(transaction, item_id, live[item_id], value, now_ms)
            elif decode_marker(value).noted_at < oldest:
                transaction.delete(item_id, b"", self._deleted)
        for item_id, value in self._of_elsewhere.next(transaction, _MARKERS_LOOKED_AT):
            records = decode_records(value)
            deletions = [record for record in records if record.value is None]
            old = [record for record in deletions if record.noted_at < oldest]
            if old or len(deletions) == len(records) == 1:
                self._forget(transaction, item_id, records, old, now_ms)

    def _forget(
        self, transaction: Any, item_id: bytes, records: list[KeyRecord], old: list[KeyRecord], now_ms: int
    ) -> None:
        keep = [record for record in records if record not in old]
        if transaction.get(item_id, db=self._ids) is None:
            winner = newest(records, self._order)
            if any(record.value is not None for record in keep):
                # This deletion hides an older update that Kafka still has: without it the item would come back.
                keep = [record for record in records if record in keep or record is winner]
            elif len(keep) == 1:
                marker = _MARKER.pack(keep[0].partition, keep[0].timestamp, keep[0].noted_at)
                transaction.put(item_id, marker, db=self._deleted)
                keep = []
        if len(keep) < len(records):
            self._put_others(transaction, item_id, keep, True, now_ms)

    def _put_beside_item(self, transaction: Any, item_id: bytes, number: bytes, marker: bytes, now_ms: int) -> None:
        """The marker of an item that is there becomes what it should have stayed: one of the key's other records."""
        stored = transaction.get(number, db=self._stored)
        elsewhere = transaction.get(item_id, db=self._elsewhere)
        others = {} if elsewhere is None else {item_id: elsewhere}
        known = self._known(item_id, stored, {item_id: marker}, others)
        rest = [record for record in known.values() if record.value is not stored]
        self._put_others(transaction, item_id, rest, bool(others), now_ms)
        transaction.delete(item_id, b"", self._deleted)
