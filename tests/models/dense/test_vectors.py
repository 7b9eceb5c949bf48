"""Vectors of a byte a dimension: what is read back is within the bound, and the bytes are those that were written."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.dense.vectors import QuantisedVectors, bytes_an_item, cosine_error_bound, quantise


def vectors(seed: int, rows: int, dimension: int, spread: float) -> np.ndarray:
    random = np.random.default_rng(seed)
    scales = 10.0 ** random.uniform(-spread, spread, size=(rows, 1))
    return (random.standard_normal((rows, dimension)) ** 3 * scales).astype(np.float32)


@given(st.integers(0, 10_000), st.integers(1, 20), st.integers(1, 80), st.floats(0, 6))
@settings(max_examples=60, deadline=None)
def test_cosines_of_kept_vectors_are_within_the_bound(seed: int, rows: int, dimension: int, spread: float) -> None:
    given_rows = vectors(seed, rows, dimension, spread)
    kept = quantise(given_rows)
    other = np.random.default_rng(seed + 1).standard_normal(dimension)
    other /= np.linalg.norm(other)
    lengths = np.linalg.norm(given_rows.astype(np.float64), axis=1)
    true = given_rows.astype(np.float64) @ other / lengths
    found = kept.unit().astype(np.float64) @ other
    assert (np.abs(true - found) <= cosine_error_bound(given_rows) + 1e-6).all()
    step = np.abs(given_rows).max(axis=1, keepdims=True) / 127
    assert (np.abs(kept.read() - given_rows) <= 0.5001 * step).all()


@given(st.integers(0, 10_000), st.integers(0, 20), st.integers(1, 80))
@settings(max_examples=40, deadline=None)
def test_bytes_read_back_are_the_vectors_that_were_written(seed: int, rows: int, dimension: int) -> None:
    kept = quantise(vectors(seed, rows, dimension, 2))
    values = kept.encode()
    assert [len(value) for value in values] == [bytes_an_item(dimension)] * rows
    read = QuantisedVectors.decode(values, dimension)
    np.testing.assert_array_equal(read.steps, kept.steps)
    np.testing.assert_array_equal(read.scales, kept.scales)


def test_row_of_zeros_stays_zero_and_does_not_divide_by_it() -> None:
    kept = quantise(np.zeros((2, 5), dtype=np.float32))
    assert not kept.read().any()
    assert not kept.unit().any()


def test_kept_vectors_have_length_one_whatever_their_scale() -> None:
    lengths = np.linalg.norm(quantise(vectors(3, 50, 64, 6)).unit(), axis=1)
    np.testing.assert_allclose(lengths, 1, atol=1e-6)


@pytest.mark.parametrize(
    "value", [b"", bytes(8), bytes(10), np.float32(np.nan).tobytes() + bytes(5), np.float32(-1).tobytes() + bytes(5)]
)
def test_damaged_value_is_refused(value: bytes) -> None:
    with pytest.raises(ValueError, match="vector"):
        QuantisedVectors.decode([value], 5)
