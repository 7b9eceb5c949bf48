"""The transactional loop when its consumer loses its place in the group or shares it, on a real broker."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from confluent_kafka import Consumer, Message, Producer
from numpy.typing import NDArray

from streamer.events.outgoing import Outgoing
from streamer.exactly_once.loop import LoopSettings, TransactionalLoop
from streamer.kafka.clients import consumer_configuration, producer_configuration
from streamer.kafka.gather import produce
from streamer.process.health import Health
from streamer.process.metrics import FRESHNESS_SECONDS
from streamer.settings import Settings
from support.item_stream import publish_updates
from support.patience import PATIENCE_SECONDS
from support.processes import SidstreamProcess, committed_records, wait_until


def test_consumer_whose_static_membership_was_taken_is_replaced_and_events_stay_exactly_once(
    pipeline_settings: Settings, tiny_bundle: Path, tiny_embeddings: NDArray[np.float32], tmp_path: Path
) -> None:
    settings = pipeline_settings.model_copy(update={"bundle": tiny_bundle})
    group = settings.topics.prefix + settings.assigner.group

    def assigned() -> list[bytes | None]:
        return [record.key() for record in committed_records(settings, settings.topics.item_codes)]

    with SidstreamProcess(settings, "assigner", tmp_path) as assigner:
        publish_updates(settings, tiny_embeddings, range(100))
        wait_until(lambda: len(assigned()) == 100, what="100 items before", every=0.5)

        # Someone joins under the assigner's name: the broker fences the assigner's consumer (KIP-345).
        intruder = Consumer(consumer_configuration(settings.kafka, group=group, instance=settings.assigner.instance))
        intruder.subscribe([settings.topics.item_updates])

        def taken() -> bool:
            intruder.poll(0.2)
            return "consumer_replaced" in assigner.log()

        try:
            wait_until(taken, what="a fenced consumer")
        finally:
            intruder.close()
        publish_updates(settings, tiny_embeddings, range(100, 200))
        wait_until(lambda: len(assigned()) >= 200, what="100 items after", every=0.5)
        assert assigner.stop() == 0
    assert sorted(key or b"" for key in assigned()) == sorted(f"item-{number}".encode() for number in range(200))


def _has_partitions(log: str) -> bool:
    """Whether a process says that partitions were assigned to it, rather than none."""
    return re.search(r"partitions_assigned .*partitions=\[\d", log) is not None


def test_assigner_that_is_killed_in_a_group_of_the_newer_protocol_goes_on_exactly_once(
    pipeline_settings: Settings, tiny_bundle: Path, tiny_embeddings: NDArray[np.float32], tmp_path: Path
) -> None:
    """A second instance takes over what the killed one had, and gives it back once that is there again (KIP-848)."""
    kafka = pipeline_settings.kafka.model_copy(update={"group_protocol": "consumer"})
    settings = pipeline_settings.model_copy(update={"bundle": tiny_bundle, "kafka": kafka})
    other = settings.model_copy(update={"assigner": settings.assigner.model_copy(update={"instance": "1"})})

    def assigned() -> list[bytes | None]:
        return [record.key() for record in committed_records(settings, settings.topics.item_codes)]

    with (
        SidstreamProcess(settings, "assigner", tmp_path) as first,
        SidstreamProcess(other, "assigner", tmp_path, name="second") as second,
    ):
        for process, name in ((first, "first"), (second, "second")):
            # Whoever came later has its half only once the other gave it up.
            wait_until(
                lambda process=process: _has_partitions(process.log()), what=f"partitions for the {name}", every=0.5
            )
        publish_updates(settings, tiny_embeddings, range(100))
        wait_until(lambda: len(assigned()) == 100, what="100 items before", every=0.5)
        publish_updates(settings, tiny_embeddings, range(100, 150))
        first.kill()
        before = len(first.log())
        publish_updates(settings, tiny_embeddings, range(150, 200))
        wait_until(lambda: len(assigned()) >= 200, what="the items of the killed one", every=0.5)
        first.start()
        wait_until(lambda: _has_partitions(first.log()[before:]), what="partitions for the first again", every=0.5)
        publish_updates(settings, tiny_embeddings, range(200, 300))
        wait_until(lambda: len(assigned()) >= 300, what="300 items", every=0.5)
        assert (first.stop(), second.stop()) == (0, 0)
    assert sorted(key or b"" for key in assigned()) == sorted(f"item-{number}".encode() for number in range(300))


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_gathered_records_that_wait_for_their_batch_survive_rebalances_exactly_once_and_in_order(
    pipeline_settings: Settings, protocol: str
) -> None:
    """Two more instances join while hundreds of records wait in the first one, and leave again one by one."""
    kafka = pipeline_settings.kafka.model_copy(update={"group_protocol": protocol})
    settings = pipeline_settings.model_copy(update={"kafka": kafka})
    source, target = settings.topics.queries, settings.topics.results
    producer = Producer(producer_configuration(settings.kafka))
    for number in range(2_000):
        produce(producer, source, key=f"{number:04}".encode(), value=b"x")
    assert producer.flush(PATIENCE_SECONDS) == 0

    def transform(records: list[Message]) -> list[Outgoing]:
        assert len(records) <= 10
        time.sleep(0.02)
        return [Outgoing(target, record.key(), record.value(), record.partition()) for record in records]

    def instance(name: str) -> tuple[threading.Thread, threading.Event]:
        group = settings.topics.prefix + "loop"
        loop = LoopSettings(
            "retriever", source, group, name, 10, lambda: 0.0, FRESHNESS_SECONDS.labels("retriever"), 500
        )
        stop = threading.Event()
        run = TransactionalLoop(loop, settings.kafka, transform, Health(), lambda records: min(len(records), 10)).run
        thread = threading.Thread(target=run, args=(stop,))
        thread.start()
        return thread, stop

    def copied() -> list[Message]:
        return committed_records(settings, target)

    instances = [instance("0")]
    try:
        for name in ("1", "2"):
            before = len(copied())
            wait_until(lambda least=before + 100: len(copied()) >= least, what="progress", every=0.2)  # type: ignore[misc]
            instances.append(instance(name))
        for _ in range(2):
            before = len(copied())
            wait_until(
                lambda least=min(before + 100, 2_000): len(copied()) >= least,  # type: ignore[misc]
                what="progress",
                every=0.2,
            )
            thread, stop = instances.pop(0)
            stop.set()
            thread.join(PATIENCE_SECONDS)
        wait_until(lambda: len(copied()) >= 2_000, what="every record", every=1.0)
    finally:
        for thread, stop in instances:
            stop.set()
            thread.join(PATIENCE_SECONDS)
    records = copied()
    assert Counter(record.key() for record in records) == Counter(f"{number:04}".encode() for number in range(2_000))
    for partition in range(settings.topics.partitions):
        keys = [record.key() for record in records if record.partition() == partition]
        assert keys == sorted(keys), "the order of a partition is kept"
