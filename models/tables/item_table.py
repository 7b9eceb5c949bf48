"""A table of items, opened: its files, its columns, and its rows as items some thousands at a time.

What must hold: the columns of every file are the same in meaning; D is that of the first row; a table of any size takes the
memory of one block (``models.tables.blocks``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from models.data_files import DataFileError
from models.tables.blocks import Fault, blocks, column_names, guessed_types
from models.tables.columns import Chosen, ColumnNames
from models.tables.item_rows import ItemRows, ids_of, items_of
from models.tables.locations import Location
from models.tables.table_files import CSV, TSV, TableFile, table_files

MOST_SAID: Final = 20  # rows that are refused, one by one


@dataclass(frozen=True)
class ItemTable:
    """``files``: in their order; ``columns``: as a person named them."""

    name: str
    files: Sequence[TableFile]
    columns: ColumnNames
    mapped: bool = True

    @classmethod
    def open(cls, address: str | Path, columns: ColumnNames | None = None) -> ItemTable:
        """Raises ``DataFileError`` where there is no table."""
        return cls(str(address), table_files(Location.of(address)), columns or ColumnNames())

    def chosen(self, *, embeddings: bool = True) -> Chosen:
        """What the columns of the first file are."""
        return self._chosen(self.files[0], embeddings=embeddings)

    def rows(self, *, embeddings: bool = True, dimension: int | None = None) -> Iterator[ItemRows]:
        """All rows. ``dimension``: D, where it is known. Raises ``DataFileError`` for a file that cannot be read."""
        for file in self.files:
            for rows in self.rows_of(file, embeddings=embeddings, dimension=dimension):
                if dimension is None and rows.embeddings is not None and len(rows.embeddings):
                    dimension = rows.embeddings.shape[1]
                yield rows

    def rows_of(self, file: TableFile, *, embeddings: bool = True, dimension: int | None = None) -> Iterator[ItemRows]:
        """The rows of one of the files."""
        chosen = self._chosen(file, embeddings=embeddings)
        of_text = file.kind in (CSV, TSV) and bool(chosen.attributes)
        types = guessed_types(file, list(chosen.attributes.values())) if of_text else None
        for block in blocks(file, chosen.columns, mapped=self.mapped):
            rows = items_of(block, chosen, dimension=dimension, text_types=types)
            if dimension is None and rows.embeddings is not None and len(rows.embeddings):
                dimension = rows.embeddings.shape[1]
            yield rows

    def ids(self) -> Iterator[tuple[list[str], list[Fault]]]:
        """The ids alone, whatever else the table has."""
        for file in self.files:
            chosen = self._chosen(file, embeddings=False)
            for block in blocks(file, [chosen.parts["id"]], mapped=self.mapped):
                yield ids_of(block, chosen)

    def _chosen(self, file: TableFile, *, embeddings: bool) -> Chosen:
        return self.columns.chosen(column_names(file), of=file.name, embeddings=embeddings)


@dataclass
class Faults:
    """Rows that were not taken: how many, and the first of them."""

    count: int = 0
    first: list[Fault] = field(default_factory=list)

    def add(self, faults: Sequence[Fault]) -> None:
        """Take some more."""
        self.count += len(faults)
        self.first.extend(faults[: MOST_SAID - len(self.first)])


def require_no_faults(faults: Sequence[Fault], of: str) -> None:
    """Raises ``DataFileError`` with the first of them."""
    if faults:
        more = f" ({len(faults):,} rows of these are refused)" if len(faults) > 1 else ""
        raise DataFileError(f"{faults[0]}{more}; mend {of}, or leave the rows out")
