"""The AsyncAPI 3.0 document of all topics, made of their specifications and records: the committed ``docs/asyncapi.json``.

    python -m streamer.events.documents.asyncapi docs

writes it, and the page ``docs/topics.md`` that is rendered from it, anew after a topic or a record has changed; a test holds both
to the code, and the document to the schema that the AsyncAPI Initiative publishes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from streamer.events.documents.page import page_of
from streamer.events.documents.users import TopicUser, topic_users
from streamer.events.schemas import RECORDS, schema_of
from streamer.events.topics import TopicSpec, topic_specs
from streamer.settings import Settings
from streamer.settings.kafka import TOPIC_NAMES

VERSION: Final = "3.0.0"
_BINDING: Final = "0.5.0"
_LETTER_HEADERS: Final = {
    "dlq.errors.topic": "the topic that the record came from",
    "dlq.errors.partition": "its partition there",
    "dlq.errors.offset": "its offset there",
    "dlq.errors.timestamp": "its Kafka timestamp, milliseconds since the epoch",
    "dlq.errors.stage": "the process that refused it",
    "dlq.errors.class": "the kind of the fault",
    "dlq.errors.message": "a sentence that says what is wrong, and what to do",
}
_CLOUD_EVENT_HEADERS: Final = {
    "ce_specversion": "1.0",
    "ce_id": "unique within its source",
    "ce_source": "who sent it",
    "ce_type": "sidstream.<record>.v1 on what we send",
    "ce_subject": "the key",
    "ce_time": "RFC 3339",
    "content-type": "application/json or application/msgpack",
}
_TRACE_HEADERS: Final = {
    "traceparent": "W3C Trace Context: the operation that the record comes from",
    "tracestate": "what other tracing systems say of it",
}
# Topics whose records may have a trace, which is passed on to what is made of them (docs/tracing.md).
_TRACED: Final = frozenset({"item-updates", "item-codes", "item-attributes", "queries", "results", "interactions"})
# Topics whose records have CloudEvents headers of ours; of those that others send they are taken where they are there.
_EVENTS: Final = frozenset({"layouts", "drift", "alerts", "results", "serving"})
_KEYS: Final = {
    "item-updates": "the item's id, UTF-8",
    "item-codes": "the item's id",
    "item-attributes": "the item's id",
    "token-counts": "codebook:layer:token",
    "layouts": "codebook:generation",
    "drift": "the codebook",
    "alerts": "stable for one condition",
    "queries": "the query's id",
    "results": "the query's id",
    "serving": "serving",
    "interactions": "the user's id",
}


def asyncapi_document(settings: Settings) -> dict[str, Any]:
    """The document of the topics of these settings."""
    schemas: dict[str, Any] = {}
    messages: dict[str, Any] = {}
    channels: dict[str, Any] = {}
    records = {getattr(settings.topics, field): name for field, name in TOPIC_NAMES.items()}
    specs = topic_specs(settings)
    for spec in specs:
        default = records.get(spec.name, "changelog")
        message = _message(default, schemas)
        messages[message["name"]] = message
        channels[_channel_name(default)] = _channel(spec, message["name"], default)
    names = {spec.name: _channel_name(records.get(spec.name, "changelog")) for spec in specs}
    document = {
        "asyncapi": VERSION,
        "info": {
            "title": "sidstream",
            "version": "1",
            "description": "An event-driven indexer and retriever for generative retrieval. Its interface is these topics: any "
            "Kafka client publishes items, asks queries and reads answers, alerts and drift.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {
            "kafka": {
                "host": settings.kafka.bootstrap_servers.partition(",")[0],
                "protocol": "kafka",
                "description": "the cluster of kafka.bootstrap_servers",
            }
        },
        "channels": channels,
        "operations": {
            name: operation for user in topic_users(settings) for name, operation in _operations(user, names)
        },
        "components": {"schemas": dict(sorted(schemas.items())), "messages": messages},
    }
    plain: dict[str, Any] = json.loads(json.dumps(document))  # as a file has it: lists, no tuples
    return plain


def _channel_name(topic: str) -> str:
    """``item-updates.dlq`` as ``itemUpdatesDlq``."""
    first, *others = topic.replace(".", "-").split("-")
    return first + "".join(map(str.capitalize, others))


def _channel(spec: TopicSpec, message: str, default: str) -> dict[str, Any]:
    configuration: dict[str, Any] = {
        name: value.split(",") if name == "cleanup.policy" else int(value) if value.lstrip("-").isdigit() else value
        for name, value in spec.config.items()
    }
    return {
        "address": spec.name,
        "description": _summary(default),
        "messages": {message: {"$ref": f"#/components/messages/{message}"}},
        "bindings": {
            "kafka": {
                "partitions": spec.partitions,
                "replicas": spec.replication,
                "topicConfiguration": configuration,
                "bindingVersion": _BINDING,
            }
        },
    }


def _summary(topic: str) -> str:
    if topic in RECORDS:
        return str(schema_of(topic)["$defs"][RECORDS[topic].__name__]["description"])
    if topic.endswith(".dlq"):
        return f"Records of {topic.removesuffix('.dlq')} that cannot be used: key and value verbatim, the reason in the headers."
    if topic == "dlq.replayed":
        return "Which dead letters were sent again by `sidstream dlq replay`, so that none is sent twice. Internal."
    return "The monitor's own copy of the token counts. Internal."


def _message(topic: str, schemas: dict[str, Any]) -> dict[str, Any]:
    """The message of a topic; what its payload refers to joins ``schemas``."""
    if topic in RECORDS:
        found = schema_of(topic)
        for name, described in found["$defs"].items():
            schemas[name] = _moved(described)
        name = RECORDS[topic].__name__
        traced = _TRACE_HEADERS if topic in _TRACED else {}
        events = _headers(_CLOUD_EVENT_HEADERS, required=topic in _EVENTS, optional=traced)
        payload: dict[str, Any] = {"$ref": f"#/components/schemas/{name}"}
        key = {"type": "string", "description": _KEYS[topic]}
        return _described(name, topic, payload, events, key)
    letter = topic.endswith(".dlq")
    name = _channel_name(topic)[:1].upper() + _channel_name(topic)[1:]
    headers = _headers(_LETTER_HEADERS, required=True) if letter else None
    what = "verbatim, of the record that was refused" if letter else "internal"
    return _described(name, topic, {"description": what}, headers, {"description": what})


def _described(
    name: str, topic: str, payload: dict[str, Any], headers: dict[str, Any] | None, key: dict[str, Any]
) -> dict[str, Any]:
    message: dict[str, Any] = {"name": name, "title": f"a record of {topic}", "payload": payload}
    if headers is not None:
        message["headers"] = headers
    return message | {"bindings": {"kafka": {"key": key, "bindingVersion": _BINDING}}}


def _headers(names: Mapping[str, str], *, required: bool, optional: Mapping[str, str] | None = None) -> dict[str, Any]:
    every = {**names, **(optional or {})}
    properties = {name: {"type": "string", "description": said} for name, said in every.items()}
    return {"type": "object", "properties": properties} | ({"required": list(names)} if required else {})


def _moved(schema: Any) -> Any:
    """A schema whose references point to the document's components."""
    if isinstance(schema, dict):
        return {
            name: value.replace("#/$defs/", "#/components/schemas/") if name == "$ref" else _moved(value)
            for name, value in schema.items()
        }
    return [_moved(one) for one in schema] if isinstance(schema, list) else schema


def _operations(user: TopicUser, channels: Mapping[str, str]) -> list[tuple[str, dict[str, Any]]]:
    """What a user does with each topic."""
    found = []
    for action, topics in (("receive", user.reads), ("send", user.writes)):
        for topic in topics:
            channel = channels[topic]
            operation: dict[str, Any] = {
                "action": action,
                "channel": {"$ref": f"#/channels/{channel}"},
                "summary": f"The {user.name}, which {user.does}.",
            }
            if action == "receive" and user.groups and user.process:
                group = {"type": "string", "description": f"begins with {user.groups[0]}"}
                operation["bindings"] = {"kafka": {"groupId": group, "bindingVersion": _BINDING}}
            found.append((f"{user.name}{action.capitalize()}s{channel[:1].upper()}{channel[1:]}", operation))
    return found


def write_documents(directory: Path) -> None:
    """``asyncapi.json``, and ``topics.md`` that is rendered from it, of the settings' defaults."""
    document = asyncapi_document(defaults())
    (directory / "asyncapi.json").write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    (directory / "topics.md").write_text(page_of(document))


def defaults() -> Settings:
    """Settings without a file or an environment."""
    return Settings.model_construct(
        **{name: field.get_default(call_default_factory=True) for name, field in Settings.model_fields.items()}
    )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m streamer.events.documents.asyncapi DIRECTORY")
    write_documents(Path(sys.argv[1]))
