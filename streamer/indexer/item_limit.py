"""New items beyond ``indexer.maximum_items`` become dead letters; updates and deletions of known items go on.

What must hold: a refused record's dead letter is with the broker before the LMDB transaction that passes the record over.
Attributes of items that are not there are kept until those come: of as many ids as there may be items, and no more. A record
that takes attributes away is none of these.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import structlog
from confluent_kafka import Message

from store.writing.writer import IndexWriter
from streamer.events.dead_letter import Rejection
from streamer.events.intake import AttributesUpdate
from streamer.indexer.letters import STAGE, Letters
from streamer.indexer.metrics import FILL_RATIO
from streamer.settings import Settings

log = structlog.get_logger(__name__)
_KIND: Final = "IndexFull"


class ItemLimit:
    """Keeps an index within its number of items; for the writer's thread."""

    def __init__(self, settings: Settings, writer: IndexWriter, letters: Letters) -> None:
        self._maximum = settings.indexer.maximum_items
        self._of_updates = settings.topics.item_updates_dead_letters
        self._of_attributes = settings.topics.item_attributes_dead_letters
        self._writer = writer
        self._letters = letters
        self._warned = False

    def show(self, items: int) -> None:
        """Set the fill ratio."""
        FILL_RATIO.set(items / self._maximum if self._maximum else 0)

    def admit(self, records: Sequence[Message]) -> Sequence[Message]:
        """The records of codes that the index takes; the others are dead letters by the time that this returns.

        Raises:
            IndexerError: the broker does not take a dead letter.
        """
        if not self._maximum:
            return records
        with self._writer.snapshot() as snapshot:
            items = snapshot.item_count
            if items + len(records) <= self._maximum:
                self._warned = False
                return records
            known = snapshot.known([record.key() or b"" for record in records])
        admitted, refused = [], []
        for record in records:
            key = record.key() or b""
            if record.value() is None:
                items -= key in known
                known.discard(key)
            elif key not in known:
                if items >= self._maximum:
                    refused.append(record)
                    continue
                items += 1
                known.add(key)
            admitted.append(record)
        if refused:
            self._send(
                self._of_updates,
                refused,
                f"the index holds indexer.maximum_items = {self._maximum} items and takes no new one. Raise it and run "
                "`sidstream rebuild`, or delete items and send this one again",
            )
        return admitted

    def admit_attributes(self, updates: Sequence[AttributesUpdate]) -> Sequence[AttributesUpdate]:
        """As ``admit``, of attributes: those of a live item, of ids that have some, and what takes them away are always taken."""
        if not self._maximum:
            return updates
        count = self._writer.waiting_attributes()
        if count + len(updates) <= self._maximum:
            return updates
        ids = [update.item_id for update in updates]
        with self._writer.snapshot() as snapshot:
            live = snapshot.known(ids)
            waiting = snapshot.known_attribute_ids(ids) - live
        admitted, refused = [], []
        for update in updates:
            if update.attributes is None:
                count -= update.item_id in waiting
                waiting.discard(update.item_id)
            elif update.item_id not in live and update.item_id not in waiting:
                if count >= self._maximum:
                    refused.append(update.record)
                    continue
                count += 1
                waiting.add(update.item_id)
            admitted.append(update)
        if refused:
            self._send(
                self._of_attributes,
                refused,
                f"the index keeps attributes of indexer.maximum_items = {self._maximum} ids that have no item, and takes those "
                "of no other. Send the item first, take attributes away from ids whose items will not come (a null value), or "
                "raise it and run `sidstream rebuild`; then send these again",
            )
        return admitted

    def _send(self, topic: str, refused: Sequence[Message], message: str) -> None:
        if not self._warned:
            self._warned = True
            log.error(
                "index_full",
                maximum_items=self._maximum,
                next="new items are dead letters: raise indexer.maximum_items, then rebuild the index",
            )
        self._letters.send(topic, [(record, Rejection(STAGE, _KIND, message)) for record in refused])
