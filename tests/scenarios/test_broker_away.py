"""A broker of its own is killed under the assigner, and away when the next one starts: both say so, wait, and go on."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from streamer.events.topics import topic_specs
from streamer.kafka.admin import create
from streamer.local.broker import LocalBroker
from streamer.settings import load_settings
from support.item_stream import publish_updates
from support.processes import SidstreamProcess, committed_records, free_port, http_get, wait_until


@pytest.mark.broker
def test_assigner_waits_for_a_broker_that_was_killed_or_is_not_there_yet_and_goes_on_exactly_once(
    tiny_bundle: Path, tiny_embeddings: NDArray[np.float32], tmp_path: Path
) -> None:
    with LocalBroker(tmp_path / "broker", short_lived=True) as broker:
        port = free_port()
        settings = load_settings(
            bundle=tiny_bundle, kafka={"bootstrap_servers": broker.bootstrap_servers}, metrics={"port": port}
        )
        create(settings.kafka, topic_specs(settings))

        def is_ready() -> bool:
            return http_get(port, "/ready")[0] == 200

        def assigned() -> list[bytes]:
            return sorted(record.key() for record in committed_records(settings, settings.topics.item_codes))

        with SidstreamProcess(settings, "assigner", tmp_path) as assigner:
            publish_updates(settings, tiny_embeddings, range(100))
            wait_until(lambda: len(assigned()) == 100, what="100 items before", every=0.5)
            assert is_ready()

            os.kill(broker.pid, signal.SIGKILL)
            wait_until(lambda: not is_ready(), what="an assigner that says that the broker is away")
            broker.start()
            publish_updates(settings, tiny_embeddings, range(100, 200))
            wait_until(lambda: len(assigned()) >= 200, what="100 items after", every=0.5)
            wait_until(is_ready, what="a ready assigner")
            assert assigned() == sorted(f"item-{number}".encode() for number in range(200))

            broker.stop()
            wait_until(lambda: not is_ready(), what="an assigner that says that the broker is away")
            assert assigner.stop() == 0, assigner.log()
            assert "Traceback" not in assigner.log()

        with SidstreamProcess(settings, "assigner", tmp_path) as assigner:
            wait_until(lambda: "is the broker running" in http_get(port, "/ready")[1], what="one that says so")
            assert http_get(port, "/live")[0] == 200
            broker.start()
            publish_updates(settings, tiny_embeddings, range(200, 250))
            wait_until(lambda: len(assigned()) >= 250, what="50 items more", every=0.5)
            assert assigner.stop() == 0, assigner.log()
        assert assigned() == sorted(f"item-{number}".encode() for number in range(250))
