"""Our own schemas in a real registry, and what is sent by them: read as it was sent, in every format."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from confluent_kafka import Message
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext

from retriever.answering.admission import Admission, BundleLimits
from streamer.client.publisher import ItemPublisher
from streamer.events.intake import EventError
from streamer.events.interactions import InteractionIntake
from streamer.events.updates.checks import UpdateLimits
from streamer.events.updates.reading import UpdateIntake
from streamer.registry.client import RegistryError
from streamer.registry.reading import formats_of
from streamer.registry.subjects import Form, definition_of, register_subjects
from streamer.settings import Settings
from streamer.settings.records import RegistrySettings
from support.processes import committed_records
from support.schema_registry import SchemaRegistry

NOW = 1_767_323_045_000
EMBEDDING = np.array([0.5, -1.0, 2.0, 0.25], np.float32)
ATTRIBUTES = {"price": 30.5, "brand": "Alta", "in_stock": True, "tags": ["hot", "new"]}


def with_registry(settings: Settings, registry: SchemaRegistry, form: Form, **more: Any) -> Settings:
    return settings.model_copy(update={"registry": RegistrySettings(url=registry.url, format=form, **more)})


@pytest.mark.parametrize("form", ["avro", "protobuf", "json"])
def test_publisher_sends_what_the_assigner_reads(
    form: Form, pipeline_settings: Settings, schema_registry: SchemaRegistry
) -> None:
    settings = with_registry(pipeline_settings, schema_registry, form, publish=True)
    first = register_subjects(settings)
    assert register_subjects(settings) == first, "a second time changes nothing"
    assert set(first) == {
        f"{settings.topics.prefix}{topic}-value" for topic in ("item-updates", "queries", "interactions")
    }
    with ItemPublisher(settings) as publisher:
        publisher.update("sku-1", EMBEDDING, title="Kettle", weight=2.5, updated_at=NOW, attributes=ATTRIBUTES)
        publisher.delete("sku-2")
    sent = committed_records(settings, settings.topics.item_updates)
    assert {record.key(): record.value() is None for record in sent} == {b"sku-1": False, b"sku-2": True}
    [record] = [record for record in sent if record.value() is not None]
    assert record.value()[0] == 0, "in the registry's frame"
    intake = UpdateIntake(UpdateLimits.of(settings.assigner, 4), formats=formats_of(settings, rows=True))
    found = intake.read(record, NOW + 1)
    assert np.frombuffer(found.embedding or b"", "<f4").tolist() == EMBEDDING.tolist()
    assert (found.title, found.weight, found.updated_at) == ("Kettle", 2.5, NOW)
    assert msgspec.msgpack.decode(found.attributes or b"") == ATTRIBUTES
    assert intake.unknown_fields == {}


def test_publisher_without_our_schema_in_the_registry_says_what_to_do(
    pipeline_settings: Settings, schema_registry: SchemaRegistry
) -> None:
    publisher = ItemPublisher(with_registry(pipeline_settings, schema_registry, "avro", publish=True))
    with pytest.raises(RegistryError, match="topics create"):
        publisher.update("sku-1", EMBEDDING)
    with pytest.raises(RegistryError, match=r"registry\.url"):
        ItemPublisher(pipeline_settings.model_copy(update={"registry": RegistrySettings(publish=True)}))


def test_schema_of_others_that_ours_is_not_compatible_with_is_an_error(
    broker_settings: Settings, schema_registry: SchemaRegistry
) -> None:
    settings = with_registry(broker_settings, schema_registry, "avro")
    client, subject = SchemaRegistryClient({"url": schema_registry.url}), f"{settings.topics.queries}-value"
    client.register_schema(
        subject, Schema('{"type": "record", "name": "Q", "fields": [{"name": "q", "type": "int"}]}', "AVRO")
    )
    client.set_compatibility(subject, "FULL")
    with pytest.raises(RegistryError, match=f"refuses our schema of {subject}.*Another schema is there"):
        register_subjects(settings)


def test_queries_and_interactions_are_read_by_their_schemas(
    broker_settings: Settings, schema_registry: SchemaRegistry
) -> None:
    settings = with_registry(broker_settings, schema_registry, "avro")
    client, topics = SchemaRegistryClient({"url": schema_registry.url}), settings.topics

    def sent(topic: str, name: str, fields: dict[str, Any]) -> Message:
        serialize = AvroSerializer(client, definition_of(name, "avro"), conf={"subject.name.strategy.type": "TOPIC"})
        value = serialize(fields, SerializationContext(topic, MessageField.VALUE, []))
        return Message(topic=topic, key=b"ada", value=value, timestamp=(1, NOW))

    limits = settings.retriever
    admission = Admission(
        limits,
        limits_of=lambda who: BundleLimits(4),
        filterable={"price": "number"},
        formats=formats_of(settings),
        clock=lambda: NOW / 1000,
    )
    asked = {"text": "kettle", "history": ["sku-1"], "limit": 5, "filter": '{"field": "price", "lte": 30}'}
    checked = admission.decode(sent(topics.queries, "queries", {**asked, "slate": [{"per": "sid", "most": 1}]}))
    assert (checked.query.text, checked.query.history, checked.query.limit) == ("kettle", ("sku-1",), 5)
    assert checked.filter is not None
    assert checked.query.slate[0].most == 1  # type: ignore[index,union-attr]
    with pytest.raises(EventError, match="prise"):
        admission.decode(sent(topics.queries, "queries", {"text": "kettle", "filter": '{"field": "prise", "lte": 30}'}))

    intake = InteractionIntake(limits, formats_of(settings))
    found = intake.read(sent(topics.interactions, "interactions", {"item": "sku-1", "kind": "click", "at": NOW - 5}))
    assert (found.user, found.item, found.kind, found.at) == ("ada", "sku-1", "click", NOW - 5)
    with pytest.raises(EventError, match="kind"):
        intake.read(sent(topics.interactions, "interactions", {"item": "sku-1", "kind": "stare"}))
