"""Consumer groups from outside: what they have committed, and how many processes are in them."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Final, NamedTuple, Self

from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from models.errors import SidstreamError
from streamer.kafka.clients import client_configuration, consumer_configuration
from streamer.kafka.errors import Meaning, error_text, meaning
from streamer.settings.kafka import KafkaSettings

_REQUEST_SECONDS: Final = 10.0


class GroupError(SidstreamError):
    """The cluster refuses to tell of a consumer group, or does not answer."""


class GroupStartingError(GroupError):
    """The group's coordinator has just started: it answers a moment later."""


class Committed(NamedTuple):
    """The next offset that a group reads of one partition, and what it has written beside that."""

    offset: int
    metadata: str


class GroupReader:
    """Asks about a group without joining it; a context manager, as it holds the clients.

    Not by ``AdminClient.list_consumer_group_offsets``: while the coordinator starts or moves, that ends the process with a
    segmentation fault (librdkafka 2.16 looks the coordinator up for the client's own group, and such a client has none).
    """

    def __init__(self, kafka: KafkaSettings, group: str) -> None:
        self.group = group
        # Offsets that a transaction is about to commit do not count yet, and are not waited for.
        self._consumer = Consumer(consumer_configuration(kafka, group=group, isolation_level="read_uncommitted"))
        self._admin = AdminClient(client_configuration(kafka))

    def committed(self, topic: str, partitions: Iterable[int]) -> dict[int, Committed]:
        """Partition → what the group has committed; partitions without an offset are left out.

        Raises:
            GroupStartingError: ask again.
            GroupError: no answer.
        """
        wanted = [TopicPartition(topic, partition) for partition in partitions]
        try:
            found = self._consumer.committed(wanted, timeout=_REQUEST_SECONDS)
            for at in found:
                if at.error is not None:
                    raise KafkaException(at.error)
        except KafkaException as error:
            kind = GroupStartingError if meaning(error.args[0]) is Meaning.PASSING else GroupError
            raise kind(f"cannot read the offsets of group {self.group}: {error_text(error)}") from error
        return {at.partition: Committed(at.offset, at.metadata or "") for at in found if at.offset >= 0}

    def members(self) -> int:
        """How many processes are in the group; 0 for a group that never was.

        Raises:
            GroupStartingError: ask again.
        """
        try:
            [answer] = self._admin.describe_consumer_groups([self.group], request_timeout=_REQUEST_SECONDS).values()
            return len(answer.result().members)
        except KafkaException as error:
            if meaning(error.args[0]) is Meaning.PASSING:
                raise GroupStartingError(
                    f"cannot read the members of group {self.group}: {error_text(error)}"
                ) from error
            return 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._consumer.close()
