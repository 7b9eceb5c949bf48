"""Dead letters: an event that cannot be used, verbatim, with headers that say where it came from and what is wrong.

A dead letter is produced in the same transaction as the outputs of its batch, so it is there exactly once.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from confluent_kafka import Message

# A record larger than this cannot be produced again with our headers added; the headers then say where it lies.
VERBATIM_MAXIMUM_BYTES: Final = 2 * 1024 * 1024


class Outgoing(NamedTuple):
    """A record to produce; partition -1 lets the partitioner choose by key."""

    topic: str
    key: bytes | None
    value: bytes | None
    partition: int = -1
    headers: list[tuple[str, bytes]] | None = None


class Rejection(NamedTuple):
    """Why an event cannot be used: the stage that refused it, the error's class and a sentence for a person."""

    stage: str
    kind: str
    message: str


def dead_letter(topic: str, record: Message, rejection: Rejection) -> Outgoing:
    """The dead letter of ``record``: key and value verbatim, its own headers kept, ``dlq.errors.…`` headers added."""
    timestamp = record.timestamp()[1]
    value = record.value()
    headers = [(name, content or b"") for name, content in record.headers() or []]
    headers += [
        ("dlq.errors.topic", record.topic().encode()),
        ("dlq.errors.partition", str(record.partition()).encode()),
        ("dlq.errors.offset", str(record.offset()).encode()),
        ("dlq.errors.timestamp", str(timestamp).encode()),
        ("dlq.errors.stage", rejection.stage.encode()),
        ("dlq.errors.class", rejection.kind.encode()),
        ("dlq.errors.message", rejection.message.encode()),
    ]
    if value is not None and len(value) + len(record.key() or b"") > VERBATIM_MAXIMUM_BYTES:
        headers.append(("dlq.errors.omitted", f"{len(value)} bytes of value: read them at the source offset".encode()))
        value = None
    return Outgoing(topic, record.key(), value, -1, headers)
