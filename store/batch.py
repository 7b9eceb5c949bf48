"""What goes into the index and what comes out of it: a batch of item events, checked and sorted, and its outcome.

Everything here happens before a transaction begins, so that a batch that cannot be stored never opens one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from store.encoding import MAXIMUM_KEY_BYTES, ItemEncoding
from store.errors import BatchError


@dataclass(frozen=True)
class CodesBatch:
    """N item events in order; the last event of an id wins. The codes of deleted rows are ignored.

    ids: N byte strings of 1..511 bytes; codes: uint16 (N, L); weights: float32 (N,); titles: N strings;
    updated_at: int64 (N,) milliseconds since the epoch; deleted: bool (N,).
    """

    ids: list[bytes]
    codes: NDArray[np.uint16]
    weights: NDArray[np.float32]
    titles: list[str]
    updated_at: NDArray[np.int64]
    deleted: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class BatchOutcome:
    """What a batch did: distinct ids upserted (unchanged ones too), live items deleted, and the new figures.

    ``changed_tokens`` holds (layer_index, token, count): the absolute counts that differ from before the batch.
    ``items`` is the number of live items after it.
    """

    upserted: int
    deleted: int
    changed_tokens: list[tuple[int, int, int]]
    items: int


@dataclass(frozen=True)
class PreparedBatch:
    """A batch with one row per id, sorted by id as LMDB sorts them: made before the transaction begins."""

    ids: list[bytes]
    codes: NDArray[np.uint16]
    deleted: NDArray[np.bool_]
    values: list[bytes]

    @classmethod
    def of(cls, batch: CodesBatch, layers: int, size: int) -> PreparedBatch:
        """Raises ``BatchError`` for shapes that disagree and for ids and codes out of range."""
        _check(batch, layers, size)
        last = dict(zip(batch.ids, range(len(batch.ids)), strict=True))
        ids = sorted(last)
        rows = np.fromiter(map(last.__getitem__, ids), np.int64, len(ids))
        codes = np.ascontiguousarray(batch.codes[rows])
        titles = [batch.titles[row] for row in rows.tolist()]
        values = ItemEncoding(layers).encode(ids, codes, batch.weights[rows], titles, batch.updated_at[rows])
        return cls(ids, codes, batch.deleted[rows], values)


def _check(batch: CodesBatch, layers: int, size: int) -> None:
    count = len(batch.ids)
    shapes = (batch.codes.shape, batch.weights.shape, batch.updated_at.shape, batch.deleted.shape, len(batch.titles))
    if shapes != ((count, layers), (count,), (count,), (count,), count):
        raise BatchError(
            f"A batch of {count} ids needs codes ({count}, {layers}) and {count} of each other field; got "
            f"codes {shapes[0]}, weights {shapes[1]}, updated_at {shapes[2]}, deleted {shapes[3]}, titles {shapes[4]}."
        )
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
