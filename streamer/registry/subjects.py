"""Our own schemas in a registry: the subjects of the topics that others write to, and values in their frame.

What must hold: a subject has the schema that this sidstream reads; it is registered by ``sidstream topics create`` alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal

from streamer.events.formats.definitions import NAMESPACE, avro_of, protobuf_of
from streamer.events.schemas import RECORDS, REGISTERED, schema_of
from streamer.registry.client import RegistryError, away, registry_client
from streamer.settings import Settings

if TYPE_CHECKING:
    from confluent_kafka.schema_registry import SchemaRegistryClient
    from google.protobuf.message import Message

Form = Literal["avro", "protobuf", "json"]
_TYPES: Final[Mapping[Form, str]] = {"avro": "AVRO", "protobuf": "PROTOBUF", "json": "JSON"}
_CONFIGURATION: Final = {"subject.name.strategy.type": "TOPIC", "auto.register.schemas": False}
_NOT_FOUND: Final = 404
_FIRST_MESSAGE: Final = b"\x00"  # the place of the message in its file


def definition_of(topic: str, form: Form) -> str:
    """The schema of a topic's values. ``topic``: by its default name, such as ``item-updates``."""
    match form:
        case "avro":
            return avro_of(RECORDS[topic])
        case "protobuf":
            return protobuf_of(RECORDS[topic])
    return json.dumps({"title": RECORDS[topic].__name__, **schema_of(topic)})


def register_subjects(settings: Settings) -> dict[str, int]:
    """Subject → id of our schema there; registered where it was missing.

    Raises:
        RegistryError: the registry refuses one: a schema of others is there that ours is not compatible with, or we may not.
        RegistryAwayError: it does not answer.
    """
    from confluent_kafka.schema_registry import Schema

    client, form = registry_client(settings.registry), settings.registry.format
    found = {}
    for topic in REGISTERED:
        subject = f"{getattr(settings.topics, topic.replace('-', '_'))}-value"
        schema = Schema(definition_of(topic, form), _TYPES[form])
        try:
            found[subject] = client.register_schema(subject, schema)
        except Exception as error:
            code = getattr(error, "http_status_code", None)
            if code is None or code >= 500 or code in {401, 403, _NOT_FOUND}:
                raise away(settings.registry.url, error) from None
            raise RegistryError(
                f"the registry at {settings.registry.url} refuses our schema of {subject} ({form}): {error}. Another schema is "
                "there: set registry.format to its format, or delete the subject"
            ) from None
    return found


class FramedValues:
    """Writes item updates in the frame of our subject's schema."""

    def __init__(self, settings: Settings) -> None:
        """Raises ``RegistryError`` without a registry, or without its packages."""
        if not settings.registry.url:
            raise RegistryError("there is no schema registry to send for: name one in registry.url")
        from confluent_kafka.serialization import MessageField, SerializationContext

        self._url, self._topic = settings.registry.url, settings.topics.item_updates
        self._context = SerializationContext(self._topic, MessageField.VALUE)
        self._serialize = _serializer(registry_client(settings.registry), settings.registry.format)

    def update(self, fields: Mapping[str, Any]) -> bytes:
        """The value of an item update. ``fields``: those that it has, an embedding as float32 numbers.

        Raises:
            RegistryError: our schema is not there.
            RegistryAwayError: the registry does not answer.
        """
        try:
            return self._serialize(dict(fields), self._context)
        except Exception as error:
            code = getattr(error, "http_status_code", None)
            if code == _NOT_FOUND:
                raise RegistryError(
                    f"the registry at {self._url} does not have our schema of {self._topic}-value: `sidstream topics create` "
                    "registers it"
                ) from None
            if code is None and not type(error).__module__.startswith("http"):
                raise
            raise away(self._url, error) from None


def _serializer(client: SchemaRegistryClient, form: Form) -> Callable[[dict[str, Any], Any], bytes]:
    text = definition_of("item-updates", form)
    match form:
        case "avro":
            from confluent_kafka.schema_registry.avro import AvroSerializer

            serialize: Callable[[dict[str, Any], Any], bytes] = AvroSerializer(client, text, conf=_CONFIGURATION)
        case "protobuf":
            serialize = _protobuf_serializer(client, text)
        case "json":
            from confluent_kafka.schema_registry.json_schema import JSONSerializer

            serialize = JSONSerializer(text, client, conf=_CONFIGURATION)
    return serialize


def _protobuf_serializer(client: SchemaRegistryClient, text: str) -> Callable[[dict[str, Any], Any], bytes]:
    """confluent-kafka's own looks for the schema by its descriptor, which a registry that keeps the text does not find."""
    from confluent_kafka.schema_registry import Schema
    from google.protobuf.descriptor_pool import DescriptorPool
    from google.protobuf.message_factory import GetMessageClass

    from streamer.registry.proto_text import parsed_proto

    pool = DescriptorPool()
    pool.Add(parsed_proto(text, "item-updates.proto"))
    update = GetMessageClass(pool.FindMessageTypeByName(f"{NAMESPACE}.ItemUpdate"))

    def serialized(fields: dict[str, Any], context: Any) -> bytes:
        found = client.lookup_schema(
            f"{context.topic}-value", Schema(text, _TYPES["protobuf"])
        )  # asked once, then kept
        attributes = fields.pop("attributes", {})
        message = update(**fields)
        for name, value in attributes.items():
            _set_attribute(message, name, value)
        content: bytes = message.SerializeToString()
        return b"\x00" + int(found.schema_id).to_bytes(4) + _FIRST_MESSAGE + content

    return serialized


def _set_attribute(message: Message, name: str, value: Any) -> None:
    one = message.attributes[name]  # type: ignore[attr-defined]
    match value:
        case bool():
            one.truth = value
        case int() | float():
            one.number = value
        case str():
            one.text = value
        case _:
            one.strings.values.extend(value)
