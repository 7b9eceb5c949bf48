"""Dead letters on a real broker: records that are sent, and refused as a process of ours refuses them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from confluent_kafka import Message, Producer

from streamer.dead_letters.reading import dead_letter_topics
from streamer.events.dead_letter import Rejection, dead_letter
from streamer.kafka.clients import producer_configuration
from streamer.settings import Settings
from support.patience import PATIENCE_SECONDS
from support.processes import SidstreamProcess, committed_records


def send(settings: Settings, *records: dict[str, Any], topic: str | None = None, **configuration: Any) -> None:
    producer = Producer(producer_configuration(settings.kafka, **configuration))
    refusals: list[str] = []
    for record in records:
        producer.produce(
            topic or settings.topics.item_updates,
            **{"partition": 1, **record},
            on_delivery=lambda error, _: refusals.append(str(error)) if error else None,
        )
    assert producer.flush(PATIENCE_SECONDS) == 0
    assert refusals == []


def refuse(settings: Settings, *records: Message, kind: str = "InvalidEvent", stage: str = "assigner") -> None:
    """As the assigner does it: in a transaction, so that a marker follows."""
    source = records[0].topic() if records else settings.topics.item_updates
    [topic] = [letters for letters, events in dead_letter_topics(settings).items() if events == source]
    producer = Producer(producer_configuration(settings.kafka, transactional_id=f"{settings.topics.prefix}refuse"))
    producer.init_transactions(20)
    producer.begin_transaction()
    for record in records:
        letter = dead_letter(topic, record, Rejection(stage, kind, f"a {kind}"))
        producer.produce(topic, key=letter.key, value=letter.value, headers=letter.headers, partition=0)
    producer.commit_transaction(20)


def updates(settings: Settings) -> list[Message]:
    return committed_records(settings, settings.topics.item_updates)


def seen(records: Sequence[Message]) -> list[tuple[bytes | None, bytes | None]]:
    return [(record.key(), record.value()) for record in records]


def run(settings: Settings, directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**SidstreamProcess(settings, "assigner", directory)._environment, "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-m", "sidstream", *arguments],
        env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False,
    )  # fmt: skip
