"""What ``item-codes`` and ``layouts`` hold becomes what the index takes; the same for the indexer and for a rebuild.

A record of another codebook, or one that no process of ours wrote, is refused by its place before anything is written.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from confluent_kafka import Message
from msgspec import UNSET

from models.attributes import canonical_attributes
from models.errors import SidstreamError
from models.sids.layout import Layout
from store.records.batch import CodesBatch
from streamer.events.records import ITEM_CODES, JSON_FIRST_BYTES, LAYOUT, UNDECODABLE, ItemCodes, LayoutRecord


class IndexerError(SidstreamError):
    """The topic and the index do not belong together; nothing was written."""


def codes_batch(records: Sequence[Message], codebook: Layout) -> CodesBatch:
    """Columns of a batch of ``item-codes`` records; ``codebook``: any layout of it, for its id, layers and size.

    Raises:
        IndexerError: a record of another codebook, or one that no assigner of ours wrote.
    """
    layers, codebook_id = codebook.layers, codebook.codebook_id
    decode = ITEM_CODES.decode
    absent = ItemCodes(codebook=codebook_id, codes=(0,) * layers, title="", weight=0.0, updated_at=0)
    ids, rows, deleted = [], [], []
    for record in records:
        value = record.value()
        try:
            row = absent if value is None else decode(value)
        except UNDECODABLE as error:
            raise IndexerError(
                f"{place(record)} holds no item codes ({error}): who else writes to it? What to do is in docs/runbook.md"
            ) from None
        if row.codebook != codebook_id or len(row.codes) != layers:
            raise IndexerError(
                f"{place(record)} has codes of codebook {row.codebook} ({len(row.codes)} layers); this index is of "
                f"{codebook_id} ({layers} layers). Point this indexer to the bundle of {row.codebook} and to an empty "
                "index directory, or run the two codebooks under different topics.prefix"
            )
        ids.append(record.key() or b"")
        rows.append(row)
        deleted.append(value is None)
    try:
        codes = np.array([row.codes for row in rows], dtype=np.int64).reshape(-1, layers)
        updated_at = np.array([row.updated_at for row in rows], dtype=np.int64)
    except OverflowError:
        raise IndexerError(
            f"a record from {place(records[0])} on holds numbers beyond 64 bits: who else writes to it? "
            "What to do is in docs/runbook.md"
        ) from None
    if codes.size and (codes.min() < 0 or codes.max() >= codebook.size):
        bad = int(np.flatnonzero((codes < 0).any(1) | (codes >= codebook.size).any(1))[0])
        raise IndexerError(f"{place(records[bad])} has codes {rows[bad].codes} outside 0..{codebook.size - 1}")
    return CodesBatch(
        ids=ids,
        codes=codes.astype(np.uint16),
        weights=np.array([row.weight for row in rows], dtype=np.float32),
        titles=[row.title for row in rows],
        updated_at=updated_at,
        deleted=np.array(deleted, dtype=bool),
        partitions=np.array([record.partition() for record in records], dtype=np.int32),
        timestamps=np.array([record.timestamp()[1] for record in records], dtype=np.int64),
        vectors=[row.vector or b"" for row in rows],
        attributes=[
            b"" if row.attributes is UNSET else _attributes(record, row)
            for record, row in zip(records, rows, strict=True)
        ],
    )


def _attributes(record: Message, row: ItemCodes) -> bytes:
    """The attributes in a record's codes as canonical MessagePack."""
    assert row.attributes is not UNSET
    try:
        return canonical_attributes(row.attributes, of_json=(record.value() or b"")[:1] in JSON_FIRST_BYTES)
    except UNDECODABLE as error:
        raise IndexerError(
            f"{place(record)} holds no item codes ({error}): who else writes to it? What to do is in docs/runbook.md"
        ) from None


def layout_record(record: Message, codebook_id: str) -> LayoutRecord | None:
    """What a ``layouts`` record issues; ``None`` for a tombstone and for a layout of another codebook.

    Raises:
        IndexerError: a record that no monitor of ours wrote.
    """
    value = record.value()
    try:
        layout: LayoutRecord | None = None if value is None else LAYOUT.decode(value)
    except UNDECODABLE as error:
        raise IndexerError(
            f"{place(record)} holds no layout ({error}): who else writes to it? What to do is in docs/runbook.md"
        ) from None
    return layout if layout is not None and layout.codebook == codebook_id else None


def next_offsets(records: Sequence[Message]) -> dict[tuple[str, int], int]:
    """The offset after the last record of each (topic, partition)."""
    return {(record.topic(), record.partition()): record.offset() + 1 for record in records}


def place(record: Message) -> str:
    """Where a record lies, for a person."""
    return f"{record.topic()}/{record.partition()} at offset {record.offset()}"
