"""Intervals: they hold the truth as often as they say, and differences are of the same cases."""

from __future__ import annotations

import numpy as np
import pytest

from retriever.evaluation.bootstrap import resample


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    random = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        values = (random.random((1, 300)) < 0.3).astype(np.float64)
        low, high = resample(values, np.ones_like(values, dtype=bool), resamples=400, seed=seed).interval()
        hits += bool(low[0] <= 0.3 <= high[0])
    assert 0.90 <= hits / 200 <= 0.99


def test_difference_of_equal_systems_is_nothing_and_of_one_ahead_everywhere_is_certain() -> None:
    random = np.random.default_rng(1)
    values = random.random((2, 500)) < 0.4
    every = np.ones((2, 500), dtype=bool)
    one, same = (resample(values.astype(float), every, seed=3) for _ in range(2))
    none = one.difference(same)
    assert none.point.tolist() == none.low.tolist() == none.high.tolist() == [0, 0]
    # The figures' own intervals overlap; on the same cases the difference is a tenth each time.
    ahead = resample(values.astype(float) + 0.1, every, seed=3).difference(one)
    assert ahead.low.tolist() == pytest.approx([0.1, 0.1])
    assert ahead.high.tolist() == pytest.approx([0.1, 0.1])


def test_figure_of_a_group_is_the_mean_over_its_cases_and_an_empty_group_has_none() -> None:
    values = np.array([[1.0, 0.0, 1.0, 0.0], [1.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    members = np.array([[True] * 4, [True, False, True, False], [False] * 4])
    found = resample(values, members, resamples=200)
    low, high = found.interval()
    assert found.point[:2].tolist() == [0.5, 1.0]
    assert (low[1], high[1]) == (1.0, 1.0)
    assert np.isnan([found.point[2], low[2], high[2]]).all()


def test_same_seed_same_interval_whatever_fits_into_memory_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # Sums of such numbers are exact: a matrix product of another shape may add in another order.
    values = np.random.default_rng(2).integers(65, size=(3, 50)) / 64
    every = np.ones_like(values, dtype=bool)
    at_once = resample(values, every, resamples=200, seed=7).draws
    monkeypatch.setattr("retriever.evaluation.bootstrap._CELLS_AT_ONCE", 120)
    np.testing.assert_array_equal(resample(values, every, resamples=200, seed=7).draws, at_once)
    assert (resample(values, every, resamples=200, seed=8).draws != at_once).any()
