"""The vectors in memory follow any changes, and a filter takes part in nothing but what it lets through."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from models.dense.space import DenseSpace, KnownItems, id_hashes
from models.dense.vectors import quantise
from retriever.dense.item_vectors import ItemVectors

DIMENSION = 8
KNOWN = id_hashes(f"item {number}".encode() for number in range(0, 60, 2))


def space() -> DenseSpace:
    return DenseSpace(DIMENSION, KnownItems.of(KNOWN))


def vector(number: int, version: int) -> np.ndarray:
    return np.random.default_rng(1_000 * number + version).standard_normal(DIMENSION).astype(np.float32)


def put(table: ItemVectors, items: dict[int, int]) -> None:
    numbers = np.array(list(items), dtype=np.uint32)
    if len(numbers):
        kept = quantise(np.stack([vector(number, version) for number, version in items.items()]))
        table.put(numbers, kept, id_hashes(f"item {number}".encode() for number in items))


def content(table: ItemVectors) -> dict[int, tuple[bytes, bool]]:
    return {
        int(number): (row.tobytes(), bool(new))
        for number, row, new in zip(table.numbers, table.vectors, table.new, strict=True)
    }


change = st.tuples(st.booleans(), st.dictionaries(st.integers(0, 59), st.integers(0, 9), max_size=12))


@given(st.lists(change, max_size=12))
@settings(max_examples=80, deadline=None)
def test_content_after_any_changes_is_that_of_a_table_loaded_anew(changes: list[tuple[bool, dict[int, int]]]) -> None:
    table, live = ItemVectors(space()), {}
    for puts, items in changes:
        if puts:
            put(table, items)
            live |= items
        else:
            table.remove(np.array(list(items), dtype=np.uint32))
            for number in items:
                live.pop(number, None)
    fresh = ItemVectors(space())
    put(fresh, live)
    assert len(table) == len(live)
    assert content(table) == content(fresh)
    assert all(new == (number % 2 == 1) for number, (_, new) in content(table).items())
    rows = table.rows(np.arange(70))
    assert [int(table.numbers[row]) for row in rows if row >= 0] == sorted(live)


@given(st.sets(st.integers(0, 59)))
@settings(max_examples=40, deadline=None)
def test_cosines_under_a_filter_are_those_of_the_eligible_items_and_of_no_other(eligible: set[int]) -> None:
    table = ItemVectors(space())
    put(table, dict.fromkeys(range(50), 0))
    queries = np.eye(3, DIMENSION, dtype=np.float32)
    every = table.cosines(queries)
    some = table.cosines(queries, np.array(sorted(eligible), dtype=np.uint32))
    let_through = np.isin(table.numbers, list(eligible))
    np.testing.assert_allclose(some[:, let_through], every[:, let_through], atol=1e-6)
    assert np.isneginf(some[:, ~let_through]).all()


def test_table_grows_beyond_its_first_rows_and_numbers() -> None:
    table = ItemVectors(space())
    numbers = np.arange(0, 9_000, 3, dtype=np.uint32)
    rows = np.random.default_rng(0).standard_normal((len(numbers), DIMENSION)).astype(np.float32)
    table.put(numbers, quantise(rows), id_hashes(str(number).encode() for number in numbers))
    assert len(table) == len(numbers)
    np.testing.assert_array_equal(table.numbers[table.rows(numbers)], numbers)
    assert (table.rows(np.array([1, 2, 10**6])) == -1).all()
