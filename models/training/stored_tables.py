"""Tables of training data that may be larger than memory: one file for each part of the data, of which one is in memory at a
time.

What must hold: a part's table is the one that the part would make in memory; tables that are there are used again only if they
are of the same data, prompts and items.
"""

from __future__ import annotations

import gc
import hashlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from models.errors import SidstreamError
from models.examples.streamed import StreamedData
from models.language.prompts import PromptBuilder
from models.sids.layout import Layout
from models.training import processes
from models.training.example_table import ExampleTable
from models.training.history_table import HistoryTable
from models.training.tables import BlockedTable, JoinedTable, TrainingTable, nothing_to_learn

_MARK: Final = "tables.json"
_KINDS: Final[Mapping[str, type[ExampleTable] | type[HistoryTable]]] = {
    "examples": ExampleTable,
    "histories": HistoryTable,
}
_PAUSE_SECONDS: Final = 0.5


class _Mark(msgspec.Struct, frozen=True, kw_only=True):
    """``blocks``: for each, its part's number, and rows and targets of its tables by kind."""

    of: str
    skipped: int
    mentions: int
    blocks: list[tuple[int, dict[str, tuple[int, int]]]]


def stored_tables(
    data: StreamedData,
    prompts: PromptBuilder,
    layout: Layout,
    item_rows: Mapping[str, int],
    codes: npt.NDArray[np.uint16],
    title_ids: npt.NDArray[np.int32] | None,
    make: Callable[[int], tuple[TrainingTable | None, int, int]],
    *,
    shared: bool,
) -> tuple[BlockedTable, int, int]:
    """The tables of all parts, made now or found on the disk; how many examples were left out because their item is unknown, and
    how many unknown items of histories.

    ``make``: a part's number → its table, None where nothing of it is to be learnt, and these two numbers for the part. Of
    several processes the first makes them, and the others wait. Raises ``SidstreamError`` where no part has anything to learn
    and where the disk is full.
    """
    directory = data.directory.with_name("tables")
    of = _digest(data, prompts, layout, item_rows, codes, title_ids, shared)
    mark = _read_mark(directory, of)
    while mark is None and not processes.is_first():
        time.sleep(_PAUSE_SECONDS)
        mark = _read_mark(directory, of)
    if mark is None:
        mark = _make_all(directory, of, data.parts, make)
    if not mark.blocks:
        raise nothing_to_learn("training")
    blocks = mark.blocks

    def load(block: int) -> TrainingTable:
        number, kinds = blocks[block]
        with np.load(directory / f"{number:04}.npz", allow_pickle=False) as file:
            parts: list[TrainingTable] = [
                _KINDS[kind].of_arrays(
                    {name.partition(".")[2]: file[name] for name in file.files if name.startswith(f"{kind}.")},
                    prompts,
                    layout,
                    codes,
                    title_ids,
                )
                for kind in kinds
            ]
        return parts[0] if len(parts) == 1 else JoinedTable(parts)

    sizes = tuple(tuple(kinds.values()) for _, kinds in blocks)
    return BlockedTable(prompts.vocabulary, sizes, load), mark.skipped, mark.mentions


def _make_all(
    directory: Path, of: str, parts: int, make: Callable[[int], tuple[TrainingTable | None, int, int]]
) -> _Mark:
    skipped = mentions = 0
    collects = gc.isenabled()
    gc.disable()  # a part's records are a hundred thousand objects without a circle: looking for one takes a quarter of the time
    blocks: list[tuple[int, dict[str, tuple[int, int]]]] = []
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / _MARK).unlink(missing_ok=True)  # first: what is stopped here must not look whole
        for path in directory.iterdir():
            path.unlink()
        for number in range(parts):
            table, of_part, mentions_of_part = make(number)
            skipped, mentions = skipped + of_part, mentions + mentions_of_part
            if table is not None:
                blocks.append((number, _write(directory / f"{number:04}.npz", table)))
        mark = _Mark(of=of, skipped=skipped, mentions=mentions, blocks=blocks)
        partial = directory / f".{_MARK}"
        partial.write_bytes(msgspec.json.encode(mark))
        partial.replace(directory / _MARK)
    except OSError as error:
        raise SidstreamError(
            f"the tables of the training data could not be written to {directory}: {error.strerror or error}; make room there, "
            "and give the same command again"
        ) from error
    finally:
        if collects:
            gc.enable()
    return mark


def _write(path: Path, table: TrainingTable) -> dict[str, tuple[int, int]]:
    """Rows and targets of its parts, by kind."""
    sizes: dict[str, tuple[int, int]] = {}
    arrays: dict[str, npt.NDArray[Any]] = {}
    for part in table.parts if isinstance(table, JoinedTable) else (table,):
        assert isinstance(part, ExampleTable | HistoryTable)
        kind = next(kind for kind, of_kind in _KINDS.items() if isinstance(part, of_kind))
        sizes[kind] = (len(part), part.targets)
        arrays |= {f"{kind}.{name}": array for name, array in part.arrays().items()}
    with path.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's own keywords are typed narrower
    return sizes


def _read_mark(directory: Path, of: str) -> _Mark | None:
    try:
        mark = msgspec.json.decode((directory / _MARK).read_bytes(), type=_Mark)
    except (FileNotFoundError, msgspec.DecodeError):
        return None
    return mark if mark.of == of else None


def _digest(
    data: StreamedData,
    prompts: PromptBuilder,
    layout: Layout,
    item_rows: Mapping[str, int],
    codes: npt.NDArray[np.uint16],
    title_ids: npt.NDArray[np.int32] | None,
    shared: bool,
) -> str:
    """Of all that decides a row; the tokenizer is known by what it makes of the sample."""
    ids = prompts.tokenizer.encode_batch(list(dict.fromkeys(data.texts()))[:1_000])
    said = [data.digest, prompts.vocabulary, prompts.settings, layout.to_dict(), list(item_rows), ids, shared]
    found = hashlib.sha256(msgspec.json.encode(said))
    found.update(codes.tobytes())
    found.update(b"" if title_ids is None else title_ids.tobytes())
    return found.hexdigest()[:16]
