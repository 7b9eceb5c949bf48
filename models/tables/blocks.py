"""The rows of one file, a few thousand at a time, each with its number, whatever kind of file it is.

What must hold: memory is bounded by ``ROWS_AT_ONCE`` rows, and for an Arrow file that is compressed or not on this machine by one
record batch of whoever wrote it; a row that its file's kind cannot read is handed on as a fault, with its number; a file that
cannot be read at all is refused by its name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from models.data_files import DataFileError, lines_of
from models.errors import first_line
from models.tables.table_files import ARROW, CSV, JSON_LINES, PARQUET, TSV, TableFile

ROWS_AT_ONCE: Final = 2_048
_CSV_BLOCK_BYTES: Final = 4 * 1024 * 1024
_PARQUET_BUFFER_BYTES: Final = 1024 * 1024  # pages are read as they are needed, not a row group at once
_RECORD: Final = msgspec.json.Decoder(dict[str, Any])


@dataclass(frozen=True)
class Fault:
    """A row that is not taken. ``place``: ``row 3`` or ``line 3``; ``column``: empty where the row as a whole is at fault."""

    file: str
    place: str
    column: str
    why: str

    def __str__(self) -> str:
        column = f", column {self.column}" if self.column else ""
        return f"{self.file} {self.place}{column}: {self.why}"


@dataclass(frozen=True)
class Block:
    """Some rows of one file. ``columns``: name → a pyarrow array or a list of Python values, one entry a row; ``numbers``: of the
    rows, counted from 1; ``unit``: ``row`` or ``line``; ``faults``: rows between them that could not be read.
    """

    file: str
    unit: str
    numbers: Sequence[int]
    columns: dict[str, Any]
    faults: list[Fault] = field(default_factory=list)

    def values(self, column: str) -> list[Any]:
        """Python values of a column."""
        found = self.columns[column]
        if isinstance(found, list):
            return found
        values: list[Any] = found.to_pylist()
        return values

    def place(self, row: int) -> str:
        """Of the row at this place of the block, for a person."""
        return f"{self.unit} {self.numbers[row]}"


def column_names(file: TableFile) -> list[str]:
    """The columns of a file; of JSON lines those of its first line. Raises ``DataFileError`` for a file that cannot be read."""
    if file.kind == JSON_LINES:
        with file.location.open() as opened:
            for number, line in lines_of(file.name, opened):
                try:
                    return list(_RECORD.decode(line))
                except (msgspec.DecodeError, UnicodeError) as error:
                    raise DataFileError(
                        f"{file.name} line {number} is no JSON object ({error}); mend the line"
                    ) from error
        raise DataFileError(f"{file.name} has no rows; add at least one")
    with _read_by_pyarrow(file):
        return list(_schema(file).names)


def blocks(file: TableFile, columns: Sequence[str], *, mapped: bool = True) -> Iterator[Block]:
    """The rows of a file, these columns alone. ``mapped``: see ``Location.arrow_file``."""
    if file.kind == JSON_LINES:
        yield from _json_blocks(file, columns)
        return
    with _read_by_pyarrow(file):
        if file.kind in (CSV, TSV):
            yield from _csv_blocks(file, columns)
            return
        number = 1
        for batch in record_batches(file, columns, mapped=mapped):
            for start in range(0, len(batch), ROWS_AT_ONCE):
                some = batch.slice(start, ROWS_AT_ONCE)
                found = {name: some.column(name) for name in columns}
                yield Block(file.name, "row", range(number, number + len(some)), found)
                number += len(some)


def record_batches(file: TableFile, columns: Sequence[str] | None = None, *, mapped: bool = True) -> Iterator[Any]:
    """pyarrow's record batches of a Parquet or Arrow file. Raises pyarrow's exceptions."""
    import pyarrow

    with file.location.arrow_file(mapped=mapped and file.kind == ARROW) as source:
        if file.kind == PARQUET:
            from pyarrow import parquet

            with parquet.ParquetFile(source, buffer_size=_PARQUET_BUFFER_BYTES, pre_buffer=False) as opened:
                wanted = None if columns is None else list(columns)
                yield from opened.iter_batches(batch_size=ROWS_AT_ONCE, columns=wanted)
            return
        if _is_ipc_file(source):
            reader = pyarrow.ipc.open_file(source)
            batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
        else:  # no footer: a stream, as Hugging Face's datasets writes them
            batches = iter(pyarrow.ipc.open_stream(source))
        for batch in batches:
            yield batch if columns is None else batch.select(list(columns))


def _is_ipc_file(source: Any) -> bool:
    first = source.read(6)
    source.seek(0)
    return bool(first == b"ARROW1")


def _schema(file: TableFile) -> Any:
    import pyarrow

    if file.kind in (CSV, TSV):
        with _csv_source(file) as source, _csv_reader(file, source, {}, lambda _row: "skip") as reader:
            return reader.schema
    with file.location.arrow_file() as source:
        if file.kind == PARQUET:
            from pyarrow import parquet

            return parquet.read_schema(source)
        return pyarrow.ipc.open_file(source).schema if _is_ipc_file(source) else pyarrow.ipc.open_stream(source).schema


class _read_by_pyarrow:
    """Turns what pyarrow raises into a ``DataFileError`` with the file's name."""

    def __init__(self, file: TableFile) -> None:
        self._file = file

    def __enter__(self) -> None:
        try:
            import pyarrow  # noqa: F401
        except ImportError:
            raise DataFileError(
                f"{self._file.name} is read by pyarrow, which is not installed: pip install 'sidstream[arrow]', or give JSON "
                "lines with items.npy"
            ) from None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _traceback: object) -> None:
        import pyarrow

        if isinstance(error, DataFileError) or not isinstance(error, Exception):
            return
        of_pyarrow = isinstance(error, pyarrow.ArrowException)
        at_fault = self._file.location.remote is not None and not of_pyarrow  # whatever its filesystem raises
        if at_fault or isinstance(error, FileNotFoundError):
            raise self._file.location.fault(error) from error
        if not of_pyarrow and not isinstance(error, (OSError, ValueError, KeyError)):
            return
        kind_of_file = {ARROW: "Arrow", PARQUET: "Parquet", CSV: "CSV", TSV: "TSV"}[self._file.kind]
        raise DataFileError(
            f"{self._file.name} cannot be read as {kind_of_file}: {first_line(error)}; write it again"
        ) from error


def _csv_source(file: TableFile) -> Any:
    import pyarrow

    source = file.location.arrow_file(mapped=False)
    return pyarrow.CompressedInputStream(source, file.compression) if file.compression else source


def _csv_reader(file: TableFile, source: Any, types: dict[str, Any], on_invalid: Any) -> Any:
    """``types``: of columns; others are guessed from the first block. Rows of another width go to ``on_invalid``."""
    from pyarrow import csv

    return csv.open_csv(
        source,
        # One thread, which alone knows the numbers of rows.
        read_options=csv.ReadOptions(use_threads=False, block_size=_CSV_BLOCK_BYTES),
        parse_options=csv.ParseOptions(
            delimiter="\t" if file.kind == TSV else ",", newlines_in_values=True, invalid_row_handler=on_invalid
        ),
        convert_options=csv.ConvertOptions(
            column_types=types, include_columns=list(types) or None, null_values=[""], strings_can_be_null=True
        ),
    )


def _csv_blocks(file: TableFile, columns: Sequence[str]) -> Iterator[Block]:
    import pyarrow

    faults: list[Fault] = []
    skipped: set[int] = set()

    def on_invalid(row: Any) -> str:
        number = row.number - 1  # the header is pyarrow's first row
        skipped.add(number)
        why = f"has {row.actual_columns} columns, and the header {row.expected_columns}"
        faults.append(Fault(file.name, f"row {number}", "", why))
        return "skip"

    # As text, which the reader of items converts cell by cell: an id 007 stays itself, and a fault has its row.
    text = dict.fromkeys(columns, pyarrow.string())
    number = 1
    with _csv_source(file) as source, _csv_reader(file, source, text, on_invalid) as reader:
        for batch in reader:
            for start in range(0, len(batch), ROWS_AT_ONCE):
                some = batch.slice(start, ROWS_AT_ONCE)
                numbers: list[int] = []
                while len(numbers) < len(some):
                    if number not in skipped:
                        numbers.append(number)
                    number += 1
                yield Block(file.name, "row", numbers, {name: some.column(name) for name in columns}, faults[:])
                faults.clear()
    if faults:
        yield Block(file.name, "row", [], {name: [] for name in columns}, faults[:])


def guessed_types(file: TableFile, columns: Sequence[str]) -> dict[str, str]:
    """For each column of a CSV file ``number``, ``boolean`` or ``string``: by the rows of its first block."""
    import pyarrow

    types = pyarrow.types
    with _read_by_pyarrow(file):
        schema = _schema(file)
    found = {}
    for name in columns:
        kind = schema.field(name).type
        number = types.is_integer(kind) or types.is_floating(kind)
        found[name] = "number" if number else "boolean" if types.is_boolean(kind) else "string"
    return found


def _json_blocks(file: TableFile, columns: Sequence[str]) -> Iterator[Block]:
    with file.location.open() as opened:
        numbers: list[int] = []
        rows: list[dict[str, Any]] = []
        faults: list[Fault] = []
        for number, line in lines_of(file.name, opened):
            try:
                rows.append(_RECORD.decode(line))
                numbers.append(number)
            except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
                faults.append(Fault(file.name, f"line {number}", "", f"is no JSON object ({error})"))
            if len(rows) + len(faults) >= ROWS_AT_ONCE:
                yield _of_rows(file, numbers, rows, columns, faults)
                numbers, rows, faults = [], [], []
        if rows or faults:
            yield _of_rows(file, numbers, rows, columns, faults)


def _of_rows(
    file: TableFile, numbers: list[int], rows: list[dict[str, Any]], columns: Sequence[str], faults: list[Fault]
) -> Block:
    return Block(file.name, "line", numbers, {name: [row.get(name) for row in rows] for name in columns}, faults)
