"""The one place that turns a value of another format into a plain JSON or MessagePack map, which the record's codec then reads.

What must hold: a plain value pays nothing for it. A value in a registry's frame is told by its first byte or a header; what lies
in an envelope by what the codec refuses; columns are looked at where the settings name some.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from streamer.events.cloudevents import NO_ATTRIBUTES, EventAttributes
from streamer.events.formats.columns import Columns
from streamer.events.formats.envelopes import opened
from streamer.events.formats.frames import FRAMED, FormatError, SchemaReader, said_frame
from streamer.settings.records import ColumnSettings

Headers = Sequence[tuple[str, bytes | None]]


class Plain(NamedTuple):
    """A plain value, and what its headers say of it."""

    value: bytes
    said: EventAttributes


class Opened(NamedTuple):
    """The value inside of envelopes, None for a deletion, and what headers and envelopes say of it."""

    value: bytes | None
    said: EventAttributes


class Formats:
    """What values of other formats are read by. ``schemas``: of a registry, None if the settings name none; ``columns``: of rows,
    None for records that are no rows. ``reads_frames``: whether there is a registry; ``maps_columns``: whether every value is to
    be looked at for columns of other names; ``reads_keys``: whether a key may have the id inside.
    """

    def __init__(self, schemas: SchemaReader | None = None, columns: ColumnSettings | None = None) -> None:
        self._schemas = schemas
        self._columns = Columns(columns or ColumnSettings())
        self._rows = columns is not None
        # Read for each event: attributes, as a property takes longer.
        self.reads_frames = schemas is not None
        self.maps_columns = self._columns.mapped
        self.reads_keys = self._columns.reads_keys

    def is_framed(self, value: bytes, said: EventAttributes) -> bool:
        """Whether a registry's schema says how the value is to be read."""
        if said.coded is not None:
            return True
        return self._schemas is not None and (said.schema is not None or value[:1] in FRAMED)

    def out_of_frame(self, topic: str, value: bytes, said: EventAttributes, headers: Headers) -> Plain:
        """A framed value as a plain one.

        Raises:
            FormatError: there is no registry, it does not know the schema, or the value is not as its schema says.
            RegistryAwayError: to be tried again.
        """
        if self._schemas is None:
            raise FormatError(
                "UnsupportedCloudEvent",
                f"content-type says that the value is {said.coded}, which is not supported without a schema registry: name "
                "one in registry.url, or send application/json or application/msgpack",
            )
        if said.schema is None and said_frame(value) is None:
            raise FormatError(
                "UndecodableEvent",
                f"content-type says that the value is {said.coded}, and it has no schema's id: send it as the serializers of a "
                "schema registry do, or as plain JSON or MessagePack",
            )
        return Plain(self._schemas.plain(topic, value, headers), EventAttributes(said.time, said.dtype))

    def out_of_envelopes(self, value: bytes, said: EventAttributes) -> Opened | None:
        """The record in a value that is in envelopes, or a row; None: it is neither.

        Raises:
            FormatError: an envelope or a row that cannot be used.
            CloudEventError: the same of a CloudEvent.
            msgspec.DecodeError: the inner value is no map.
        """
        row = opened(value)
        if row is None and not self.maps_columns:
            return None
        if row is not None:
            value_inside, types = row.value, row.types
            inner = row.said or NO_ATTRIBUTES
            time = inner.time if inner.time is not None else row.time
            said = EventAttributes(said.time if time is None else time, inner.dtype or said.dtype)
        else:
            value_inside, types = value, {}
        if value_inside is not None and self._rows:
            value_inside = self._columns.record_of(value_inside, types)
        return Opened(value_inside, said)

    def item_id(self, topic: str, key: bytes) -> bytes | None:
        """The id in a key that is none itself; None: there is none in it.

        Raises:
            FormatError: the key has no id where the settings say that it is.
            RegistryAwayError: to be tried again.
        """
        if self._schemas is not None and said_frame(key) is not None:
            key = self._schemas.plain(topic, key, (), "key")
        return self._columns.item_id(key)


NO_FORMATS: Final = Formats()
