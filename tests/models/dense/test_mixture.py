"""The mixture against brute force over the catalogue; λ against a search on a grid."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.dense.mixture import (
    LEAST_SHARPNESS,
    MOST_SHARPNESS,
    Candidates,
    MixtureWeights,
    fit_sharpness,
    gather,
    log_sum,
    mixed,
    nearest,
    rank_of,
)

ITEMS = 400


def query(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Rows that the model found and their log-probabilities, cosines (N,), which items are new (N,)."""
    random = np.random.default_rng(seed)
    found = random.choice(ITEMS, size=60, replace=False)
    probabilities = random.dirichlet(np.full(60, 0.2)) * 0.9
    return found, np.log(probabilities + 1e-12), np.tanh(random.standard_normal(ITEMS)), random.random(ITEMS) < 0.2


@given(st.integers(0, 10_000), st.floats(0.1, 60), st.floats(0, 1), st.floats(0, 1), st.floats(-3, 3))
@settings(max_examples=60, deadline=None)
def test_first_places_are_those_of_the_mixture_over_the_whole_catalogue(
    seed: int, sharpness: float, share: float, share_of_new: float, boost: float
) -> None:
    found, model, cosines, new = query(seed)
    weights = MixtureWeights(sharpness=sharpness, share=share, share_of_new=share_of_new, boost_of_new=boost)
    of_model = np.zeros(ITEMS)
    of_model[found] = np.exp(model)
    of_dense = np.exp(sharpness * cosines) / np.exp(sharpness * cosines).sum()
    own = np.where(new, share_of_new, share)
    expected = (1 - own) * of_model + own * of_dense * np.where(new, np.exp(boost), 1)
    candidates = gather(found, model, cosines, new)
    got = mixed(candidates, log_sum(cosines, sharpness), weights)
    np.testing.assert_allclose(np.exp(got), expected[candidates.rows], rtol=1e-9, atol=1e-300)
    best = candidates.rows[np.argsort(-got, kind="stable")[:10]]
    np.testing.assert_allclose(expected[best], np.sort(expected)[::-1][:10], rtol=1e-9)


@given(st.integers(0, 10_000), st.floats(0, 1), st.floats(0, 1), st.floats(-3, 3), st.integers(0, 150))
@settings(max_examples=60, deadline=None)
def test_what_was_taken_together_has_its_share_of_old_items_and_none_of_new_ones(
    seed: int, share: float, together: float, boost: float, count: int
) -> None:
    found, model, cosines, new = query(seed)
    random = np.random.default_rng(seed + 1)
    rows = np.sort(random.choice(np.flatnonzero(~new), size=count, replace=False))
    shares = random.dirichlet(np.full(count, 0.3)) + 1e-12 if count else np.empty(0)
    weights = MixtureWeights(sharpness=9.0, share=share, boost_of_new=boost, together=together)
    of_model, of_together = np.zeros(ITEMS), np.zeros(ITEMS)
    of_model[found] = np.exp(model)
    of_together[rows] = shares
    near = np.exp(9 * cosines) / np.exp(9 * cosines).sum()
    own = together if count else 0.0  # where nothing was taken together the vectors speak alone
    dense = np.where(new, near * np.exp(boost), (1 - own) * near + own * of_together)
    expected = np.where(new, dense, (1 - share) * of_model + share * dense)
    candidates = gather(found, model, cosines, new, together=(rows, np.log(shares)))
    got = mixed(candidates, log_sum(cosines, 9.0), weights)
    np.testing.assert_allclose(np.exp(got), expected[candidates.rows], rtol=1e-9, atol=1e-300)
    best = candidates.rows[np.argsort(-got, kind="stable")[:10]]
    np.testing.assert_allclose(expected[best], np.sort(expected)[::-1][:10], rtol=1e-9)


@given(st.integers(0, 10_000), st.integers(0, 50), st.booleans())
@settings(max_examples=60, deadline=None)
def test_nearest_rows_are_those_of_sorting_and_equal_ones_go_by_row(seed: int, most: int, some: bool) -> None:
    random = np.random.default_rng(seed)
    cosines = random.integers(-5, 5, size=80) / 5.0
    cosines[random.random(80) < 0.1] = -np.inf
    among = random.random(80) < 0.5 if some else None
    allowed = [row for row in range(80) if cosines[row] > -np.inf and (among is None or among[row])]
    expected = sorted(sorted(allowed, key=lambda row: (-cosines[row], row))[:most])
    assert nearest(cosines, most, among).tolist() == expected


def test_excluded_rows_are_no_candidates_of_either_leg() -> None:
    found, model, cosines, new = query(1)
    excluded = [int(found[0]), int(np.argmax(cosines))]
    assert not np.isin(excluded, gather(found, model, cosines, new, excluded=excluded).rows).any()


def test_crowded_neighbourhood_does_not_hide_the_new_items() -> None:
    cosines = np.full(ITEMS, 0.9)
    cosines[7] = 0.1
    new = np.arange(ITEMS) == 7
    assert 7 in gather(np.array([1]), np.array([-1.0]), cosines, new).rows


@pytest.mark.parametrize("sharpness", [0.5, 4.0, 11.0, 35.0])
def test_sharpness_is_the_one_that_drew_the_targets(sharpness: float) -> None:
    random = np.random.default_rng(0)
    cosines = np.tanh(random.standard_normal((1_500, ITEMS)) / 2)
    weights = np.exp(sharpness * cosines)
    targets = np.array([random.choice(ITEMS, p=row / row.sum()) for row in weights])
    found = fit_sharpness(cosines, targets)
    assert found == pytest.approx(sharpness, rel=0.12)

    def likelihood(value: float) -> float:
        return float(
            np.mean([value * row[target] - log_sum(row, value) for row, target in zip(cosines, targets, strict=True)])
        )

    assert all(likelihood(found) >= likelihood(found * factor) for factor in (0.5, 0.99, 1.01, 2.0))


def test_sharpness_stays_within_its_bounds_where_there_is_no_maximum() -> None:
    cosines = np.random.default_rng(0).uniform(-1, 1, size=(50, ITEMS))
    assert fit_sharpness(cosines, cosines.argmax(axis=1)) == MOST_SHARPNESS
    assert fit_sharpness(cosines, cosines.argmin(axis=1)) == LEAST_SHARPNESS
    assert fit_sharpness(cosines[:0], np.empty(0, dtype=np.int64)) == LEAST_SHARPNESS


def test_items_without_vectors_are_left_to_the_model() -> None:
    cosines = np.full(ITEMS, -np.inf)
    new = np.arange(ITEMS) == 5
    candidates = gather(np.array([3, 5]), np.array([-1.0, -2.0]), cosines, new)
    got = mixed(candidates, log_sum(cosines, 10.0), MixtureWeights(sharpness=10.0, share=0.7))
    assert candidates.rows.tolist() == [3, 5]
    np.testing.assert_allclose(got, np.log(0.3) + np.array([-1.0, -2.0]))


def test_rank_counts_better_ones_and_equal_ones_before() -> None:
    rows = np.array([2, 4, 9, 11])
    candidates = Candidates(rows, np.zeros(4), np.zeros(4), np.zeros(4, dtype=bool), np.ones(4, dtype=bool))
    values = np.array([-1.0, -0.5, -1.0, -np.inf])
    assert [rank_of(row, candidates, values, 99) for row in (4, 2, 9, 11, 3, 20)] == [1, 2, 3, 99, 99, 99]
