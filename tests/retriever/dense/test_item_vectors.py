"""The vectors in memory follow any changes, and a filter takes part in nothing but what it lets through."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.dense.space import DenseSpace, KnownItems, fit_space, id_hashes
from models.dense.vectors import quantise
from retriever.dense.item_vectors import ItemVectors

DIMENSION = 8
KNOWN = id_hashes(f"item {number}".encode() for number in range(0, 60, 2))


def space() -> DenseSpace:
    return DenseSpace(DIMENSION, KnownItems.of(KNOWN))


def space_with_histories() -> DenseSpace:
    """Of the same known items: neighbours by number were taken together."""
    numbers = list(range(0, 60, 2))
    embeddings = np.stack([vector(number, 0) for number in numbers])
    walks = [[start, start + 1, start + 2] for start in range(len(numbers) - 2)]
    hashes = id_hashes(f"item {number}".encode() for number in numbers)
    return fit_space(embeddings, hashes, walks, keep_pairs=True)[0]


def together_with(table: ItemVectors, number: int) -> dict[int, float]:
    """Item number → what it weighs."""
    assert table.together is not None
    rows, weights = table.together.neighbours(table.rows(np.array([number])))
    return dict(zip(table.numbers[rows].tolist(), weights.round(5).tolist(), strict=True))


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


SPACE_WITH_HISTORIES = space_with_histories()
change = st.tuples(st.booleans(), st.dictionaries(st.integers(0, 59), st.integers(0, 9), max_size=12))


def changed(table: ItemVectors, changes: list[tuple[bool, dict[int, int]]]) -> tuple[dict[int, int], ItemVectors]:
    """What is there in the end, and a table of that alone."""
    live: dict[int, int] = {}
    for puts, items in changes:
        if puts:
            put(table, items)
            live |= items
        else:
            table.remove(np.array(list(items), dtype=np.uint32))
            for number in items:
                live.pop(number, None)
    fresh = ItemVectors(table.space)
    put(fresh, live)
    return live, fresh


@given(st.lists(change, max_size=12))
@settings(max_examples=40, deadline=None)
def test_what_was_taken_together_follows_any_changes(changes: list[tuple[bool, dict[int, int]]]) -> None:
    table = ItemVectors(SPACE_WITH_HISTORIES)
    live, fresh = changed(table, changes)
    for number in live:
        assert together_with(table, number) == together_with(fresh, number)
        assert (number % 2 == 0) or not together_with(table, number)


def test_item_whose_number_changes_hands_is_still_known_by_what_was_taken_together_with_it() -> None:
    table = ItemVectors(SPACE_WITH_HISTORIES)
    put(table, dict.fromkeys((0, 4, 6, 8), 0))
    hashes = id_hashes([b"item 8"])
    table.put(np.array([2]), quantise(vector(8, 0)[None]), hashes)  # under its new number, while the old one is there
    table.remove(np.array([6]))
    table.remove(np.array([8]))
    assert set(together_with(table, 4)) == {0, 2}


@given(st.lists(change, max_size=12))
@settings(max_examples=80, deadline=None)
def test_content_after_any_changes_is_that_of_a_table_loaded_anew(changes: list[tuple[bool, dict[int, int]]]) -> None:
    table = ItemVectors(space())
    live, fresh = changed(table, changes)
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
    none = [np.empty(0, dtype=np.int64)] * 3
    every = np.stack([held.cosines for held in table.held_against(queries, none, none)])
    filtered = table.held_against(queries, none, none, np.array(sorted(eligible), dtype=np.uint32))
    some = np.stack([held.cosines for held in filtered])
    let_through = np.isin(table.numbers, list(eligible))
    np.testing.assert_allclose(some[:, let_through], every[:, let_through], atol=1e-6)
    assert np.isneginf(some[:, ~let_through]).all()
    for held, row in zip(filtered, every, strict=True):
        expected = np.log(np.exp(5.0 * row[let_through].astype(np.float64)).sum()) if let_through.any() else -np.inf
        assert held.log_sum(5.0) == pytest.approx(expected, abs=1e-5)


def test_table_grows_beyond_its_first_rows_and_numbers() -> None:
    table = ItemVectors(space())
    numbers = np.arange(0, 9_000, 3, dtype=np.uint32)
    rows = np.random.default_rng(0).standard_normal((len(numbers), DIMENSION)).astype(np.float32)
    table.put(numbers, quantise(rows), id_hashes(str(number).encode() for number in numbers))
    assert len(table) == len(numbers)
    np.testing.assert_array_equal(table.numbers[table.rows(numbers)], numbers)
    assert (table.rows(np.array([1, 2, 10**6])) == -1).all()


def clustered(count: int, dimension: int) -> np.ndarray:
    """Vectors around many centres that lie in few directions, as embeddings of products do."""
    random = np.random.default_rng(0)
    directions = random.standard_normal((24, dimension)) / np.sqrt(np.arange(1, 25))[:, None]
    centres = random.standard_normal((300, 24)) @ directions
    return (centres[random.integers(300, size=count)] + 0.3 * random.standard_normal((count, dimension))).astype("f4")


def screened_table(count: int = 12_000, dimension: int = 96) -> tuple[ItemVectors, ItemVectors, np.ndarray]:
    """The same items in a table that screens and in one that scans all; the last 500 are new."""
    rows = clustered(count, dimension)
    hashes = id_hashes(str(number).encode() for number in range(count))
    known = DenseSpace(dimension, KnownItems.of(hashes[:-500]))
    tables = ItemVectors(known, screened_from=5_000), ItemVectors(known)
    for table in tables:
        table.put(np.arange(count), quantise(rows), hashes)
    return *tables, rows


def test_screening_keeps_the_nearest_items_and_the_sum_over_the_catalogue() -> None:
    screening, scanning, rows = screened_table()
    random = np.random.default_rng(1)
    queries = rows[random.integers(len(rows), size=20)] + 0.3 * random.standard_normal((20, rows.shape[1]))
    queries = (queries / np.linalg.norm(queries, axis=1, keepdims=True)).astype(np.float32)
    needed = [np.array([number, 11_999]) for number in range(20)]
    excluded = [np.arange(2_000 + 2 * number, 2_300) for number in range(20)]
    kept = []
    for of in (None, np.arange(0, 12_000, 2, dtype=np.uint32)):
        for held, exact, wanted in zip(
            screening.held_against(queries, needed, excluded, of),
            scanning.held_against(queries, needed, excluded, of),
            needed,
            strict=True,
        ):
            selected = held.cosines > -np.inf
            assert not selected[2_100:2_300].any()
            assert 2_000 <= selected.sum() < 3_100
            np.testing.assert_allclose(held.cosines[selected], exact.cosines[selected], atol=1e-6)
            if of is None:
                assert selected[wanted].all()
            else:
                assert not selected[1::2].any()
            best = np.argsort(-exact.cosines, kind="stable")[:100]
            kept.append(selected[best].mean())
            assert held.log_sum(12.0) == pytest.approx(exact.log_sum(12.0), abs=0.1)
    assert np.mean(kept) > 0.99


def test_screening_follows_changes() -> None:
    screening, _, rows = screened_table()
    query = (rows[5] / np.linalg.norm(rows[5]))[None].astype(np.float32)
    nothing = [np.empty(0, dtype=np.int64)]
    screening.held_against(query, nothing, nothing)  # the directions are learnt
    screening.remove(np.array([5, 7]))
    screening.put(np.array([40_000]), quantise(rows[5:6]), id_hashes([b"arrival"]))
    [held] = screening.held_against(query, nothing, nothing)
    best = int(screening.numbers[np.argmax(held.cosines)])
    assert best == 40_000
    assert screening.new[screening.rows(np.array([40_000]))[0]]
    assert 5 not in screening.numbers
