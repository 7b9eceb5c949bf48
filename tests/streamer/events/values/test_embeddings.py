"""Embeddings on the wire: what is float16 and what is not, and which norms are strange."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from streamer.events.values.embeddings import (
    CheckedEmbeddings,
    EmbeddingError,
    PlausibleNorms,
    check_embeddings,
    embedding_bytes,
    matrix_of,
)

D = 64
UNIT = PlausibleNorms.of([1.0, 1.0, 1.0, 1.0, 1.0])


def unit_rows(count: int, dimension: int = D, scale: float = 1.0) -> NDArray[np.float32]:
    rows = np.random.default_rng(7).standard_normal((count, dimension)).astype("<f4")
    return (scale * rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype("<f4")


def bfloat16(rows: NDArray[np.float32]) -> NDArray[np.uint16]:
    return (rows.view("<u4") >> 16).astype("<u2")


def checked(contents: list[bytes], plausible: PlausibleNorms = UNIT, dtype: str | None = None) -> CheckedEmbeddings:
    pairs = [embedding_bytes(content, dtype, D) for content in contents]
    embeddings = [content for content, _ in pairs]
    guessed = [row for row, (_, guess) in enumerate(pairs) if guess]
    return check_embeddings(matrix_of(embeddings, D), embeddings, guessed, plausible)


def kinds(found: CheckedEmbeddings) -> dict[int, str]:
    return {row: fault.kind for row, fault in found.faults.items()}


def test_rows_of_both_dtypes_come_out_in_their_order() -> None:
    rows = unit_rows(6)
    contents = [row.astype("<f2" if place % 2 else "<f4").tobytes() for place, row in enumerate(rows)]
    matrix = matrix_of(contents, D)
    assert matrix.dtype == np.float32
    np.testing.assert_allclose(matrix, rows, atol=1e-3)
    assert matrix_of([], D).shape == (0, D)


def test_float16_passes_untold_where_its_norm_is_that_of_the_fit() -> None:
    assert kinds(checked([row.astype("<f2").tobytes() for row in unit_rows(50)])) == {}


@pytest.mark.parametrize("plausible", [UNIT, PlausibleNorms.of(None)], ids=["norms of the fit", "older bundle"])
def test_float32_of_half_the_dimensions_is_refused_as_such(plausible: PlausibleNorms) -> None:
    contents = [row.tobytes() for row in unit_rows(200, D // 2)]
    found = checked(contents, plausible)
    assert len(found.faults) == 200
    assert {fault.kind for fault in found.faults.values()} <= {"AmbiguousEmbedding", "EmbeddingNotFinite"}
    for fault in found.faults.values():
        assert f"{D // 2} numbers of float32" in str(fault)
        assert "say dtype float16" in str(fault)


def test_float32_of_few_digits_and_half_the_dimensions_is_refused_although_its_norm_would_do() -> None:
    row = np.zeros(D // 2, "<f4")
    row[0] = 0.5  # read as float16: 0 and 1.75
    assert kinds(checked([row.tobytes()])) == {0: "AmbiguousEmbedding"}


def test_bfloat16_is_refused_by_name_when_it_is_told_and_by_its_norm_when_not() -> None:
    contents = [row.tobytes() for row in bfloat16(unit_rows(50))]
    found = checked(contents)
    assert kinds(found) == dict.fromkeys(range(50), "AmbiguousEmbedding")
    assert "bfloat16" in str(found.faults[0])
    with pytest.raises(EmbeddingError, match="'bfloat16' are not supported: convert them to float32"):
        embedding_bytes(contents[0], "bfloat16", D)


@pytest.mark.parametrize("dtype", ["float64", "int8", "<f4", "", "x" * 5_000])
def test_other_dtypes_are_refused_by_name_also_of_numbers(dtype: str) -> None:
    for embedding in (b"\x00" * 4 * D, [0.5] * D):
        with pytest.raises(EmbeddingError) as caught:
            embedding_bytes(embedding, dtype, D)
        assert caught.value.kind == "UnsupportedDtype"
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("size", "dtype", "words"),
    [
        (2 * D, "float32", f"{2 * D} bytes of float32 are {D // 2} numbers; this codebook takes {D}: {4 * D} bytes"),
        (4 * D, "float16", f"{4 * D} bytes of float16 are {2 * D} numbers; this codebook takes {D}: {2 * D} bytes"),
        (8 * D, None, f"{8 * D} bytes of embedding; this codebook takes {4 * D} (float32) or {2 * D} (float16)"),
        (3, "float16", "3 bytes of float16 are 1.5 numbers"),
    ],
)
def test_length_that_does_not_go_with_the_dtype_is_refused(size: int, dtype: str | None, words: str) -> None:
    with pytest.raises(EmbeddingError) as caught:
        embedding_bytes(bytes(size), dtype, D)
    assert caught.value.kind == "WrongDimension"
    assert words in str(caught.value)


def test_told_float16_of_a_strange_norm_is_taken_and_counted() -> None:
    found = checked([row.astype("<f2").tobytes() for row in unit_rows(3, scale=30.0)], dtype="float16")
    assert kinds(found) == {}
    assert found.strange.tolist() == [0, 1, 2]


@pytest.mark.parametrize("zero", [np.zeros(D, "<f4"), np.full(D, -0.0, "<f4"), np.full(D, 1e-30, "<f4")])
def test_zero_vector_is_refused_by_name_in_every_form(zero: NDArray[Any]) -> None:
    contents = [zero.tobytes(), zero.astype("<f2").tobytes(), embedding_bytes(zero.tolist(), None, D)[0]]
    assert kinds(checked(contents)) == dict.fromkeys(range(3), "EmbeddingZero")


def test_not_finite_numbers_are_refused_in_every_form() -> None:
    contents = []
    for number in (np.nan, np.inf, -np.inf, 3e38):
        row = unit_rows(1)[0]
        row[:2] = number
        contents.append(row.tobytes())
        with np.errstate(over="ignore"):
            contents.append(row.astype("<f2").tobytes())
    contents.append(embedding_bytes([1e308] * D, None, D)[0])
    assert set(kinds(checked(contents)).values()) == {"EmbeddingNotFinite"}
    assert len(kinds(checked(contents))) == 9


def test_strange_norms_are_those_far_outside_the_fits() -> None:
    rows = np.concatenate([unit_rows(1, scale=scale) for scale in (0.1, 0.3, 1.0, 3.0, 10.0)])
    found = checked([row.tobytes() for row in rows])
    assert found.strange.tolist() == [0, 4]
    np.testing.assert_allclose(found.norms, [0.1, 0.3, 1.0, 3.0, 10.0], rtol=1e-5)


def test_every_embedding_of_the_fit_is_plausible_with_its_outliers() -> None:
    norms = np.array([1e-4, *np.linspace(0.9, 1.1, 998), 5e3], np.float32)
    low, one, half, most, high = np.quantile(norms, (0, 0.01, 0.5, 0.99, 1)).tolist()
    assert not PlausibleNorms.of((low, one, half, most, high)).implausible(norms).any()
