"""Item updates: a batch of raw records → columns of what can be used, and the one reason for each that cannot.

What must hold: a record gives in a batch what it gives alone. One that has nothing out of the ordinary (MessagePack, no headers,
float32 bytes, a plausible time) passes by columns, whole lists in C; any other one is checked by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from operator import attrgetter, itemgetter
from typing import Any, Final

import msgspec
import numpy as np
from confluent_kafka import Message
from numpy.typing import NDArray

from models.attributes import AttributeRules
from models.catalogue import MAXIMUM_ID_BYTES
from streamer.events.cloudevents import NO_ATTRIBUTES, EventAttributes
from streamer.events.formats.reading import NO_FORMATS, Formats, Plain
from streamer.events.headers import all_headers
from streamer.events.intake import (
    EARLIEST_TIME,
    LONGEST_NAME_SAID,
    EventError,
    EventLimits,
    checked_attributes,
    checked_item_id,
    checked_time,
    decode_event,
    decode_plain,
    item_id_of,
    plain_event,
    said_by_headers,
    within,
)
from streamer.events.records import FIRST_MAP_BYTE, Codec, ItemUpdate
from streamer.events.values.embeddings import (
    CheckedEmbeddings,
    EmbeddingError,
    PlausibleNorms,
    check_embeddings,
    embedding_bytes,
    matrix_of,
)
from streamer.events.values.plain_ids import are_plain_ids, is_plain_id
from streamer.events.values.unknown_fields import CountingCodec
from streamer.settings.pipeline import AssignerSettings
from streamer.settings.records import AttributeSettings

_NO_TIME: Final = 0  # of an update that has no time at all
_FIRST_BYTE: Final = itemgetter(0)
# What most updates do not say; one that does is checked by itself.
_RARE_FIELDS: Final = tuple(map(attrgetter, ("dtype", "id", "item_id")))
UNSET: Final = msgspec.UNSET


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


@dataclass(frozen=True, slots=True)
class UpdateBatch:
    """The usable updates of a batch in the order of their records, by column: the fields of ``Update``, N of each.

    ``guessed``: the places of those that nobody said are float16; ``stamps``: milliseconds of the records' Kafka timestamps, not
    above 0 where there is none; ``rejected``: records that cannot be used, and why; ``others``: how many were for another
    codebook; ``headers``: whether any record has headers.
    """

    records: Sequence[Message]
    ids: list[bytes]
    embeddings: list[bytes | None]
    guessed: list[int]
    titles: list[str]
    weights: list[float]
    updated_at: list[int]
    attributes: list[bytes | None]
    stamps: list[int]
    rejected: list[tuple[Message, EventError]]
    others: int
    headers: bool

    def checked_embeddings(
        self, dimension: int, plausible: PlausibleNorms
    ) -> tuple[Sequence[int], NDArray[np.float32], CheckedEmbeddings]:
        """Places of the updates that have an embedding (a deletion has none), the matrix float32 (N, D) of these, and what was
        found of its rows.
        """
        upserts: Sequence[int] = range(len(self.ids))
        if not all(self.embeddings):
            upserts = [place for place, content in enumerate(self.embeddings) if content is not None]
        embeddings = [content for content in self.embeddings if content is not None]
        matrix = matrix_of(embeddings, dimension)
        guessed: list[int] = []
        if self.guessed:
            rows = {place: row for row, place in enumerate(upserts)}
            guessed = [rows[place] for place in self.guessed]
        return upserts, matrix, check_embeddings(matrix, embeddings, guessed, plausible)


class OtherModelError(Exception):
    """The update's embedding is of a model that this codebook was not fitted on: it is for another one, and no fault."""


class UpdateIntake:
    """Reads the records of ``item-updates``.

    ``strict``: an unknown field refuses the update; else ``unknown_fields`` counts it. ``formats``: what values are read by that
    are no plain JSON or MessagePack.
    """

    def __init__(self, limits: UpdateLimits, *, strict: bool = False, formats: Formats = NO_FORMATS) -> None:
        self._formats = formats
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

    def read_batch(self, records: Sequence[Message], now: int) -> UpdateBatch:
        """The updates in ``records``, and what ``read`` would raise for the others; ``now``: milliseconds since the epoch.

        Raises:
            RegistryAwayError: a schema cannot be asked for now; nothing is lost by reading them again.
        """
        keys, values = list(map(Message.key, records)), list(map(Message.value, records))
        stamps = [record.timestamp()[1] for record in records]
        said = self._said(records)
        ready = self._out_of_frames(records, values, said) if self._formats.reads_frames else {}
        # Of an update that does not say when it was made.
        times = stamps if said is None else _times(said, stamps)
        plain = self._plain(keys, values, said)
        chosen: Any = values if len(plain) == len(records) else [values[place] for place in plain]
        rows: list[Any] = self._codec.decode_messagepack(chosen)
        if not all(rows):
            plain = [place for place, row in zip(plain, rows, strict=True) if row is not None]
            rows = [row for row in rows if row is not None]
        whole = len(plain) == len(records)
        odd = {plain[row] for row in self._odd(rows, times if whole else [times[place] for place in plain], now)}
        if said is not None:
            odd.update(place for place in plain if (headers := said[place]) is not None and headers.dtype is not None)
        bare = [row.attributes for row in rows].count(UNSET) == len(rows)
        if whole and not odd and bare:
            return _columns(records, keys, rows, times, [None] * len(rows), stamps, [], [], 0, said is not None)

        found: list[Any] = [None] * len(records)
        for place, row in zip(plain, rows, strict=True):
            found[place] = row
        attributes: list[bytes | None] = [None] * len(records)
        rejected: list[tuple[Message, EventError]] = []
        others = 0
        for place, row in enumerate(found):
            if row is not None and place not in odd and row.attributes is UNSET:
                continue
            headers = NO_ATTRIBUTES if said is None else said[place] or NO_ATTRIBUTES
            try:
                if row is None or place in odd:
                    update = self._alone(records[place], row, headers, ready.get(place), now)
                    found[place], attributes[place] = update, update.attributes
                else:
                    attributes[place] = checked_attributes(self._attributes, row.attributes, of_json=False)
            except EventError as error:
                found[place] = None
                rejected.append((records[place], error))
            except OtherModelError:
                found[place] = None
                others += 1
        kept = [place for place, row in enumerate(found) if row is not None]
        if len(kept) < len(records):
            records, keys, found = ([column[place] for place in kept] for column in (records, keys, found))
            times, stamps = ([column[place] for place in kept] for column in (times, stamps))
            attributes = [attributes[place] for place in kept]
        guessed = [place for place, row in enumerate(found) if type(row) is Update and row.guessed]
        if self._formats.reads_keys:
            keys = [row.item_id if type(row) is Update else key for key, row in zip(keys, found, strict=True)]
        return _columns(records, keys, found, times, attributes, stamps, guessed, rejected, others, said is not None)

    def _out_of_frames(
        self,
        records: Sequence[Message],
        values: list[bytes | None],
        said: list[EventAttributes | None] | None,
    ) -> dict[int, Plain | EventError]:
        """Place → the plain value of what is in a registry's frame, which takes its place in ``values`` and ``said``, or why it
        has none. Before anything is decoded: of a batch that has to wait for the registry nothing may be counted.
        """
        ready: dict[int, Plain | EventError] = {}
        for place, value in enumerate(values):
            headers = NO_ATTRIBUTES if said is None else said[place]
            if value is None or headers is None or not self._formats.is_framed(value, headers):
                continue
            try:
                plain = plain_event(records[place], value, self._event, self._formats)
            except EventError as error:
                ready[place] = error
                continue
            ready[place] = plain
            values[place] = plain.value
            if said is not None:
                said[place] = plain.said
        return ready

    def _alone(
        self,
        record: Message,
        decoded: ItemUpdate | None,
        headers: EventAttributes,
        plain: Plain | EventError | None,
        now: int,
    ) -> Update:
        """As ``read``, of a record that may be decoded already, or out of its frame."""
        if decoded is None:
            return self._read(record, plain, now)
        return self._checked(record, record.key(), decoded, headers, now, of_json=False)

    def read(self, record: Message, now: int) -> Update:
        """The update in a record; ``now``: milliseconds since the epoch.

        Raises:
            EventError: why it cannot be used.
            OtherModelError: it is for another codebook; it is not checked any further.
            RegistryAwayError: its schema cannot be asked for now.
        """
        return self._read(record, None, now)

    def _read(self, record: Message, plain: Plain | EventError | None, now: int) -> Update:
        formats = self._formats
        item_id = item_id_of(record, formats) if formats.reads_keys else checked_item_id(record.key())
        value = record.value()
        if value is None:
            return Update(record, item_id, None)
        if plain is None:
            decoded = decode_event(self._codec, record, value, self._event, formats)
        elif isinstance(plain, EventError):
            raise plain
        else:
            decoded = decode_plain(self._codec, plain, formats)
        if decoded.value is None:
            return Update(record, item_id, None)
        return self._checked(record, item_id, decoded.value, decoded.headers, now, of_json=decoded.of_json)

    def _said(self, records: Sequence[Message]) -> list[EventAttributes | None] | None:
        """What each record's headers say; None of headers that refuse the record. None instead of a list: there are none."""
        headers = all_headers(records)
        if headers.count(None) == len(records):
            return None
        said: list[EventAttributes | None] = []
        for record, found in zip(records, headers, strict=True):
            try:
                said.append(NO_ATTRIBUTES if found is None else said_by_headers(record, self._event))
            except EventError:
                said.append(None)
        return said

    def _plain(
        self,
        keys: Sequence[bytes | None],
        values: Sequence[bytes | None],
        said: Sequence[EventAttributes | None] | None,
    ) -> Sequence[int]:
        """Places of the records that are to be decoded at once: a plain id, usable headers, a value that may be MessagePack."""
        if self._formats.maps_columns:
            return ()
        maximum, plain_ids = self._event.maximum_bytes, are_plain_ids(keys)
        if plain_ids and said is None and all(values):
            present: Iterable[bytes] = values  # type: ignore[assignment]
            if (
                max(map(len, present), default=0) <= maximum
                and min(map(_FIRST_BYTE, present), default=0xFF) >= FIRST_MAP_BYTE
            ):
                return range(len(keys))
        return [
            place
            for place, (key, value, headers) in enumerate(
                zip(keys, values, said or repeat(NO_ATTRIBUTES), strict=False)
            )
            if value
            and headers is not None
            and not headers.structured
            and headers.coded is None
            and headers.schema is None
            and len(value) <= maximum
            and value[0] >= FIRST_MAP_BYTE
            and (plain_ids or (key and len(key) <= MAXIMUM_ID_BYTES and is_plain_id(key)))
        ]

    def _odd(self, updates: Sequence[ItemUpdate], times: Sequence[int], now: int) -> set[int]:
        """Places of the decoded updates that do not pass by columns. ``times``: of an update that has none of its own."""
        odd: set[int] = set()
        count, size = len(updates), self._float32_bytes
        for column in (list(map(rare, updates)) for rare in _RARE_FIELDS):
            if column.count(UNSET) < count:
                odd.update(place for place, value in enumerate(column) if value is not UNSET)
        models = [update.embedding_model for update in updates]
        if models.count(self._model) < count:
            odd.update(place for place, model in enumerate(models) if model != self._model)
        embeddings = [update.embedding for update in updates]
        if list(map(len, embeddings)).count(size) < count or list(map(type, embeddings)).count(bytes) < count:
            odd.update(
                place for place, found in enumerate(embeddings) if type(found) is not bytes or len(found) != size
            )
        lengths = [len(update.title) for update in updates]
        if max(lengths, default=0) > self._title_characters:
            odd.update(place for place, length in enumerate(lengths) if length > self._title_characters)
        weights = np.array([update.weight for update in updates], np.float64)
        fits = (weights >= 0) & (weights <= self._weight)  # NaN does not
        if not fits.all():
            odd.update(np.flatnonzero(~fits).tolist())
        made = [time if (at := update.updated_at) is None else at for update, time in zip(updates, times, strict=True)]
        if made and not EARLIEST_TIME <= min(made) <= max(made) <= now:
            odd.update(place for place, time in enumerate(made) if not EARLIEST_TIME <= time <= now)
        return odd

    def _checked(
        self, record: Message, item_id: bytes, update: ItemUpdate, headers: EventAttributes, now: int, *, of_json: bool
    ) -> Update:
        """The update in a decoded value, every field looked at. Raises as ``read``."""
        if update.embedding_model != self._model:
            raise OtherModelError
        if update.id is not UNSET or update.item_id is not UNSET:
            _require_same_id(update, item_id)
        if not 0 <= update.weight <= self._weight:  # also refuses NaN
            raise EventError("InvalidEvent", f"weight {update.weight} is not within 0..{self._weight:g}")
        within(self._title_characters, len(update.title), "title", "characters")
        embedding, guessed = self._embedding(update, headers)
        updated_at = _time(record, update, headers, now)
        attributes = None
        if update.attributes is not UNSET:
            attributes = checked_attributes(self._attributes, update.attributes, of_json=of_json)
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


def _columns(
    records: Sequence[Message],
    keys: list[Any],
    rows: Sequence[Any],
    times: Sequence[int],
    attributes: list[bytes | None],
    stamps: list[int],
    guessed: list[int],
    rejected: list[tuple[Message, EventError]],
    others: int,
    headers: bool,
) -> UpdateBatch:
    """Of usable updates, each an ``ItemUpdate`` or an ``Update``; ``times``: of those that have none of their own."""
    return UpdateBatch(
        records,
        keys,
        [row.embedding for row in rows],
        guessed,
        [row.title for row in rows],
        [row.weight for row in rows],
        [time if (at := row.updated_at) is None else at for row, time in zip(rows, times, strict=True)],
        attributes,
        stamps,
        rejected,
        others,
        headers,
    )


def _times(said: Sequence[EventAttributes | None], stamps: Sequence[int]) -> list[int]:
    """The time that each record's CloudEvent says, or its Kafka timestamp."""
    return [
        stamp if headers is None or headers.time is None else headers.time
        for headers, stamp in zip(said, stamps, strict=True)
    ]


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
                f"{name} is {_said(given)[:LONGEST_NAME_SAID]!a} and the key is {item_id.decode()[:LONGEST_NAME_SAID]!a}: "
                f"the key is the item's id; send the same there, or leave {name} out",
            )
