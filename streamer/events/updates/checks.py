"""One item update by itself: every field looked at, and the one reason for what cannot be used.

What must hold: what passes by columns (``streamer.events.updates.reading``) passes here too, and gives the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
from confluent_kafka import Message
from msgspec import UNSET

from models.attributes import AttributeRules
from streamer.events.cloudevents import EventAttributes
from streamer.events.formats.reading import Formats, Plain
from streamer.events.intake import (
    LONGEST_NAME_SAID,
    EventError,
    EventLimits,
    checked_attributes,
    checked_item_id,
    checked_time,
    decode_event,
    decode_plain,
    item_id_of,
    within,
)
from streamer.events.records import Codec, ItemUpdate
from streamer.events.updates.batch import NO_TIME, Update
from streamer.events.values.embeddings import EmbeddingError, embedding_bytes
from streamer.settings.pipeline import AssignerSettings
from streamer.settings.records import AttributeSettings


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

    @property
    def model_said(self) -> str | msgspec.UnsetType:
        """What an update says of its model that is for this codebook."""
        return UNSET if self.embedding_model is None else self.embedding_model


class OtherModelError(Exception):
    """The update's embedding is of a model that this codebook was not fitted on: it is for another one, and no fault."""


class UpdateChecks:
    """Reads one record of ``item-updates`` by itself. ``codec``: how its value is decoded; ``formats``: what values are read by
    that are no plain JSON or MessagePack.
    """

    def __init__(self, limits: UpdateLimits, codec: Codec, formats: Formats) -> None:
        self._limits = limits
        self._codec = codec
        self._formats = formats
        self._model = limits.model_said  # asked for each update

    def read(self, record: Message, now: int, plain: Plain | EventError | None = None) -> Update:
        """The update in a record; ``now``: milliseconds since the epoch; ``plain``: what its frame held, if that is known.

        Raises:
            EventError: why it cannot be used.
            OtherModelError: it is for another codebook; it is not checked any further.
            RegistryAwayError: its schema cannot be asked for now.
        """
        formats = self._formats
        item_id = item_id_of(record, formats) if formats.reads_keys else checked_item_id(record.key())
        value = record.value()
        if value is None:
            return Update(record, item_id, None)
        if plain is None:
            decoded = decode_event(self._codec, record, value, self._limits.event, formats)
        elif isinstance(plain, EventError):
            raise plain
        else:
            decoded = decode_plain(self._codec, plain, formats)
        if decoded.value is None:
            return Update(record, item_id, None)
        return self.check(record, item_id, decoded.value, decoded.headers, now, of_json=decoded.of_json)

    def check(
        self, record: Message, item_id: bytes, update: ItemUpdate, headers: EventAttributes, now: int, *, of_json: bool
    ) -> Update:
        """The update in a decoded value, every field looked at. Raises as ``read``."""
        if update.embedding_model != self._model:
            raise OtherModelError
        if update.id is not UNSET or update.item_id is not UNSET:
            _require_same_id(update, item_id)
        if not 0 <= update.weight <= self._limits.weight:  # also refuses NaN
            raise EventError("InvalidEvent", f"weight {update.weight} is not within 0..{self._limits.weight:g}")
        within(self._limits.title_characters, len(update.title), "title", "characters")
        embedding, guessed = self._embedding(update, headers)
        updated_at = _time(record, update, headers, now)
        attributes = None
        if update.attributes is not UNSET:
            attributes = checked_attributes(self._limits.attributes, update.attributes, of_json=of_json)
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
            return embedding_bytes(update.embedding, dtype, self._limits.dimension)
        except EmbeddingError as error:
            raise EventError(error.kind, str(error)) from None


def _time(record: Message, update: ItemUpdate, headers: EventAttributes, now: int) -> int:
    """The update's own time, or that of its CloudEvent, or of its record; ``NO_TIME`` if it has none at all."""
    if update.updated_at is not None:
        return checked_time(update.updated_at, "updated_at", now)
    if headers.time is not None:
        return checked_time(headers.time, "the CloudEvent's time", now)
    time: int = record.timestamp()[1]
    return checked_time(time, "the record's Kafka timestamp", now) if time > 0 else NO_TIME


def _said(given: str | int) -> str:
    """An id as text; Python writes no number of thousands of digits."""
    return given if isinstance(given, str) else str(given) if abs(given) < 1 << 64 else "a number that is far too large"


def _require_same_id(update: ItemUpdate, item_id: bytes) -> None:
    """An id in the value repeats the key; what is no text and no whole number is no id of ours."""
    for name, given in (("id", update.id), ("item_id", update.item_id)):
        if isinstance(given, str | int) and not isinstance(given, bool) and _said(given) != item_id.decode():
            raise EventError(
                "ContradictingId",
                f"{name} is {_said(given)[:LONGEST_NAME_SAID]!a} and the key is {item_id.decode()[:LONGEST_NAME_SAID]!a}: "
                f"the key is the item's id; send the same there, or leave {name} out",
            )
