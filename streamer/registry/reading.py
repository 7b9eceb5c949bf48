"""Values in a registry's frame → plain ones, by confluent-kafka's own deserializers.

What must hold: a value that is not as its schema says is refused by name; a registry that does not answer refuses nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from streamer.events.formats.columns import plain_map
from streamer.events.formats.frames import SCHEMA_HEADER, FormatError, RegistryAwayError, Side
from streamer.events.formats.reading import Formats
from streamer.registry.client import RegistryError, Schemas, away, registry_client
from streamer.settings import Settings
from streamer.settings.records import RegistrySettings

if TYPE_CHECKING:
    from confluent_kafka.schema_registry import SchemaRegistryClient
    from confluent_kafka.serialization import SerializationContext

Headers = Sequence[tuple[str, bytes | None]]
_ID_BYTES: Final = 5  # magic byte 0, id
_GUID_BYTES: Final = 17  # magic byte 1, GUID
# The topic's own subject; the default strategy would ask the registry for another one.
_BY_TOPIC: Final = {"subject.name.strategy.type": "TOPIC"}
_SAID: Final = 300
_MESSAGES_KEPT: Final = 1_000
_HTTP: Final = frozenset({"httpx", "httpx2", "httpcore", "httpcore2"})


class RegistrySchemas:
    """Reads framed keys and values; each schema is fetched once and kept."""

    def __init__(self, settings: RegistrySettings, client: SchemaRegistryClient | None = None) -> None:
        """``client``: of the registry, if there is one already. Raises ``RegistryError`` without its packages."""
        client = registry_client(settings) if client is None else client
        from confluent_kafka.serialization import MessageField, SerializationContext

        self._url = settings.url
        self._schemas = Schemas(client, settings.url)
        self._sides = {"key": MessageField.KEY, "value": MessageField.VALUE}
        self._context = SerializationContext
        self._by_kind: dict[str, Callable[[bytes, SerializationContext], Any]] = {}
        self._protobuf: dict[tuple[Any, ...], Callable[[bytes, SerializationContext], Any]] = {}

    def plain(self, topic: str, content: bytes, headers: Headers, side: Side = "value") -> bytes:
        """See ``SchemaReader``."""
        identity, body = _identity(content, headers if side == "value" else ())
        schema = self._schemas.schema(f"{topic}-{side}", identity)
        kind = schema.schema_type or "AVRO"
        context = self._context(topic, self._sides[side], list(headers))
        try:
            if kind == "PROTOBUF":
                return plain_map(self._of_protobuf(topic, side, identity, body, content, context))
            value = self._deserializer(kind)(content, context)
            return body if kind == "JSON" else plain_map(value)
        except (FormatError, RegistryAwayError, RegistryError):
            raise
        except Exception as error:  # of a decoder that is given anything at all
            if _of_the_registry(error):
                raise away(self._url, error) from None
            raise FormatError(
                "UndecodableEvent",
                f"the {side} is not as its schema says ({_named(identity)}, {kind.title()}): {_said(error)}",
            ) from None

    def _deserializer(self, kind: str) -> Callable[[bytes, SerializationContext], Any]:
        found = self._by_kind.get(kind)
        if found is None:
            client = self._schemas.client
            match kind:
                case "AVRO":
                    from confluent_kafka.schema_registry.avro import AvroDeserializer

                    found = AvroDeserializer(client, conf=_BY_TOPIC)
                case "JSON":
                    from confluent_kafka.schema_registry.json_schema import JSONDeserializer

                    found = JSONDeserializer(None, schema_registry_client=client, conf=_BY_TOPIC)
                case _:
                    raise FormatError(
                        "UndecodableEvent",
                        f"schemas of type {kind[:40]!r} are not supported: send Avro, Protobuf or JSON",
                    )
            self._by_kind[kind] = found
        return found

    def _of_protobuf(
        self, topic: str, side: Side, identity: int | str, body: bytes, content: bytes, context: SerializationContext
    ) -> Any:
        from streamer.registry.protobuf import fields_of, indexes_of, message_class

        indexes, _ = indexes_of(body)
        asked = (topic, side, identity, indexes)
        deserialize = self._protobuf.get(asked)
        if deserialize is None:
            from confluent_kafka.schema_registry.protobuf import ProtobufDeserializer

            described = self._schemas.descriptor(f"{topic}-{side}", identity)
            sent = message_class(described, indexes, self._schemas.version)
            # Its class is that of the message that was sent: nothing is left to ask the registry.
            deserialize = ProtobufDeserializer(sent, conf=_BY_TOPIC)
            if len(self._protobuf) >= _MESSAGES_KEPT:
                self._protobuf.clear()
            self._protobuf[asked] = deserialize
        return fields_of(deserialize(content, context))


def formats_of(settings: Settings, *, rows: bool = False) -> Formats:
    """What the values of a topic are read by. ``rows``: they may be rows of a table, with the settings' columns.

    Raises:
        RegistryError: a registry is named, and the packages for it are missing.
    """
    schemas = RegistrySchemas(settings.registry) if settings.registry.url else None
    return Formats(schemas, settings.columns if rows else None)


def _identity(content: bytes, headers: Headers) -> tuple[int | str, bytes]:
    """Id or GUID of the schema, and what comes after the frame."""
    header = next((found for name, found in headers if name == SCHEMA_HEADER and found is not None), None)
    frame = content if header is None else header
    if frame[:1] == b"\x00" and len(frame) >= _ID_BYTES:
        identity: int | str = int.from_bytes(frame[1:_ID_BYTES])
        body = content if header is not None else content[_ID_BYTES:]
    elif frame[:1] == b"\x01" and len(frame) >= _GUID_BYTES:
        identity = str(UUID(bytes=frame[1:_GUID_BYTES]))
        body = content if header is not None else content[_GUID_BYTES:]
    else:
        where = "the value" if header is None else f"the header {SCHEMA_HEADER}"
        raise FormatError("UndecodableEvent", f"{where} begins like the frame of a schema registry, but is cut off")
    return identity, body


def _named(identity: int | str) -> str:
    return f"schema id {identity}" if isinstance(identity, int) else f"schema GUID {identity}"


def _of_the_registry(error: Exception) -> bool:
    """Whether an error came of asking the registry (for a schema that another one refers to), not of the value."""
    return hasattr(error, "http_status_code") or type(error).__module__.partition(".")[0] in _HTTP


def _said(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:_SAID] if text else type(error).__name__
