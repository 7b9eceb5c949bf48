"""Many queries from a file, answered in this process without Kafka: by the bundle and the index of this machine, as the retriever
answers, into one file of answers.

What must hold: each line of the file has one answer, with items or with the reason why there are none, in the lines' order; a
run that is stopped goes on where it stood. Answers are written in parts of a thousand lines, and joined at the end: ``OUT.parts``
lies beside ``OUT`` until then.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final

import msgspec
from confluent_kafka import TIMESTAMP_NOT_AVAILABLE

from models.data_files import DataFileError, numbered_lines
from models.errors import SidstreamError
from retriever.answering.admission import Admission, CheckedQuery, QueryRefused
from retriever.answering.asked import Asked
from retriever.serving.loaded_bundle import LoadedBundle
from retriever.serving.loading import load_bundle
from streamer.events.intake import EventError
from streamer.events.records import Answer, AnswerError
from streamer.settings import Settings

LINES_A_PART: Final = 1_000
_RUN_FILE: Final = "run.json"
_ENCODE: Final = msgspec.json.Encoder().encode
_RECORD: Final = msgspec.json.Decoder(dict[str, Any])
# What is about waiting, and means nothing where nobody waits.
_OF_WAITING: Final = ("asked_at", "timeout_ms")


@dataclass
class BatchOutcome:
    """``answered`` queries, ``refused``: reason → how many, ``before``: of both, those of a run that was stopped."""

    answered: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    before: int = 0

    def add(self, answers: Sequence[Answer]) -> None:
        """Counts some more."""
        for answer in answers:
            if answer.error is None:
                self.answered += 1
            else:
                self.refused[answer.error.kind] += 1


class _Run(msgspec.Struct, frozen=True):
    """Of what the parts are: another file, bundle or index has other answers."""

    queries: str
    bundle: str
    index: str
    settings: str
    limit: int


class _Line:
    """A line as the record of ``queries`` that it would be."""

    def __init__(self, query_id: str, value: bytes) -> None:
        self._query_id, self._value = query_id, value

    def key(self) -> bytes:
        return self._query_id.encode("utf-8", "surrogatepass")

    def value(self) -> bytes:
        return self._value

    def topic(self) -> str:
        return "queries"

    def headers(self) -> None:
        return None

    def timestamp(self) -> tuple[int, int]:
        return TIMESTAMP_NOT_AVAILABLE, 0


def answer_file(
    settings: Settings,
    queries: Path,
    out: Path,
    *,
    limit: int = 10,
    lines_a_part: int = LINES_A_PART,
    progress: Callable[[int], None] = lambda _done: None,
) -> BatchOutcome:
    """Answers the JSON lines of ``queries`` into ``out`` (.parquet or .jsonl). ``limit``: of lines that say none; ``progress``:
    called with the lines done so far.

    Raises ``SidstreamError`` for a file of another kind, parts of another run, an index that is a shard, or a full disk.
    """
    if out.suffix not in (".parquet", ".jsonl"):
        raise SidstreamError(f"{out}: answers are written as .parquet or .jsonl, by the end of the name")
    if settings.indexer.partitions:
        raise SidstreamError(
            f"the index {settings.index} is a shard (partitions {settings.indexer.partitions} of item-codes), and answers from "
            "it are none of the whole catalogue: give an index of all partitions"
        )
    own = settings.retriever.model_copy(update={"user_queries_per_second": 0.0})  # nobody is kept waiting
    loaded = load_bundle(settings.bundle, settings.index, settings)
    try:
        admission = Admission(own, limits_of=lambda _who: loaded.limits, filterable=settings.attributes.filterable)
        parts = out.with_name(f"{out.name}.parts")
        outcome = BatchOutcome()
        try:
            _begin(parts, _Run(_digest(queries), loaded.id, str(loaded.index), repr(own), limit))
            names: list[Path] = []
            done = 0
            lines = numbered_lines(queries)
            while some := list(islice(lines, lines_a_part)):
                path = parts / f"{len(names):06}.jsonl"
                if path.exists():
                    answers = _read_part(path)
                    outcome.before += len(answers)
                else:
                    answers = _answers(loaded, admission, some, settings.retriever.batch_size, limit)
                    _write_lines(path, answers)
                outcome.add(answers)
                names.append(path)
                done += len(some)
                progress(done)
            if not names:
                raise DataFileError(f"{queries} has no query: give one JSON object a line")
            _join(names, out)
            shutil.rmtree(parts)
        except OSError as error:
            raise SidstreamError(
                f"the answers could not be written: {error.strerror or error}; {parts} has those so far, and the same command "
                "goes on from there"
            ) from error
    finally:
        loaded.close()
    return outcome


def _answers(
    loaded: LoadedBundle, admission: Admission, lines: Sequence[tuple[int, str]], at_once: int, limit: int
) -> list[Answer]:
    answers: list[Answer | None] = []
    asked: list[tuple[int, Asked]] = []
    for number, line in lines:
        record = _as_record(number, line, limit)
        try:
            checked, _ = admission.admit(record)
        except (EventError, QueryRefused) as error:
            refusal = AnswerError(kind=error.kind, message=str(error))
            answers.append(loaded.answerer.answer(record.key().decode("utf-8", "replace"), error=refusal))
            continue
        asked.append((len(answers), _asked(checked)))
        answers.append(None)
    for start in range(0, len(asked), at_once):
        some = asked[start : start + at_once]
        for (place, _), answer in zip(some, loaded.answerer.answers([one for _, one in some]), strict=True):
            answers[place] = answer
    return [answer for answer in answers if answer is not None]


def _asked(checked: CheckedQuery) -> Asked:
    return Asked(checked.query_id, checked.query, filter=checked.filter)


def _as_record(number: int, line: str, limit: int) -> _Line:
    """The query of a line; its id is ``query_id``, or else the line's number. What is no object is refused as it stands."""
    try:
        fields = _RECORD.decode(line)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return _Line(str(number), line.encode("utf-8", "surrogatepass"))
    identity = fields.pop("query_id", None)
    for name in _OF_WAITING:
        fields.pop(name, None)
    fields.setdefault("limit", limit)
    return _Line(str(number) if identity is None else str(identity), _ENCODE(fields))


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise DataFileError(f"no file {path}; check the path") from None


def _begin(parts: Path, run: _Run) -> None:
    """A folder for the parts, or that of the same run, which was stopped."""
    file = parts / _RUN_FILE
    if file.exists():
        if msgspec.json.decode(file.read_bytes(), type=_Run) != run:
            raise SidstreamError(
                f"{parts} has answers of another run (other queries, bundle, index or settings): remove it to begin anew"
            )
        return
    parts.mkdir(parents=True, exist_ok=True)
    _write(file, _ENCODE(run))


def _read_part(path: Path) -> list[Answer]:
    return [msgspec.json.decode(line, type=Answer) for line in path.read_bytes().splitlines()]


def _write_lines(path: Path, answers: Sequence[Answer]) -> None:
    _write(path, b"".join(_ENCODE(answer) + b"\n" for answer in answers))


def _write(path: Path, content: bytes) -> None:
    """Whole, or not at all."""
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(content)
    Path(file.name).replace(path)


def _join(parts: Sequence[Path], out: Path) -> None:
    """One file of all parts, a part at a time."""
    partial = out.with_name(f".{out.name}.partial")
    if out.suffix == ".jsonl":
        with partial.open("wb") as file:
            for part in parts:
                file.write(part.read_bytes())
    else:
        _write_parquet(partial, (_read_part(part) for part in parts))
    partial.replace(out)


def _write_parquet(path: Path, parts: Iterator[list[Answer]]) -> None:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise DataFileError(
            "Parquet is written by pyarrow, which is not installed: pip install 'sidstream[arrow]', or name a .jsonl"
        ) from None
    text = pyarrow.string()
    item = [("item_id", text), ("title", text), ("sid", text), ("score", pyarrow.float64()), ("found_by", text)]
    schema = pyarrow.schema(
        [
            ("query_id", text),
            ("items", pyarrow.list_(pyarrow.struct(item))),
            ("error", text),
            ("message", text),
            ("skipped_history", pyarrow.list_(text)),
            ("layout", pyarrow.int64()),
            ("codebook", text),
            ("model", text),
            ("bundle", text),
            ("position", pyarrow.map_(text, pyarrow.int64())),
        ]
    )
    with parquet.ParquetWriter(path, schema) as writer:
        for answers in parts:
            writer.write_batch(pyarrow.RecordBatch.from_pylist([_row(answer) for answer in answers], schema=schema))


def _row(answer: Answer) -> dict[str, Any]:
    row = msgspec.to_builtins(answer)
    error = row.pop("error") or {}
    return {
        **row,
        "error": error.get("kind"),
        "message": error.get("message"),
        "position": list(answer.position.items()),
    }
