"""The page of an AsyncAPI document, in Markdown: every topic with its records, their fields, and who sends and receives them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

_DAY_MS: Final = 86_400_000
_KEYWORDS: Final = ("minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems")


def page_of(document: Mapping[str, Any]) -> str:
    """The whole page."""
    channels: Mapping[str, Any] = document["channels"]
    lines = [
        "# Topics",
        "",
        "Made from [asyncapi.json](asyncapi.json) (AsyncAPI 3.0), which is made from the code: `python -m "
        "streamer.events.documents.asyncapi docs`. Names and shapes are the defaults; `topics.prefix` and the other settings "
        "change them. Values are JSON or MessagePack maps; what else is read is in [formats.md](formats.md).",
        "",
        "| topic | record | partitions | kept | sent by | received by |",
        "|---|---|---|---|---|---|",
    ]
    for name, channel in channels.items():
        kafka = channel["bindings"]["kafka"]
        [message] = channel["messages"]
        senders, receivers = _users(document, name, "send"), _users(document, name, "receive")
        lines.append(
            f"| [`{channel['address']}`](#{_anchor(channel['address'])}) | {message} | {kafka['partitions']} | {_kept(kafka)} | "
            f"{', '.join(senders)} | {', '.join(receivers)} |"
        )
    for channel in channels.values():
        lines += ["", f"## {channel['address']}", "", _plain(channel["description"]), ""]
        [message] = channel["messages"]
        lines += _message(document, document["components"]["messages"][message])
    shown = {
        message["payload"].get("$ref", "").rpartition("/")[2] for message in document["components"]["messages"].values()
    }
    others = {name: schema for name, schema in document["components"]["schemas"].items() if name not in shown}
    if others:
        lines += ["", "# Records inside of others"]
    for name, schema in others.items():
        lines += ["", f"## {name}", "", *_paragraph(schema), *_fields(schema)]
    return "\n".join(lines).rstrip() + "\n"


def _message(document: Mapping[str, Any], message: Mapping[str, Any]) -> list[str]:
    key = message["bindings"]["kafka"]["key"].get("description", "")
    lines = [f"Key: {key}.", ""]
    reference = message["payload"].get("$ref")
    if reference is not None:
        lines += _fields(document["components"]["schemas"][reference.rpartition("/")[2]])
    headers = message.get("headers")
    if headers is not None:
        required = headers.get("required", ())
        needed = " (always there)" if required else " (where they are there)"
        rest = len(required) < len(headers["properties"])
        said = "; ".join(
            f"`{name}`{' (where it is there)' if required and rest and name not in required else ''}: {_text(one['description'])}"
            for name, one in headers["properties"].items()
        )
        lines += ["", f"Headers{needed}: {said}."]
    return lines


def _users(document: Mapping[str, Any], channel: str, action: str) -> list[str]:
    return [
        operation["summary"].removeprefix("The ").partition(",")[0]
        for operation in document["operations"].values()
        if operation["action"] == action and operation["channel"]["$ref"] == f"#/channels/{channel}"
    ]


def _kept(kafka: Mapping[str, Any]) -> str:
    configuration = kafka["topicConfiguration"]
    policy = "+".join(configuration.get("cleanup.policy", ["delete"]))
    retention = configuration.get("retention.ms")
    if retention is None:
        return policy
    days = retention // _DAY_MS
    return f"{policy}, {days} {'day' if days == 1 else 'days'}"


def _paragraph(schema: Mapping[str, Any]) -> list[str]:
    return [_plain(schema["description"]), ""] if "description" in schema else []


def _text(description: str) -> str:
    """Words in which no angle bracket begins a tag."""
    return description.replace("<", "&lt;")


def _plain(description: str) -> str:
    """A docstring in Markdown."""
    return description.replace("``", "`")


def _fields(schema: Mapping[str, Any]) -> list[str]:
    properties: Mapping[str, Any] = schema.get("properties", {})
    if not properties:
        return [f"A value: {_type(schema)}."]
    required = set(schema.get("required", ()))
    lines = ["| field | type | default |", "|---|---|---|"]
    for name, one in properties.items():
        default = "needed" if name in required else f"`{_json(one['default'])}`" if "default" in one else ""
        lines.append(f"| `{name}` | {_type(one)} | {default} |")
    return lines


def _type(schema: Mapping[str, Any]) -> str:
    """A schema in a few words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{_anchor(name)})"
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(f"`{one}`" for one in schema["enum"])
    kind = schema.get("type")
    if kind == "array":
        inner = schema.get("items")
        return f"list of {_type(inner)}" if isinstance(inner, dict) else "list"
    if kind == "object":
        inner = schema.get("additionalProperties")
        return f"map of {_type(inner)}" if isinstance(inner, dict) else "map"
    said = {"string": "text", "integer": "whole number", "boolean": "true or false", None: "anything"}.get(
        kind, str(kind)
    )
    if schema.get("contentEncoding") == "base64":
        said = "bytes (base64 in JSON)"
    bounds = ", ".join(f"{word} {schema[word]}" for word in _KEYWORDS if word in schema)
    return f"{said} ({bounds})" if bounds else said


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _anchor(heading: str) -> str:
    """The address of a heading, as GitHub and MkDocs make it."""
    return "".join(letter for letter in heading.lower() if letter.isalnum() or letter in "-_ ").replace(" ", "-")
