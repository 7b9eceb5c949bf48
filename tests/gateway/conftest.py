"""One pipeline with a gateway before it, for all tests of the gateway that need one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from streamer.events.topics import topic_specs
from streamer.kafka.admin import create
from streamer.local.broker import LocalBroker
from streamer.settings import load_settings
from support.gateways import ITEMS, MAXIMUM_LINES, Served, start, update
from support.otlp_receiver import OtlpReceiver
from support.processes import SidstreamProcess, free_port

SOON = {"OTEL_BSP_SCHEDULE_DELAY": "50"}  # spans need not wait for others


@pytest.fixture(scope="session")
def receiver() -> Iterator[OtlpReceiver]:
    """Where the spans of the pipeline go."""
    with OtlpReceiver() as running:
        yield running


@pytest.fixture(scope="session")
def served(
    broker: LocalBroker, receiver: OtlpReceiver, tiny_model_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    directory = tmp_path_factory.mktemp("gateway")
    settings = load_settings(
        bundle=tiny_model_bundle,
        index=directory / "index",
        kafka={"bootstrap_servers": broker.bootstrap_servers},
        topics={"prefix": "gateway-"},
        attributes={"filterable": {"price": "number"}},
        retriever={"maximum_wait_seconds": 300},
        gateway={"port": free_port(), "wait_seconds": 120, "maximum_lines": MAXIMUM_LINES},
        tracing={"endpoint": receiver.address, "ratio": 0},  # nothing but what a test traces
    )
    create(settings.kafka, topic_specs(settings))
    with (
        SidstreamProcess(settings, "gateway", directory, environment=SOON) as process,
        SidstreamProcess(settings, "assigner", directory, environment=SOON),
        SidstreamProcess(settings, "indexer", directory, environment=SOON),
        SidstreamProcess(settings, "retriever", directory, environment=SOON),
    ):
        start(process, settings)
        yield Served(settings, process)


@pytest.fixture(scope="session")
def filled(served: Served, tiny_embeddings: NDArray[np.float32]) -> Served:
    """With items in the index."""
    reply = served.lines(*(update(tiny_embeddings, number) for number in range(ITEMS)))
    *outcomes, last = reply.lines
    assert [one["status"] for one in outcomes] == ["accepted"] * ITEMS
    assert (last["accepted"], last["refused"]) == (ITEMS, 0)
    found = served.send("POST", "/query", {"text": "thing"}, headers={"Sidstream-After": last["token"]})
    assert found.status == 200, found.body
    return served
