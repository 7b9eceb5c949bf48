"""One transaction of a batch in numbered steps: its outputs, dead letters and offsets are committed together or not at all.

Every step ends in one of four ways. It succeeds. It is repeated while its error is a passing one. It raises ``AbortRequired``,
upon which the loop aborts and seeks back. Or it raises ``FatalKafkaError``, upon which the process ends and its successor takes
over. A ``kill -9`` within any step leaves an open transaction, which the successor's ``take_over`` aborts (KIP-98).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import structlog
from confluent_kafka import KafkaException, Producer, TopicPartition

from store.writing.failpoints import Failpoint, reach
from streamer.events.outgoing import Outgoing
from streamer.exactly_once.retrying import AbortRequired, Stopped, repeated
from streamer.kafka.clients import TRANSACTION_TIMEOUT_MS, producer_configuration
from streamer.kafka.errors import FatalKafkaError, Meaning, error_text, meaning
from streamer.kafka.reachability import ClientCutOffError, CutOffGuard
from streamer.process.health import Health, Part
from streamer.settings.kafka import KafkaSettings

log = structlog.get_logger(__name__)

RETRY_SECONDS: Final = 0.2
# One attempt; then the process says that it is not ready, looks whether it is to stop, and makes the same call again.
_CALL_SECONDS: Final = 5.0
# An attempt may ignore its time while the coordinator is away (librdkafka issue 5456); then this is when we say so.
_OVERDUE_SECONDS: Final = 2 * _CALL_SECONDS
# All outputs of a batch go to a partition in one request: librdkafka sends the second one when the first is answered, and spins
# until then (up to 2 µs of processor time an item). Lingering costs nothing, as the commit sends at once.
_LINGER_MS: Final = 50
_REQUEST_BYTES: Final = 2_000_000  # a topic takes 2 MiB


class TransactionalProducer:
    """The producer of one instance, under its stable transactional id; a transaction is of one thread, whichever it is."""

    def __init__(
        self, process: str, group: str, instance: str, kafka: KafkaSettings, health: Health, stop: threading.Event
    ) -> None:
        self._process = process
        self._group = group
        self._instance = instance
        self._kafka = kafka
        self._health = health
        self._stop = stop
        self._begun_at = float("inf")
        self.client = Producer(
            producer_configuration(
                kafka,
                transactional_id=f"{group}-{instance}",
                health=health,
                linger_ms=_LINGER_MS,
                batch_size=_REQUEST_BYTES,
            )
        )

    def take_over(self) -> None:
        """Step 0, once: fence whoever had this id, and abort what it left open.

        It fails while the broker is away, and is repeated; refused for good when we may not write under this id.
        """
        self._repeated(self.client.init_transactions, _CALL_SECONDS)

    def send(self, offsets: Sequence[TopicPartition], group_metadata: object, outgoing: Iterable[Outgoing]) -> None:
        """Steps 1 to 3: everything but the commit.

        Raises:
            AbortRequired: the coordinator refuses the offsets (a rebalance meanwhile), or a record could not be sent.
            FatalKafkaError: a record is larger than our clients send, or another instance took over.
            ClientCutOffError: the coordinator gave the transaction up, as it was open for too long; so do steps 4 and abort.
        """
        # 1. Begin: local, fails only in a client that is broken.
        self._begun_at = time.monotonic()
        self._repeated(self.client.begin_transaction)
        reach(Failpoint.TRANSACTION_BEGUN)
        # 2. The offsets first: the coordinator is ready for them by the time that the outputs are sent (p99 -10 ms). Refused
        #    when the group has gone on without us: the batch belongs to another instance then.
        self._repeated(self.client.send_offsets_to_transaction, list(offsets), group_metadata, _CALL_SECONDS)
        reach(Failpoint.OFFSETS_SENT)
        # 3. The outputs: queued here, sent in the background; what is refused later fails step 4.
        self._produce(outgoing)
        reach(Failpoint.OUTPUTS_SENT, self.client.flush)

    def commit(self) -> None:
        """Step 4: wait for every output, then commit.

        When the answer is lost the same call is made again: it tells the outcome of the first one.

        Raises:
            AbortRequired: an output was refused, or the transaction's time is over.
        """
        self._repeated(self.client.commit_transaction, _CALL_SECONDS)
        reach(Failpoint.TRANSACTION_COMMITTED)

    def abort(self) -> None:
        """Instead of step 4: readers of committed records see nothing of the transaction."""
        self._repeated(self.client.abort_transaction, _CALL_SECONDS)

    def _produce(self, outgoing: Iterable[Outgoing]) -> None:
        produce = self.client.produce
        for one in outgoing:
            while True:
                try:
                    # By position, no callbacks: names would cost a third of the call.
                    produce(one.topic, one.value, one.key, one.partition, None, None, one.timestamp, one.headers)
                    break
                except BufferError:
                    self._health.progress()  # a slow broker; its records are given up after transaction.timeout.ms
                    self.client.poll(0.05)
                except KafkaException as error:
                    if meaning(error.args[0]) is Meaning.RECORD_REFUSED:
                        raise FatalKafkaError(
                            f"a record for {one.topic} is larger than message.max.bytes: {error_text(error)}"
                        ) from error
                    raise AbortRequired(error) from error

    def _repeated(self, call: Callable[..., Any], *arguments: Any) -> None:
        """``repeated`` that tells the health what is in hand, waits for a cluster that is away, and hears of the end."""
        name = getattr(call, "__name__", "a call of the broker")
        guard: CutOffGuard | None = None

        def attempt() -> None:
            # An attempt that does not return at all is a reason to start anew; attempts that fail while the broker is away
            # are not.
            with self._health.working(name, _OVERDUE_SECONDS):
                call(*arguments)

        def wait(error: KafkaException) -> None:
            nonlocal guard
            log.warning("kafka_call_repeated", call=name, reason=error_text(error))
            self._health.set_unready(Part.BROKER, error_text(error))
            guard = guard or CutOffGuard(self._kafka)
            guard.fails()
            if self._stop.wait(RETRY_SECONDS):
                raise Stopped from error

        repeated(attempt, between=wait, refusal=self._refusal)

    def _refusal(self, error: KafkaException, means: Meaning) -> Exception:
        if means is Meaning.FENCED:
            # A coordinator gives up a transaction whose time is over, after a broker or we stood still, by fencing its
            # producer: to librdkafka that looks as if another instance had taken our place.
            open_seconds = time.monotonic() - self._begun_at
            if open_seconds > TRANSACTION_TIMEOUT_MS / 1000:
                return ClientCutOffError(f"the cluster gave up a transaction that was open for {open_seconds:.0f} s")
            return FatalKafkaError(
                f"another {self._process} took over as instance {self._instance!r} of group {self._group!r}: "
                f"give each one its own {self._process}.instance"
            )
        return FatalKafkaError(f"the {self._process} cannot go on: {error_text(error)}")
