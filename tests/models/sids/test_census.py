"""Census measures: exact at the extremes, equal to their definitions in between."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.sids.census import (
    CensusError,
    count_tokens,
    dead_codes,
    distinct_paths,
    entropy,
    gini,
    head_share,
    measure_layer,
    path_sparsity,
    relative_standard_deviation,
    standard_deviation,
)

counts_strategy = st.lists(st.integers(0, 1000), min_size=1, max_size=40)


@pytest.mark.parametrize("size", [2, 3, 256, 4096])
def test_uniform_counts_are_not_crowded_at_all(size: int) -> None:
    census = measure_layer(np.full(size, 7))
    assert census.entropy == pytest.approx(1.0, abs=1e-12)
    assert (census.gini, census.standard_deviation, census.dead_codes) == (0.0, 0.0, 0)
    assert census.items == 7 * size


@pytest.mark.parametrize("size", [2, 3, 256, 4096])
def test_all_items_on_one_token_are_as_crowded_as_can_be(size: int) -> None:
    counts = np.zeros(size, np.int64)
    counts[1] = 10**9
    census = measure_layer(counts, head_tokens=(1,))
    assert census.entropy == 0.0
    assert math.copysign(1, census.entropy) == 1
    assert census.gini == (size - 1) / size  # the double nearest to 1 − 1/M
    assert census.standard_deviation == pytest.approx(10**9 * math.sqrt(size - 1) / size)
    assert census.relative_standard_deviation == pytest.approx(math.sqrt(size - 1))
    assert census.dead_codes == size - 1
    assert census.head_share == 1.0


def test_no_items_measure_zero_as_documented() -> None:
    census = measure_layer([0, 0, 0, 0], head_tokens=(0, 1))
    assert (census.items, census.tokens, census.dead_codes) == (0, 4, 4)
    assert (census.entropy, census.gini, census.standard_deviation) == (0.0, 0.0, 0.0)
    assert (census.relative_standard_deviation, census.head_share) == (0.0, 0.0)


def test_single_token_has_neither_entropy_nor_inequality() -> None:
    assert (entropy([5]), gini([5]), standard_deviation([5]), dead_codes([5])) == (0.0, 0.0, 0.0, 0)


def test_known_figures() -> None:
    assert entropy([1, 1, 0, 0]) == pytest.approx(0.5)
    assert gini([1, 2, 3, 4]) == 0.25
    assert gini([0, 0, 1, 1]) == 0.5
    assert standard_deviation([2, 4, 4, 4, 5, 5, 7, 9]) == 2.0
    assert relative_standard_deviation([2, 4, 4, 4, 5, 5, 7, 9]) == 0.4
    assert head_share([1, 2, 5], (0, 2)) == 0.75


@given(counts_strategy)
def test_gini_equals_half_the_mean_absolute_difference(counts: list[int]) -> None:
    numbers, size, total = np.asarray(counts), len(counts), sum(counts)
    expected = np.abs(numbers[:, None] - numbers[None, :]).sum() / (2 * size * total) if total else 0.0
    assert gini(counts) == pytest.approx(expected, abs=1e-12)


@given(counts_strategy, st.randoms())
def test_measures_stay_in_their_intervals_and_ignore_the_order_of_tokens(counts: list[int], random: object) -> None:
    shuffled = list(counts)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert 0.0 <= entropy(counts) <= 1.0
    assert 0.0 <= gini(counts) <= (len(counts) - 1) / len(counts)
    assert gini(shuffled) == gini(counts)
    assert entropy(shuffled) == pytest.approx(entropy(counts), abs=1e-12)
    assert relative_standard_deviation([7 * count for count in counts]) == pytest.approx(
        relative_standard_deviation(counts)
    )


@given(
    st.integers(3, 4).flatmap(
        lambda layers: st.lists(st.lists(st.integers(0, 4), min_size=layers, max_size=layers), min_size=1, max_size=30)
    )
)
def test_census_and_path_sparsity_equal_a_plain_recount(codes: list[list[int]]) -> None:
    census = count_tokens(np.asarray(codes, np.uint16), 5)
    for layer_index in range(len(codes[0])):
        column = [row[layer_index] for row in codes]
        assert census[layer_index].tolist() == [column.count(token) for token in range(5)]
    paths = {tuple(row) for row in codes}
    assert distinct_paths(codes) == len(paths)
    assert path_sparsity(codes, 5) == len(paths) / 5 ** len(codes[0])


def test_path_sparsity_at_its_extremes() -> None:
    every_path = np.stack(np.meshgrid(*[np.arange(3)] * 3), axis=-1).reshape(-1, 3)
    assert path_sparsity(every_path, 3) == 1.0
    assert path_sparsity(np.zeros((100, 3), np.uint16), 4096) == 4096.0**-3
    assert path_sparsity(np.zeros((0, 3), np.uint16), 4096) == 0.0


@pytest.mark.parametrize("counts", [[], [[1, 2]], [0.5, 1.5], [3, -1]])
def test_counts_that_are_no_census_row_are_refused(counts: list[object]) -> None:
    with pytest.raises(CensusError, match="counts must"):
        entropy(counts)  # type: ignore[arg-type]


def test_head_token_outside_the_codebook_is_refused() -> None:
    with pytest.raises(CensusError, match="run from 1 to 3"):
        head_share([1, 2, 3], (1, 3))


def test_codes_outside_the_codebook_are_refused() -> None:
    with pytest.raises(CensusError, match=r"lie in \[0, 4\), but run from 0 to 4"):
        count_tokens([[0, 1, 4]], 4)
