"""Two indexes held against each other, item by item: which items one of them lacks, and which differ in what.

Both are walked once in the order of ids; nothing but the examples is kept, however large they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from store.encoding import StoredItem
from store.errors import IndexMismatchError
from store.reader import Snapshot

_FIELDS: Final = ("codes", "weight", "title", "updated_at")


class ItemDifference(msgspec.Struct, frozen=True):
    """One item: what differs, ``field: here → there``."""

    id: str
    what: str


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """How many items only one index has, and how many differ; ``examples`` are the first of each kind by id."""

    only_here: int = 0
    only_there: int = 0
    different: int = 0
    examples: tuple[ItemDifference, ...] = ()

    @property
    def equal(self) -> bool:
        return not (self.only_here or self.only_there or self.different)


def compare(here: Snapshot, there: Snapshot, *, examples: int = 5) -> Comparison:
    """Holds the items of two snapshots against each other; at most ``examples`` of each kind are named.

    Raises:
        IndexMismatchError: they belong to codebooks of different layers, so that no item can be equal.
    """
    if here.layers != there.layers:
        raise IndexMismatchError(
            f"the indexes cannot be compared: one has {here.layers} layers (codebook {here.codebook_id}), the other "
            f"{there.layers} (codebook {there.codebook_id})"
        )
    counts = {"only here": 0, "only there": 0, "different": 0}
    named: list[ItemDifference] = []
    for item_id, mine, other in _pairs(here.values_by_id(), there.values_by_id()):
        if mine == other:
            continue
        kind = "only there" if mine is None else "only here" if other is None else "different"
        counts[kind] += 1
        if counts[kind] <= examples:
            what = kind if mine is None or other is None else _differences(here.decoded(mine), there.decoded(other))
            named.append(ItemDifference(item_id.decode("utf-8", "backslashreplace"), what))
    return Comparison(
        only_here=counts["only here"],
        only_there=counts["only there"],
        different=counts["different"],
        examples=tuple(named),
    )


def _pairs(
    here: Iterator[tuple[bytes, bytes]], there: Iterator[tuple[bytes, bytes]]
) -> Iterator[tuple[bytes, bytes | None, bytes | None]]:
    """(id, value here, value there) of every id of either, in order."""
    mine, other = next(here, None), next(there, None)
    while mine is not None or other is not None:
        if other is None or (mine is not None and mine[0] < other[0]):
            assert mine is not None
            yield mine[0], mine[1], None
            mine = next(here, None)
        elif mine is None or other[0] < mine[0]:
            yield other[0], None, other[1]
            other = next(there, None)
        else:
            yield mine[0], mine[1], other[1]
            mine, other = next(here, None), next(there, None)


def _differences(one: StoredItem, other: StoredItem) -> str:
    return ", ".join(
        f"{field}: {getattr(one, field)!r} → {getattr(other, field)!r}"
        for field in _FIELDS
        if getattr(one, field) != getattr(other, field)
    )
