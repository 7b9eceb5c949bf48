"""The schemas of each topic's values, for those who write or read them in other languages: the committed ``docs/schemas``.

    python -m streamer.events.schemas docs/schemas

writes them anew after a record has changed; a test holds them to the code, and to what the last release has promised.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from streamer.events.formats.definitions import avro_of, protobuf_of
from streamer.events.interactions import Interaction
from streamer.events.records import (
    Alert,
    Answer,
    Drift,
    ItemAttributes,
    ItemCodes,
    ItemUpdate,
    LayoutRecord,
    Query,
    TokenCount,
)
from streamer.events.serving import Serving

RECORDS: Final[Mapping[str, type[msgspec.Struct]]] = {
    "item-updates": ItemUpdate,
    "item-codes": ItemCodes,
    "item-attributes": ItemAttributes,
    "token-counts": TokenCount,
    "layouts": LayoutRecord,
    "drift": Drift,
    "alerts": Alert,
    "queries": Query,
    "results": Answer,
    "serving": Serving,
    "interactions": Interaction,
}
REGISTERED: Final = ("item-updates", "queries", "interactions")
"""What a schema registry has schemas of ours for."""
_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"


def schema_of(topic: str) -> dict[str, Any]:
    """The JSON Schema of a topic's values; MessagePack values have the same fields, with bytes where JSON has base64."""
    record = RECORDS[topic]
    described = msgspec.json.schema(record)
    for definition in described["$defs"].values():
        if "description" in definition:
            definition["description"] = inspect.cleandoc(definition["description"])
    schema: dict[str, Any] = json.loads(
        json.dumps({"$schema": _DIALECT, **described})
    )  # as a file has it: lists, no tuples
    return schema


def write_schemas(directory: Path) -> None:
    """``<topic>.json`` for each topic, under the topic's default name; of those in a registry, ``.avsc`` and ``.proto`` too."""
    directory.mkdir(parents=True, exist_ok=True)
    for topic in RECORDS:
        (directory / f"{topic}.json").write_text(json.dumps(schema_of(topic), indent=2, ensure_ascii=False) + "\n")
    for topic in REGISTERED:
        avro = json.dumps(json.loads(avro_of(RECORDS[topic])), indent=2, ensure_ascii=False)
        (directory / f"{topic}.avsc").write_text(avro + "\n")
        (directory / f"{topic}.proto").write_text(protobuf_of(RECORDS[topic]))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m streamer.events.schemas DIRECTORY")
    write_schemas(Path(sys.argv[1]))
