"""What was taken together, against a count by hand."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.dense.pairs import MOST, RowsTogether, count_pairs, log_shares, renumbered

ITEMS = 12
histories_of_few = st.lists(st.lists(st.integers(0, ITEMS - 1), max_size=6), max_size=12)


def by_hand(histories: list[list[int]], asked: list[int]) -> dict[int, float]:
    """Item → Σ_h w(h, i) / rank(h)."""
    occurrences = np.bincount(np.array([item for one in histories for item in one], dtype=int), minlength=ITEMS)
    weights: dict[tuple[int, int], float] = defaultdict(float)
    for one in histories:
        for place, first in enumerate(one):
            for other, second in enumerate(one):
                if first != second:
                    weights[first, second] += abs(other - place) ** -0.5 * (1.0 if other > place else 0.5)
    found: dict[int, float] = defaultdict(float)
    for rank, item in enumerate(reversed(asked), start=1):
        for (first, second), weight in weights.items():
            if first == item:
                found[second] += weight * occurrences[second] ** -0.25 / rank
    return found


@given(histories_of_few, st.lists(st.integers(0, ITEMS - 1), max_size=5))
@settings(max_examples=80, deadline=None)
def test_neighbours_of_a_history_weigh_what_a_count_by_hand_gives(histories: list[list[int]], asked: list[int]) -> None:
    items, scores = count_pairs(histories, ITEMS).neighbours(np.array(asked, dtype=np.int64))
    expected = by_hand(histories, asked)
    assert items.tolist() == sorted(expected)
    np.testing.assert_allclose(scores, [expected[item] for item in sorted(expected)], rtol=1e-5)


def test_item_that_is_not_known_says_nothing_and_keeps_its_place_in_the_history() -> None:
    pairs = count_pairs([[0, 1], [2, 3]], 4)
    items, scores = pairs.neighbours(np.array([0, -1, 2]))
    alone, of_alone = pairs.neighbours(np.array([0]))
    assert items.tolist() == [1, 3]
    assert alone.tolist() == [1]
    assert scores[0] == pytest.approx(of_alone[0] / 3)  # third from the newest on


def test_item_keeps_the_neighbours_that_weigh_most() -> None:
    histories = [[0, other] for other in range(1, MOST + 50)] + [[0, MOST + 49]] * 3
    pairs = count_pairs(histories, MOST + 50)
    items, scores = pairs.neighbours(np.array([0]))
    assert len(items) == MOST
    assert items[int(np.argmax(scores))] == MOST + 49


@given(histories_of_few, st.permutations(range(ITEMS)), st.sets(st.integers(0, ITEMS - 1)), st.integers(0, ITEMS - 1))
@settings(max_examples=60, deadline=None)
def test_renumbered_and_moved_rows_say_the_same_of_the_items_that_are_left(
    histories: list[list[int]], order: list[int], dropped: set[int], asked: int
) -> None:
    number_of = np.array([-1 if item in dropped else order[item] for item in range(ITEMS)])
    pairs = count_pairs(histories, ITEMS)
    moved = renumbered(pairs, number_of, ITEMS)
    items, scores = pairs.neighbours(np.array([asked]))
    left = number_of[items] >= 0 if asked not in dropped else np.zeros(len(items), dtype=bool)
    expected = dict(zip(number_of[items[left]].tolist(), scores[left].tolist(), strict=True))
    found = moved.neighbours(number_of[[asked]])
    assert dict(zip(*(part.tolist() for part in found), strict=True)) == pytest.approx(expected)
    known_of_row = np.flatnonzero(np.arange(ITEMS) % 3 > 0)[::-1]  # a table of some of them, in another order
    table = RowsTogether.of_rows(pairs, known_of_row, ITEMS)
    assert table is not None
    if asked % 3 > 0:
        rows, weights = table.neighbours(np.flatnonzero(known_of_row == asked))
        assert (np.diff(rows) > 0).all()
        within = dict(zip(known_of_row[rows].tolist(), weights.tolist(), strict=True))
        of_all = dict(zip(items.tolist(), scores.tolist(), strict=True))
        assert within == pytest.approx({item: score for item, score in of_all.items() if item % 3 > 0})


def test_shares_are_of_what_is_eligible_alone() -> None:
    rows, logs = log_shares(np.array([2, 5, 9]), np.array([1.0, 2.0, 3.0]), np.array([True, False, True]))
    assert rows.tolist() == [2, 9]
    np.testing.assert_allclose(np.exp(logs), [0.25, 0.75])
    assert len(log_shares(np.array([2]), np.array([1.0]), np.array([False]))[0]) == 0
