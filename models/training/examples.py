"""Training examples: who asked what, having bought what, and took which item; read and written as JSON lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from models.errors import SidstreamError


class TrainingExample(msgspec.Struct, frozen=True):
    """One example: ``query`` text (may be empty), ``user`` id, ``history`` item ids oldest first, and the ``item`` to
    be generated.
    """

    query: str = ""
    user: str | None = None
    history: tuple[str, ...] = ()
    item: str = ""


_DECODER = msgspec.json.Decoder(TrainingExample)
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
    """Yields the examples of a JSON-lines file; empty lines are skipped, a bad line is named."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise SidstreamError(f"cannot read training examples from {path}: {error.strerror}") from error
    with file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                example = _DECODER.decode(line)
            except msgspec.DecodeError as error:
                raise SidstreamError(
                    f"{path}, line {number} is no training example ({error}): "
                    'a line is like {"query": "red shoes", "user": null, "history": ["id"], "item": "id"}'
                ) from error
            if not example.item:
                raise SidstreamError(
                    f"{path}, line {number} names no item: every example needs the item that it leads to"
                )
            yield example
