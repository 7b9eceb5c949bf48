"""Consumer groups from outside: what they have committed, and how many processes are in them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, NamedTuple

from confluent_kafka import ConsumerGroupTopicPartitions, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from models.errors import SidstreamError
from streamer.kafka.errors import Meaning, error_text, meaning

_REQUEST_SECONDS: Final = 10.0


class GroupError(SidstreamError):
    """The cluster refuses to tell of a consumer group, or does not answer."""


class GroupStartingError(GroupError):
    """The group's coordinator has just started: it answers a moment later."""


class Committed(NamedTuple):
    """The next offset that a group reads of one partition, and what it has written beside that."""

    offset: int
    metadata: str


def committed_offsets(
    admin: AdminClient, group: str, topic: str, partitions: Collection[int] | None = None
) -> dict[int, Committed]:
    """Partition → what the group has committed; partitions without an offset are left out. ``partitions``: all if ``None``.

    Raises:
        GroupStartingError: ask again.
        GroupError: no answer.
    """
    wanted = None if partitions is None else [TopicPartition(topic, partition) for partition in partitions]
    try:
        asked = [ConsumerGroupTopicPartitions(group, wanted)]
        [answer] = admin.list_consumer_group_offsets(asked, request_timeout=_REQUEST_SECONDS).values()
        found = answer.result().topic_partitions
    except KafkaException as error:
        kind = GroupStartingError if meaning(error.args[0]) is Meaning.PASSING else GroupError
        raise kind(f"cannot read the offsets of group {group}: {error_text(error)}") from error
    return {
        at.partition: Committed(at.offset, at.metadata or "") for at in found if at.topic == topic and at.offset >= 0
    }


def members_of(admin: AdminClient, group: str) -> int:
    """How many processes are in the group; 0 for a group that never was.

    Raises:
        GroupStartingError: ask again.
    """
    try:
        [answer] = admin.describe_consumer_groups([group], request_timeout=_REQUEST_SECONDS).values()
        return len(answer.result().members)
    except KafkaException as error:
        if error.args[0].code() in PASSING_CODES:
            raise GroupStartingError(f"cannot read the members of group {group}: {error_text(error)}") from error
        return 0
