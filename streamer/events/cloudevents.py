"""CloudEvents 1.0 in Kafka's binary content mode (attributes in ``ce_…`` headers, the record's value untouched), and in
its structured mode, where the value is an envelope with the event inside.

Source: CloudEvents Kafka protocol binding 1.0.2, § 3.2 and § 3.3; JSON event format 1.0.2.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final, NamedTuple

import msgspec

SPECIFICATION_VERSION: Final = "1.0"
STRUCTURED: Final = "application/cloudevents+json"
_JSON_TYPES: Final = frozenset({"application/json", "text/json"})
_MESSAGEPACK_TYPES: Final = frozenset(
    {"application/msgpack", "application/x-msgpack", "application/vnd.msgpack", "application/messagepack"}
)
_CODED_TYPES: Final = {
    "avro/binary": "Avro",
    "application/avro": "Avro",
    "application/x-avro": "Avro",
    "application/avro-binary": "Avro",
    "application/vnd.apache.avro": "Avro",
    "application/protobuf": "Protobuf",
    "application/x-protobuf": "Protobuf",
    "application/vnd.google.protobuf": "Protobuf",
}
_SCHEMA_HEADER: Final = "__value_schema_id"
_CHARSETS: Final = frozenset({"utf-8", "utf8", "us-ascii", "ascii"})
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)  # whole milliseconds: seconds as a float lose one now and then
_MILLISECOND: Final = timedelta(milliseconds=1)
_LEAP_SECOND: Final = re.compile(r":60(?=[.Z+-])")
_QUOTED: Final = 100  # characters of a sender's header that a message repeats
# Our own types: ``sidstream.alert.v1``. A later version of a record may mean something else.
_OWN_TYPE: Final = re.compile(r"sidstream\.[\w-]+\.v(\d+)")
RECORD_VERSION: Final = 1

Headers = Sequence[tuple[str, bytes | str | None]]


class CloudEventError(ValueError):
    """The headers or the envelope announce an event that we cannot read; the message names the attribute."""


class EventAttributes(NamedTuple):
    """What a record's headers say of its value.

    ``time``: milliseconds since the epoch; ``dtype``: of an embedding's bytes; ``structured``: the value is an envelope;
    ``coded``: Avro or Protobuf, which a schema is needed for; ``schema``: that schema's id or GUID, where a header has it.
    """

    time: int | None = None
    dtype: str | None = None
    structured: bool = False
    coded: str | None = None
    schema: bytes | None = None


NO_ATTRIBUTES: Final = EventAttributes()


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
        ("ce_type", f"sidstream.{type_}.v{RECORD_VERSION}".encode()),
        ("ce_subject", subject.encode()),
        ("ce_time", time.encode()),
        ("content-type", content_type.encode()),
    ]


_READ: Final = frozenset({"content-type", "content-encoding", "ce_specversion", "ce_time", "ce_type", _SCHEMA_HEADER})


def event_attributes(headers: Headers) -> EventAttributes:
    """Check the headers of a received record, and read what they say of its value.

    Raises:
        CloudEventError: another specification version, a value of another format or encoding, or a bad time.
    """
    found: dict[str, str] = {}
    schema = None
    for name, content in headers:
        attribute = name if name in _READ else name.lower()
        if attribute == _SCHEMA_HEADER:
            schema = content.encode() if isinstance(content, str) else content
        elif attribute in _READ and content is not None:
            found[attribute] = content.decode("utf-8", "replace") if isinstance(content, bytes) else content
    if not found:
        return NO_ATTRIBUTES if schema is None else EventAttributes(schema=schema)
    encoding = found.get("content-encoding")
    if encoding is not None and encoding.strip().lower() != "identity":
        raise CloudEventError(
            f"content-encoding {encoding[:_QUOTED]!r} is not supported: send the value as it is; Kafka compresses by itself"
        )
    media = found.get("content-type")
    structured, dtype, coded = _PLAIN_TYPE if media is None else _media_type(media, "content-type")
    version = found.get("ce_specversion")
    if version is None or structured:
        return EventAttributes(None, dtype, structured, coded, schema)
    _require_version(version, "ce_specversion")
    _require_known_type(found.get("ce_type", ""), "ce_type")
    time = found.get("ce_time")
    return EventAttributes(None if time is None else parsed_time(time, "ce_time"), dtype, structured, coded, schema)


class _Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """A structured CloudEvent; what we do not read of it is left out."""

    specversion: str
    type: str = ""
    time: str | None = None
    datacontenttype: str | None = None
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    data_base64: bytes | msgspec.UnsetType = msgspec.UNSET


_ENVELOPE: Final = msgspec.json.Decoder(_Envelope)


def unwrapped(value: bytes) -> tuple[bytes, EventAttributes]:
    """The event inside a structured CloudEvent, and what the envelope says of it.

    Raises:
        CloudEventError: no such envelope, or one that holds no event that we can read.
        msgspec.DecodeError: the value is no JSON.
    """
    try:
        envelope = _ENVELOPE.decode(value)
    except msgspec.ValidationError as error:
        raise CloudEventError(f"the value is no structured CloudEvent, as its content-type says: {error}") from None
    _require_version(envelope.specversion, "specversion")
    _require_known_type(envelope.type, "type")
    dtype = None
    if envelope.datacontenttype is not None:
        structured, dtype, coded = _media_type(envelope.datacontenttype, "datacontenttype")
        if structured or coded:
            what = (
                "another CloudEvent: send the event itself"
                if structured
                else f"{coded}: send JSON or MessagePack there"
            )
            raise CloudEventError(f"the data of the CloudEvent is {what}")
    if envelope.data_base64 is not msgspec.UNSET:
        data = envelope.data_base64
    elif envelope.data is not msgspec.UNSET:
        data = bytes(envelope.data)
    else:
        raise CloudEventError(
            "the CloudEvent has no data: put the event there; to delete an item, send a null value instead"
        )
    time = None if envelope.time is None else parsed_time(envelope.time, "time")
    return data, EventAttributes(time, dtype)


def parsed_time(time: str, attribute: str) -> int:
    """Milliseconds since the epoch of an RFC 3339 time, in any of its forms: small letters, any fraction, a leap second.

    >>> parsed_time("1970-01-01t00:00:01.5z", "ce_time")
    1500

    Raises:
        CloudEventError: names the attribute.
    """
    text, leap = time.upper(), 0
    if ":60" in text:  # the second that has no number in Python
        text, leap = _LEAP_SECOND.subn(":59", text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise CloudEventError(f"{attribute} {time[:_QUOTED]!r} is not an RFC 3339 time") from None
    if moment.tzinfo is None:
        raise CloudEventError(f"{attribute} {time[:_QUOTED]!r} has no time zone: RFC 3339 asks for one")
    return (moment - _EPOCH) // _MILLISECOND + 1000 * leap


_PLAIN_TYPE: Final = (False, None, None)


@lru_cache(maxsize=64)  # a topic has a few of them
def _media_type(text: str, attribute: str) -> tuple[bool, str | None, str | None]:
    """Whether the value is a structured CloudEvent, the parameter ``dtype``, and what it is coded in, Avro or Protobuf."""
    media, *parameters = (part.strip() for part in text.split(";"))
    media = media.lower()
    if media == STRUCTURED:
        return True, None, None
    if media in _CODED_TYPES:
        return False, None, _CODED_TYPES[media]
    if media.startswith("application/cloudevents"):
        raise CloudEventError(
            f"{attribute} {media[:_QUOTED]!r} is not supported: send each CloudEvent as a record of its own, in binary mode "
            f"or as {STRUCTURED}"
        )
    of_json = media in _JSON_TYPES or media.endswith("+json")
    if not (of_json or media in _MESSAGEPACK_TYPES or media.endswith("+msgpack")):
        raise CloudEventError(
            f"{attribute} {media[:_QUOTED]!r} is not supported: send application/json or application/msgpack"
        )
    dtype = None
    for parameter in parameters:
        name, _, content = parameter.partition("=")
        content = content.strip().strip('"').lower()
        match name.strip().lower():
            case "dtype":
                dtype = content
            case "charset" if of_json and content not in _CHARSETS:
                raise CloudEventError(f"charset {content[:_QUOTED]!r} is not supported: JSON is UTF-8")
    return False, dtype, None


def _require_version(version: str, attribute: str) -> None:
    if not version.startswith("1."):
        raise CloudEventError(f"{attribute} {version[:_QUOTED]!r} is not supported: send 1.0")


def _require_known_type(type_: str, attribute: str) -> None:
    own = _OWN_TYPE.fullmatch(type_) if type_.startswith("sidstream.") else None
    if own and (len(own[1]) > 9 or int(own[1]) > RECORD_VERSION):
        raise CloudEventError(
            f"{attribute} {type_[:_QUOTED]!r} is of a later version than we read ({RECORD_VERSION}): update sidstream"
        )
