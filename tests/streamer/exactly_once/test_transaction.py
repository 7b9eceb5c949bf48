"""A producer that was fenced in the middle of a transaction: by an instance of its name, or by a coordinator that gave it up."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
from confluent_kafka import Message, Producer

from streamer.events.outgoing import Outgoing
from streamer.exactly_once import transaction
from streamer.exactly_once.loop import LoopSettings, TransactionalLoop
from streamer.kafka.clients import producer_configuration
from streamer.kafka.errors import FatalKafkaError
from streamer.kafka.gather import produce
from streamer.process.health import Health
from streamer.process.metrics import FRESHNESS_SECONDS
from streamer.settings import Settings
from support.patience import PATIENCE_SECONDS
from support.processes import committed_records, wait_until


class FencedOnce:
    """A loop that copies ``item-updates`` to ``item-codes``; in its first transaction another producer takes its id, which is
    what a coordinator does to a transaction whose time is over."""

    def __init__(self, settings: Settings, batch_size: int) -> None:
        self._settings = settings
        self._group = settings.topics.prefix + "fenced"
        self._fenced = False
        self.error: BaseException | None = None
        self.stop = threading.Event()
        loop = LoopSettings(
            process="assigner",
            source=settings.topics.item_updates,
            group=self._group,
            instance="0",
            batch_size=batch_size,
            batch_interval_ms=lambda: 0.0,
            event_seconds=FRESHNESS_SECONDS.labels("assigner"),
        )
        self._loop = TransactionalLoop(loop, settings.kafka, self._transform, Health())
        self.thread = threading.Thread(target=self._run)

    def _transform(self, records: list[Message]) -> list[Outgoing]:
        topic = self._settings.topics.item_codes
        copies = [Outgoing(topic, record.key(), record.value(), record.partition()) for record in records]
        return _ThenFenced(copies, self._fence)

    def _fence(self) -> None:
        if not self._fenced:
            self._fenced = True
            configuration = producer_configuration(self._settings.kafka, transactional_id=f"{self._group}-0")
            Producer(configuration).init_transactions(PATIENCE_SECONDS)

    def _run(self) -> None:
        try:
            self._loop.run(self.stop)
        except BaseException as error:
            self.error = error


class _ThenFenced(list[Outgoing]):
    """Outputs, and what happens once the last of them is taken: within the transaction."""

    def __init__(self, outgoing: list[Outgoing], then: Callable[[], None]) -> None:
        super().__init__(outgoing)
        self._then = then

    def __iter__(self) -> Iterator[Outgoing]:
        yield from super().__iter__()
        self._then()


@pytest.fixture(params=[100, 10], ids=["one batch", "full batches, in a second thread"])
def fenced_once(request: pytest.FixtureRequest, pipeline_settings: Settings) -> Iterator[FencedOnce]:
    producer = Producer(producer_configuration(pipeline_settings.kafka))
    for number in range(50):
        produce(producer, pipeline_settings.topics.item_updates, key=f"{number:02}".encode(), value=b"x")
    assert producer.flush(PATIENCE_SECONDS) == 0
    loop = FencedOnce(pipeline_settings, request.param)
    yield loop
    loop.stop.set()
    if loop.thread.is_alive():
        loop.thread.join(PATIENCE_SECONDS)


def test_transaction_that_the_cluster_gave_up_is_done_again_with_new_clients_exactly_once(
    fenced_once: FencedOnce, pipeline_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a broker that stood still for longer than a transaction may be open."""
    monkeypatch.setattr(transaction, "TRANSACTION_TIMEOUT_MS", 0)

    def copied() -> list[bytes]:
        return sorted(
            record.key() for record in committed_records(pipeline_settings, pipeline_settings.topics.item_codes)
        )

    fenced_once.thread.start()
    wait_until(lambda: len(copied()) >= 50 or fenced_once.error is not None, what="50 copies", every=0.3)
    assert fenced_once.error is None
    assert copied() == [f"{number:02}".encode() for number in range(50)]


def test_instance_whose_name_another_took_ends_and_says_so(fenced_once: FencedOnce) -> None:
    fenced_once.thread.start()
    fenced_once.thread.join(PATIENCE_SECONDS)
    assert isinstance(fenced_once.error, FatalKafkaError)
    assert "another assigner took over as instance '0'" in str(fenced_once.error)
    assert "assigner.instance" in str(fenced_once.error)
