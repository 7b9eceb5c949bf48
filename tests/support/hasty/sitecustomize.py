"""Loaded by processes that shall lose their cluster: every client asks ten times a second which brokers there are.

Whoever asks in the moment in which a broker that stood still is still fenced is told of a cluster without brokers.
"""

from __future__ import annotations

from typing import Any

import confluent_kafka

_HASTE = {"topic.metadata.refresh.interval.ms": 100}


class _Producer(confluent_kafka.Producer):
    def __init__(self, configuration: dict[str, Any]) -> None:
        super().__init__({**configuration, **_HASTE})


class _Consumer(confluent_kafka.Consumer):
    def __init__(self, configuration: dict[str, Any]) -> None:
        super().__init__({**configuration, **_HASTE})


confluent_kafka.Producer, confluent_kafka.Consumer = _Producer, _Consumer  # type: ignore[misc]
