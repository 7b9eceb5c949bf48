"""The indexer's dead letters: what it cannot take, written before the LMDB transaction that passes it over.

What must hold: a letter is with the broker before the offset of its record is in the index. It is written at least once, and by
each host's indexer for itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from confluent_kafka import KafkaError, Message, Producer

from streamer.events.dead_letter import Rejection, dead_letter
from streamer.indexer.codes import IndexerError
from streamer.kafka.gather import produce
from streamer.process.health import Health
from streamer.process.metrics import count_dead_letter
from streamer.tracing.batches import Traces

STAGE: Final = "indexer"
_FLUSH_SECONDS: Final = 1.0


class Letters:
    """Writes dead letters; for the writer's thread."""

    def __init__(self, producer: Producer, health: Health, codebook: str, traces: Sequence[Traces] = ()) -> None:
        """``codebook``: of the index that does not take them; ``traces``: of the batches that the records are of."""
        self._producer = producer
        self._health = health
        self._codebook = codebook
        self._traces = traces

    def send(self, topic: str, refused: Sequence[tuple[Message, Rejection]]) -> None:
        """Return once the broker has a letter for each record.

        Raises:
            IndexerError: the broker does not take one.
        """
        failures: list[str] = []

        def delivered(error: KafkaError | None, _record: Message) -> None:
            if error is not None:
                failures.append(error.str())

        for record, rejection in refused:
            letter = dead_letter(topic, record, rejection._replace(codebook=self._codebook))
            sent: dict[str, Any] = {"key": letter.key, "value": letter.value, "headers": letter.headers}
            produce(self._producer, letter.topic, **sent, on_delivery=delivered)
            count_dead_letter(STAGE, rejection.kind)
            for traces in self._traces:
                traces.refused(record, rejection.kind)
        while self._producer.flush(_FLUSH_SECONDS):
            self._health.progress()  # a broker that is away; the records are given up after message.timeout.ms
        if failures:
            raise IndexerError(
                f"{len(failures)} dead letters could not be written to {topic} ({failures[0]}): the batch was not stored. See to "
                "the broker and to the rights on that topic, then start again"
            )
