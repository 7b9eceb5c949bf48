"""What goes into the index and what comes out of it: a batch of item events, checked and sorted, and its outcome.

Everything here happens before a transaction begins, so that a batch that cannot be stored never opens one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from store.errors import BatchError
from store.records.encoding import MAXIMUM_KEY_BYTES, ItemEncoding

_MOST_VECTOR_BYTES: Final = 65_535  # its length is a u16
Order = Literal["arrival", "updated_at"]
"""Which of two updates of one key and partition counts: the later one, or the one with the greater ``updated_at``."""


class KeyRecord(msgspec.Struct, array_like=True, frozen=True):
    """What one partition holds of a key: an item's value (``store.records.encoding``), or ``None`` for a deletion.

    ``timestamp``: Kafka's, ``noted_at``: when the index noted the record beside others; milliseconds since the epoch.
    """

    partition: int
    timestamp: int
    value: bytes | None
    updated_at: int = 0
    noted_at: int = 0


@dataclass(frozen=True)
class CodesBatch:
    """N item events in order; the last event of an id wins. The codes of deleted rows are ignored.

    ids: N byte strings of 1..511 bytes; codes: uint16 (N, L); weights: float32 (N,); titles: N strings;
    updated_at: int64 (N,) milliseconds since the epoch; deleted: bool (N,). ``partitions``: int32 (N,), which partition each
    event came from, and ``timestamps``: int64 (N,), its Kafka timestamp in milliseconds; absent: all of partition 0, time 0.
    ``vectors``: N byte strings of at most 65,535 bytes, empty for an item without one; absent: none has one.
    ``attributes``: N byte strings of canonical attributes (``models.attributes``), empty for an event without; absent: none has.
    """

    ids: list[bytes]
    codes: NDArray[np.uint16]
    weights: NDArray[np.float32]
    titles: list[str]
    updated_at: NDArray[np.int64]
    deleted: NDArray[np.bool_]
    partitions: NDArray[np.int32] | None = None
    timestamps: NDArray[np.int64] | None = None
    vectors: list[bytes] | None = None
    attributes: list[bytes] | None = None

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class BatchOutcome:
    """What a batch did: distinct ids upserted (unchanged ones too), live items deleted, and the new figures.

    ``stale``: updates that were left out because one with a newer ``updated_at`` was there; ``split_keys``: keys that have
    records in more than one partition.

    ``changed_tokens`` holds (layer_index, token, count): the absolute counts that differ from before the batch.
    ``items`` is the number of live items after it.
    """

    upserted: int
    deleted: int
    changed_tokens: list[tuple[int, int, int]]
    items: int
    stale: int = 0
    split_keys: int = 0


@dataclass(frozen=True)
class PreparedBatch:
    """A batch with one row per id, sorted by id as LMDB sorts them: made before the transaction begins.

    ``repeated``: of each row whose id also came from another partition, all its records in order (ordered by ``updated_at``:
    of each id that came more than once).
    """

    ids: list[bytes]
    codes: NDArray[np.uint16]
    deleted: NDArray[np.bool_]
    values: list[bytes]
    updated_at: NDArray[np.int64]
    partitions: NDArray[np.int32]
    timestamps: NDArray[np.int64]
    repeated: Mapping[int, list[KeyRecord]]

    @classmethod
    def of(cls, batch: CodesBatch, layers: int, size: int, order: Order = "arrival") -> PreparedBatch:
        """Raises ``BatchError`` for shapes that disagree and for ids and codes out of range."""
        count = len(batch.ids)
        partitions = np.zeros(count, np.int32) if batch.partitions is None else batch.partitions
        timestamps = np.zeros(count, np.int64) if batch.timestamps is None else batch.timestamps
        batch = replace(batch, partitions=partitions, timestamps=timestamps)
        _check(batch, layers, size)
        last = dict(zip(batch.ids, range(count), strict=True))
        ids = sorted(last)
        rows = np.fromiter(map(last.__getitem__, ids), np.int64, len(ids))
        repeated = _repeated(batch, last, layers, order) if len(ids) < count else {}
        return cls(
            ids,
            np.ascontiguousarray(batch.codes[rows]),
            batch.deleted[rows],
            _values(batch, rows, layers),
            batch.updated_at[rows],
            partitions[rows],
            timestamps[rows],
            {row: repeated[item_id] for row, item_id in enumerate(ids) if item_id in repeated} if repeated else {},
        )

    def records_of(self, row: int) -> list[KeyRecord]:
        """The records of the row's id that the batch brings, in order."""
        if row in self.repeated:
            return self.repeated[row]
        value = None if self.deleted[row] else self.values[row]
        return [
            KeyRecord(int(self.partitions[row]), int(self.timestamps[row]), value, int(self.updated_at[row])),
        ]

    def copy(self) -> PreparedBatch:
        """One whose ``codes``, ``deleted`` and ``values`` may be changed."""
        return replace(self, codes=self.codes.copy(), deleted=self.deleted.copy(), values=list(self.values))


def _values(batch: CodesBatch, rows: NDArray[np.int64], layers: int) -> list[bytes]:
    assert batch.partitions is not None
    assert batch.timestamps is not None
    return ItemEncoding(layers).encode(
        [batch.ids[row] for row in rows.tolist()],
        batch.codes[rows],
        batch.weights[rows],
        [batch.titles[row] for row in rows.tolist()],
        batch.updated_at[rows],
        batch.partitions[rows],
        batch.timestamps[rows],
        None if batch.vectors is None else [batch.vectors[row] for row in rows.tolist()],
        None if batch.attributes is None else [batch.attributes[row] for row in rows.tolist()],
    )


def _repeated(batch: CodesBatch, last: Mapping[bytes, int], layers: int, order: Order) -> dict[bytes, list[KeyRecord]]:
    """All records of the ids whose last row alone does not say what they become."""
    assert batch.partitions is not None
    assert batch.timestamps is not None
    final = np.fromiter(map(last.__getitem__, batch.ids), np.int64, len(batch.ids))
    superseded = final != np.arange(len(final))
    several = superseded if order == "updated_at" else batch.partitions[final] != batch.partitions
    ids = {batch.ids[row] for row in np.flatnonzero(several).tolist()}
    if not ids:
        return {}
    rows = np.array([row for row, item_id in enumerate(batch.ids) if item_id in ids], np.int64)
    records: dict[bytes, list[KeyRecord]] = {item_id: [] for item_id in ids}
    for row, value in zip(rows.tolist(), _values(batch, rows, layers), strict=True):
        records[batch.ids[row]].append(
            KeyRecord(
                int(batch.partitions[row]),
                int(batch.timestamps[row]),
                None if batch.deleted[row] else value,
                int(batch.updated_at[row]),
            )
        )
    return records


def _check(batch: CodesBatch, layers: int, size: int) -> None:
    count = len(batch.ids)
    assert batch.partitions is not None
    assert batch.timestamps is not None
    if (batch.partitions.shape, batch.timestamps.shape) != ((count,), (count,)):
        raise BatchError(
            f"A batch of {count} ids needs as many partitions and timestamps; got {batch.partitions.shape} and "
            f"{batch.timestamps.shape}."
        )
    shapes = (batch.codes.shape, batch.weights.shape, batch.updated_at.shape, batch.deleted.shape, len(batch.titles))
    if shapes != ((count, layers), (count,), (count,), (count,), count):
        raise BatchError(
            f"A batch of {count} ids needs codes ({count}, {layers}) and {count} of each other field; got "
            f"codes {shapes[0]}, weights {shapes[1]}, updated_at {shapes[2]}, deleted {shapes[3]}, titles {shapes[4]}."
        )
    if batch.vectors is not None and (
        len(batch.vectors) != count or max(map(len, batch.vectors), default=0) > _MOST_VECTOR_BYTES
    ):
        raise BatchError(
            f"A batch of {count} ids needs as many vectors of at most {_MOST_VECTOR_BYTES:,} bytes; got {len(batch.vectors)}."
        )
    if batch.attributes is not None and len(batch.attributes) != count:
        raise BatchError(f"A batch of {count} ids needs as many attributes; got {len(batch.attributes)}.")
    lengths = np.fromiter(map(len, batch.ids), np.int64, count)
    wrong = np.flatnonzero((lengths < 1) | (lengths > MAXIMUM_KEY_BYTES))
    if len(wrong):
        raise BatchError(
            f"Row {wrong[0]} has an id of {lengths[wrong[0]]} bytes; ids have 1 to {MAXIMUM_KEY_BYTES}: "
            "the assigner should have sent it to the dead letters."
        )
    beyond = np.flatnonzero((batch.codes >= size).any(axis=1) & ~batch.deleted)
    if len(beyond):
        raise BatchError(
            f"Item {batch.ids[beyond[0]]!r} has codes {batch.codes[beyond[0]].tolist()}; the codebook has tokens "
            f"0..{size - 1}: it was encoded with another codebook."
        )
