"""Time splits: sequences and interactions become training data, a validation part and cases, in the order of time.

What must hold: nothing that is measured, or that settings are chosen on, is in the training data; a history holds only what its
user had before.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from models.catalogue import Catalogue
from models.data_files import DataFileError, numbered_lines, plain_id
from models.directories import require_writable_directory
from models.examples.records import TrainingExample, write_examples
from retriever.evaluation.cases import CaseMaker, CaseSet, EvaluationCase, EvaluationError, Remarks, TrainingData

_SHORTEST: Final = 3  # a history that gives one item to test, one to validate and one to know the user by
_COLUMNS: Final = {"user": ("user", "user_id"), "item": ("item", "item_id"), "time": ("time", "timestamp")}
TRAINING_FOLDER: Final = "training"
VALIDATION_FILE: Final = "validation.jsonl"
TEST_FILE: Final = "test.jsonl"


class Interaction(msgspec.Struct, frozen=True):
    """Somebody took something. ``time``: seconds since the epoch, or any number that grows."""

    user: str
    item: str
    time: float


@dataclass(frozen=True)
class TimeSplit:
    """Interactions from ``test_from`` on are measured, those from ``valid_from`` on before them choose settings."""

    valid_from: float
    test_from: float


@dataclass(frozen=True, eq=False)
class SplitData:
    """``training``: user → item ids, oldest first; ``validation`` and ``test``: examples that came after it."""

    training: Mapping[str, tuple[str, ...]]
    validation: Sequence[TrainingExample]
    test: Sequence[TrainingExample]
    source: str


def leave_last_out(sequences: Mapping[str, Sequence[str]]) -> SplitData:
    """Each user's last item is the test, the last but one validates, the rest trains; histories shorter than three train.

    Raises ``EvaluationError`` if no history is long enough.
    """
    training, validation, test = {}, [], []
    for user, sequence in sequences.items():
        items = tuple(sequence)
        training[user] = items
        if len(items) >= _SHORTEST:
            training[user] = items[:-2]
            validation.append(TrainingExample(user=user, history=items[:-2], item=items[-2]))
            test.append(TrainingExample(user=user, history=items[:-1], item=items[-1]))
    if not test:
        raise EvaluationError(f"no history has {_SHORTEST} items or more: there is nothing to leave out and measure on")
    return SplitData(training, validation, test, "each history's last item")


def split_by_time(interactions: Sequence[Interaction], split: TimeSplit) -> SplitData:
    """One test example an interaction from ``test_from`` on, with all that its user had before it.

    Raises ``EvaluationError`` if a part is empty.
    """
    ordered = sorted(interactions, key=lambda one: one.time)  # stable: equal times keep the order of the file
    had: dict[str, list[str]] = {}
    training: dict[str, list[str]] = {}
    validation: list[TrainingExample] = []
    test: list[TrainingExample] = []
    for one in ordered:
        history = had.setdefault(one.user, [])
        if one.time < split.valid_from:
            training.setdefault(one.user, []).append(one.item)
        else:
            part = test if one.time >= split.test_from else validation
            part.append(TrainingExample(user=one.user, history=tuple(history), item=one.item))
        history.append(one.item)
    if not test or not training:
        first, last = ordered[0].time, ordered[-1].time
        raise EvaluationError(
            f"the split at {split.test_from:g} leaves {'no interaction to measure on' if not test else 'nothing to learn from'}: "
            f"the interactions run from {first:g} to {last:g}"
        )
    source = f"interactions from {split.test_from:g} on"
    return SplitData({user: tuple(items) for user, items in training.items()}, validation, test, source)


def last_share(interactions: Sequence[Interaction], share: float) -> TimeSplit:
    """The last ``share`` of the interactions is the test, and as large a share before it validates."""
    times = sorted(one.time for one in interactions)
    test_from, valid_from = (
        times[min(len(times) - 1, max(0, round(len(times) * (1 - part))))] for part in (share, 2 * share)
    )
    return TimeSplit(valid_from, test_from)


def after(interactions: Sequence[Interaction], moment: float) -> TimeSplit:
    """Everything from ``moment`` on is the test; of what came before, as many interactions as that, at most a tenth of them,
    validate.
    """
    before = sorted(one.time for one in interactions if one.time < moment)
    later = len(interactions) - len(before)
    count = min(later, len(before) // 10)
    return TimeSplit(before[-count] if count else moment, moment)


def case_set(catalogue: Catalogue, data: SplitData) -> CaseSet:
    """The cases of a split, on the rows of a catalogue."""
    maker = CaseMaker(catalogue, Remarks())
    cases = maker.of_examples(data.test)
    aside = CaseMaker(catalogue, Remarks())
    validation: tuple[EvaluationCase, ...] = aside.of_examples(data.validation)
    sequences = [aside.known(sequence) for sequence in data.training.values()]
    training = TrainingData.of_sequences(sequences, len(catalogue), "what came before the cases")
    return CaseSet(cases, validation, training, data.source, maker.remarks)


def require_place_of_split(directory: Path) -> None:
    """Return if a split may be written to ``directory``.

    Raises:
        DirectoryError: it cannot be made or written to.
        EvaluationError: it holds something.
    """
    require_writable_directory(directory)
    if directory.is_dir() and any(directory.iterdir()):
        raise EvaluationError(f"{directory} is there and not empty: name another directory, or remove it")


def write_split(catalogue: Catalogue, data: SplitData, directory: Path) -> None:
    """Writes the catalogue with the training part of the histories alone, weights its items by their occurrences there, and the
    other parts as examples beside it.
    """
    require_place_of_split(directory)
    known = {item.id for item in catalogue.items}
    sequences = {
        user: items
        for user, sequence in data.training.items()
        if (items := tuple(item for item in sequence if item in known))
    }
    counts = dict.fromkeys(known, 0.5)  # of an item that nobody took: less than one occurrence, not nothing
    for items in sequences.values():
        for item in items:
            counts[item] += 1
    weighed = tuple(msgspec.structs.replace(item, weight=counts[item.id]) for item in catalogue.items)
    replace(catalogue, items=weighed, sequences=sequences).write(directory / TRAINING_FOLDER)
    write_examples(directory / VALIDATION_FILE, data.validation)
    write_examples(directory / TEST_FILE, data.test)


def read_interactions(path: Path) -> list[Interaction]:
    """Reads ``user, item, time``: a .tsv or .csv (or .gz) with a header line, or JSON lines. A time is a number, or ISO 8601.

    Raises ``DataFileError`` naming file and line.
    """
    lines = _json_rows(path) if ".jsonl" in path.suffixes else _table_rows(path)
    found = [Interaction(user, item, _time(path, number, time)) for number, (user, item, time) in lines]
    if not found:
        raise DataFileError(f"{path} holds no interaction: give the columns user, item and time, and a line for each")
    return found


def _table_rows(path: Path) -> Iterator[tuple[int, tuple[str, str, str]]]:
    lines = numbered_lines(path)
    delimiter = "," if ".csv" in path.suffixes else "\t"
    _, first = next(lines, (1, ""))
    header = next(csv.reader([first], delimiter=delimiter), [])
    places = []
    for name, spellings in _COLUMNS.items():
        place = next((header.index(spelling) for spelling in spellings if spelling in header), None)
        if place is None:
            raise DataFileError(f"{path} has the columns {header} but none called {name}: it needs user, item and time")
        places.append(place)
    for number, line in lines:
        cells = next(csv.reader([line], delimiter=delimiter))
        if len(cells) != len(header):
            raise DataFileError(
                f"{path} line {number} has {len(cells)} columns but the header has {len(header)}; mend the line"
            )
        user, item, time = (cells[place] for place in places)
        yield number, (user, item, time)


def _json_rows(path: Path) -> Iterator[tuple[int, tuple[str, str, str]]]:
    decoder = msgspec.json.Decoder(dict[str, str | int | float])
    for number, line in numbered_lines(path):
        try:
            record = decoder.decode(line)
        except (msgspec.DecodeError, UnicodeError) as error:
            raise DataFileError(f"{path} line {number} is no interaction ({error}); mend the line") from error
        cells = []
        for name, spellings in _COLUMNS.items():
            value = next((record[spelling] for spelling in spellings if spelling in record), None)
            if value is None:
                raise DataFileError(f"{path} line {number} has no {name}: an interaction has user, item and time")
            cells.append(str(plain_id(value)))
        yield number, (cells[0], cells[1], cells[2])


def moment(text: str) -> float:
    """A number, or ISO 8601 as seconds since the epoch (UTC where it says no zone). Raises ``ValueError``.

    >>> moment("12.5"), moment("1970-01-02")
    (12.5, 86400.0)
    """
    try:
        number = float(text)
    except ValueError:
        found = datetime.fromisoformat(text)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    if not math.isfinite(number):
        raise ValueError(f"{text} is no time")
    return number


def _time(path: Path, number: int, text: str) -> float:
    try:
        return moment(text)
    except ValueError:
        raise DataFileError(
            f"{path} line {number} has the time {text[:40]!r}: give a number or ISO 8601, such as 2026-05-01T12:00:00Z"
        ) from None
