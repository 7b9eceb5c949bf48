"""A gateway before a pipeline, and what tests send to it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from streamer.settings import Settings
from support.gateway_requests import Reply, send
from support.processes import SidstreamProcess, wait_until

ITEMS: Final = 60
LINES: Final = {"Content-Type": "application/x-ndjson"}
MAXIMUM_LINES: Final = 3_000


@dataclass(frozen=True)
class Served:
    """A pipeline with a gateway before it."""

    settings: Settings
    process: SidstreamProcess

    def send(self, method: str, path: str, body: Any = None, **more: Any) -> Reply:
        return send(self.settings.gateway.port, method, path, body, **more)

    def ask(self, **query: Any) -> Reply:
        return self.send("POST", "/query", query)

    def lines(self, *lines: Any) -> Reply:
        """Bytes go as they are."""
        body = b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
        return self.send("POST", "/items", body, headers=LINES)


def start(process: SidstreamProcess, settings: Settings) -> None:
    """Wait until a gateway is ready."""

    def ready() -> bool:
        assert process.running(), process.log()
        try:
            return send(settings.gateway.port, "GET", "/healthz").status == 200
        except OSError:
            return False

    wait_until(ready, what="a gateway that is ready")


def update(embeddings: NDArray[np.float32], number: int, **more: Any) -> dict[str, Any]:
    return {"id": f"item-{number}", "embedding": embeddings[number].tolist(), "title": f"thing {number}", **more}
