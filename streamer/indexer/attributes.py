"""What ``item-attributes`` holds becomes what the index takes; the same for the indexer and for a rebuild.

What must hold: the last record of a key counts, and nothing else. One that cannot be used says nothing of its item, so that what
the topic said before counts no more: Kafka's compaction keeps the last record alone, and a rebuild finds no other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from confluent_kafka import Message

from store.records.item_attributes import AttributesBatch
from streamer.events.dead_letter import Rejection
from streamer.events.intake import AttributesIntake, AttributesUpdate, EventError, checked_item_id
from streamer.indexer.letters import STAGE
from streamer.settings.records import AttributeSettings


@dataclass(frozen=True)
class ReadAttributes:
    """``updates``: what each record with an id says, nothing for one that cannot be used; ``refused``: those, with the reason."""

    updates: list[AttributesUpdate]
    refused: list[tuple[Message, Rejection]]


class AttributesReader:
    """Reads records of ``item-attributes``."""

    def __init__(self, settings: AttributeSettings) -> None:
        self._intake = AttributesIntake(settings)

    def read(self, records: Sequence[Message]) -> ReadAttributes:
        updates: list[AttributesUpdate] = []
        refused: list[tuple[Message, Rejection]] = []
        for record in records:
            try:
                updates.append(self._intake.read(record))
            except EventError as error:
                message = str(error)
                if (nothing := _nothing(record)) is not None:
                    updates.append(nothing)
                    message += f". What {record.topic()} said of this item before counts no more: send all of it again"
                refused.append((record, Rejection(STAGE, error.kind, message)))
        return ReadAttributes(updates, refused)


def _nothing(record: Message) -> AttributesUpdate | None:
    try:
        return AttributesUpdate(record, checked_item_id(record.key()), None)
    except EventError:
        return None  # of no item


def attributes_batch(updates: Sequence[AttributesUpdate]) -> AttributesBatch:
    """Columns of what was read."""
    records = [update.record for update in updates]
    return AttributesBatch(
        ids=[update.item_id for update in updates],
        values=[update.attributes for update in updates],
        partitions=np.array([record.partition() for record in records], dtype=np.int32),
        timestamps=np.array([record.timestamp()[1] for record in records], dtype=np.int64),
    )
