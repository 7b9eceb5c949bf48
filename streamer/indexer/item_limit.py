"""New items beyond ``indexer.maximum_items`` become dead letters; updates and deletions of known items go on.

What must hold: a refused record's dead letter is with the broker before the LMDB transaction that passes the record over. It
is written at least once, and by each host's indexer for itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import structlog
from confluent_kafka import KafkaError, Message, Producer

from store.writing.writer import IndexWriter
from streamer.events.dead_letter import Rejection, dead_letter
from streamer.indexer.codes import IndexerError
from streamer.indexer.metrics import FILL_RATIO
from streamer.kafka.gather import produce
from streamer.process.health import Health
from streamer.process.metrics import count_dead_letter
from streamer.settings import Settings

log = structlog.get_logger(__name__)
_PROCESS: Final = "indexer"
_KIND: Final = "IndexFull"
_FLUSH_SECONDS: Final = 1.0


class ItemLimit:
    """Keeps an index within its number of items; for the writer's thread."""

    def __init__(self, settings: Settings, writer: IndexWriter, producer: Producer, health: Health) -> None:
        self._maximum = settings.indexer.maximum_items
        self._dead_letters_topic = settings.topics.item_updates_dead_letters
        self._writer = writer
        self._producer = producer
        self._health = health
        self._warned = False

    def show(self, items: int) -> None:
        """Set the fill ratio."""
        FILL_RATIO.set(items / self._maximum if self._maximum else 0)

    def admit(self, records: Sequence[Message]) -> Sequence[Message]:
        """The records that the index takes; the others are dead letters by the time that this returns.

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
            self._send(refused)
        return admitted

    def _send(self, refused: Sequence[Message]) -> None:
        if not self._warned:
            self._warned = True
            log.error(
                "index_full",
                maximum_items=self._maximum,
                next="new items are dead letters: raise indexer.maximum_items, then rebuild the index",
            )
        failures: list[str] = []

        def delivered(error: KafkaError | None, _record: Message) -> None:
            if error is not None:
                failures.append(error.str())

        message = (
            f"the index holds indexer.maximum_items = {self._maximum} items and takes no new one. Raise it and run "
            "`sidstream rebuild`, or delete items and send this one again"
        )
        for record in refused:
            letter = dead_letter(self._dead_letters_topic, record, Rejection(_PROCESS, _KIND, message))
            sent: dict[str, Any] = {"key": letter.key, "value": letter.value, "headers": letter.headers}
            produce(self._producer, letter.topic, **sent, on_delivery=delivered)
            count_dead_letter(_PROCESS, _KIND)
        while self._producer.flush(_FLUSH_SECONDS):
            self._health.progress()  # a broker that is away; the records are given up after message.timeout.ms
        if failures:
            raise IndexerError(
                f"{len(failures)} dead letters could not be written to {self._dead_letters_topic} ({failures[0]}): the batch "
                "was not stored. See to the broker and to the rights on that topic, then start again"
            )
