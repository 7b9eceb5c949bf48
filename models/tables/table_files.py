"""Which files an address stands for, and what kind each is: one file, a folder of them, or what ``datasets`` saved.

What must hold: the files come in one order, that of their names or of the dataset's own list; a folder without one is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import msgspec

from models.data_files import DataFileError
from models.tables.locations import Location

PARQUET: Final = "parquet"
ARROW: Final = "arrow"
CSV: Final = "csv"
TSV: Final = "tsv"
JSON_LINES: Final = "jsonl"
_KINDS: Final = {
    ".parquet": PARQUET, ".pq": PARQUET, ".arrow": ARROW, ".feather": ARROW, ".ipc": ARROW, ".arrows": ARROW,
    ".csv": CSV, ".tsv": TSV, ".jsonl": JSON_LINES, ".ndjson": JSON_LINES,
}  # fmt: skip
_COMPRESSIONS: Final = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
# What a catalogue folder may hold beside its items: no table of items.
_OTHERS: Final = ("queries.", "qrels.", "sequences.")
_STATE: Final = "state.json"
_SPLITS: Final = "dataset_dict.json"
KNOWN: Final = "Parquet, Arrow or Feather, CSV, TSV or JSON lines"


@dataclass(frozen=True)
class TableFile:
    """One file of rows; ``kind``: one of the constants above; ``compression``: of a text file, as pyarrow names it."""

    location: Location
    kind: str
    compression: str | None = None

    @property
    def name(self) -> str:
        """For a person."""
        return self.location.name


def kind_of(name: str) -> tuple[str, str | None] | None:
    """Kind and compression by the end of a file's name; None for what is no table.

    >>> kind_of("items.parquet"), kind_of("shop/items.csv.gz"), kind_of("readme.md")
    (('parquet', None), ('csv', 'gzip'), None)
    """
    name = name.lower()
    compression = next((known for suffix, known in _COMPRESSIONS.items() if name.endswith(suffix)), None)
    if compression is not None:
        name = name.rpartition(".")[0]
    kind = next((known for suffix, known in _KINDS.items() if name.endswith(suffix)), None)
    return None if kind is None or (compression and kind in (PARQUET, ARROW)) else (kind, compression)


def table_files(location: Location) -> list[TableFile]:
    """The files that ``location`` stands for. Raises ``DataFileError`` where there is no table."""
    if not location.is_folder():
        return [_of_file(location)]
    files = location.files()
    names = {file.name.rsplit("/", 1)[-1]: file for file in files}
    if _SPLITS in names:
        raise DataFileError(
            f"{location.name} is a dataset with the splits {', '.join(_splits(names[_SPLITS]))}: name one of them, such as "
            f"{location.name.rstrip('/')}/{_splits(names[_SPLITS])[0]}"
        )
    if _STATE in names:
        return _of_dataset(location, names[_STATE])
    found = [
        TableFile(file, *kind)
        for name, file in names.items()
        if (kind := kind_of(name)) is not None and not name.startswith(_OTHERS)
    ]
    items = [file for file in found if file.name.rsplit("/", 1)[-1].startswith("items.")]
    chosen = items or found
    if not chosen:
        raise DataFileError(f"{location.name} has no table: put {KNOWN} into it, with an embedding in each row")
    kinds = sorted({file.kind for file in chosen})
    if len(kinds) > 1:
        raise DataFileError(
            f"{location.name} has tables of several kinds ({', '.join(kinds)}): one may be a copy of the other, so leave one kind"
        )
    return chosen


def _of_file(location: Location) -> TableFile:
    with location.open() as file:
        try:
            first = file.read(8)
        except Exception as error:
            raise location.fault(error) from error
    if not first:
        raise DataFileError(f"{location.name} is empty, 0 bytes: what wrote or copied it did not finish; make it again")
    if first.startswith(b"PAR1"):
        return TableFile(location, PARQUET)
    if first.startswith(b"ARROW1"):
        return TableFile(location, ARROW)
    if first.startswith(b"FEA1"):
        raise DataFileError(f"{location.name} is Feather of version 1: write it again as version 2, or as Parquet")
    kind = kind_of(location.path)
    if kind is None:
        raise DataFileError(
            f"{location.name} is no table by its name and its first bytes ({first[:8]!r}): give {KNOWN}, or a folder of them"
        )
    return TableFile(location, *kind)


def _of_dataset(folder: Location, state: Location) -> list[TableFile]:
    """What ``Dataset.save_to_disk`` wrote: Arrow streams, named by ``state.json``."""
    said = _json(state)
    files = said.get("_data_files")
    if not isinstance(files, list) or not all(isinstance(one, dict) and "filename" in one for one in files):
        raise DataFileError(f"{state.name} names no data files: save the dataset again with save_to_disk")
    if said.get("_indices_data_files") or said.get("_indices_files"):
        raise DataFileError(
            f"{folder.name} is a dataset with a selection of rows beside it: call flatten_indices() before save_to_disk"
        )
    return [TableFile(folder.joined(str(one["filename"])), ARROW) for one in files]


def _splits(file: Location) -> list[str]:
    splits = _json(file).get("splits")
    return [str(one) for one in splits] if isinstance(splits, list) and splits else ["train"]


def _json(file: Location) -> dict[str, Any]:
    with file.open() as opened:
        raw = opened.read()
    try:
        return msgspec.json.decode(raw, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeError) as error:
        raise DataFileError(f"{file.name} is not what datasets writes ({error}): save the dataset again") from error
