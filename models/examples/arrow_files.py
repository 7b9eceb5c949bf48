"""Rows of Arrow files (IPC, as files or streams: ``.arrow``, ``.feather``) and of Parquet, some thousands in memory at a time.

What must hold: a file of any size is read in the same little memory; one that cannot be read is refused by its name.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from models.data_files import DataFileError

SUFFIXES: Final = frozenset({".arrow", ".feather", ".parquet"})
_ROWS_AT_ONCE: Final = 4_096


def arrow_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Each row by the names of its columns. Raises ``DataFileError`` for a file that is missing, damaged or no table, and where
    pyarrow is not installed.
    """
    try:
        import pyarrow
    except ImportError:
        raise DataFileError(
            f"{path} is read by pyarrow, which is not installed: pip install 'sidstream[arrow]', or give JSON lines"
        ) from None
    if not path.is_file():
        raise DataFileError(f"no file {path}; check the path")
    try:
        for batch in _batches(path):
            for start in range(0, len(batch), _ROWS_AT_ONCE):
                yield from _in_microseconds(batch.slice(start, _ROWS_AT_ONCE)).to_pylist()
    except (
        pyarrow.ArrowException,
        OSError,
        ValueError,
        KeyError,
    ) as error:  # the last two: values that Python has no type for
        first_line = (str(error) or type(error).__name__).splitlines()[0]
        raise DataFileError(f"{path} cannot be read as {path.suffix[1:]}: {first_line}; write it again") from error


def _in_microseconds(batch: Any) -> Any:
    """Times as Python has them: nanoseconds are cut off."""
    import pyarrow

    fields = [
        field.with_type(pyarrow.timestamp("us", field.type.tz)) if pyarrow.types.is_timestamp(field.type) else field
        for field in batch.schema
    ]
    return batch.cast(pyarrow.schema(fields), safe=False) if fields != list(batch.schema) else batch


def _batches(path: Path) -> Iterator[Any]:
    import pyarrow

    if path.suffix == ".parquet":
        from pyarrow import parquet

        with parquet.ParquetFile(path) as file:
            yield from file.iter_batches(batch_size=_ROWS_AT_ONCE)
        return
    with pyarrow.memory_map(str(path)) as source:
        try:
            reader = pyarrow.ipc.open_file(source)
        except pyarrow.ArrowInvalid:  # no footer: a stream, as Hugging Face's datasets writes them
            source.seek(0)
            yield from pyarrow.ipc.open_stream(source)
        else:
            for number in range(reader.num_record_batches):
                yield reader.get_batch(number)
