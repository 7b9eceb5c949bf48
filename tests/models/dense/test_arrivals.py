"""Ridge regression against the normal equations and against what made the data."""

from __future__ import annotations

import numpy as np
import pytest

from models.dense.arrivals import fit_ridge, unit


def test_matrix_is_the_closed_form_of_all_known_items() -> None:
    random = np.random.default_rng(0)
    x, y = unit(random.standard_normal((200, 12))), unit(random.standard_normal((200, 5)))
    y[::7] = 0  # stands in no history: not learned from
    ridge = fit_ridge(x, y)
    known = y.any(axis=1)
    a, b = x[known].astype(np.float64), y[known].astype(np.float64)
    expected = np.linalg.inv(a.T @ a + ridge.strength * np.eye(12)) @ a.T @ b
    np.testing.assert_allclose(ridge.matrix, expected, atol=1e-5)


def test_what_embeddings_say_is_found_and_noise_asks_for_a_greater_strength() -> None:
    random = np.random.default_rng(1)
    x, turn = unit(random.standard_normal((600, 16))), random.standard_normal((16, 4))
    clear = fit_ridge(x, unit(x @ turn))
    noisy = fit_ridge(x, unit(x @ turn + 6 * random.standard_normal((600, 4))))
    assert clear.cosine > 0.99
    fresh = unit(random.standard_normal((50, 16)))
    assert (clear.predict(fresh) * unit(fresh @ turn)).sum(axis=1).mean() > 0.99
    assert noisy.strength > clear.strength
    assert noisy.cosine < clear.cosine


@pytest.mark.parametrize("known", [0, 1, 2])
def test_hardly_any_known_items_are_no_fault(known: int) -> None:
    y = np.zeros((5, 3), dtype=np.float32)
    y[:known, 0] = 1
    predicted = fit_ridge(unit(np.random.default_rng(2).standard_normal((5, 4))), y).predict(np.ones((1, 4)))
    assert np.isfinite(predicted).all()
