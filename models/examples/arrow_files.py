"""Rows of Arrow files (IPC, as files or streams: ``.arrow``, ``.feather``) and of Parquet, some thousands in memory at a time.

What must hold: a file of any size is read in the same little memory; one that cannot be read is refused by its name.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from models.data_files import DataFileError
from models.errors import first_line
from models.tables.blocks import ROWS_AT_ONCE, record_batches
from models.tables.locations import Location
from models.tables.table_files import ARROW, PARQUET, TableFile

SUFFIXES: Final = frozenset({".arrow", ".feather", ".parquet"})


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
        for batch in record_batches(TableFile(Location.of(path), PARQUET if path.suffix == ".parquet" else ARROW)):
            for start in range(0, len(batch), ROWS_AT_ONCE):
                yield from _in_microseconds(batch.slice(start, ROWS_AT_ONCE)).to_pylist()
    except (
        pyarrow.ArrowException,
        OSError,
        ValueError,
        KeyError,
    ) as error:  # the last two: values that Python has no type for
        raise DataFileError(
            f"{path} cannot be read as {path.suffix[1:]}: {first_line(error)}; write it again"
        ) from error


def _in_microseconds(batch: Any) -> Any:
    """Times as Python has them: nanoseconds are cut off."""
    import pyarrow

    fields = [
        field.with_type(pyarrow.timestamp("us", field.type.tz)) if pyarrow.types.is_timestamp(field.type) else field
        for field in batch.schema
    ]
    return batch.cast(pyarrow.schema(fields), safe=False) if fields != list(batch.schema) else batch
