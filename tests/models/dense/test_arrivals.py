"""Kernel ridge regression against the normal equations, against what made the data, and against a linear one."""

from __future__ import annotations

import numpy as np
import pytest

from models.dense.arrivals import Regression, fit_regression, unit


def test_weights_are_the_closed_form_of_all_known_items() -> None:
    random = np.random.default_rng(0)
    x, y = unit(random.standard_normal((200, 12))), unit(random.standard_normal((200, 5)))
    y[::7] = 0  # stands in no history: not learned from
    found = fit_regression(x, y, landmarks=40)
    known = y.any(axis=1)
    a, b = x[known].astype(np.float64), y[known].astype(np.float64)
    assert found.landmarks is not None
    marks = found.landmarks.astype(np.float64)
    assert len(marks) == 40
    kernel, own = (np.exp(found.sharpness * (rows @ marks.T - 1)) for rows in (a, marks))
    expected = np.linalg.solve(kernel.T @ kernel + found.strength * (own + 1e-6 * np.eye(40)), kernel.T @ b)
    np.testing.assert_allclose(found.matrix, expected, atol=1e-2 * np.abs(expected).max())
    np.testing.assert_allclose(
        found.predict(x), unit(np.exp(found.sharpness * (x @ marks.T - 1)) @ expected), atol=1e-3
    )


def test_what_embeddings_say_is_found_and_noise_asks_for_a_greater_strength() -> None:
    random = np.random.default_rng(1)
    x, turn = unit(random.standard_normal((600, 16))), random.standard_normal((16, 4))
    clear = fit_regression(x, unit(x @ turn))
    noisy = fit_regression(x, unit(x @ turn + 6 * random.standard_normal((600, 4))))
    assert clear.cosine > 0.97
    fresh = unit(random.standard_normal((50, 16)))
    assert (clear.predict(fresh) * unit(fresh @ turn)).sum(axis=1).mean() > 0.97
    assert noisy.strength > clear.strength
    assert noisy.cosine < clear.cosine


def test_what_no_plane_parts_is_told_by_the_kernel() -> None:
    random = np.random.default_rng(3)
    x = unit(random.standard_normal((900, 3)))
    # Of two kinds, by whether two signs agree: what is linear in the embedding tells nothing of it.
    kinds = np.eye(2, dtype=np.float32)[(x[:, 0] * x[:, 1] > 0).astype(int)]
    found = fit_regression(x[:600], kinds[:600])
    linear = Regression(None, 0.0, np.linalg.lstsq(x[:600], kinds[:600], rcond=None)[0].astype(np.float32))
    told = [(one.predict(x[600:]).argmax(axis=1) == kinds[600:].argmax(axis=1)).mean() for one in (found, linear)]
    assert told[0] > 0.9 > 0.65 > told[1]


@pytest.mark.parametrize("known", [0, 1, 2])
def test_hardly_any_known_items_are_no_fault(known: int) -> None:
    y = np.zeros((5, 3), dtype=np.float32)
    y[:known, 0] = 1
    predicted = fit_regression(unit(np.random.default_rng(2).standard_normal((5, 4))), y).predict(np.ones((1, 4)))
    assert np.isfinite(predicted).all()


def test_items_with_one_and_the_same_embedding_are_no_fault() -> None:
    x = np.repeat(unit(np.eye(3)), 50, axis=0)
    y = np.repeat(np.eye(3, dtype=np.float32), 50, axis=0)
    found = fit_regression(x, y)
    np.testing.assert_allclose(found.predict(unit(np.eye(3))), np.eye(3), atol=0.05)
    assert not found.predict(np.zeros((1, 3))).any()
