"""From a raw record to a typed event, or to the one reason why it cannot be used: its id, size, headers, form and each
field's limit are looked at here, in one visit, and nowhere else.

What fails raises ``EventError``, whose class and message go into the dead letter.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from confluent_kafka import Message

from models.attributes import AttributeFault, AttributeRules, encode_attributes
from models.catalogue import MAXIMUM_ID_BYTES
from streamer.events.cloudevents import NO_ATTRIBUTES, CloudEventError, EventAttributes, event_attributes, unwrapped
from streamer.events.formats.frames import FormatError
from streamer.events.formats.reading import NO_FORMATS, Formats, Plain
from streamer.events.headers import UnreadableHeadersError, headers_of, size_of_headers
from streamer.events.records import ITEM_ATTRIBUTES, JSON_FIRST_BYTES, UNDECODABLE, Codec, RecordVersionError
from streamer.events.values.foreign_formats import field_names, foreign_key, foreign_value
from streamer.events.values.plain_ids import is_plain_id
from streamer.events.values.unknown_fields import nearest, unknown_field, unknown_field_inside
from streamer.settings.records import AttributeSettings, IntakeSettings

EARLIEST_TIME: Final = 631_152_000_000  # 1990: earlier ones are seconds, or no time at all
_AHEAD_MS: Final = 24 * 60 * 60 * 1000  # a sender's clock may be wrong by its time zone
_MISSING_FIELD: Final = re.compile(r"Object missing required field `(\w+)`")
_NAMES_QUOTED: Final = 8
LONGEST_NAME_SAID: Final = 64
_BYTES_SAID: Final = 8
_JSON_SPACE: Final = b" \t\r\n"
_AROUND_ATTRIBUTES: Final = 4_096  # bytes of a record, or of a CloudEvent's envelope, around the attributes alone


class EventError(ValueError):
    """An event that cannot be used; ``kind`` goes into the dead letter's ``dlq.errors.class``."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class EventLimits:
    """What an event of any topic may have: bytes of value, headers, and bytes of the headers together."""

    maximum_bytes: int
    maximum_headers: int
    maximum_header_bytes: int

    @classmethod
    def of(cls, maximum_bytes: int, settings: IntakeSettings) -> EventLimits:
        """The limits of a topic whose values have at most ``maximum_bytes``."""
        return cls(maximum_bytes, settings.maximum_headers, settings.maximum_header_bytes)


class DecodedEvent(msgspec.Struct, frozen=True, gc=False):
    """An event's value as its record type, None for a deletion, and what its headers and envelopes say of it; ``of_json``: it was
    JSON, not MessagePack.
    """

    value: Any
    headers: EventAttributes
    of_json: bool = False


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


def checked_item_id(key: bytes | None) -> bytes:
    """The item id in a record's key; an item that is stored under another form of its id could never be deleted again.

    Raises:
        EventError: as ``checked_id``, or ``InvalidId``: the key looks like a serializer's bytes, JSON, or text with white space
            or control characters around or in it.
    """
    if key and len(key) <= MAXIMUM_ID_BYTES and is_plain_id(key):
        return key
    try:
        item_id = checked_id(key, "item")
    except EventError as error:
        if error.kind == "UndecodableId" and key:
            raise EventError(error.kind, f"the key is the item id, but it {foreign_key(key)}") from None
        raise
    foreign = foreign_key(item_id)
    if foreign is not None:
        raise EventError("InvalidId", f"the key is the item id, but it {foreign}")
    return item_id


def item_id_of(record: Message, formats: Formats) -> bytes:
    """The item id of a record: its key, or what the settings say is the id in it.

    Raises:
        EventError: as ``checked_item_id``.
        RegistryAwayError: the key's schema cannot be asked for now.
    """
    key = record.key()
    if key and formats.reads_keys and not is_plain_id(key):
        try:
            key = formats.item_id(record.topic(), key) or key
        except FormatError as error:
            raise EventError(error.kind, str(error)) from None
    return checked_item_id(key)


def within(limit: int, size: int, field: str, unit: str) -> None:
    """Refuse a field that is larger than its limit; ``unit``: what is counted, such as ``bytes``.

    Raises:
        EventError: names field, size and limit.
    """
    if size > limit:
        raise EventError("FieldTooLarge", f"{field} has {size} {unit}; the limit is {limit}")


def checked_time(time: int, field: str, now: int) -> int:
    """Milliseconds since the epoch, from 1990 to a day after ``now``.

    Raises:
        EventError: names the field, and the unit that the number seems to have.
    """
    latest = now + _AHEAD_MS
    if EARLIEST_TIME <= time <= latest:
        return time
    said = f"{time}" if abs(time) < 1 << 64 else "far too large"
    for unit, seems, advice in (
        (time * 1000, "seconds", "multiply by 1,000"),
        (time // 1000, "microseconds", "divide by 1,000"),
        (time // 1_000_000, "nanoseconds", "divide by 1,000,000"),
        (time * 86_400_000, "days", "multiply by 86,400,000"),
    ):
        if EARLIEST_TIME <= unit <= latest:
            raise EventError(
                "InvalidEvent", f"{field} {said} looks like {seems}: send milliseconds since 1970, so {advice}"
            )
    if time >= EARLIEST_TIME:
        raise EventError(
            "InvalidEvent",
            f"{field} {said} is more than a day ahead of this machine's clock ({now}): send milliseconds since 1970, and "
            "look at both clocks",
        )
    raise EventError(
        "InvalidEvent",
        f"{field} {said} is not a time after 1990 in milliseconds since 1970: correct it, or leave it out if there is none",
    )


def said_by_headers(record: Message, limits: EventLimits) -> EventAttributes:
    """What the headers of a record say of its value.

    Raises:
        EventError: they cannot be read, are too many or too large, or announce what we do not read.
    """
    try:
        headers = headers_of(record)
    except UnreadableHeadersError as error:
        raise EventError("UndecodableHeaders", str(error)) from None
    if not headers:
        return NO_ATTRIBUTES
    within(limits.maximum_headers, len(headers), "the record", "headers")
    within(limits.maximum_header_bytes, size_of_headers(headers), "the set of its headers", "bytes")
    try:
        return event_attributes(headers)
    except CloudEventError as error:
        raise EventError("UnsupportedCloudEvent", str(error)) from None


def decode_event(
    codec: Codec, record: Message, value: bytes, limits: EventLimits, formats: Formats = NO_FORMATS
) -> DecodedEvent:
    """The decoded value of any topic's event, whatever it is in, and what its headers say.

    Raises:
        EventError: too large, unsupported headers, undecodable, an unknown field (a strict codec), or a field that does not fit.
        RegistryAwayError: its schema cannot be asked for now.
    """
    if len(value) <= limits.maximum_bytes and not (formats.reads_frames or formats.maps_columns):
        said = said_by_headers(record, limits)
        if said is NO_ATTRIBUTES:  # most events: in one pass, as each call between takes a tenth of its time
            try:
                return DecodedEvent(codec.decode(value), said, value[:1] in JSON_FIRST_BYTES)
            except UNDECODABLE:
                pass  # told below
    return decode_plain(codec, plain_event(record, value, limits, formats), formats)


def plain_event(record: Message, value: bytes, limits: EventLimits, formats: Formats = NO_FORMATS) -> Plain:
    """The value of any topic's event as JSON or MessagePack, out of a registry's frame and of a CloudEvent that headers announce.

    Raises:
        EventError: too large, unsupported headers, or not as its schema says.
        RegistryAwayError: its schema cannot be asked for now.
    """
    if len(value) > limits.maximum_bytes:
        raise EventError("EventTooLarge", f"{len(value)} bytes of value; the limit is {limits.maximum_bytes}")
    said = said_by_headers(record, limits)
    try:
        if formats.is_framed(value, said):
            return formats.out_of_frame(record.topic(), value, said, headers_of(record))
        return Plain(*unwrapped(value)) if said.structured else Plain(value, said)
    except FormatError as error:
        raise EventError(error.kind, str(error)) from None
    except CloudEventError as error:
        raise EventError("UnsupportedCloudEvent", str(error)) from None
    except UNDECODABLE as error:
        raise _undecodable(None, value, error) from None


def decode_plain(codec: Codec, plain: Plain, formats: Formats = NO_FORMATS) -> DecodedEvent:
    """The decoded value of an event, out of the envelopes around it. Raises ``EventError`` as ``decode_event``."""
    value, said = plain
    if formats.maps_columns:
        return _from_envelopes(codec, plain, formats, None)
    try:
        return DecodedEvent(codec.decode(value), said, value[:1] in JSON_FIRST_BYTES)
    except msgspec.ValidationError as error:
        return _from_envelopes(codec, plain, formats, error)
    except UNDECODABLE as error:
        raise _undecodable(codec, value, error) from None


def _from_envelopes(
    codec: Codec, plain: Plain, formats: Formats, refused: msgspec.ValidationError | None
) -> DecodedEvent:
    """The event in the envelopes around it, or in a row. ``refused``: what the codec says of the value as it is."""
    value = plain.value
    try:
        found = formats.out_of_envelopes(value, plain.said)
        if found is None:
            assert refused is not None  # where columns are mapped, every value is a row
            raise refused
        if found.value is None:
            return DecodedEvent(None, found.said)
        value = found.value
        return DecodedEvent(codec.decode(value), found.said, value[:1] in JSON_FIRST_BYTES)
    except FormatError as error:
        raise EventError(error.kind, str(error)) from None
    except CloudEventError as error:
        raise EventError("UnsupportedCloudEvent", str(error)) from None
    except UNDECODABLE as error:
        raise _undecodable(codec, value, error) from None


def _undecodable(codec: Codec | None, value: bytes, error: Exception) -> EventError:
    """The error in words that say what the value looks like, and what its sender does about it."""
    if isinstance(error, RecordVersionError):
        return EventError("UnsupportedVersion", str(error))
    if codec is not None and isinstance(error, msgspec.ValidationError):
        inside = unknown_field_inside(error)
        if inside is not None:
            name, place = inside
            return EventError(
                "UnknownField",
                f"there is no field {name[:LONGEST_NAME_SAID]!r} in {place[:LONGEST_NAME_SAID]}: leave it out",
            )
        unknown = unknown_field(error)
        if unknown is not None:
            return EventError(
                "UnknownField", f"there is no field {unknown[:LONGEST_NAME_SAID]!r}: {nearest(unknown, codec.fields)}"
            )
        missing = _MISSING_FIELD.match(str(error))
        if missing:
            return EventError("InvalidEvent", _missing_field(codec, value, missing[1], str(error)))
        if not str(error).startswith("Expected `object`") or "`$" in str(error):
            return EventError("InvalidEvent", f"the event does not fit: {error}")
    elif isinstance(error, RecursionError):
        return EventError("UndecodableEvent", "lists or maps are nested too deeply")
    foreign = foreign_value(value)
    if foreign is not None:
        return EventError("UndecodableEvent", foreign)
    if value.lstrip(_JSON_SPACE)[:1] == b"{":
        return EventError("UndecodableEvent", f"the value begins like a JSON object, but is none: {error}")
    if value[0] >> 4 == 8 or value[0] in (0xDE, 0xDF):
        return EventError(
            "UndecodableEvent", f"the value begins like a MessagePack map, but is none, or cut off: {error}"
        )
    # The decoder's own words would mislead: it takes the first byte for a small MessagePack integer.
    return EventError(
        "UndecodableEvent",
        f"the value, {len(value)} bytes that begin with {value[:_BYTES_SAID].hex(' ')}, is neither JSON nor MessagePack: send a "
        "JSON object or a MessagePack map",
    )


def _missing_field(codec: Codec, value: bytes, field: str, said: str) -> str:
    names = sorted(field_names(value) - set(codec.fields))
    if not names and not field_names(value):
        return f"the event is an empty map, without {field}: to delete an item, send a null value (no bytes at all)"
    if not names:
        return f"the event does not fit: {said}"
    more = ", …" if len(names) > _NAMES_QUOTED else ""
    found = ", ".join(repr(name[:LONGEST_NAME_SAID]) for name in names[:_NAMES_QUOTED]) + more
    return f"the event has no {field}; it has {found}, which no such event has: is one of them meant?"


def checked_attributes(rules: AttributeRules, raw: msgspec.Raw, *, of_json: bool) -> bytes:
    """The attributes of an update, or of a record of their own, as canonical MessagePack.

    Raises:
        EventError: names the field, and its limit or type.
    """
    try:
        return encode_attributes(rules.read(raw, of_json=of_json))
    except AttributeFault as fault:
        raise EventError(fault.kind, str(fault)) from None


class AttributesUpdate(msgspec.Struct, frozen=True, gc=False):
    """A record of ``item-attributes`` that passed every check. ``attributes``: canonical MessagePack, None takes them away."""

    record: Message
    item_id: bytes
    attributes: bytes | None


class AttributesIntake:
    """Reads the records of ``item-attributes``; an unknown field refuses one, as nothing but attributes can be meant."""

    def __init__(self, settings: AttributeSettings) -> None:
        self._rules = settings.rules()
        self._event = EventLimits.of(settings.maximum_bytes + _AROUND_ATTRIBUTES, settings)

    def read(self, record: Message) -> AttributesUpdate:
        """The attributes in a record.

        Raises:
            EventError: why it cannot be used.
        """
        item_id = checked_item_id(record.key())
        value = record.value()
        if value is None:
            return AttributesUpdate(record, item_id, None)
        try:
            decoded = decode_event(ITEM_ATTRIBUTES, record, value, self._event)
        except EventError as error:
            raise EventError(error.kind, _of_attributes(error)) from None
        if decoded.value is None:
            return AttributesUpdate(record, item_id, None)
        raw = decoded.value.attributes
        return AttributesUpdate(record, item_id, checked_attributes(self._rules, raw, of_json=decoded.of_json))


def _of_attributes(error: EventError) -> str:
    """The message for a sender of attributes, whose null value deletes no item."""
    said = str(error).replace("to delete an item, send", "to take an item's attributes away, send")
    return f'{said}; fields go inside, as {{"attributes": {{"price": 30}}}}' if error.kind == "UnknownField" else said
