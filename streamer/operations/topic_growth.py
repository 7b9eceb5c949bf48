"""Topics that get more partitions, and what has to hold of them before their keys are moved."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from confluent_kafka import KafkaException
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ConfigSource,
    NewPartitions,
    ResourceType,
)

from streamer.kafka.admin import TopicError, TopicMismatchError, describe, require
from streamer.kafka.clients import client_configuration
from streamer.kafka.errors import error_text
from streamer.settings.kafka import KafkaSettings

_REQUEST_SECONDS: Final = 15.0
_VISIBLE_SECONDS: Final = 30.0
_LOOK_SECONDS: Final = 0.1
# A record that lands between a look and what is written upon it must outlive the time until it is seen: a run that was
# killed is to be finished within a day.
COMPACTION_LAG_MS: Final = 24 * 60 * 60 * 1000
_LAG: Final = "min.compaction.lag.ms"


def partitions_of_topics(kafka: KafkaSettings, names: Sequence[str]) -> dict[str, int]:
    """How many partitions each topic has; only those of ``names`` that are there."""
    return {topic.name: topic.partitions for topic in describe(kafka, names)}


def require_own_times(kafka: KafkaSettings, names: Sequence[str]) -> None:
    """Return if records keep the times that they are written with.

    Raises:
        TopicMismatchError: a topic is dated by the broker; with the command that changes it.
    """
    admin = AdminClient(client_configuration(kafka))
    for name in names:
        entry = _configuration(admin, kafka, name)["message.timestamp.type"]
        if entry.value != "CreateTime":
            raise TopicMismatchError(
                f"{name} has message.timestamp.type={entry.value}: of two partitions' records of one key the later is the "
                f"item's state, so they must keep their times. Change it with `kafka-configs --bootstrap-server "
                f"{kafka.bootstrap_servers} --alter --entity-type topics --entity-name {name} "
                "--add-config message.timestamp.type=CreateTime`, and run this again"
            )


def require_no_more(found: Mapping[str, int], partitions: int) -> None:
    """Return if no topic of ``found`` has more than ``partitions`` partitions.

    Raises:
        TopicMismatchError: names each that has, and the number to give.
    """
    larger = [f"{name} has {count}" for name, count in found.items() if count > partitions]
    if larger:
        raise TopicMismatchError(
            f"{', '.join(larger)} partitions, more than {partitions}: Kafka only adds partitions; "
            f"give --partitions {max(found.values())}"
        )


def grow(kafka: KafkaSettings, names: Sequence[str], partitions: int) -> list[str]:
    """Give each topic ``partitions`` partitions, in the order of ``names``; those that have as many are left. The altered ones.

    Raises:
        TopicMismatchError: a topic has more already.
        TopicError: one is missing, or the cluster refuses.
    """
    require(kafka, names)
    now = partitions_of_topics(kafka, names)
    require_no_more(now, partitions)
    admin = AdminClient(client_configuration(kafka))
    altered = [name for name in names if now[name] < partitions]
    for name in altered:
        futures = admin.create_partitions([NewPartitions(name, partitions)], request_timeout=_REQUEST_SECONDS)
        _answer(futures[name], f"{name} cannot be given {partitions} partitions")
        give_up = time.monotonic() + _VISIBLE_SECONDS
        while partitions_of_topics(kafka, [name]).get(name, 0) < partitions:
            if time.monotonic() > give_up:
                raise TopicError(f"{name} does not show its new partitions yet: run this again")
            time.sleep(_LOOK_SECONDS)
    return altered


@contextmanager
def kept_from_compaction(kafka: KafkaSettings, name: str) -> Iterator[None]:
    """While inside, the broker compacts no record of the last day away; afterwards as before.

    A process that is killed inside leaves it so, which is harmless: the next run takes it for the topic's own setting.
    """
    admin = AdminClient(client_configuration(kafka))
    before = _configuration(admin, kafka, name)[_LAG]
    if int(before.value) >= COMPACTION_LAG_MS:
        yield
        return
    _alter(admin, name, str(COMPACTION_LAG_MS))
    try:
        yield
    finally:
        own = before.source == ConfigSource.DYNAMIC_TOPIC_CONFIG.value
        _alter(admin, name, before.value if own else None)


def _configuration(admin: AdminClient, kafka: KafkaSettings, name: str) -> Mapping[str, Any]:
    resource = ConfigResource(ResourceType.TOPIC, name)
    answers = admin.describe_configs([resource], request_timeout=_REQUEST_SECONDS)
    entries: Mapping[str, Any] = _answer(answers[resource], f"{kafka.bootstrap_servers} does not describe {name}")
    return entries


def _alter(admin: AdminClient, name: str, lag: str | None) -> None:
    operation = AlterConfigOpType.DELETE if lag is None else AlterConfigOpType.SET
    entry = ConfigEntry(_LAG, lag or "", incremental_operation=operation)
    resource = ConfigResource(ResourceType.TOPIC, name, incremental_configs=[entry])
    answers = admin.incremental_alter_configs([resource], request_timeout=_REQUEST_SECONDS)
    _answer(answers[resource], f"{_LAG} of {name} cannot be set")


def _answer(future: Any, fault: str) -> Any:
    try:
        return future.result()
    except KafkaException as error:
        raise TopicError(f"{fault}: {error_text(error)}") from error
