"""An indexer that runs in a thread of the test, and records of ``item-codes`` for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from confluent_kafka import Producer
from msgspec import UNSET, Raw

from models.attributes import encode_attributes
from models.sids.layout import Layout
from store.writing.writer import IndexWriter
from streamer.events.records import ITEM_CODES, ItemCodes
from streamer.indexer.process import Indexer
from streamer.kafka.clients import producer_configuration
from streamer.process.health import Health
from streamer.settings import Settings
from support.patience import PATIENCE_SECONDS


def with_indexer(settings: Settings, **values: Any) -> Settings:
    """These settings with other ones of the indexer."""
    return settings.model_copy(update={"indexer": settings.indexer.model_copy(update=values)})


class RunningIndexer:
    """An indexer in a thread; ``fault`` is what ended it."""

    def __init__(self, settings: Settings, writer: IndexWriter, layout: Layout) -> None:
        self.health = Health()
        self.writer = writer
        self.fault: BaseException | None = None
        self.stop = threading.Event()
        self._indexer = Indexer(settings, writer, layout, self.health)
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self._indexer.run(self.stop)
        except BaseException as fault:
            self.fault = fault


@contextmanager
def running_indexer(settings: Settings, layout: Layout, index: Path | None = None) -> Iterator[RunningIndexer]:
    with IndexWriter.open(
        index or settings.index,
        codebook_id=layout.codebook_id,
        layers=layout.layers,
        size=layout.size,
        order=settings.indexer.order,
        partitions=settings.indexer.partitions,
    ) as writer:
        writer.put_layout(layout, {})
        running = RunningIndexer(settings, writer, layout)
        running.thread.start()
        try:
            yield running
        finally:
            running.stop.set()
            running.thread.join()


def send_codes(settings: Settings, layout: Layout, *records: dict[str, Any]) -> None:
    """Records of ``item-codes``, each as ``key``, ``partition``, ``timestamp``, ``attributes``, ``codes`` (``None`` deletes)."""
    producer = Producer(producer_configuration(settings.kafka))
    for record in records:
        codes, attributes = record.pop("codes"), record.pop("attributes", None)
        value = None
        if codes is not None:
            value = ITEM_CODES.encode(
                ItemCodes(
                    codebook=layout.codebook_id,
                    codes=codes,
                    title="",
                    weight=1.0,
                    updated_at=record.pop("updated_at", 0),
                    attributes=UNSET if attributes is None else Raw(encode_attributes(attributes)),
                )
            )
        producer.produce(settings.topics.item_codes, value=value, **record)
        producer.poll(0)
    assert producer.flush(PATIENCE_SECONDS) == 0
