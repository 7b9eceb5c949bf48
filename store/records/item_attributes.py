"""The attributes of an item out of two sources: its last update's, and what ``item-attributes`` says of it alone.

What must hold: they are a function of the last record of the item's key in each topic, whatever order the topics are read in. Of
a field that both have counts the source with the later Kafka timestamp; of equal ones ``item-attributes``. A field that one
source alone has is there. Each record replaces its topic's earlier one whole, as Kafka's compaction keeps it.

Database ``attributes`` has the outcome by item number, of live items that have any. Database ``attribute_records`` has the
records of ``item-attributes`` by item id, also of items that are not there (yet): of a key and a partition the last one by
offset, and of these the one with the greatest (Kafka timestamp, partition) counts, as for item codes (``split_keys``). A
removal is kept as a record without a value: an older one may still come from another partition.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.attributes import Attributes, encode_attributes
from store.errors import BatchError
from store.records.encoding import MAXIMUM_KEY_BYTES

NO_FIELDS: Final = encode_attributes({})


class AttributeRecord(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What one partition of ``item-attributes`` holds of a key: canonical attributes, or ``None`` for a removal.

    ``timestamp``: Kafka's, ``noted_at``: of a removal, when the index noted it; milliseconds since the epoch.
    """

    partition: int
    timestamp: int
    value: bytes | None
    noted_at: int = 0


_ENCODE: Final = msgspec.msgpack.Encoder().encode
_DECODE_RECORDS: Final = msgspec.msgpack.Decoder(list[AttributeRecord]).decode
_DECODE_FIELDS: Final = msgspec.msgpack.Decoder(dict[str, Any]).decode


@dataclass(frozen=True)
class AttributesBatch:
    """N records of ``item-attributes`` in order.

    ids: N byte strings of 1..511 bytes; values: N canonical attributes (``models.attributes``), ``None`` takes them away;
    partitions: int32 (N,); timestamps: int64 (N,), Kafka's in milliseconds.
    """

    ids: list[bytes]
    values: list[bytes | None]
    partitions: NDArray[np.int32]
    timestamps: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)

    def by_id(self) -> dict[bytes, list[AttributeRecord]]:
        """The records of each id, in order; ids in the order of LMDB's keys.

        Raises:
            BatchError: shapes that disagree, or an id out of range.
        """
        count = len(self.ids)
        if (len(self.values), self.partitions.shape, self.timestamps.shape) != (count, (count,), (count,)):
            raise BatchError(
                f"A batch of {count} ids needs as many values, partitions and timestamps; got {len(self.values)}, "
                f"{self.partitions.shape} and {self.timestamps.shape}."
            )
        found: dict[bytes, list[AttributeRecord]] = {}
        rows = zip(self.ids, self.values, self.partitions.tolist(), self.timestamps.tolist(), strict=True)
        for item_id, value, partition, timestamp in rows:
            if not 1 <= len(item_id) <= MAXIMUM_KEY_BYTES:
                raise BatchError(f"An id of attributes has {len(item_id)} bytes; ids have 1 to {MAXIMUM_KEY_BYTES}.")
            found.setdefault(item_id, []).append(AttributeRecord(partition, timestamp, value))
        return dict(sorted(found.items()))


def decode_attribute_records(value: bytes) -> list[AttributeRecord]:
    """The records of one entry of ``attribute_records``."""
    return _DECODE_RECORDS(value)


def with_records(
    known: Sequence[AttributeRecord], new: Sequence[AttributeRecord], now_ms: int
) -> list[AttributeRecord]:
    """The last record of each partition, after ``new`` have come in order."""
    last = {record.partition: record for record in known}
    for record in {record.partition: record for record in new}.values():
        if record.value is None:
            before = last.get(record.partition)
            if before is not None and before.value is None and before.timestamp == record.timestamp:
                continue  # it comes again
            record = msgspec.structs.replace(record, noted_at=now_ms)
        last[record.partition] = record
    return [last[partition] for partition in sorted(last)]


def without_old_removals(records: Sequence[AttributeRecord], oldest: int) -> list[AttributeRecord]:
    """The records less the removals that were noted before ``oldest``, but for one that hides an older record with a value."""
    kept = [record for record in records if record.value is not None or record.noted_at >= oldest]
    winner = newest_record(records)
    if winner is not None and winner not in kept and any(record.value is not None for record in kept):
        kept = [record for record in records if record in kept or record is winner]
    return kept


def encode_attribute_records(records: Sequence[AttributeRecord]) -> bytes:
    """One entry of ``attribute_records``."""
    return _ENCODE(records)


def newest_record(records: Sequence[AttributeRecord]) -> AttributeRecord | None:
    """The record that counts; there is one a partition."""
    if len(records) == 1:
        return records[0]
    return max(records, key=lambda record: (record.timestamp, record.partition), default=None)


def has_attributes(entry: bytes) -> bool:
    """Whether an entry of ``attribute_records`` says more of its item than that nothing is said of it."""
    record = newest_record(decode_attribute_records(entry))
    return record is not None and record.value is not None


def decode_fields(value: bytes) -> Attributes:
    """The fields of canonical attributes; ``b""`` has none."""
    return _DECODE_FIELDS(value) if value else {}


def effective_attributes(of_update: bytes, updated: int, own: AttributeRecord | None) -> bytes:
    """Canonical attributes of an item, ``b""`` for none.

    ``of_update``: those of its update, ``b""`` for none, and ``updated``: the update's Kafka timestamp; ``own``: the record of
    ``item-attributes`` that counts.
    """
    alone = own.value if own is not None and own.value is not None else b""
    if not alone or not of_update or of_update == NO_FIELDS or alone == NO_FIELDS:
        one = alone if alone and alone != NO_FIELDS else of_update
        return b"" if one == NO_FIELDS else one
    assert own is not None
    older, newer = (of_update, alone) if own.timestamp >= updated else (alone, of_update)
    return encode_attributes({**_DECODE_FIELDS(older), **_DECODE_FIELDS(newer)})
