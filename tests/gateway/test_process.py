"""The gateway as a process before real assigner, indexer and retriever: items in, queries answered, over HTTP alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from numpy.typing import NDArray

from streamer.events.topics import topic_specs
from streamer.kafka.admin import create
from streamer.local.broker import LocalBroker
from streamer.settings import Settings, load_settings
from support.http import Reply, send
from support.processes import SidstreamProcess, free_port, wait_until

ITEMS = 60


@dataclass(frozen=True)
class Served:
    """A pipeline with a gateway before it."""

    settings: Settings
    directory: Path
    process: SidstreamProcess

    def send(self, method: str, path: str, body: Any = None, **more: Any) -> Reply:
        return send(self.settings.gateway.port, method, path, body, **more)

    def ask(self, **query: Any) -> Reply:
        return self.send("POST", "/query", query)

    def lines(self, *lines: Any) -> Reply:
        body = b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
        return self.send("POST", "/items", body, headers={"Content-Type": "application/x-ndjson"})


def ready(process: SidstreamProcess, port: int) -> bool:
    assert process.running(), process.log()
    try:
        return send(port, "GET", "/healthz").status == 200
    except OSError:
        return False


@pytest.fixture(scope="module")
def served(broker: LocalBroker, tiny_model_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    directory = tmp_path_factory.mktemp("gateway")
    settings = load_settings(
        bundle=tiny_model_bundle,
        index=directory / "index",
        kafka={"bootstrap_servers": broker.bootstrap_servers},
        topics={"prefix": "gateway-"},
        attributes={"filterable": {"price": "number"}},
        retriever={"maximum_wait_seconds": 300},
        gateway={"port": free_port(), "wait_seconds": 120},
    )
    create(settings.kafka, topic_specs(settings))
    with (
        SidstreamProcess(settings, "gateway", directory) as process,
        SidstreamProcess(settings, "assigner", directory),
        SidstreamProcess(settings, "indexer", directory),
        SidstreamProcess(settings, "retriever", directory),
    ):
        wait_until(lambda: ready(process, settings.gateway.port), what="a gateway that is ready")
        yield Served(settings, directory, process)


@pytest.fixture(scope="module")
def filled(served: Served, tiny_embeddings: NDArray[np.float32]) -> Served:
    """With items in the index."""
    reply = served.lines(*(update(tiny_embeddings, number) for number in range(ITEMS)))
    *outcomes, last = reply.lines
    assert [one["status"] for one in outcomes] == ["accepted"] * ITEMS
    assert (last["accepted"], last["refused"]) == (ITEMS, 0)
    found = served.send("POST", "/query", {"text": "thing"}, headers={"Sidstream-After": last["token"]})
    assert found.status == 200, found.body
    return served


def update(embeddings: NDArray[np.float32], number: int, **more: Any) -> dict[str, Any]:
    return {"id": f"item-{number}", "embedding": embeddings[number].tolist(), "title": f"thing {number}", **more}


def ids(reply: Reply) -> list[str]:
    assert reply.status == 200, reply.body
    return [item["item_id"] for item in reply.json["items"]]


def test_query_sees_what_was_written_under_its_token(filled: Served, tiny_embeddings: NDArray[np.float32]) -> None:
    new = {"embedding": tiny_embeddings[ITEMS].tolist(), "title": "a new one"}
    path = "/items/" + quote("shoes/red 7", safe="")
    written = filled.send("PUT", path, new)
    assert (written.status, written.json["id"]) == (202, "shoes/red 7")
    after = {"Sidstream-After": written.headers["sidstream-token"]}
    query = {"text": "thing", "limit": 100, "history": ["item-1"]}
    assert "shoes/red 7" in ids(filled.send("POST", "/query", query, headers=after))

    priced = filled.send("PATCH", path + "/attributes", {"price": 12.5})
    both = {"Sidstream-After": f"{written.json['token']}, {priced.json['token']}"}
    cheap = query | {"filter": {"field": "price", "lte": 20}}
    assert ids(filled.send("POST", "/query", cheap, headers=both)) == ["shoes/red 7"]

    gone = filled.send("DELETE", path)
    after = {"Sidstream-After": gone.json["token"]}
    assert "shoes/red 7" not in ids(filled.send("POST", "/query", query, headers=after))
