"""Item updates: a batch of raw records → columns of what can be used, and the one reason for each that cannot.

What must hold: a record gives in a batch what it gives alone. One that has nothing out of the ordinary (MessagePack, no headers,
float32 bytes, a plausible time) passes by columns, whole lists in C; any other one is checked by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import repeat
from operator import attrgetter, itemgetter
from typing import Any, Final

import numpy as np
from confluent_kafka import Message
from msgspec import UNSET

from models.catalogue import MAXIMUM_ID_BYTES
from streamer.events.cloudevents import NO_ATTRIBUTES, EventAttributes
from streamer.events.formats.reading import NO_FORMATS, Formats, Plain
from streamer.events.headers import all_headers
from streamer.events.intake import EARLIEST_TIME, EventError, checked_attributes, plain_event, said_by_headers
from streamer.events.records import FIRST_MAP_BYTE, Codec, ItemUpdate
from streamer.events.updates.batch import Update, UpdateBatch, columns
from streamer.events.updates.checks import OtherModelError, UpdateChecks, UpdateLimits
from streamer.events.values.plain_ids import are_plain_ids, is_plain_id
from streamer.events.values.unknown_fields import CountingCodec

_FIRST_BYTE: Final = itemgetter(0)
# What most updates do not say; one that does is checked by itself.
_RARE_FIELDS: Final = tuple(map(attrgetter, ("dtype", "id", "item_id")))


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
        self._float32_bytes = 4 * limits.dimension
        self._attributes = limits.attributes
        self._model = limits.model_said
        self._counting = CountingCodec(ItemUpdate)
        self._codec = Codec(ItemUpdate, strict=True) if strict else self._counting
        self._alone = UpdateChecks(limits, self._codec, formats)

    @property
    def unknown_fields(self) -> dict[str, int]:
        """Name of an unknown field → updates that had it, since the start."""
        return self._counting.counts

    def read(self, record: Message, now: int) -> Update:
        """One update alone: ``UpdateChecks.read``."""
        return self._alone.read(record, now)

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
            return columns(records, keys, rows, times, [None] * len(rows), stamps, [], [], 0, said is not None)

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
                    record = records[place]
                    if row is None:
                        update = self._alone.read(record, now, ready.get(place))
                    else:
                        update = self._alone.check(record, record.key(), row, headers, now, of_json=False)
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
        return columns(records, keys, found, times, attributes, stamps, guessed, rejected, others, said is not None)

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


def _times(said: Sequence[EventAttributes | None], stamps: Sequence[int]) -> list[int]:
    """The time that each record's CloudEvent says, or its Kafka timestamp."""
    return [
        stamp if headers is None or headers.time is None else headers.time
        for headers, stamp in zip(said, stamps, strict=True)
    ]
