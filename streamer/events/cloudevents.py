"""CloudEvents 1.0 in Kafka's binary content mode: attributes in ``ce_…`` headers, the record's value untouched.

Source: CloudEvents Kafka protocol binding 1.0.2, § 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

SPECIFICATION_VERSION: Final = "1.0"
CONTENT_TYPES: Final = frozenset(
    {"application/json", "application/msgpack", "application/x-msgpack", "application/vnd.msgpack"}
)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)  # whole milliseconds: seconds as a float lose one now and then
_QUOTED: Final = 100  # characters of a sender's header that a message repeats

Headers = Sequence[tuple[str, bytes | str | None]]


class CloudEventError(ValueError):
    """The headers announce an event that we cannot read; the message names the attribute."""


def cloud_event_headers(
    type_: str,
    *,
    identity: str,
    subject: str,
    at: int,
    source: str = "sidstream",
    content_type: str = "application/json",
) -> list[tuple[str, bytes]]:
    """Headers of an event that we send; ``at``: milliseconds since the epoch, ``identity``: unique within ``source``."""
    time = (_EPOCH + timedelta(milliseconds=at)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return [
        ("ce_specversion", SPECIFICATION_VERSION.encode()),
        ("ce_id", identity.encode()),
        ("ce_source", source.encode()),
        ("ce_type", f"sidstream.{type_}.v1".encode()),
        ("ce_subject", subject.encode()),
        ("ce_time", time.encode()),
        ("content-type", content_type.encode()),
    ]


def event_time(headers: Headers) -> int | None:
    """Check the headers of a received record; its ``ce_time`` in milliseconds since the epoch, if it has one.

    Raises:
        CloudEventError: another specification version, a content type of another format, or a bad time.
    """
    found = {
        name.lower(): value.decode("utf-8", "replace") if isinstance(value, bytes) else value for name, value in headers
    }
    content_type = found.get("content-type")
    if content_type is not None and (media := content_type.partition(";")[0].strip().lower()) not in CONTENT_TYPES:
        raise CloudEventError(
            f"content-type {media[:_QUOTED]!r} is not supported: send application/json or application/msgpack"
        )
    version = found.get("ce_specversion")
    if version is None:
        return None
    if not version.startswith("1."):
        raise CloudEventError(f"ce_specversion {version[:_QUOTED]!r} is not supported: send 1.0")
    time = found.get("ce_time")
    if time is None:
        return None
    try:
        moment = datetime.fromisoformat(time)
    except ValueError:
        raise CloudEventError(f"ce_time {time[:_QUOTED]!r} is not an RFC 3339 time") from None
    if moment.tzinfo is None:
        raise CloudEventError(f"ce_time {time[:_QUOTED]!r} has no time zone: RFC 3339 asks for one")
    return (moment - _EPOCH) // timedelta(milliseconds=1)
