"""Dead letters: an event that cannot be used, verbatim, with headers that say where it came from and what is wrong.

A dead letter is produced in the same transaction as the outputs of its batch, so it is there exactly once.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from confluent_kafka import Message

from streamer.events.headers import UnreadableHeadersError, headers_of, size_of_headers
from streamer.events.outgoing import Outgoing

# A larger record cannot be produced again with our headers added; the letter's headers then say where the original lies.
# The broker takes such records inside a compressed batch. Were a letter refused by our client, the batch would never end.
VERBATIM_MAXIMUM_BYTES: Final = 2 * 1024 * 1024
# Of a message: it may quote a header of the sender's.
_MESSAGE_CHARACTERS: Final = 1_000


class Rejection(NamedTuple):
    """Why an event cannot be used: the stage that refused it, the error's class and a sentence for a person.

    ``codebook``: for which one, where each codebook's processes judge for themselves.
    """

    stage: str
    kind: str
    message: str
    codebook: str = ""


def dead_letter(topic: str, record: Message, rejection: Rejection) -> Outgoing:
    """The dead letter of ``record``: key and value verbatim, its own headers kept, ``dlq.errors.…`` headers added.

    What would make it too large to be produced is left out, the value first; ``dlq.errors.omitted`` then names it.
    """
    key, value = record.key(), record.value()
    omitted = []
    try:
        headers = [(name, content or b"") for name, content in headers_of(record)]
    except UnreadableHeadersError:
        headers, omitted = [], ["headers"]
    room = VERBATIM_MAXIMUM_BYTES - len(value or b"") - len(key or b"") - size_of_headers(headers)
    if room < 0 and value:
        omitted.append(f"{len(value)} bytes of value")
        room, value = room + len(value), None
    if room < 0 and headers:
        omitted.append(f"{size_of_headers(headers)} bytes of headers")
        room, headers = room + size_of_headers(headers), []
    if room < 0 and key:
        omitted.append(f"{len(key)} bytes of key")
        key = None
    headers += [
        ("dlq.errors.topic", record.topic().encode()),
        ("dlq.errors.partition", str(record.partition()).encode()),
        ("dlq.errors.offset", str(record.offset()).encode()),
        ("dlq.errors.timestamp", str(record.timestamp()[1]).encode()),
        ("dlq.errors.stage", rejection.stage.encode()),
        ("dlq.errors.class", rejection.kind.encode()),
        ("dlq.errors.message", rejection.message[:_MESSAGE_CHARACTERS].encode()),
    ]
    if rejection.codebook:
        headers.append(("dlq.errors.codebook", rejection.codebook.encode()))
    if omitted:
        headers.append(("dlq.errors.omitted", f"{', '.join(omitted)}: read them at the source offset".encode()))
    return Outgoing(topic, key, value, -1, headers)
