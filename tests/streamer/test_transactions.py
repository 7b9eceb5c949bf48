"""The transactional loop when its consumer loses its place in the group, on a real broker."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from confluent_kafka import Consumer
from item_stream import publish_updates
from numpy.typing import NDArray
from processes import SidstreamProcess, committed_records, wait_until

from streamer.kafka import consumer_configuration
from streamer.settings import Settings


def test_consumer_whose_static_membership_was_taken_is_replaced_and_events_stay_exactly_once(
    pipeline_settings: Settings, tiny_bundle: Path, tiny_embeddings: NDArray[np.float32], tmp_path: Path
) -> None:
    settings = pipeline_settings.model_copy(update={"bundle": tiny_bundle})
    group = settings.topics.prefix + settings.assigner.group

    def assigned() -> list[bytes | None]:
        return [record.key() for record in committed_records(settings, settings.topics.item_codes)]

    with SidstreamProcess(settings, "assigner", tmp_path) as assigner:
        publish_updates(settings, tiny_embeddings, range(100))
        wait_until(lambda: len(assigned()) == 100, seconds=40, what="100 items before", every=0.5)

        # Someone joins under the assigner's name: the broker fences the assigner's consumer (KIP-345).
        intruder = Consumer(consumer_configuration(settings.kafka, group=group, instance=settings.assigner.instance))
        intruder.subscribe([settings.topics.item_updates])

        def taken() -> bool:
            intruder.poll(0.2)
            return "consumer_replaced" in assigner.log()

        try:
            wait_until(taken, seconds=30, what="a fenced consumer")
        finally:
            intruder.close()
        publish_updates(settings, tiny_embeddings, range(100, 200))
        wait_until(lambda: len(assigned()) >= 200, seconds=40, what="100 items after", every=0.5)
        assert assigner.stop() == 0
    assert sorted(key or b"" for key in assigned()) == sorted(f"item-{number}".encode() for number in range(200))
