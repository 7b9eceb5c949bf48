"""Absolute counts of changed tokens, sent to the monitor about once a second."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Final

import numpy as np
import structlog
from confluent_kafka import KafkaError, Message, Producer

from store.writing.failpoints import Failpoint, reach
from store.writing.writer import IndexWriter
from streamer.events.records import TOKEN_COUNT, token_count, token_count_key
from streamer.kafka.gather import produce
from streamer.shards.partitions import EVERY

log = structlog.get_logger(__name__)

_BROKER_SECONDS: Final = 10.0


class CensusPublisher:
    """Publishes absolute counts of changed tokens, coalesced; the whole census first, and again whenever it is asked for.

    ``as_of`` is one number for all partitions. Until an index has read every partition to its end, another one may have
    published older counts under a greater number: so the whole census goes out again when it has caught up.
    """

    def __init__(
        self,
        producer: Producer,
        topic: str,
        writer: IndexWriter,
        codebook_id: str,
        *,
        interval_seconds: float,
        partitions: str = EVERY,
    ) -> None:
        """``partitions``: those that the index holds; counts of several shards add up."""
        self._producer = producer
        self._topic = topic
        self._codebook_id = codebook_id
        self._writer = writer
        self._interval_seconds = interval_seconds
        self._partitions = partitions
        self._changed: dict[tuple[int, int], int] = {}
        self._published_at = float("-inf")
        self._everything = True

    def add(self, changed: Iterable[tuple[int, int, int]]) -> None:
        """Remember new absolute counts: (layer index, token, count)."""
        for layer_index, token, count in changed:
            self._changed[layer_index, token] = count

    def publish_everything(self) -> None:
        """The whole census with the next publishing."""
        self._everything = True

    def publish_if_due(self, as_of: int) -> None:
        now = time.monotonic()
        if now - self._published_at < self._interval_seconds:
            self._producer.poll(0)
            return
        self._published_at = now
        self.publish(as_of)

    def publish(self, as_of: int) -> None:
        """Send what changed. ``as_of`` is the number of offsets of ``item-codes`` that the counts include."""
        if self._everything:
            self._everything = False
            census = self._writer.census()
            self._changed = {(layer, token): int(n) for (layer, token), n in np.ndenumerate(census)}
        if not self._changed:
            return
        codebook = self._codebook_id
        for (layer_index, token), n in self._changed.items():
            count = token_count(codebook, layer_index + 1, token, n, as_of, partitions=self._partitions)
            produce(
                self._producer,
                self._topic,
                key=token_count_key(codebook, layer_index + 1, token, self._partitions),
                value=TOKEN_COUNT.encode(count),
                on_delivery=self._on_delivery,
            )
        self._changed = {}
        self._producer.poll(0)
        reach(Failpoint.COUNTS_SENT)

    def flush(self) -> None:
        self._producer.flush(_BROKER_SECONDS)

    def _on_delivery(self, error: KafkaError | None, _record: Message) -> None:
        if error is not None and not self._everything:
            log.warning("counts_not_delivered", reason=error.str(), next="the whole census is published again")
            self._everything = True
