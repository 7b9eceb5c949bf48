"""A record that a process is about to send."""

from __future__ import annotations

import msgspec


class Outgoing(msgspec.Struct, frozen=True, gc=False):
    """A record to produce; partition -1 lets the partitioner choose by key, timestamp 0 takes the time of producing."""

    topic: str
    key: bytes | None
    value: bytes | None
    partition: int = -1
    headers: list[tuple[str, bytes]] | None = None
    timestamp: int = 0
