"""Training examples: who asked what, having bought what, and took which item; read and written as JSON lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from models.data_files import DataFileError, numbered_lines, plain_id


class TrainingExample(msgspec.Struct, frozen=True):
    """One example: ``query`` text (may be empty), ``user`` id, ``history`` item ids oldest first, and the ``item`` to
    be generated.
    """

    query: str = ""
    user: str | None = None
    history: tuple[str, ...] = ()
    item: str = ""


_RECORD = msgspec.json.Decoder(dict[str, Any])
_ENCODER = msgspec.json.Encoder()


def write_examples(path: Path, examples: Iterable[TrainingExample]) -> int:
    """Writes one JSON object a line; returns how many."""
    count = 0
    with path.open("wb") as file:
        for example in examples:
            file.write(_ENCODER.encode(example))
            file.write(b"\n")
            count += 1
    return count


def read_examples(path: Path) -> Iterator[TrainingExample]:
    """Yields the examples of a JSON-lines file; blank lines are skipped, a bad line is named. Integer ids are read as the
    text of their digits, as in a catalogue; null says "none".
    """
    for number, line in numbered_lines(path):
        try:
            record = {name: value for name, value in _RECORD.decode(line).items() if value is not None}
            for name in ("item", "user"):
                if name in record:
                    record[name] = plain_id(record[name])
            if isinstance(record.get("history"), list):
                record["history"] = [plain_id(item) for item in record["history"]]
            example = msgspec.convert(record, TrainingExample)
        except (msgspec.DecodeError, UnicodeError) as error:
            raise DataFileError(
                f"{path}, line {number} is no training example ({error}): "
                'a line is like {"query": "red shoes", "user": null, "history": ["id"], "item": "id"}'
            ) from error
        if not example.item:
            raise DataFileError(f"{path}, line {number} names no item: every example needs the item that it leads to")
        yield example
