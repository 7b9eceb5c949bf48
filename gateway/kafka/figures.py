"""The dashboard's figures as the topics have them: drift, alerts that fire, and the newest layout.

A thread reads the three compacted topics, small as they are, and goes on reading; what the event loop is given never changes.
"""

from __future__ import annotations

import threading
from typing import Final

import msgspec
import structlog
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, TopicPartition

from streamer.events.records import ALERT, DRIFT, LAYOUT, UNDECODABLE, Alert, Drift, LayoutRecord
from streamer.kafka.clients import consumer_configuration
from streamer.kafka.errors import FatalKafkaError, error_text
from streamer.kafka.gather import drain
from streamer.kafka.read_to_end import LogReadError, partitions_of
from streamer.settings import Settings

log = structlog.get_logger(__name__)
_WAIT_SECONDS: Final = 0.5
_RETRY_SECONDS: Final = 5.0
_CLOSE_SECONDS: Final = 2.0
_SEVERITIES: Final = ("critical", "warning", "info")


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What the monitor has told until now. ``drift``: of the codebook that was told of last; ``alerts``: those that fire, the
    worst first; ``filterable``: the attributes that queries may filter on, and their types.
    """

    drift: Drift | None = None
    layout: LayoutRecord | None = None
    alerts: tuple[Alert, ...] = ()
    filterable: dict[str, str] = {}


class FiguresReader:
    """``current`` is for any thread."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        topics = settings.topics
        self._codecs = {topics.drift: DRIFT, topics.alerts: ALERT, topics.layouts: LAYOUT}
        self._newest: dict[tuple[str, bytes], Drift | Alert | LayoutRecord] = {}
        self.current = Figures(filterable=dict(settings.attributes.filterable))
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="figures", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._ended.set()
        self._thread.join(_CLOSE_SECONDS)

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                self._follow()
            except (FatalKafkaError, LogReadError, KafkaException) as error:
                reason = error_text(error) if isinstance(error, KafkaException) else str(error)
                log.warning(
                    "figures_not_read", reason=reason, next="the page shows those of before; they are read again"
                )
                self._ended.wait(_RETRY_SECONDS)

    def _follow(self) -> None:
        settings = self._settings
        consumer = Consumer(
            consumer_configuration(
                settings.kafka, group=settings.in_cluster("sidstream-gateway-figures"), fetch_wait_max_ms=500
            )
        )
        try:
            consumer.assign(
                [
                    TopicPartition(topic, partition, OFFSET_BEGINNING)
                    for topic in self._codecs
                    for partition in partitions_of(consumer, topic)
                ]
            )
            while not self._ended.is_set():
                records = drain(consumer, 1_000, _WAIT_SECONDS)
                for record in records:
                    self._take(record.topic(), record.key() or b"", record.value())
                if records:
                    self.current = self._figures()
        finally:
            consumer.close()

    def _take(self, topic: str, key: bytes, value: bytes | None) -> None:
        try:
            if value is not None:
                self._newest[topic, key] = self._codecs[topic].decode(value)
            else:
                self._newest.pop((topic, key), None)
        except UNDECODABLE as error:
            log.warning("figure_not_read", topic=topic, reason=str(error))

    def _figures(self) -> Figures:
        known = self._newest.values()
        drift = max((one for one in known if isinstance(one, Drift)), key=lambda one: one.at, default=None)
        layouts = (one for one in known if isinstance(one, LayoutRecord))
        ours = (one for one in layouts if drift is not None and one.codebook == drift.codebook)
        firing = [one for one in known if isinstance(one, Alert) and one.state == "firing"]
        return Figures(
            drift=drift,
            layout=max(ours, key=lambda one: one.generation, default=None),
            alerts=tuple(sorted(firing, key=lambda one: (_SEVERITIES.index(one.severity), -one.first_at))),
            filterable=self.current.filterable,
        )
