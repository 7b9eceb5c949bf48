"""Batches of item updates that are sent exactly once: records and the batch's number are one Kafka transaction.

What must hold: ``sent`` is the number of the last batch that the topic has, whatever killed the process that sent it. The number
is kept as the offset of a consumer group of this publisher's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Final, Self

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

from store.writing.failpoints import Failpoint, reach
from streamer.client.publisher import PublishError
from streamer.exactly_once.retrying import repeated_for_a_while
from streamer.kafka.clients import consumer_configuration, producer_configuration
from streamer.kafka.errors import Meaning, error_text
from streamer.settings import Settings
from streamer.tracing.sending import headers_of_new

_CALL_SECONDS: Final = 15.0
_AGAIN: Final = "run it again: it goes on from there, and sends nothing twice"

Record = tuple[str, bytes, bytes | None]  # topic, key, value


class CountedBatches:
    """The producer of one publisher. Making it ends what a process before it has left open, and fences one that is at work."""

    def __init__(self, settings: Settings, identity: str) -> None:
        """``identity``: of the publisher, among all of the pipeline."""
        name = settings.in_cluster(f"sidstream-publish-{identity}")
        self._place = (settings.topics.item_updates, 0)
        self._group = Consumer(consumer_configuration(settings.kafka, group=name))
        self._producer = Producer(producer_configuration(settings.kafka, transactional_id=name))
        # In a cluster where no group was ever asked for, the topic of groups is made now: a transaction that sends offsets
        # meanwhile would wait for good, whatever time it is given (librdkafka issues 5456 and 5511).
        self._call(self._group.committed, [TopicPartition(*self._place)], _CALL_SECONDS)
        self._call(self._producer.init_transactions, _CALL_SECONDS)

    @property
    def sent(self) -> int:
        """The number of the last batch that was sent; 0 before the first, and where the broker has forgotten it (it keeps such
        numbers for a week after the last batch). Raises ``PublishError``.
        """
        [found] = self._call(self._group.committed, [TopicPartition(*self._place)], _CALL_SECONDS)
        return max(0, int(found.offset))

    def send(self, number: int, records: Sequence[Record]) -> None:
        """Sends a batch; raises ``PublishError`` if it was not sent."""
        producer = self._producer
        try:
            self._call(producer.begin_transaction)
            reach(Failpoint.TRANSACTION_BEGUN)
            offset = TopicPartition(*self._place, number)
            metadata = self._group.consumer_group_metadata()
            self._call(producer.send_offsets_to_transaction, [offset], metadata, _CALL_SECONDS)
            for topic, key, value in records:
                traced = headers_of_new(topic, key)
                while True:
                    try:
                        producer.produce(topic, value, key, headers=traced)
                        break
                    except BufferError:
                        producer.poll(0.1)
            reach(Failpoint.OUTPUTS_SENT, producer.flush)
            self._call(producer.commit_transaction, _CALL_SECONDS)
        except KafkaException as error:
            self._call(producer.abort_transaction, _CALL_SECONDS)
            raise PublishError(f"publishing has stopped: {error_text(error)}; {_AGAIN}") from error
        reach(Failpoint.TRANSACTION_COMMITTED)

    def _call(self, call: Callable[..., Any], *arguments: Any) -> Any:
        return repeated_for_a_while(call, *arguments, refusal=self._refusal)

    @staticmethod
    def _refusal(error: KafkaException, means: Meaning) -> PublishError:
        if means is Meaning.FENCED:
            return PublishError("another publisher with this state has taken over: this one has stopped")
        return PublishError(f"publishing cannot go on: {error_text(error)}; {_AGAIN}")

    def close(self) -> None:
        """Lets the group go."""
        self._group.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
