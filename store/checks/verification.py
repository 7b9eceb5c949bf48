"""The full check of an index: paths, items, ids, census, free numbers, split keys and commit log must tell the same story.

And two indexes held against each other, item by item: which items one of them lacks, and which differ in what. Both read
everything (seconds for a million items): for tests and ``sidstream verify``, not for serving.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from store.errors import IndexAccessError, IndexMismatchError
from store.reading.facts import read_state
from store.reading.items import ItemContent
from store.reading.snapshot import Snapshot
from store.records import encoding
from store.records.change_log import commit_of, items_in
from store.records.item_attributes import (
    AttributeRecord,
    decode_attribute_records,
    decode_fields,
    effective_attributes,
    newest_record,
)
from store.records.path_keys import keys_of
from store.records.split_keys import decode_records

# What decoding bytes raises that we did not write.
_UNREADABLE: Final = (ValueError, IndexError, KeyError, OverflowError, msgspec.MsgspecError, struct.error)
_CHUNK: Final = 50_000  # items decoded at a time
_FIELDS: Final = ("codes", "weight", "title", "updated_at")


def verify(snapshot: Snapshot) -> list[str]:
    """A sentence per disagreement, none for a sound index."""
    problems: list[str] = []
    try:
        numbers, codes, weights, ids = _items(snapshot)
        _compare_ids(snapshot, numbers, ids, problems)
        _compare_paths(snapshot, numbers, codes, weights, problems)
        _compare_census(snapshot, codes, problems)
        _compare_free(snapshot, numbers, problems)
        _compare_attributes(snapshot, numbers, ids, problems)
        _compare_split_keys(snapshot, problems)
        _compare_log(snapshot, codes, problems)
    except _UNREADABLE as error:
        problems.append(f"A record cannot be read ({type(error).__name__}: {error}).")
    return problems


def _items(snapshot: Snapshot) -> tuple[NDArray[np.uint32], NDArray[np.uint16], NDArray[np.float32], list[bytes]]:
    """Numbers (N,) rising, codes (N, L), weights (N,) and ids of every item."""
    keys: list[bytes] = []
    ids: list[bytes] = []
    codes: list[NDArray[np.uint16]] = []
    weights: list[NDArray[np.float32]] = []
    values: list[bytes] = []
    for key, value in snapshot._cursor("items").iternext():
        keys.append(key)
        values.append(value)
        ids.append(snapshot._items.id_of(value))
        if len(values) == _CHUNK:
            codes.append(snapshot._items.codes_of(values))
            weights.append(snapshot._items.weights_of(values))
            values = []
    codes.append(snapshot._items.codes_of(values))
    weights.append(snapshot._items.weights_of(values))
    return encoding.numbers_of(keys), np.concatenate(codes), np.concatenate(weights), ids


def _compare_ids(snapshot: Snapshot, numbers: NDArray[np.uint32], ids: list[bytes], problems: list[str]) -> None:
    expected = dict(zip(ids, encoding.number_keys(numbers), strict=True))
    if len(expected) != len(ids):
        problems.append(f"{len(ids) - len(expected)} items share an id with another item.")
    count = wrong = 0
    for item_id, number in snapshot._cursor("ids").iternext():
        count += 1
        wrong += expected.get(item_id) != number
    if wrong:
        problems.append(f"{wrong} ids point to an item that is missing or has another id.")
    if count != len(ids):
        problems.append(f"There are {count} ids but {len(ids)} items.")


def _compare_paths(
    snapshot: Snapshot,
    numbers: NDArray[np.uint32],
    codes: NDArray[np.uint16],
    weights: NDArray[np.float32],
    problems: list[str],
) -> None:
    expected = _rows(codes, numbers, weights)
    found = np.concatenate([expected[:0], *(_rows(*block) for block in snapshot.all_path_records())])
    missing, surplus = len(np.setdiff1d(expected, found)), len(np.setdiff1d(found, expected))
    if missing:
        problems.append(f"{missing} items are missing from the paths, or are there with other codes or another weight.")
    if surplus:
        problems.append(f"{surplus} path records name an item that is missing or has other codes or another weight.")


def _rows(codes: NDArray[np.uint16], numbers: NDArray[np.uint32], weights: NDArray[np.float32]) -> NDArray[Any]:
    """One comparable value per (codes, number, weight)."""
    rows = np.empty(len(numbers), [("codes", ">u2", (codes.shape[1],)), ("number", ">u4"), ("weight", ">f4")])
    rows["codes"], rows["number"], rows["weight"] = codes, numbers, weights
    return rows.view(f"S{rows.dtype.itemsize}")


def _compare_census(snapshot: Snapshot, codes: NDArray[np.uint16], problems: list[str]) -> None:
    if codes.size and int(codes.max()) >= snapshot.size:
        problems.append(f"An item has token {int(codes.max())}, the codebook has 0..{snapshot.size - 1}.")
        return
    census = snapshot.census()
    for layer in range(snapshot.layers):
        wrong = int((np.bincount(codes[:, layer], minlength=snapshot.size) != census[layer]).sum())
        if wrong:
            problems.append(f"The census of layer {layer + 1} is wrong for {wrong} tokens.")


def _compare_free(snapshot: Snapshot, numbers: NDArray[np.uint32], problems: list[str]) -> None:
    free = encoding.numbers_of(list(snapshot._cursor("free").iternext(values=False)))
    if len(np.intersect1d(free, numbers)):
        problems.append(f"{len(np.intersect1d(free, numbers))} item numbers are both free and in use.")
    handed_out = read_state(snapshot._read, snapshot._databases).next_number
    if len(free) + len(numbers) != handed_out:
        problems.append(
            f"{handed_out} item numbers were handed out, but {len(free)} are free and {len(numbers)} in use."
        )


def _compare_attributes(snapshot: Snapshot, numbers: NDArray[np.uint32], ids: list[bytes], problems: list[str]) -> None:
    """The attributes that count, made again from their sources; and records that cannot be."""
    found = dict(snapshot._cursor("attributes").iternext())
    records: dict[bytes, AttributeRecord | None] = {}
    bad = waiting = 0
    for item_id, entry in snapshot._cursor("attribute_records").iternext():
        some = decode_attribute_records(entry)
        partitions = [record.partition for record in some]
        bad += not some or partitions != sorted(set(partitions))
        records[item_id] = own = newest_record(some)
        waiting += own is not None and own.value is not None
    if bad:
        problems.append(f"{bad} items have records of attributes that contradict each other.")
    keys = encoding.number_keys(numbers)
    wrong = len(found.keys() - set(keys))
    of_items = zip(keys, ids, snapshot._cursor("items").iternext(keys=False), strict=True)
    for key, item_id, value in of_items:
        own = records.get(item_id)
        waiting -= own is not None and own.value is not None
        if own is None and not snapshot._items.has_attributes(value):
            wrong += key in found
            continue
        updated = int(snapshot._items.headers_of([value])["timestamp"][0])
        effective = effective_attributes(snapshot._items.attributes_of(value), updated, own)
        wrong += found.get(key, b"") != effective
    if wrong:
        problems.append(f"{wrong} items have other attributes than their updates and item-attributes say.")
    counted = read_state(snapshot._read, snapshot._databases).waiting_attributes
    if counted is not None and counted != waiting:
        problems.append(f"{waiting} ids have attributes and no item, and the index counts {counted}.")


def _compare_split_keys(snapshot: Snapshot, problems: list[str]) -> None:
    """Deletions that are noted of items that are there; and split keys whose records do not fit to their item."""
    live_deleted = 0
    for item_id, _ in snapshot._cursor("deleted").iternext():
        live_deleted += snapshot._read.get(item_id, db=snapshot._databases["ids"]) is not None
    if live_deleted:
        problems.append(f"{live_deleted} items are noted as deleted and are there.")
    wrong = 0
    for item_id, value in snapshot._cursor("elsewhere").iternext():
        records = decode_records(value)
        partitions = [record.partition for record in records]
        number = snapshot._read.get(item_id, db=snapshot._databases["ids"])
        if number is not None:
            stored = snapshot._read.get(number, db=snapshot._databases["items"])
            partitions += [] if stored is None else snapshot._items.headers_of([stored])["partition"].tolist()
        values = [record.value for record in records if record.value is not None]
        codes = snapshot._items.codes_of(values)
        fits = (
            len(partitions) > 1
            and len(set(partitions)) == len(partitions)
            and (number is not None or len(values) < len(records))
            and all(snapshot._items.id_of(value) == item_id for value in values)
            and (not codes.size or int(codes.max()) < snapshot.size)
        )
        wrong += not fits
    if wrong:
        problems.append(f"{wrong} keys with records in several partitions disagree with their items.")


def _compare_log(snapshot: Snapshot, codes: NDArray[np.uint16], problems: list[str]) -> None:
    """The commit log's bounds; and whether replaying all of it leads to the paths that the items have."""
    state = read_state(snapshot._read, snapshot._databases)
    commits: dict[int, int] = {}  # item changes of each
    for key, value in snapshot._cursor("changes").iternext():
        if (commit := commit_of(key)) not in commits:
            commits[commit] = items_in(value)
    outside = sum(not state.log_floor < commit <= state.commit for commit in commits)
    if outside:
        problems.append(
            f"{outside} commits are in the commit log and should not be: it has those above {state.log_floor}, up to "
            f"{state.commit}."
        )
        return  # what a reader would replay is not what the writer wrote
    if sum(commits.values()) != state.log_items:
        problems.append(f"The commit log has {sum(commits.values())} item changes, and should have {state.log_items}.")
    try:
        changes = snapshot.changes_since(state.log_floor)
    except IndexAccessError as error:
        problems.append(str(error))
        return
    if changes is None:
        problems.append(f"The commit log begins at {state.log_floor}, after the last commit {state.commit}.")
        return
    live = keys_of(codes)
    gone = int((~np.isin(keys_of(changes.entered), live)).sum())
    if gone:
        problems.append(f"{gone} paths that the commit log says hold an item hold none.")
    there = int(np.isin(keys_of(changes.left), live).sum())
    if there:
        problems.append(f"{there} paths that the commit log says hold no item hold one.")
    problems.extend(
        f"The commit log names item {numbers[-1]}, which was never handed out."
        for numbers in (changes.items, changes.vectors)
        if len(numbers) and int(numbers[-1]) >= state.next_number
    )


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
    for item_id, mine, other in _pairs(here.contents_by_id(), there.contents_by_id()):
        if mine == other:
            continue
        kind = "only there" if mine is None else "only here" if other is None else "different"
        counts[kind] += 1
        if counts[kind] <= examples:
            what = kind if mine is None or other is None else _differences(here, mine, there, other)
            named.append(ItemDifference(item_id.decode("utf-8", "backslashreplace"), what))
    return Comparison(
        only_here=counts["only here"],
        only_there=counts["only there"],
        different=counts["different"],
        examples=tuple(named),
    )


def _pairs(
    here: Iterator[ItemContent], there: Iterator[ItemContent]
) -> Iterator[tuple[bytes, ItemContent | None, ItemContent | None]]:
    """(id, item here, item there) of every id of either, in order."""
    mine, other = next(here, None), next(there, None)
    while mine is not None or other is not None:
        if other is None or (mine is not None and mine.id < other.id):
            assert mine is not None
            yield mine.id, mine, None
            mine = next(here, None)
        elif mine is None or other.id < mine.id:
            yield other.id, None, other
            other = next(there, None)
        else:
            yield mine.id, mine, other
            mine, other = next(here, None), next(there, None)


def _differences(here: Snapshot, mine: ItemContent, there: Snapshot, other: ItemContent) -> str:
    one, two = here.decoded(mine.value), there.decoded(other.value)
    found = [
        f"{field}: {getattr(one, field)!r} → {getattr(two, field)!r}"
        for field in _FIELDS
        if getattr(one, field) != getattr(two, field)
    ]
    before, after = decode_fields(mine.attributes), decode_fields(other.attributes)
    found += [
        f"attributes.{name}: {before.get(name, 'none')!r} → {after.get(name, 'none')!r}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name) or type(before.get(name)) is not type(after.get(name))
    ]
    return ", ".join(found)
