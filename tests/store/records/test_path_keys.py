"""Keys of paths have the order of the paths."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from store.records.path_keys import distinct_paths, distinct_sorted, keys_of


@given(st.integers(2, 7).flatmap(lambda layers: st.lists(st.tuples(*[st.integers(0, 65_535)] * layers), min_size=1)))
def test_keys_of_paths_sort_like_the_paths_and_distinct_ones_are_a_set(rows: list[tuple[int, ...]]) -> None:
    rows = rows + rows[::2]
    paths = np.array(rows, np.uint16)
    assert [rows[place] for place in np.argsort(keys_of(paths), kind="stable")] == sorted(rows)
    assert [tuple(row) for row in distinct_paths(paths).tolist()] == sorted(set(rows))


@given(st.lists(st.integers(0, 9)))
def test_distinct_values_rise(values: list[int]) -> None:
    assert distinct_sorted(np.array(values, np.uint32)).tolist() == sorted(set(values))
