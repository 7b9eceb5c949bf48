"""The rows of a table as items: what each column says, checked cell by cell.

What must hold: a row is an item as it stands, or a fault that names file, row and column; nothing is repaired or left out in
silence. Null says "none" of what an item need not have.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.attributes import LARGEST_WHOLE_NUMBER, canonical_number, is_name
from models.catalogue import MAXIMUM_ID_BYTES, CatalogueItem
from models.data_files import plain_id
from models.tables.blocks import Block, Fault
from models.tables.columns import Chosen
from models.tables.vectors import matrix_of

_TEXTS: Final = ("title", "brand", "type", "description")
_MOST_SAID: Final = 60


@dataclass(frozen=True)
class ItemRows:
    """Rows of one file that are items. ``embeddings``: float32 (n, D), row i of ``items[i]``; None where none are read.
    ``places``: of the items, such as ``row 3``; ``faults``: rows that are not; ``ids_at_fault``: those of them whose id is known.
    """

    file: str
    items: list[CatalogueItem]
    places: list[str]
    embeddings: NDArray[np.float32] | None
    faults: list[Fault]
    ids_at_fault: list[str]


class _RefusedCell(Exception):
    def __init__(self, column: str, why: str) -> None:
        super().__init__(why)
        self.column, self.why = column, why


def items_of(
    block: Block, chosen: Chosen, *, dimension: int | None, text_types: Mapping[str, str] | None = None
) -> ItemRows:
    """``dimension``: D, None where it is that of the block's first row; ``text_types``: of columns whose values are text (CSV),
    by ``blocks.guessed_types``.
    """
    faults = list(block.faults)
    at_fault: list[str] = []
    embeddings: NDArray[np.float32] | None = None
    vector_faults: dict[int, str] = {}
    rows: Sequence[int] = range(len(block.numbers))
    if "embedding" in chosen.parts:
        embeddings, places, vector_faults = matrix_of(block.columns[chosen.parts["embedding"]], dimension)
        rows = places.tolist()
    ids = block.values(chosen.parts["id"])
    for row, why in sorted(vector_faults.items()):
        faults.append(Fault(block.file, block.place(row), chosen.parts["embedding"], why))
        if isinstance(known := plain_id(ids[row]), str):
            at_fault.append(known)
    texts = {name: block.values(chosen.parts[name]) for name in _TEXTS if name in chosen.parts}
    weights = block.values(chosen.parts["weight"]) if "weight" in chosen.parts else None
    whole = block.values(chosen.parts["attributes"]) if "attributes" in chosen.parts else None
    attributes = {name: (column, block.values(column)) for name, column in chosen.attributes.items()}
    types = text_types or {}
    items: list[CatalogueItem] = []
    kept: list[int] = []
    for place, row in enumerate(rows):
        identity: Any = None
        try:
            identity = _id(chosen.parts["id"], ids[row])
            found: dict[str, Any] = {"id": identity, "title": ""}
            for name, values in texts.items():
                if values[row] is not None:
                    found[name] = _text(chosen.parts[name], values[row])
            if weights is not None and weights[row] is not None:
                found["weight"] = _weight(chosen.parts["weight"], weights[row])
            said = {}
            if whole is not None and whole[row] is not None:
                said = _attributes(chosen.parts["attributes"], whole[row])
            for name, (column, values) in attributes.items():
                if values[row] is not None:
                    said[name] = _attribute(column, values[row], types.get(column))
            if said:
                found["attributes"] = said
        except _RefusedCell as refused:
            faults.append(Fault(block.file, block.place(row), refused.column, refused.why))
            if isinstance(identity, str):
                at_fault.append(identity)
            continue
        items.append(CatalogueItem(**found))
        kept.append(place)
    if embeddings is not None and len(kept) < len(embeddings):
        embeddings = embeddings[kept]
    return ItemRows(block.file, items, [block.place(rows[place]) for place in kept], embeddings, faults, at_fault)


def ids_of(block: Block, chosen: Chosen) -> tuple[list[str], list[Fault]]:
    """The ids alone, and the rows without a usable one."""
    column, ids, faults = chosen.parts["id"], [], list(block.faults)
    for row, value in enumerate(block.values(column)):
        try:
            ids.append(_id(column, value))
        except _RefusedCell as refused:
            faults.append(Fault(block.file, block.place(row), column, refused.why))
    return ids, faults


def _id(column: str, value: Any) -> str:
    identity = plain_id(value)
    if not isinstance(identity, str):
        said = "null" if value is None else f"{value!r:.{_MOST_SAID}}"
        raise _RefusedCell(column, f"is {said}, and an id is text or a whole number")
    if not identity or len(identity.encode(errors="surrogatepass")) > MAXIMUM_ID_BYTES:
        raise _RefusedCell(column, f"is {identity[:40]!r}; ids have 1 to {MAXIMUM_ID_BYTES} bytes of UTF-8")
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in identity):
        raise _RefusedCell(column, f"is {identity[:40]!r}; ids have no control characters")
    return identity


def _text(column: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _RefusedCell(column, f"is {value!r:.{_MOST_SAID}}, and has to be text")
    return value


def _weight(column: str, value: Any) -> float:
    try:
        weight = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        weight = math.nan
    if not (math.isfinite(weight) and weight >= 0):
        raise _RefusedCell(column, f"is {value!r:.{_MOST_SAID}}; weights are finite and not negative")
    return weight


def _attributes(column: str, value: Any) -> dict[str, Any]:
    """All attributes at once: a struct, a map, or a JSON object as text."""
    if isinstance(value, str):
        try:
            value = msgspec.json.decode(value)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise _RefusedCell(column, f"is no JSON object ({error})") from None
    if isinstance(value, list) and all(isinstance(one, tuple) and len(one) == 2 for one in value):
        value = dict(value)  # pyarrow's maps
    if not isinstance(value, dict):
        raise _RefusedCell(column, f"is {value!r:.{_MOST_SAID}}, and attributes are an object")
    for name in value:
        if not isinstance(name, str) or not is_name(name):
            raise _RefusedCell(column, f"names the attribute {name!r:.{_MOST_SAID}}, which is no name of one")
    return {name: _attribute(f"{column}.{name}", one, None) for name, one in value.items() if one is not None}


def _attribute(column: str, value: Any, of_text: str | None) -> Any:
    """A string, a number, a truth value or a list of strings. ``of_text``: which of them the text of a cell stands for."""
    if of_text == "number":
        try:
            value = float(value)
        except ValueError:
            raise _RefusedCell(
                column, f"is {value[:_MOST_SAID]!r}, and the first rows of this column hold numbers"
            ) from None
    elif of_text == "boolean":
        if value.lower() not in ("true", "false"):
            raise _RefusedCell(
                column, f"is {value[:_MOST_SAID]!r}, and the first rows of this column hold true and false"
            )
        return value.lower() == "true"
    match value:
        case bool() | str():
            return value
        case int():
            if abs(value) > LARGEST_WHOLE_NUMBER:
                raise _RefusedCell(column, f"is {value}, beyond 2^53: give it as text")
            return value
        case float():
            if not math.isfinite(value):
                raise _RefusedCell(column, f"is {value}: give a finite number, or null")
            return canonical_number(value)
        case list() if all(isinstance(one, str) for one in value):
            return value
        case _:
            raise _RefusedCell(
                column,
                f"is {str(value)[:_MOST_SAID]!r} of the type {type(value).__name__}; an attribute is text, a number, true or "
                "false, or a list of texts",
            )
