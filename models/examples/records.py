"""What training learns from: examples (who asked what, having bought what, and took which item) and whole histories; read
from files of examples, sequences or interactions, and written as JSON lines.

What must hold: a file is one kind, told by its first line; a bad line is named; a field that is not read is told.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from models.data_files import DataFileError, numbered_lines, plain_id
from models.examples.arrow_files import SUFFIXES, arrow_rows


class TrainingExample(msgspec.Struct, frozen=True):
    """One example: ``query`` text (may be empty), ``user`` id, ``history`` item ids oldest first, and the ``item`` to
    be generated; ``embedding``: bytes of the float32 (D,) of the query, of whoever embeds queries without our towers.
    """

    query: str = ""
    user: str | None = None
    history: tuple[str, ...] = ()
    item: str = ""
    embedding: bytes | None = None


class TrainingHistory(msgspec.Struct, frozen=True):
    """The ``items`` of one user, oldest first, of which several are to be generated, each after those before it.

    ``queries``: for each item the text by which it was asked for ("" for none), None where it is not to be generated;
    empty: every item but the first is, without text.
    """

    items: tuple[str, ...]
    user: str | None = None
    queries: tuple[str | None, ...] = ()

    def asked(self) -> tuple[str | None, ...]:
        """``queries``, written out."""
        return self.queries or (None,) * min(1, len(self.items)) + ("",) * (len(self.items) - 1)


@dataclass(frozen=True)
class TrainingData:
    """Whole histories, and examples that stand alone or that ``models.examples.folding`` has yet to join."""

    histories: tuple[TrainingHistory, ...] = ()
    examples: tuple[TrainingExample, ...] = ()

    @classmethod
    def of(cls, data: TrainingData | Sequence[TrainingExample]) -> TrainingData:
        """The data as they are, or examples as data."""
        return data if isinstance(data, TrainingData) else cls(examples=tuple(data))

    @classmethod
    def of_sequences(cls, sequences: Iterable[Iterable[str]]) -> TrainingData:
        """Items that were taken one after the other, oldest first, by users whom nobody names."""
        return cls(histories=tuple(TrainingHistory(tuple(items)) for items in sequences))

    def __add__(self, other: TrainingData) -> TrainingData:
        return TrainingData(self.histories + other.histories, self.examples + other.examples)

    def texts(self) -> Iterator[str]:
        """The text of every query, as often as it is asked."""
        yield from (example.query for example in self.examples if example.query)
        yield from (query for history in self.histories for query in history.queries if query)

    @property
    def targets(self) -> int:
        """How many items are to be generated."""
        asked = (history.asked() for history in self.histories)
        return len(self.examples) + sum(query is not None for queries in asked for query in queries)

    @property
    def asked(self) -> int:
        """How many queries have a text."""
        return sum(1 for _ in self.texts())

    def described(self) -> str:
        """In words, what tells them from other data."""
        return f"{self.targets:,} targets ({self.digest()})"

    def digest(self) -> str:
        """First 16 hexadecimal digits of the SHA-256 of all that is said."""
        encoder, found = msgspec.json.Encoder(), hashlib.sha256()
        for record in chain(self.histories, self.examples):
            found.update(encoder.encode(record) + b"\n")
        return found.hexdigest()[:16]

    def split(self, share: float, seed: int) -> tuple[TrainingData, TrainingData]:
        """To train on, and ``share`` of it to hold back; all of a user's stay together. The same seed, the same split.

        One of the two may be empty where there is too little to divide.
        """
        groups: dict[object, int] = {}
        of_histories = [_group(groups, row.user, ("history", at)) for at, row in enumerate(self.histories)]
        of_examples = [_group(groups, row.user, ("example", at)) for at, row in enumerate(self.examples)]
        held = np.zeros(len(groups), dtype=bool)
        held[np.random.default_rng(seed).permutation(len(groups))[: round(share * len(groups))]] = True
        parts = [
            TrainingData(
                tuple(row for row, group in zip(self.histories, of_histories, strict=True) if held[group] == wanted),
                tuple(row for row, group in zip(self.examples, of_examples, strict=True) if held[group] == wanted),
            )
            for wanted in (False, True)
        ]
        return parts[0], parts[1]


def _group(groups: dict[object, int], user: str | None, alone: object) -> int:
    return groups.setdefault(alone if user is None else user, len(groups))


@dataclass(frozen=True)
class TrainingFile:
    """What a file holds. ``kind``: "examples", "sequences" or "interactions"; ``unread``: its fields that mean nothing here."""

    kind: str
    data: TrainingData
    unread: tuple[str, ...] = ()


# Fields of each kind, and the one that tells it from the others.
_FIELDS: Final[Mapping[str, tuple[str, ...]]] = {
    "sequences": ("user", "items"),
    "interactions": ("user", "item", "time"),
    "examples": (
        "query",
        "user",
        "history",
        "item",
        "embedding",
        "time",
    ),  # the time says when; nothing is learnt from it
}
_OTHER_NAMES: Final = {"user_id": "user", "item_id": "item", "timestamp": "time"}
_FORMS: Final = (
    'a line is an example {"query": "red shoes", "user": null, "history": ["id"], "item": "id"}, a sequence '
    '{"user": "ada", "items": ["oldest", "newest"]} or an interaction {"user": "ada", "item": "id", "time": 1767323045}; '
    "a .tsv has a header line with user_id and items, or user_id, item_id and time"
)
_RECORD: Final = msgspec.json.Decoder(dict[str, Any])
_ENCODER: Final = msgspec.json.Encoder()


def write_examples(path: Path, examples: Iterable[TrainingExample]) -> int:
    """Writes one JSON object a line; returns how many."""
    count = 0
    with path.open("wb") as file:
        for example in examples:
            record = {
                name: value for name in example.__struct_fields__ if (value := getattr(example, name)) is not None
            }
            if example.embedding is not None:
                record["embedding"] = np.frombuffer(example.embedding, "<f4").tolist()
            file.write(_ENCODER.encode(record) + b"\n")
            count += 1
    return count


def read_examples(path: Path) -> Iterator[TrainingExample]:
    """Yields the examples of a JSON-lines file; blank lines are skipped, a bad line is named. Integer ids are read as the
    text of their digits, as in a catalogue; null says "none".
    """
    for place, record in _json_records(path):
        yield _example(path, place, record)


@dataclass(frozen=True)
class OpenedTrainingFile:
    """A file whose ``kind`` is known, and its ``rows``, to be read once: examples, sequences, or interactions as they come;
    ``unread``: grows as they are read.
    """

    kind: str
    rows: Iterator[Any]
    unread: dict[str, None]


def open_training_file(path: Path) -> OpenedTrainingFile:
    """Examples, sequences (a user's items, oldest first) or interactions (user, item, time), as JSON lines or, but for examples,
    as a tab-separated table with a header, gzipped or not; or as an Arrow or Parquet table.

    Raises ``DataFileError`` for a file without a row and for one whose first row is none of the three, and as rows are read for
    one that is not of the first one's kind.
    """
    if path.suffix in SUFFIXES:
        records = _arrow_records(path)
    else:
        records = _table_records(path) if ".tsv" in path.suffixes else _json_records(path)
    first = next(records, None)
    if first is None:
        raise DataFileError(f"{path} is empty: {_FORMS}")
    kind = _kind(path, *first)
    unread: dict[str, None] = {}
    fields = frozenset(_FIELDS[kind])
    read = {"examples": _example, "sequences": _sequence, "interactions": _interaction}[kind]

    def rows() -> Iterator[Any]:
        for place, record in chain((first,), records):
            if not record.keys() <= fields:
                unread.update(dict.fromkeys(name for name in record if name not in fields))
            yield read(path, place, record)

    return OpenedTrainingFile(kind, rows(), unread)


def read_training_file(path: Path) -> TrainingFile:
    """All of ``open_training_file``; interactions are put in order here."""
    opened = open_training_file(path)
    rows = tuple(opened.rows)
    match opened.kind:
        case "examples":
            data = TrainingData(examples=rows)
        case "sequences":
            data = TrainingData(histories=rows)
        case _:
            data = TrainingData(histories=in_order(rows))
    return TrainingFile(opened.kind, data, tuple(opened.unread))


def _arrow_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, row in enumerate(arrow_rows(path), 1):
        yield f"row {number}", _named(row)


def _named(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a record says, by our names, ids as text."""
    found = {_OTHER_NAMES.get(name, name): value for name, value in record.items() if value is not None}
    for name in ("item", "user"):
        if name in found:
            found[name] = plain_id(found[name])
    for name in ("history", "items"):
        if isinstance(found.get(name), list):
            found[name] = [plain_id(item) for item in found[name]]
    return found


def _json_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in numbered_lines(path):
        try:
            record = _RECORD.decode(line)
        except (msgspec.DecodeError, UnicodeError) as error:
            raise DataFileError(f"{path}, line {number} is no training example ({error}): {_FORMS}") from error
        yield f"line {number}", _named(record)


def _table_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    lines = numbered_lines(path)
    _, first = next(lines, (1, ""))
    header = [_OTHER_NAMES.get(name, name) for name in first.split("\t")]
    if not {"user", "items"} <= set(header) and not {"user", "item", "time"} <= set(header):
        raise DataFileError(
            f"{path} has the columns {', '.join(first.split(chr(9)))}: a table of sequences needs user_id and items (ids "
            "between spaces, oldest first), one of interactions user_id, item_id and time"
        )
    for number, line in lines:
        cells = line.split("\t")
        if len(cells) != len(header):
            raise DataFileError(
                f"{path}, line {number} has {len(cells)} columns, the header {len(header)}: mend the line"
            )
        record: dict[str, Any] = dict(zip(header, cells, strict=True))
        if "items" in record:
            record["items"] = record["items"].split()
        yield f"line {number}", record


def _kind(path: Path, place: str, record: Mapping[str, Any]) -> str:
    if "items" in record:
        return "sequences"
    if "time" in record and not {"query", "history"} & record.keys():
        return "interactions"
    if "item" in record or {"query", "history"} & record.keys():
        return "examples"
    raise DataFileError(f"{path}, {place} has {', '.join(record) or 'no field'}: {_FORMS}")


def _example(path: Path, place: str, record: Mapping[str, Any]) -> TrainingExample:
    try:
        example = msgspec.convert(
            {name: value for name, value in record.items() if name != "embedding"}, TrainingExample
        )
        if record.get("embedding") is not None:
            example = msgspec.structs.replace(example, embedding=_embedding(record["embedding"]))
    except msgspec.ValidationError as error:
        raise DataFileError(f"{path}, {place} is no training example ({error}): {_FORMS}") from error
    if not example.item:
        raise DataFileError(f"{path}, {place} names no item: every example needs the item that it leads to")
    return example


def _embedding(value: Any) -> bytes:
    """Bytes of float32. Raises ``msgspec.ValidationError`` for what is no list of finite numbers that are not all zero."""
    numbers = np.array(msgspec.convert(value, list[float]), dtype="<f4")
    if not np.isfinite(numbers).all() or not numbers.any():
        raise msgspec.ValidationError("its embedding must be finite numbers that are not all zero")
    return numbers.tobytes()


def _sequence(path: Path, place: str, record: Mapping[str, Any]) -> TrainingHistory:
    try:
        return msgspec.convert({"items": record["items"], "user": record.get("user")}, TrainingHistory)
    except KeyError:
        raise DataFileError(f"{path}, {place} has no items, and the file is one of sequences: {_FORMS}") from None
    except msgspec.ValidationError as error:
        raise DataFileError(f"{path}, {place} is no sequence ({error}): {_FORMS}") from error


@dataclass(frozen=True)
class Interaction:
    """That a user chose an item at a time, of any unit."""

    user: str
    item: str
    time: float


def _interaction(path: Path, place: str, record: Mapping[str, Any]) -> Interaction:
    missing = [name for name in ("user", "item", "time") if not record.get(name) and record.get(name) != 0]
    if missing:
        raise DataFileError(f"{path}, {place} has no {missing[0]}, and the file is one of interactions: {_FORMS}")
    time = _seconds(record["time"])
    if time is None:
        raise DataFileError(
            f"{path}, {place} has the time {record['time']!r}: a time is a number or like 2026-01-31T12:00:00Z"
        )
    try:
        return msgspec.convert({"user": record["user"], "item": record["item"], "time": time}, Interaction)
    except msgspec.ValidationError as error:
        raise DataFileError(f"{path}, {place} is no interaction ({error}): {_FORMS}") from error


def _seconds(value: Any) -> float | None:
    """A time as a number in whatever unit it came, ISO 8601 as seconds since the epoch; None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, datetime):  # of an Arrow table
        return value.timestamp()
    try:
        number = float(value)
    except ValueError:
        try:
            return datetime.fromisoformat(value).timestamp()
        except ValueError:
            return None
    except TypeError:
        return None
    return number if math.isfinite(number) else None


def in_order(interactions: Iterable[Interaction]) -> tuple[TrainingHistory, ...]:
    """One history a user; what happened at the same time stays in the file's order."""
    of_users: dict[str, list[Interaction]] = {}
    for interaction in interactions:
        of_users.setdefault(interaction.user, []).append(interaction)
    return tuple(
        TrainingHistory(tuple(row.item for row in sorted(rows, key=lambda row: row.time)), user)
        for user, rows in of_users.items()
    )
