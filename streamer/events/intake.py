"""From a raw record to a typed event, or to the one reason why it cannot be used: its id, size, headers, form and each
field's limit are looked at here, in one visit, and nowhere else.

What fails raises ``EventError``, whose class and message go into the dead letter.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
from confluent_kafka import Message

from models.attributes import AttributeFault, AttributeRules, encode_attributes
from models.catalogue import MAXIMUM_ID_BYTES
from streamer.events.cloudevents import NO_ATTRIBUTES, CloudEventError, EventAttributes, event_attributes, unwrapped
from streamer.events.headers import UnreadableHeadersError, headers_of, size_of_headers
from streamer.events.records import ITEM_ATTRIBUTES, JSON_FIRST_BYTES, Codec, ItemUpdate, RecordVersionError
from streamer.events.values.embeddings import EmbeddingError, embedding_bytes
from streamer.events.values.foreign_formats import field_names, foreign_key, foreign_object, foreign_value, is_plain_id
from streamer.events.values.unknown_fields import CountingCodec, nearest, unknown_field, unknown_field_inside
from streamer.settings import AssignerSettings, AttributeSettings, IntakeSettings

_EARLIEST_TIME: Final = 631_152_000_000  # 1990: earlier ones are seconds, or no time at all
_AHEAD_MS: Final = 24 * 60 * 60 * 1000  # a sender's clock may be wrong by its time zone
_NO_TIME: Final = 0  # of an update that has no time at all
_MISSING_FIELD: Final = re.compile(r"Object missing required field `(\w+)`")
_NAMES_QUOTED: Final = 8
_LONGEST_NAME_SAID: Final = 64
_BYTES_SAID: Final = 8
_JSON_SPACE: Final = b" \t\r\n"
_AROUND_ATTRIBUTES: Final = 4_096  # bytes of a record, or of a CloudEvent's envelope, around the attributes alone
UNSET: Final = msgspec.UNSET


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
    """An event's value as its record type, and what its headers say of it; ``of_json``: it was JSON, not MessagePack."""

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
    if _EARLIEST_TIME <= time <= latest:
        return time
    said = f"{time}" if abs(time) < 1 << 64 else "far too large"
    for unit, seems, advice in (
        (time * 1000, "seconds", "multiply by 1,000"),
        (time // 1000, "microseconds", "divide by 1,000"),
        (time // 1_000_000, "nanoseconds", "divide by 1,000,000"),
        (time * 86_400_000, "days", "multiply by 86,400,000"),
    ):
        if _EARLIEST_TIME <= unit <= latest:
            raise EventError(
                "InvalidEvent", f"{field} {said} looks like {seems}: send milliseconds since 1970, so {advice}"
            )
    if time >= _EARLIEST_TIME:
        raise EventError(
            "InvalidEvent",
            f"{field} {said} is more than a day ahead of this machine's clock ({now}): send milliseconds since 1970, and "
            "look at both clocks",
        )
    raise EventError(
        "InvalidEvent",
        f"{field} {said} is not a time after 1990 in milliseconds since 1970: correct it, or leave it out if there is none",
    )


def decode_event(codec: Codec, record: Message, value: bytes, limits: EventLimits) -> DecodedEvent:
    """The decoded value of any topic's event, and what its headers say.

    Raises:
        EventError: too large, unsupported headers, undecodable, an unknown field (a strict codec), or a field that does not fit.
    """
    if len(value) > limits.maximum_bytes:
        raise EventError("EventTooLarge", f"{len(value)} bytes of value; the limit is {limits.maximum_bytes}")
    try:
        headers = headers_of(record)
    except UnreadableHeadersError as error:
        raise EventError("UndecodableHeaders", str(error)) from None
    if headers:
        within(limits.maximum_headers, len(headers), "the record", "headers")
        within(limits.maximum_header_bytes, size_of_headers(headers), "the set of its headers", "bytes")
    try:
        said = event_attributes(headers) if headers else NO_ATTRIBUTES
        if said.structured:
            value, said = unwrapped(value)
        return DecodedEvent(codec.decode(value), said, value[:1] in JSON_FIRST_BYTES)
    except CloudEventError as error:
        raise EventError("UnsupportedCloudEvent", str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _undecodable(codec, value, error) from None


def _undecodable(codec: Codec, value: bytes, error: Exception) -> EventError:
    """The error in words that say what the value looks like, and what its sender does about it."""
    if isinstance(error, RecordVersionError):
        return EventError("UnsupportedVersion", str(error))
    if isinstance(error, msgspec.ValidationError):
        inside = unknown_field_inside(error)
        if inside is not None:
            name, place = inside
            return EventError(
                "UnknownField",
                f"there is no field {name[:_LONGEST_NAME_SAID]!r} in {place[:_LONGEST_NAME_SAID]}: leave it out",
            )
        unknown = unknown_field(error)
        if unknown is not None:
            return EventError(
                "UnknownField", f"there is no field {unknown[:_LONGEST_NAME_SAID]!r}: {nearest(unknown, codec.fields)}"
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
    foreign = foreign_object(value)
    if foreign is not None:
        return f"the event has no {field}: {foreign}"
    names = sorted(field_names(value) - set(codec.fields))
    if not names and not field_names(value):
        return f"the event is an empty map, without {field}: to delete an item, send a null value (no bytes at all)"
    if not names:
        return f"the event does not fit: {said}"
    more = ", …" if len(names) > _NAMES_QUOTED else ""
    found = ", ".join(repr(name[:_LONGEST_NAME_SAID]) for name in names[:_NAMES_QUOTED]) + more
    return f"the event has no {field}; it has {found}, which no such event has: is one of them meant?"


@dataclass(frozen=True, slots=True)
class UpdateLimits:
    """What an item update may have; ``dimension``: numbers of its embedding; ``embedding_model``: what made it, None for updates
    that do not say.
    """

    event: EventLimits
    title_characters: int
    weight: float
    dimension: int
    attributes: AttributeRules = field(default_factory=lambda: AttributeSettings().rules())
    embedding_model: str | None = None

    @classmethod
    def of(
        cls,
        settings: AssignerSettings,
        dimension: int,
        attributes: AttributeRules | None = None,
        embedding_model: str | None = None,
    ) -> UpdateLimits:
        """As the assigner's settings, its codebook and the settings of attributes (by default the defaults) have them."""
        return cls(
            EventLimits.of(settings.maximum_event_bytes, settings),
            settings.maximum_title_characters,
            settings.maximum_weight,
            dimension,
            AttributeSettings().rules() if attributes is None else attributes,
            embedding_model,
        )


class Update(msgspec.Struct, frozen=True, gc=False):
    """An item update that passed every check but those of its numbers, which are made for a batch at once.

    ``embedding``: little-endian float32 or float16 bytes of D numbers, None deletes the item; ``guessed``: nobody said that it is
    float16. What is needed until the batch's end and no more: an embedding as a list would be four times its bytes.
    ``attributes``: canonical MessagePack, None if it has none.
    """

    record: Message
    item_id: bytes
    embedding: bytes | None
    guessed: bool = False
    title: str = ""
    weight: float = 0.0
    updated_at: int = _NO_TIME
    attributes: bytes | None = None


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
        raw = decoded.value.attributes
        return AttributesUpdate(record, item_id, checked_attributes(self._rules, raw, of_json=decoded.of_json))


def _of_attributes(error: EventError) -> str:
    """The message for a sender of attributes, whose null value deletes no item."""
    said = str(error).replace("to delete an item, send", "to take an item's attributes away, send")
    return f'{said}; fields go inside, as {{"attributes": {{"price": 30}}}}' if error.kind == "UnknownField" else said


class OtherModelError(Exception):
    """The update's embedding is of a model that this codebook was not fitted on: it is for another one, and no fault."""


class UpdateIntake:
    """Reads the records of ``item-updates``.

    ``strict``: an unknown field refuses the update; else ``unknown_fields`` counts it.
    """

    def __init__(self, limits: UpdateLimits, *, strict: bool = False) -> None:
        # Read for each event; an attribute of an attribute takes longer.
        self._event = limits.event
        self._title_characters = limits.title_characters
        self._weight = limits.weight
        self._dimension = limits.dimension
        self._float32_bytes = 4 * limits.dimension
        self._attributes = limits.attributes
        self._model = UNSET if limits.embedding_model is None else limits.embedding_model
        self._counting = CountingCodec(ItemUpdate)
        self._codec = Codec(ItemUpdate, strict=True) if strict else self._counting

    @property
    def unknown_fields(self) -> dict[str, int]:
        """Name of an unknown field → updates that had it, since the start."""
        return self._counting.counts

    def read(self, record: Message, now: int) -> Update:
        """The update in a record; ``now``: milliseconds since the epoch.

        Raises:
            EventError: why it cannot be used.
            OtherModelError: it is for another codebook; it is not checked any further.
        """
        item_id = checked_item_id(record.key())
        value = record.value()
        if value is None:
            return Update(record, item_id, None)
        decoded = decode_event(self._codec, record, value, self._event)
        update, headers = decoded.value, decoded.headers
        if update.embedding_model != self._model:
            raise OtherModelError
        if update.id is not UNSET or update.item_id is not UNSET:
            _require_same_id(update, item_id)
        if not 0 <= update.weight <= self._weight:  # also refuses NaN
            raise EventError("InvalidEvent", f"weight {update.weight} is not within 0..{self._weight:g}")
        within(self._title_characters, len(update.title), "title", "characters")
        # Most updates pass without a call: float32 bytes that say no dtype, and a plausible time of their own.
        embedding, guessed, updated_at = update.embedding, False, update.updated_at
        plain = update.dtype is UNSET and headers.dtype is None and len(embedding) == self._float32_bytes
        if not plain or type(embedding) is not bytes:
            embedding, guessed = self._embedding(update, headers)
        if updated_at is None or not _EARLIEST_TIME <= updated_at <= now:
            updated_at = _time(record, update, headers, now)
        attributes = None
        if update.attributes is not UNSET:
            attributes = checked_attributes(self._attributes, update.attributes, of_json=decoded.of_json)
        return Update(record, item_id, embedding, guessed, update.title, update.weight, updated_at, attributes)

    def _embedding(self, update: ItemUpdate, headers: EventAttributes) -> tuple[bytes, bool]:
        """Bytes of the embedding, and whether float16 is a guess; the dtype is the event's or its media type's."""
        dtype = headers.dtype
        if update.dtype is not UNSET:
            if dtype is not None and dtype != update.dtype:
                raise EventError(
                    "InvalidEvent",
                    f"the event's dtype is {update.dtype[:40]!r} and that of its content-type {dtype[:40]!r}: send one of them",
                )
            dtype = update.dtype
        try:
            return embedding_bytes(update.embedding, dtype, self._dimension)
        except EmbeddingError as error:
            raise EventError(error.kind, str(error)) from None


def _time(record: Message, update: ItemUpdate, headers: EventAttributes, now: int) -> int:
    """The update's own time, or that of its CloudEvent, or of its record; ``_NO_TIME`` if it has none at all."""
    if update.updated_at is not None:
        return checked_time(update.updated_at, "updated_at", now)
    if headers.time is not None:
        return checked_time(headers.time, "the CloudEvent's time", now)
    time: int = record.timestamp()[1]
    return checked_time(time, "the record's Kafka timestamp", now) if time > 0 else _NO_TIME


def _said(given: str | int) -> str:
    """An id as text; Python writes no number of thousands of digits."""
    return given if isinstance(given, str) else str(given) if abs(given) < 1 << 64 else "a number that is far too large"


def _require_same_id(update: ItemUpdate, item_id: bytes) -> None:
    """An id in the value repeats the key; what is no text and no whole number is no id of ours."""
    for name, given in (("id", update.id), ("item_id", update.item_id)):
        if isinstance(given, str | int) and not isinstance(given, bool) and _said(given) != item_id.decode():
            raise EventError(
                "ContradictingId",
                f"{name} is {_said(given)[:_LONGEST_NAME_SAID]!a} and the key is {item_id.decode()[:_LONGEST_NAME_SAID]!a}: "
                f"the key is the item's id; send the same there, or leave {name} out",
            )
