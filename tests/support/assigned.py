"""The assigner's transform with an encoder whose codes can be read off: updates as records, codes and letters out of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from confluent_kafka import Message
from numpy.typing import NDArray

from streamer.events.outgoing import Outgoing
from streamer.events.records import ITEM_CODES, ItemCodes
from streamer.settings.pipeline import AssignerSettings

DIMENSION = 4
LIMIT = 4_096
LIMITS = AssignerSettings(
    maximum_event_bytes=LIMIT, maximum_title_characters=100, maximum_headers=8, maximum_header_bytes=300
)


class SignEncoder:
    """Three codes that can be read off the embedding: its first three numbers, rounded."""

    codebook_id = "cafe0123cafe0123"
    dimension = DIMENSION

    def encode(self, embeddings: NDArray[np.float32], ids: Sequence[bytes]) -> NDArray[np.uint16]:
        return (np.rint(embeddings[:, :3]) % 1_000).astype(np.uint16)


_offsets = iter(range(1_000_000))


def record(key: bytes | None, value: bytes | None, **more: Any) -> Message:
    arguments = {"partition": 2, "offset": next(_offsets), "timestamp": (1, 1_700_000_000_000), **more}
    return Message(topic="item-updates", key=key, value=value, **arguments)


def update(*numbers: float, **more: Any) -> bytes:
    return json.dumps({"embedding": list(numbers), **more}).encode()


def codes_of(outgoing: Outgoing) -> ItemCodes:
    assert outgoing.topic == "codes"
    assert outgoing.value is not None
    decoded: ItemCodes = ITEM_CODES.decode(outgoing.value)
    return decoded


def fault(outgoing: Outgoing) -> str:
    assert outgoing.topic == "dlq"
    return dict(outgoing.headers or [])["dlq.errors.class"].decode()
