"""What whoever asks does with Kafka: queries out, each under an id of its own, and what comes on ``results`` from now on.

What must hold: no answer slips in before the first fetch, and a partition that ``results`` gets meanwhile is read from its
beginning.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, Message, Producer, TopicPartition

from models.errors import SidstreamError
from streamer.events.cloudevents import cloud_event_headers
from streamer.events.records import QUERY, Query
from streamer.kafka.clients import consumer_configuration, producer_configuration
from streamer.kafka.errors import error_text, told
from streamer.kafka.gather import drain, produce
from streamer.process.health import Health
from streamer.settings import Settings

_CONNECT_SECONDS: Final = 10.0
# An answer that takes longer may lie in a partition that results got since we connected: looked for so often.
LOOK_SECONDS: Final = 1.0
_AT_ONCE: Final = 500


class AskingError(SidstreamError):
    """The results cannot be read."""


class QueryTextError(SidstreamError):
    """A text of a query, a user or an item's id is no UTF-8, as arguments of a command line may be."""


class Results:
    """The records of ``results`` that come after it was made. For one thread."""

    def __init__(self, settings: Settings, health: Health | None = None) -> None:
        """Raises ``AskingError`` if the topic cannot be read."""
        self._topic = settings.topics.results
        self.consumer = Consumer(
            consumer_configuration(
                settings.kafka, group=settings.in_cluster("sidstream-client"), health=health, fetch_wait_max_ms=50
            )
        )
        self._look_at = 0.0
        try:
            # Only what comes after this moment; an answer must not slip in before the first fetch.
            partitions = self.consumer.list_topics(self._topic, timeout=_CONNECT_SECONDS).topics[self._topic].partitions
            self.consumer.assign(
                [TopicPartition(self._topic, partition, self._end(partition)) for partition in partitions]
            )
        except KafkaException as error:
            self.consumer.close()
            raise AskingError(
                f"cannot read {self._topic} on {settings.kafka.bootstrap_servers}: {error_text(error)}"
            ) from error

    def _end(self, partition: int) -> int:
        at = TopicPartition(self._topic, partition)
        return told(self.consumer.get_watermark_offsets(at, timeout=_CONNECT_SECONDS)[1])

    def read(self, wait_seconds: float) -> list[Message]:
        """What has come; waits only while there is nothing. Raises as ``drain``."""
        return drain(self.consumer, _AT_ONCE, wait_seconds)

    def look_later(self) -> None:
        """What is asked now is answered at once, as a rule: nobody needs to look for partitions yet."""
        self._look_at = time.monotonic() + LOOK_SECONDS

    def look_for_partitions(self) -> None:
        """Call it every turn while an answer is waited for; asks the broker once a second."""
        if time.monotonic() <= self._look_at:
            return
        self.look_later()
        known = {assigned.partition for assigned in self.consumer.assignment()}
        try:
            partitions = self.consumer.list_topics(self._topic, timeout=LOOK_SECONDS).topics[self._topic].partitions
        except KafkaException:
            return  # away; asked again
        # Nothing of before we connected can lie in them.
        if added := [TopicPartition(self._topic, one, OFFSET_BEGINNING) for one in partitions if one not in known]:
            self.consumer.incremental_assign(added)

    def close(self) -> None:
        self.consumer.close()


def query_producer(settings: Settings, health: Health | None = None) -> Producer:
    """Without idempotence the first query leaves half a second earlier; a repeated one is answered again, and ignored."""
    return Producer(
        producer_configuration(settings.kafka, health=health, linger_ms=0, enable_idempotence=False, acks="all")
    )


def query_record(
    query_id: str, query: Query, seconds: float, traced: Sequence[tuple[str, bytes]] = ()
) -> dict[str, Any]:
    """What ``produce`` sends of a query; no retriever works on it after so many seconds, or those that it says itself.
    ``traced``: headers of its trace, none without.

    Raises:
        QueryTextError: a text of it is no UTF-8.
    """
    if query.timeout_ms is None:
        query = msgspec.structs.replace(query, timeout_ms=max(1, int(seconds * 1000)))
    try:
        value = QUERY.encode(query)
    except UnicodeEncodeError as error:
        part = ascii(error.object[error.start : error.end])
        raise QueryTextError(f"a text of the query has {part}, which is no character: send it as UTF-8") from None
    return {
        "key": query_id.encode(),
        "value": value,
        "headers": [
            *cloud_event_headers("query", identity=query_id, subject=query_id, at=int(time.time() * 1000)),
            *traced,
        ],
    }


def send_query(
    producer: Producer,
    topic: str,
    query_id: str,
    query: Query,
    seconds: float,
    traced: Sequence[tuple[str, bytes]] = (),
) -> None:
    """Sends ``query_record``. Raises as ``produce``, and waits as that does."""
    produce(producer, topic, **query_record(query_id, query, seconds, traced))
