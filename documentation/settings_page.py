"""The page of all settings, made from their pydantic models."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Final

from pydantic import BaseModel

from documentation.markdown import anchor, code, plain, table, unbroken
from streamer.settings import Settings
from streamer.settings.kafka import TOPIC_NAMES
from streamer.settings.section import Section

PAGE: Final = "reference/settings.md"
_BOUNDS: Final = {
    "minimum": "≥\u00a0{}",
    "exclusiveMinimum": ">\u00a0{}",
    "maximum": "≤\u00a0{}",
    "exclusiveMaximum": "<\u00a0{}",
}
_KINDS: Final = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "null": "absent",
}
_BEGINNING: Final = """\
# Settings

Made from the code, so that every setting is here, with the default that it has.

Settings come from `sidstream.toml` in the working directory (or the file that `SIDSTREAM_CONFIG` names) and from
the environment, which wins. A setting's variable is `SIDSTREAM_` and its name in capitals, with two underscores for
each point: `kafka.bootstrap_servers` is `SIDSTREAM_KAFKA__BOOTSTRAP_SERVERS`. A name that does not exist, or a
value out of its range, ends the program with a message that names it.
"""


def sections() -> Iterator[tuple[str, type[BaseModel]]]:
    """Name and model of each group of settings; the first has no name."""
    yield "", Settings
    for name, field in Settings.model_fields.items():
        if inspect.isclass(field.annotation) and issubclass(field.annotation, Section):
            yield name, field.annotation


@cache
def setting_names() -> set[str]:
    """Every setting's whole name: ``kafka.bootstrap_servers``."""
    return {full for prefix, model in sections() for full, _ in _fields(prefix, model)}


def settings_page() -> str:
    """The page, in Markdown."""
    lines = [_BEGINNING]
    for prefix, model in sections():
        schema = model.model_json_schema()
        lines.append(f"## {prefix}\n" if prefix else "## Where things lie\n")
        if prefix and model.__doc__:
            lines.append(plain(inspect.cleandoc(model.__doc__)) + "\n")
        rows = []
        for full, name in _fields(prefix, model):
            field = schema["properties"][name]
            meaning = plain(field.get("description", "")) or _meaning(full)
            rows.append((anchor(full) + unbroken(name), _type(field, schema), _default(model, name, field), meaning))
        lines += [*table(("setting", "type", "default", "meaning"), rows), ""]
    return "\n".join(lines)


def _fields(prefix: str, model: type[BaseModel]) -> Iterator[tuple[str, str]]:
    """(whole name, name) of a group's own settings."""
    for name, field in model.model_fields.items():
        if not (inspect.isclass(field.annotation) and issubclass(field.annotation, Section)):
            yield (f"{prefix}.{name}" if prefix else name), name


def _meaning(full: str) -> str:
    """Of a setting that describes itself by its name: what a topic is called, or the port that a server listens on."""
    topic = TOPIC_NAMES.get(full.removeprefix("topics."))
    if topic is not None:
        return f"the name of [this topic](../topics.md#{topic.replace('.', '')})"
    return "where it listens" if full.endswith(".port") else ""


def _type(field: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """What a value may be, in a few words."""
    if "$ref" in field:
        return _type(schema["$defs"][field["$ref"].rpartition("/")[2]], schema)
    if "anyOf" in field:
        return " or ".join(_type(one, schema) for one in field["anyOf"])
    if "enum" in field:
        return ", ".join(code(json.dumps(value)) for value in field["enum"])
    if field.get("type") == "object":
        return f"table of {_type(field['additionalProperties'], schema)}"
    if field.get("type") == "array":
        return f"list of {_type(field['items'], schema)}"
    if field.get("format") == "password":
        return "text (secret)"
    kind = "path" if field.get("format") == "path" else _KINDS[field["type"]]
    bounds = [text.format(f"{field[name]:,}") for name, text in _BOUNDS.items() if name in field]
    if "pattern" in field:
        bounds.append(code(field["pattern"]))
    return f"{kind} ({', '.join(bounds)})" if bounds else kind


def _default(model: type[BaseModel], name: str, field: Mapping[str, Any]) -> str:
    """The value that it has when nobody says anything."""
    if "default" in field:
        return "" if field["default"] is None else code(json.dumps(field["default"], ensure_ascii=False))
    # Topics take theirs from their prefix; tables are empty.
    value = getattr(model.model_validate({}), name)
    return code(json.dumps(value, ensure_ascii=False))
