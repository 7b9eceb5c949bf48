"""The alerts as they come, from one moment on, and how many fired and were resolved."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from confluent_kafka import Consumer, TopicPartition

from streamer.events.records import ALERT, Alert
from streamer.kafka.clients import consumer_configuration
from streamer.kafka.gather import drain
from streamer.settings import Settings

_CONNECT_SECONDS = 10.0


class AlertWatch:
    """Reads the alerts topic from its end; ``firing`` holds the keys of those that fire."""

    def __init__(self, settings: Settings) -> None:
        topic = settings.topics.alerts
        self._consumer = Consumer(consumer_configuration(settings.kafka, group=settings.in_cluster("sidstream-demo")))
        _, end = self._consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=_CONNECT_SECONDS)
        self._consumer.assign([TopicPartition(topic, 0, end)])
        self.firing: set[str] = set()
        self.fired = self.resolved = 0

    def new(self) -> list[Alert]:
        """What has come since the last call."""
        alerts: list[Alert] = [
            ALERT.decode(record.value()) for record in drain(self._consumer, 100, 0) if record.value()
        ]
        for alert in alerts:
            if alert.state == "resolved":
                self.firing.discard(alert.key)
                self.resolved += 1
            elif alert.key not in self.firing:  # else its severity has changed
                self.firing.add(alert.key)
                self.fired += 1
        return alerts

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._consumer.close()
