"""Whole catalogues from wherever they lie: a folder as ``models.catalogue`` has it, or a table of any kind.

What must hold: a folder with ``items.jsonl`` or ``items.tsv`` and its embeddings is read as ever; a table becomes the same
catalogue, or is refused at its first row that cannot be taken; ids are unique.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.catalogue import Catalogue, CatalogueItem, CatalogueTexts
from models.catalogue import read_item_ids as read_ids_of_text
from models.catalogue import read_items as read_items_of_text
from models.catalogue import read_texts as read_texts_of_folder
from models.data_files import DataFileError, numbered_lines
from models.tables.columns import ColumnNames
from models.tables.item_rows import ItemRows
from models.tables.item_table import ItemTable, require_no_faults
from models.tables.locations import is_address
from models.tables.table_files import JSON_LINES, TSV, kind_of

_TEXTS = ("items.jsonl", "items.jsonl.gz", "items.tsv", "items.tsv.gz")


def is_table(source: str | Path, columns: ColumnNames | None = None) -> bool:
    """Whether ``source`` is a table with the embeddings inside, and not a folder or a file of the way of ``models.catalogue``.

    Raises ``DataFileError`` for columns that are named where there is no table.
    """
    columns = columns or ColumnNames()
    found = _is_table(source, columns)
    if not found and columns.given():
        raise DataFileError(
            f"{source} has its embeddings in a file of their own (items.npy), whose rows have no columns to name: leave --id, "
            "--title, --embedding and the like away"
        )
    return found


def _is_table(source: str | Path, columns: ColumnNames) -> bool:
    if is_address(source):
        return True
    path = Path(source)
    if path.is_dir():
        text = next((path / name for name in _TEXTS if (path / name).is_file()), None)
        if text is None:
            return _holds_tables(path)
        separate = any((*path.glob("items.npy"), *path.glob("items.*.npy")))
        return not separate and _has_embeddings(text, columns)
    kind = kind_of(path.name)
    if kind is not None and kind[0] in (JSON_LINES, TSV):
        return _has_embeddings(path, columns)
    return kind is not None or (path.is_file() and _begins_as_table(path))


def read_catalogue(source: str | Path, columns: ColumnNames | None = None) -> Catalogue:
    """All items with their embeddings; a folder's queries, qrels and sequences too.

    Raises ``DataFileError`` naming file, row and column of what is wrong.
    """
    if not is_table(source, columns):
        return Catalogue.read(source)
    items: list[CatalogueItem] = []
    parts: list[NDArray[np.float32]] = []
    for rows in _taken(ItemTable.open(source, columns).rows()):
        items.extend(rows.items)
        assert rows.embeddings is not None
        parts.append(rows.embeddings)
    _require_rows(items, source)
    return Catalogue(items=tuple(items), embeddings=np.concatenate(parts), **read_texts(source)._asdict())


def read_embedded(
    source: str | Path,
    embed: Callable[[Sequence[CatalogueItem]], NDArray[np.float32]],
    columns: ColumnNames | None = None,
) -> Catalogue:
    """``read_catalogue`` whose embeddings ``embed`` makes of the items; none is read."""
    items = read_items(source, columns)
    return Catalogue(items=items, embeddings=embed(items), **read_texts(source)._asdict())


def read_items(source: str | Path, columns: ColumnNames | None = None) -> tuple[CatalogueItem, ...]:
    """The items alone. Raises ``DataFileError`` naming file, row and column of what is wrong."""
    if not reads_as_table(source, columns):
        return read_items_of_text(source)
    items = tuple(
        item for rows in _taken(ItemTable.open(source, columns).rows(embeddings=False)) for item in rows.items
    )
    _require_rows(items, source)
    return items


def read_texts(source: str | Path) -> CatalogueTexts:
    """A folder's queries, qrels and sequences; nothing for a file or an address."""
    return CatalogueTexts() if is_address(source) else read_texts_of_folder(Path(source))


def read_item_ids(source: str | Path, columns: ColumnNames | None = None) -> tuple[str, ...]:
    """The ids alone, each once. Raises ``DataFileError`` for a row without one."""
    if not reads_as_table(source, columns):
        return read_ids_of_text(source)
    found: dict[str, None] = {}
    for ids, faults in ItemTable.open(source, columns).ids():
        require_no_faults(faults, str(source))
        found.update(dict.fromkeys(ids))
    _require_rows(found, source)
    return tuple(found)


def reads_as_table(source: str | Path, columns: ColumnNames | None) -> bool:
    """Whether ``source`` is read as a table where no embeddings are read; text is then read as ever, unless columns are named."""
    if columns is not None and columns.given():
        return True
    if is_address(source):
        return True
    path = Path(source)
    if path.is_dir():
        return not any((path / name).is_file() for name in _TEXTS) and _holds_tables(path)
    kind = kind_of(path.name)
    if kind is None:
        return path.is_file() and _begins_as_table(path)
    return kind[0] not in (JSON_LINES, TSV)


def _holds_tables(path: Path) -> bool:
    names = [file.name for file in path.iterdir() if file.is_file()]
    others = ("queries.", "qrels.", "sequences.")
    return any(
        name in ("state.json", "dataset_dict.json") or (kind_of(name) is not None and not name.startswith(others))
        for name in names
    )


def _begins_as_table(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(6) in (b"ARROW1", b"PAR1\x15\x04") or path.suffix in (".parquet", ".arrow")


def _has_embeddings(path: Path, columns: ColumnNames) -> bool:
    """Whether the first row has an embedding. Another look at the file refuses what cannot be read."""
    wanted = columns.embedding or "embedding"
    try:
        _, first = next(numbered_lines(path), (1, ""))
        if ".tsv" in path.suffixes:
            return wanted in first.split("\t")
        return wanted in msgspec.json.decode(first, type=dict[str, object])
    except (DataFileError, msgspec.DecodeError, UnicodeError):
        return False


def _taken(found: Iterator[ItemRows]) -> Iterator[ItemRows]:
    for rows in found:
        require_no_faults(rows.faults, rows.file)
        yield rows


def _require_rows(found: object, source: str | Path) -> None:
    if not found:
        raise DataFileError(f"{source} has no rows; add at least one")
