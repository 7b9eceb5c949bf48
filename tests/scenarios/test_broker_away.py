"""A broker of its own is killed under assigner and gateway, and away when the next assigner starts: all say so, wait, go on."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from confluent_kafka import Producer
from numpy.typing import NDArray

from streamer.events.records import ANSWER, Answer
from streamer.events.topics import topic_specs
from streamer.kafka.admin import create
from streamer.kafka.clients import producer_configuration
from streamer.local.broker import LocalBroker
from streamer.settings import Settings, load_settings
from streamer.settings.process import MetricsSettings
from support.gateway_requests import send
from support.gateways import start
from support.item_stream import publish_updates
from support.processes import SidstreamProcess, committed_records, free_port, http_get, wait_until


def answered_late(settings: Settings) -> int:
    """Asks a gateway, answers instead of a retriever, and fetches that: the status."""
    port = settings.gateway.port
    query_id = send(port, "POST", "/query", {"text": "kettle"}, headers={"Prefer": "wait=0"}).json["query_id"]
    producer = Producer(producer_configuration(settings.kafka))
    producer.produce(settings.topics.results, key=query_id.encode(), value=ANSWER.encode(Answer(query_id=query_id)))
    producer.flush()
    wait_until(lambda: send(port, "GET", f"/answers/{query_id}").status != 202, what="the late answer")
    return send(port, "GET", f"/answers/{query_id}").status


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
            keys = [record.key() for record in committed_records(settings, settings.topics.item_codes)]
            return sorted(key for key in keys if key.startswith(b"item-"))  # not what the gateway deletes

        over_http = settings.model_copy(
            update={
                "metrics": MetricsSettings(),
                "gateway": settings.gateway.model_copy(update={"port": free_port(), "wait_seconds": 0.5}),
            }
        )

        def written() -> int:
            return send(over_http.gateway.port, "DELETE", "/items/never").status

        with (
            SidstreamProcess(settings, "assigner", tmp_path) as assigner,
            SidstreamProcess(over_http, "gateway", tmp_path) as gateway,
        ):
            publish_updates(settings, tiny_embeddings, range(100))
            wait_until(lambda: len(assigned()) == 100, what="100 items before", every=0.5)
            assert is_ready()
            start(gateway, over_http)
            wait_until(lambda: written() == 202, what="a gateway that writes")  # half a second may be too little

            os.kill(broker.pid, signal.SIGKILL)
            wait_until(lambda: not is_ready(), what="an assigner that says that the broker is away")
            wait_until(lambda: written() == 503, what="a gateway that says that the broker is away")
            broker.start()
            publish_updates(settings, tiny_embeddings, range(100, 200))
            wait_until(lambda: len(assigned()) >= 200, what="100 items after", every=0.5)
            wait_until(is_ready, what="a ready assigner")
            wait_until(lambda: written() == 202, what="a gateway that writes again")
            assert answered_late(over_http) == 200
            assert gateway.stop() == 0, gateway.log()
            assert "Traceback" not in gateway.log()
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
