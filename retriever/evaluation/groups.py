"""Groups of relevant items: head, tail and new ones, and those of one value of an attribute.

What must hold: head, tail and new items are all items, each in one of them. **New**: not in the training data, or named as
having arrived after it. **Old**: the others. **Head**: of these, the most popular tenth (or another share); ties go to the
smaller row. **Tail**: the rest.
A case counts in each group that one of its relevant items is in, with these alone as relevant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from models.catalogue import CatalogueItem
from retriever.evaluation.cases import EvaluationError, TrainingData
from retriever.evaluation.metrics import Relevant

ALL: Final = "all"
HEAD: Final = "head"
TAIL: Final = "tail"
NEW: Final = "new"
OLD: Final = "old"
HEAD_SHARE: Final = 0.1
_MOST_VALUES: Final = 10  # of an attribute, those with the most cases
_NO_TEXT: Final = frozenset(("id", "title", "description"))  # of an item's fields: nothing that items share

Mask = npt.NDArray[np.bool_]


def popularity_groups(training: TrainingData, head_share: float, arrived: Sequence[int] = ()) -> dict[str, Mask]:
    """Head, tail, new and old as bool (N,) over the catalogue; empty groups are left out, head and tail where all items are
    equally popular, and old ones where none is new. ``arrived``: rows that came after training.
    """
    new = ~training.seen
    new[list(arrived)] = True
    old = training.by_popularity[~new[training.by_popularity]]
    groups = {NEW: new}
    if new.any():
        groups |= {OLD: ~new}
    if len(old) and len(np.unique(training.popularity[old])) > 1:
        head = np.zeros(len(new), dtype=bool)
        head[old[: max(1, round(head_share * len(old)))]] = True
        groups = {HEAD: head, TAIL: ~head & ~new, **groups}
    return {name: mask for name, mask in groups.items() if mask.any()}


def attribute_groups(items: Sequence[CatalogueItem], names: Sequence[str], relevant: Relevant) -> dict[str, Mask]:
    """``name=value`` as bool (N,) for the ten values with the most cases, and the rest of an attribute's values together.

    Raises ``EvaluationError`` for an attribute that no item has, naming those there are.
    """
    groups: dict[str, Mask] = {}
    for name in names:
        values = [attribute_values(item).get(name, ()) for item in items]
        if not any(values):
            known = sorted({known for item in items for known, found in attribute_values(item).items() if found})
            raise EvaluationError(
                f"no item of the catalogue has the attribute {name!r}"
                + (f": it has {', '.join(known)}" if known else ", or any other: there is nothing to look --by")
            )
        by_value: dict[str, Mask] = {}
        for row, found in enumerate(values):
            for value in found:
                by_value.setdefault(value, np.zeros(len(items), dtype=bool))[row] = True
        cases = {value: int(relevant.chosen(mask[relevant.item]).members().sum()) for value, mask in by_value.items()}
        ranked = sorted(cases, key=lambda value: (-cases[value], value))
        groups |= {f"{name}={value}": by_value[value] for value in ranked[:_MOST_VALUES]}
        if rest := ranked[_MOST_VALUES:]:
            groups[f"{name}: {len(rest):,} other values"] = np.logical_or.reduce([by_value[value] for value in rest])
        none = np.array([not found for found in values])
        if none.any():
            groups[f"{name}: none"] = none
    return groups


def attribute_values(item: CatalogueItem) -> dict[str, tuple[str, ...]]:
    """What an item says of itself beside its texts: its columns, and its attributes where it has such."""
    record: Mapping[str, Any] = msgspec.structs.asdict(item)
    attributes = record.get("attributes") or {}
    columns = {name: value for name, value in record.items() if name not in (*_NO_TEXT, "weight", "attributes")}
    return {name: _texts(value) for name, value in {**columns, **attributes}.items()}


def _texts(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,) if value else ()
    if isinstance(value, list | tuple):
        return tuple(str(one) for one in value)
    return () if value is None else (str(value).lower() if isinstance(value, bool) else f"{value:g}",)


def row_groups(relevant: Relevant, masks: Mapping[str, Mask]) -> dict[str, Mask]:
    """Masks over items (N,) as masks over the rows of ``relevant`` (R,), all rows first; groups without a row are left out."""
    rows = {name: mask[relevant.item] for name, mask in masks.items()}
    return {ALL: np.ones(len(relevant.item), dtype=bool)} | {name: mask for name, mask in rows.items() if mask.any()}
