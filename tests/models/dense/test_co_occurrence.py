"""Counts of pairs in histories, against counting by hand."""

from __future__ import annotations

from itertools import permutations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from models.dense.co_occurrence import CoOccurrence


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6), min_size=1, max_size=8))
def test_counts_are_those_of_counting_each_pair_of_places_by_hand(histories: list[list[int]]) -> None:
    expected = np.zeros((10, 10))
    for history in histories:
        for first, second in permutations(range(len(history)), 2):
            expected[history[first], history[second]] += 1
    pairs = CoOccurrence.count(histories, 10)
    for item in range(10):
        np.testing.assert_array_equal(pairs.scores([item], cosine=False), expected[item])
    np.testing.assert_array_equal(
        pairs.popularity, np.bincount([item for row in histories for item in row], minlength=10)
    )
