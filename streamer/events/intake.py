"""The checks that every event from outside passes before it is used: its id, size, headers, form and each field's limit.

What fails raises ``EventError``, whose class and message go into the dead letter.
"""

from __future__ import annotations

from typing import Any

import msgspec
from confluent_kafka import Message

from models.catalogue import MAXIMUM_ID_BYTES
from streamer.events.cloudevents import CloudEventError, event_time
from streamer.events.headers import UnreadableHeadersError, headers_of, size_of_headers
from streamer.events.records import Codec
from streamer.settings import IntakeSettings


class EventError(ValueError):
    """An event that cannot be used; ``kind`` goes into the dead letter's ``dlq.errors.class``."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def checked_id(key: bytes | None, what: str) -> bytes:
    """The id in a record's key.

    Raises:
        EventError: empty, not UTF-8, or longer than ``MAXIMUM_ID_BYTES``.
    """
    if not key:
        raise EventError("EmptyId", f"the record has no key: the key is the {what} id")
    if len(key) > MAXIMUM_ID_BYTES:
        raise EventError("IdTooLong", f"the {what} id has {len(key)} bytes; the limit is {MAXIMUM_ID_BYTES}")
    try:
        key.decode()
    except UnicodeDecodeError:
        raise EventError("UndecodableId", f"the {what} id is not UTF-8") from None
    return key


def within(limit: int, size: int, field: str, unit: str) -> None:
    """Refuse a field that is larger than its limit; ``unit``: what is counted, such as ``bytes``.

    Raises:
        EventError: names field, size and limit.
    """
    if size > limit:
        raise EventError("FieldTooLarge", f"{field} has {size} {unit}; the limit is {limit}")


def decode_event(
    codec: Codec, record: Message, value: bytes, maximum_bytes: int, limits: IntakeSettings
) -> tuple[Any, int | None]:
    """The decoded value, and the ``ce_time`` of its headers in milliseconds since the epoch, if there is one.

    Raises:
        EventError: too large, unsupported headers, undecodable, or a field that does not fit.
    """
    if len(value) > maximum_bytes:
        raise EventError("EventTooLarge", f"{len(value)} bytes of value; the limit is {maximum_bytes}")
    try:
        headers = headers_of(record)
    except UnreadableHeadersError as error:
        raise EventError("UndecodableHeaders", str(error)) from None
    if headers:
        within(limits.maximum_headers, len(headers), "the record", "headers")
        within(limits.maximum_header_bytes, size_of_headers(headers), "the set of its headers", "bytes")
    try:
        return codec.decode(value), event_time(headers) if headers else None
    except CloudEventError as error:
        raise EventError("UnsupportedCloudEvent", str(error)) from None
    except msgspec.ValidationError as error:
        raise EventError("InvalidEvent", f"the event does not fit: {error}") from None
    except RecursionError:
        raise EventError("UndecodableEvent", "lists or maps are nested too deeply") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise EventError("UndecodableEvent", f"neither JSON nor MessagePack: {error}") from None
