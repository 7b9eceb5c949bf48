"""Clients that have lost a cluster which answers others: told from a cluster that is away, and replaced."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from confluent_kafka import Message
from numpy.typing import NDArray

from streamer.events.outgoing import Outgoing
from streamer.events.topics import topic_specs
from streamer.exactly_once import transaction as transactions
from streamer.exactly_once.loop import LoopSettings, TransactionalLoop
from streamer.kafka import reachability
from streamer.kafka.admin import create
from streamer.kafka.clients import producer_configuration
from streamer.kafka.reachability import ClientCutOffError, CutOffGuard, cluster_answers
from streamer.local.broker import LocalBroker
from streamer.process.health import Health
from streamer.process.metrics import FRESHNESS_SECONDS
from streamer.settings import Settings, load_settings
from streamer.settings.kafka import KafkaSettings
from support.item_stream import Stream, index_has_everything, publish_updates
from support.paths import SUPPORT
from support.processes import SidstreamProcess, committed_records, free_port, wait_until

HASTY = SUPPORT / "hasty"


class Others:
    """What a guard asks, and its clock, which goes on by five seconds a failure."""

    def __init__(self) -> None:
        self.answered, self.now = True, 1_000.0
        self.guard = CutOffGuard(KafkaSettings(), lambda _kafka: self.answered, lambda: self.now)

    def fail(self, times: int) -> None:
        for _ in range(times):
            self.now += 5.0
            self.guard.fails()


def test_cluster_that_answers_nobody_is_waited_for() -> None:
    others = Others()
    others.answered = False
    others.fail(1_000)


def test_client_alone_without_an_answer_for_ten_seconds_is_cut_off() -> None:
    others = Others()
    others.answered = False
    others.fail(10)
    others.answered = True
    others.fail(2)
    with pytest.raises(ClientCutOffError, match=r"127\.0\.0\.1:9092 has answered others for 10 s"):
        others.fail(1)


def test_answer_in_between_or_a_cluster_that_goes_away_again_begins_the_ten_seconds_anew() -> None:
    others = Others()
    others.fail(2)
    others.guard.works()
    others.fail(2)
    others.answered = False
    others.fail(1)
    others.answered = True
    others.fail(2)
    with pytest.raises(ClientCutOffError):
        others.fail(1)


def test_others_are_asked_once_in_two_seconds_at_most() -> None:
    asked: list[float] = []
    clock = iter([0.1 * turn for turn in range(50)])
    guard = CutOffGuard(KafkaSettings(), lambda _kafka: bool(asked.append(1.0)), lambda: next(clock))
    for _ in range(50):
        guard.fails()
    assert len(asked) == 3


def test_cluster_where_nobody_listens_answers_nobody() -> None:
    assert not cluster_answers(KafkaSettings(bootstrap_servers=f"127.0.0.1:{free_port()}"), 0.5)


def test_cluster_that_runs_answers_a_new_client(pipeline_settings: Settings) -> None:
    assert cluster_answers(pipeline_settings.kafka, 10.0)


def test_loop_whose_producer_reaches_nobody_gets_a_new_one_and_does_its_events_once(
    pipeline_settings: Settings, tiny_embeddings: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = pipeline_settings
    nowhere = KafkaSettings(bootstrap_servers=f"127.0.0.1:{free_port()}")
    places = [nowhere]

    def configuration(kafka: KafkaSettings, **more: Any) -> dict[str, Any]:
        return producer_configuration(places.pop() if places else kafka, **more)

    monkeypatch.setattr(transactions, "producer_configuration", configuration)
    monkeypatch.setattr(reachability, "CUT_OFF_SECONDS", 1.0)

    def transform(records: list[Message]) -> list[Outgoing]:
        return [Outgoing(settings.topics.item_codes, record.key(), b"codes") for record in records]

    loop = TransactionalLoop(
        LoopSettings(
            process="assigner",
            source=settings.topics.item_updates,
            group=f"{settings.topics.prefix}cut-off",
            instance="0",
            batch_size=100,
            batch_interval_ms=lambda: 0.0,
            event_seconds=FRESHNESS_SECONDS.labels("assigner"),
        ),
        settings.kafka,
        transform,
        health := Health(),
    )
    publish_updates(settings, tiny_embeddings, range(50))
    stop = threading.Event()
    thread = threading.Thread(target=loop.run, args=(stop,))
    thread.start()
    try:
        wait_until(lambda: health.ready, what="a loop with a producer that reaches the cluster", every=0.2)
        written = committed_records(settings, settings.topics.item_codes)
    finally:
        stop.set()
        thread.join()
    assert sorted(record.key() or b"" for record in written) == sorted(f"item-{n}".encode() for n in range(50))


@pytest.mark.broker
@pytest.mark.chaos
def test_processes_that_were_told_of_a_cluster_without_brokers_replace_their_clients_and_lose_nothing(
    tiny_model_bundle: Path, tmp_path: Path
) -> None:
    """Until it happened to those with transactions: not every pause of a broker brings it about."""
    names = ("assigner", "indexer", "retriever", "monitor")
    with LocalBroker(tmp_path / "broker", short_lived=True) as broker, ExitStack() as stack:
        settings = load_settings(
            bundle=tiny_model_bundle,
            index=tmp_path / "index",
            kafka={"bootstrap_servers": broker.bootstrap_servers},
        )
        create(settings.kafka, topic_specs(settings))
        haste = {"PYTHONPATH": str(HASTY)}
        processes = {
            name: stack.enter_context(SidstreamProcess(settings, name, tmp_path, environment=haste)) for name in names
        }
        replaced: set[str] = set()
        expected: dict[str, int | None] = {}
        for turn in range(8):
            stream = Stream(settings, 8, events=1_500, ids=300, per_second=500, seed=turn)
            publisher = threading.Thread(target=stream.publish)
            publisher.start()
            time.sleep(1.0)
            os.kill(broker.pid, signal.SIGSTOP)
            try:
                time.sleep(12.0)  # a broker's session is 9 s
            finally:
                os.kill(broker.pid, signal.SIGCONT)
            publisher.join()
            assert stream.sent.is_set()
            expected |= stream.expected
            stream.expected = expected
            wait_until(lambda: index_has_everything(settings, stream), what=f"turn {turn}", every=0.5)  # noqa: B023
            replaced = {name for name, process in processes.items() if "clients_replaced" in process.log()}
            print(f"turn {turn}: replaced {sorted(replaced)}")
            if {"assigner", "retriever", "monitor"} <= replaced:
                break
        for name, process in processes.items():
            assert process.stop() == 0, f"{name}\n{process.log()}"
        assert replaced, "no client lost its cluster: the test shows nothing"
