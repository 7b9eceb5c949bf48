"""The page of the committed schemas of each topic's values."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from documentation.markdown import table, unbroken

PAGE: Final = "reference/schemas.md"
FOLDER: Final = Path(__file__).resolve().parent.parent / "docs" / "schemas"
_KINDS: Final = {".json": "JSON Schema", ".avsc": "Avro", ".proto": "Protobuf"}
_BEGINNING: Final = """\
# Schemas

Each topic's values, as JSON Schema; those that are sent in the frame of a schema registry also as Avro and Protobuf
([formats](../formats.md)). Made from the records by `python -m streamer.events.schemas docs/schemas`; what a
release has promised is kept, and a record only grows.
"""


def schemas_page() -> str:
    """The page, in Markdown."""
    topics = sorted({path.stem for path in FOLDER.iterdir() if path.suffix in _KINDS})
    rows = []
    for topic in topics:
        files = [FOLDER / f"{topic}{suffix}" for suffix in _KINDS]
        rows.append(
            (unbroken(topic), *(f"[{one.name}](../schemas/{one.name})" if one.exists() else "" for one in files))
        )
    return "\n".join([_BEGINNING, *table(("topic", *_KINDS.values()), rows), ""])
