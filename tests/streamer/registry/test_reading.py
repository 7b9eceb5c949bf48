"""Values in a registry's frame, sent by confluent-kafka's own serializers with schemas of a real registry."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import numpy as np
import pytest
from confluent_kafka import Producer
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient, header_schema_id_serializer
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.schema_registry.json_schema import JSONSerializer
from confluent_kafka.schema_registry.protobuf import ProtobufSerializer
from confluent_kafka.serialization import MessageField, SerializationContext
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from numpy.typing import NDArray

from streamer.events.formats.frames import FormatError, RegistryAwayError
from streamer.events.records import ITEM_CODES
from streamer.kafka.clients import producer_configuration
from streamer.registry.proto_text import parsed_proto
from streamer.registry.reading import RegistrySchemas
from streamer.settings import Settings
from streamer.settings.records import RegistrySettings
from support.patience import PATIENCE_SECONDS
from support.processes import SidstreamProcess, committed_records, wait_until
from support.schema_registry import SchemaRegistry

BY_TOPIC = {"subject.name.strategy.type": "TOPIC"}
AVRO = json.dumps(
    {
        "type": "record",
        "name": "Item",
        "namespace": "shop",
        "fields": [
            {"name": "embedding", "type": {"type": "array", "items": "float"}},
            {"name": "title", "type": ["null", "string"], "default": None},
            {
                "name": "updated_at",
                "type": ["null", {"type": "long", "logicalType": "timestamp-millis"}],
                "default": None,
            },
        ],
    }
)
JSON_SCHEMA = json.dumps(
    {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Item",
        "type": "object",
        "properties": {"embedding": {"type": "array", "items": {"type": "number"}}, "title": {"type": "string"}},
        "required": ["embedding"],
    }
)
PROTOBUF = """
syntax = "proto3"; package shop;
message Other { int32 number = 1; }
/* the second message of its file */
message Item { repeated float embedding = 1; optional string title = 2; map<string, int32> counts = 3; int64 updated_at = 4; }
"""
TIME = 1_767_323_045_000


def context(topic: str) -> SerializationContext:
    return SerializationContext(topic, MessageField.VALUE, [])


def avro(client: SchemaRegistryClient, topic: str, fields: dict[str, Any]) -> bytes:
    return bytes(AvroSerializer(client, AVRO, conf=BY_TOPIC)(fields, context(topic)))


def json_schema(client: SchemaRegistryClient, topic: str, fields: dict[str, Any]) -> bytes:
    return bytes(JSONSerializer(JSON_SCHEMA, client, conf=BY_TOPIC)(fields, context(topic)))


def protobuf(client: SchemaRegistryClient, topic: str, fields: dict[str, Any]) -> bytes:
    pool = DescriptorPool()
    pool.Add(parsed_proto(PROTOBUF, "item.proto"))
    item = GetMessageClass(pool.FindMessageTypeByName("shop.Item"))
    return bytes(ProtobufSerializer(item, client, conf=BY_TOPIC)(item(**fields), context(topic)))


SERIALIZERS: dict[str, Callable[..., bytes]] = {"avro": avro, "json": json_schema, "protobuf": protobuf}


@pytest.fixture
def client(schema_registry: SchemaRegistry) -> SchemaRegistryClient:
    return SchemaRegistryClient({"url": schema_registry.url})


@pytest.fixture
def schemas(schema_registry: SchemaRegistry) -> RegistrySchemas:
    return RegistrySchemas(RegistrySettings(url=schema_registry.url))


def decoded(value: bytes) -> Any:
    return msgspec.json.decode(value) if value[:1] == b"{" else msgspec.msgpack.decode(value)


@pytest.mark.parametrize("form", SERIALIZERS)
def test_value_is_read_by_the_schema_that_it_names(
    form: str, client: SchemaRegistryClient, schemas: RegistrySchemas, unique_prefix: str
) -> None:
    value = SERIALIZERS[form](client, unique_prefix, {"embedding": [0.5, -1.0], "title": "Kettle"})
    assert value[0] == 0
    assert decoded(schemas.plain(unique_prefix, value, ())) == {"embedding": [0.5, -1.0], "title": "Kettle"}
    with pytest.raises(FormatError, match="schema id") as refused:
        schemas.plain(unique_prefix, value[:9], ())
    assert refused.value.kind == "UndecodableEvent"


def test_protobuf_is_read_where_the_registry_has_the_text_of_the_schema(
    client: SchemaRegistryClient, schemas: RegistrySchemas, unique_prefix: str
) -> None:
    """Java's serializer registers the text, and Apicurio's descriptors of it cannot be read."""
    schema_id = client.register_schema(f"{unique_prefix}-value", Schema(PROTOBUF, "PROTOBUF"))
    sent = protobuf(client, f"{unique_prefix}-2", {"embedding": [0.5], "counts": {"a": 2}, "updated_at": TIME})
    value = b"\x00" + schema_id.to_bytes(4) + sent[5:]
    found = {"embedding": [0.5], "counts": {"a": 2}, "updated_at": TIME}
    assert decoded(schemas.plain(unique_prefix, value, ())) == found


def test_avro_times_are_milliseconds_and_nulls_are_left_out(
    client: SchemaRegistryClient, schemas: RegistrySchemas, unique_prefix: str
) -> None:
    value = avro(client, unique_prefix, {"embedding": [0.5], "title": None, "updated_at": TIME})
    assert decoded(schemas.plain(unique_prefix, value, ())) == {"embedding": [0.5], "updated_at": TIME}


def test_schema_in_a_header_leaves_the_value_untouched(
    client: SchemaRegistryClient, schemas: RegistrySchemas, unique_prefix: str
) -> None:
    framed = avro(client, unique_prefix, {"embedding": [0.5], "title": "Kettle"})
    headers = [("__value_schema_id", framed[:5])]
    assert decoded(schemas.plain(unique_prefix, framed[5:], headers)) == {"embedding": [0.5], "title": "Kettle"}


def test_schema_is_found_by_its_guid(unique_prefix: str) -> None:
    """With confluent-kafka's own registry in memory: Apicurio's has no GUIDs."""
    from confluent_kafka.schema_registry._sync.mock_schema_registry_client import MockSchemaRegistryClient

    client = MockSchemaRegistryClient({"url": "mock://"})
    topic, headers = SerializationContext(unique_prefix, MessageField.VALUE, []), []
    serialize = AvroSerializer(client, AVRO, conf={**BY_TOPIC, "schema.id.serializer": header_schema_id_serializer})
    value = serialize({"embedding": [0.5], "title": "Kettle"}, topic)
    headers = [(name, content) for name, content in topic.headers]
    assert headers[0][1][0] == 1
    assert UUID(bytes=headers[0][1][1:])
    schemas = RegistrySchemas(RegistrySettings(url="mock://"), client)
    assert decoded(schemas.plain(unique_prefix, value, headers)) == {"embedding": [0.5], "title": "Kettle"}


def test_unknown_schema_is_a_fault_of_the_value_and_a_registry_that_is_none_is_not(
    schemas: RegistrySchemas, schema_registry: SchemaRegistry
) -> None:
    with pytest.raises(FormatError, match="no schema id 99999") as refused:
        schemas.plain("t", b"\x00\x00\x01\x86\x9f...", ())
    assert refused.value.kind == "UnknownSchema"
    for wrong, words in (
        ("http://127.0.0.1:1", "does not answer"),
        (f"{schema_registry.url}/no", "correct registry.url"),
    ):
        with pytest.raises(RegistryAwayError, match=words):
            RegistrySchemas(RegistrySettings(url=wrong)).plain("t", b"\x00\x00\x01\x86\x9f...", ())


def test_items_in_every_format_are_indexed_and_wait_for_a_registry_that_is_away(
    pipeline_settings: Settings,
    schema_registry: SchemaRegistry,
    client: SchemaRegistryClient,
    tiny_bundle: Path,
    tiny_embeddings: NDArray[np.float32],
    tmp_path: Path,
) -> None:
    registry = RegistrySettings(url=schema_registry.url, timeout_seconds=0.5)
    settings = pipeline_settings.model_copy(update={"bundle": tiny_bundle, "registry": registry})
    topics, row = settings.topics, tiny_embeddings[0].tolist()
    producer = Producer(producer_configuration(settings.kafka))

    def send(key: str, value: bytes | None) -> None:
        producer.produce(topics.item_updates, key=key, value=value)
        assert producer.flush(PATIENCE_SECONDS) == 0

    def codes() -> dict[bytes, bytes | None]:
        return {record.key(): record.value() for record in committed_records(settings, topics.item_codes)}

    for form, serialize in SERIALIZERS.items():
        send(form, serialize(client, topics.item_updates, {"embedding": row, "title": form}))
    send("plain", json.dumps({"embedding": row}).encode())
    schema_registry.pause()
    try:
        with SidstreamProcess(settings, "assigner", tmp_path) as assigner:
            wait_until(lambda: "waiting_for_registry" in assigner.log(), what="the wait for the registry", every=0.2)
            send("unknown", b"\x00\x00\x01\x86\x9fabc")
            assert not codes(), "what is plain waits too, in its order"
            assert not committed_records(settings, topics.item_updates_dead_letters), "nothing is refused for it"
            schema_registry.resume()
            wait_until(lambda: len(codes()) == 4, what="four items", every=0.2)
            wait_until(
                lambda: committed_records(settings, topics.item_updates_dead_letters), what="a letter", every=0.2
            )
            assert assigner.stop() == 0
    finally:
        schema_registry.resume()
    found = {key: ITEM_CODES.decode(value) for key, value in codes().items() if value is not None}
    assert found.keys() == {b"avro", b"json", b"protobuf", b"plain"}
    assert len({one.codes for one in found.values()}) == 1, "one embedding, whatever carried it"
    [letter] = committed_records(settings, topics.item_updates_dead_letters)
    assert (letter.key(), letter.value()) == (b"unknown", b"\x00\x00\x01\x86\x9fabc")
    assert dict(letter.headers() or [])["dlq.errors.class"] == b"UnknownSchema"
