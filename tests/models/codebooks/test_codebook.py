"""Codebooks: fitted from embeddings, told apart by content, verified on load; encode and reconstruct follow eq. 1-3."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from models.codebooks.codebook import Codebook, CodebookError, checked_embeddings, fit_residual_kmeans
from models.sids.census import count_tokens, gini


@pytest.fixture(scope="module", autouse=True)
def _one_faiss_thread() -> None:
    """OpenMP's waiting threads starve a busy two-core machine."""
    faiss.omp_set_num_threads(1)


def make_codebook(layers: int = 3, size: int = 8, dimension: int = 6, seed: int = 0) -> Codebook:
    random = np.random.default_rng(seed)
    return Codebook(random.standard_normal((layers, size, dimension)).astype(np.float32))


def make_embeddings(count: int, dimension: int = 6, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, dimension)).astype(np.float32)


@given(st.integers(3, 4), st.integers(1, 9), st.integers(1, 7), st.integers(0, 600), st.integers(0, 5))
def test_codes_are_the_nearest_codewords_of_each_residual(
    layers: int, size: int, dimension: int, count: int, seed: int
) -> None:
    codebook = make_codebook(layers, size, dimension, seed)
    embeddings = make_embeddings(count, dimension, seed + 1)
    codes = codebook.encode(embeddings)
    assert codes.dtype == np.uint16
    assert codes.shape == (count, layers)
    residual = embeddings.astype(np.float64)
    for layer_index in range(layers):
        codewords = codebook.codewords[layer_index].astype(np.float64)
        distances = ((residual[:, None, :] - codewords[None]) ** 2).sum(-1)
        taken = distances[np.arange(count), codes[:, layer_index]]
        assert (taken <= distances.min(axis=1) * (1 + 1e-5) + 1e-6).all()
        residual -= codewords[codes[:, layer_index]]
        norms = codebook.residual_norms(embeddings)
        np.testing.assert_allclose(norms[:, layer_index + 1], np.linalg.norm(residual, axis=1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(codebook.reconstruct(codes), embeddings - residual, rtol=1e-4, atol=1e-5)


def test_equally_near_codewords_go_to_the_lowest_number() -> None:
    one = np.array([[9, 9], [1, 0], [-1, 0], [1, 0]], np.float32)
    codebook = Codebook(np.stack([one, one, one]))
    assert codebook.encode(np.array([[1, 0], [0, 0]], np.float32))[:, 0].tolist() == [1, 1]


def test_reconstruction_of_an_exact_sum_is_exact() -> None:
    codebook = Codebook(np.stack([100 * np.eye(4), 10 * np.eye(4), np.eye(4)]).astype(np.float32))
    codes = np.array([[0, 1, 2], [3, 3, 3]], np.uint16)
    embeddings = codebook.reconstruct(codes)
    assert embeddings.tolist() == [[100, 10, 1, 0], [0, 0, 0, 111]]
    assert np.array_equal(codebook.encode(embeddings), codes)
    assert codebook.residual_norms(embeddings)[:, -1].tolist() == [0, 0]


def test_id_depends_on_content_and_shape_alone() -> None:
    codewords = make_codebook(3, 4, 6).codewords
    codebook = Codebook(codewords)
    assert len(codebook.id) == 16
    assert set(codebook.id) <= set("0123456789abcdef")
    assert Codebook(np.asfortranarray(codewords)).id == codebook.id
    assert Codebook(codewords) == codebook
    assert hash(Codebook(codewords)) == hash(codebook)
    changed = codewords.copy()
    changed[2, 3, 5] = np.nextafter(changed[2, 3, 5], np.float32(9))
    others = [Codebook(changed), Codebook(codewords.reshape(3, 6, 4)), Codebook(codewords.reshape(4, 3, 6))]
    assert len({codebook.id, *(other.id for other in others)}) == 4


def test_id_is_the_same_in_every_release() -> None:
    """Stored indexes name their codebook by it: a change of the recipe would orphan them all."""
    assert Codebook(np.arange(24, dtype=np.float32).reshape(3, 4, 2)).id == "ea9ab9f08a2ee927"


def test_codewords_cannot_be_changed_after_the_id_is_known() -> None:
    given_codewords = make_codebook().codewords.copy()
    codebook = Codebook(given_codewords)
    before = codebook.id
    given_codewords[:] = 0
    assert Codebook(codebook.codewords).id == before
    with pytest.raises(ValueError):
        codebook.codewords[0, 0, 0] = 1


@pytest.mark.parametrize(
    ("codewords", "message"),
    [
        (np.zeros((2, 4, 4), np.float32), "layers must be 3 to 26, not 2"),
        (np.zeros((3, 0, 4), np.float32), "size must be 1 to 65536 codewords per layer, not 0"),
        (np.zeros((3, 65_537, 1), np.float32), "not 65537"),
        (np.zeros((3, 4, 0), np.float32), "dimension must be at least 1"),
        (np.zeros((3, 4, 4)), "not float64"),
        (np.zeros((3, 4), np.float32), r"shape \(3, 4\)"),
        ([[[0.0]]], "not list"),
        (np.full((3, 2, 2), np.nan, np.float32), "codeword 0 of layer index 0"),
        (np.full((3, 2, 2), 3e38, np.float32), "far too large"),
    ],
)
def test_impossible_codebook_is_refused_with_the_value(codewords: Any, message: str) -> None:
    with pytest.raises(CodebookError, match=message):
        Codebook(codewords)


@pytest.mark.parametrize(
    ("embeddings", "message"),
    [
        (np.zeros((2, 5), np.float32), r"shape \(2, 5\), but the codebook needs \(N, 6\)"),
        (np.zeros(6, np.float32), r"shape \(6,\)"),
        (np.zeros((2, 6)), "float32, not float64"),
        (np.array([[0] * 6, [0, 0, np.nan, 0, 0, 0]], np.float32), "row 1 .* NaN"),
        (np.array([[0] * 6, [0, np.inf, -np.inf, 0, 0, 0]], np.float32), "row 1"),
    ],
)
def test_embeddings_that_do_not_fit_are_refused(embeddings: np.ndarray, message: str) -> None:
    with pytest.raises(CodebookError, match=message):
        make_codebook().encode(embeddings)


def test_finite_embeddings_whose_sum_overflows_are_accepted() -> None:
    huge = np.full((4, 6), 3e38, np.float32)
    assert checked_embeddings(huge, 6) is huge


@pytest.mark.parametrize("codes", [[[0, 1]], [[0, 1, 8]], [[0, -1, 2]], [[0.0, 1.0, 2.0]]])
def test_codes_that_do_not_fit_are_refused(codes: Any) -> None:
    with pytest.raises(CodebookError, match="codes must"):
        make_codebook().reconstruct(codes)


def test_saved_codebook_comes_back_equal_and_gives_the_same_bytes(tmp_path: Path) -> None:
    codebook = make_codebook()
    codebook.save(tmp_path / "a.safetensors")
    loaded = Codebook.load(tmp_path / "a.safetensors")
    assert loaded == codebook
    assert np.array_equal(loaded.codewords, codebook.codewords)
    loaded.save(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_codebook_changed_in_its_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "codebook.safetensors"
    make_codebook().save(path)
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CodebookError, match=r"has id [0-9a-f]{16} but was saved as .*damaged"):
        Codebook.load(path)


def test_file_that_is_no_codebook_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "codebook.safetensors"
    with pytest.raises(CodebookError, match=r"no codebook file .* `sidstream fit`"):
        Codebook.load(path)
    path.write_bytes(b"no tensors in here")
    with pytest.raises(CodebookError, match="no readable safetensors file"):
        Codebook.load(path)
    path.write_bytes(safetensors.numpy.save({"codewords": make_codebook().codewords}))
    with pytest.raises(CodebookError, match="not written as a sidstream codebook"):
        Codebook.load(path)
    path.write_bytes(
        safetensors.numpy.save({"codewords": make_codebook().codewords}, metadata={"sidstream": "codebook 99 aa"})
    )
    with pytest.raises(CodebookError, match="codebook format 99, but this sidstream reads 1 and 2; update sidstream"):
        Codebook.load(path)


def test_fit_finds_planted_clusters_of_every_layer() -> None:
    random = np.random.default_rng(5)
    scales = (100.0, 10.0, 1.0)
    planted = np.stack([scale * np.eye(12) for scale in scales]).astype(np.float32)
    choices = random.integers(0, 12, (3000, 3))
    embeddings = Codebook(planted).reconstruct(choices) + random.normal(0, 0.01, (3000, 12)).astype(np.float32)
    codebook = fit_residual_kmeans(embeddings, layers=3, size=36, iterations=10)
    norms = codebook.residual_norms(embeddings).mean(axis=0)
    assert (np.diff(norms) < 0).all()
    assert norms[-1] < 0.02 * norms[0]


def test_fit_reports_each_iteration_and_its_objective_falls() -> None:
    reports: list[tuple[int, int, float]] = []
    embeddings = make_embeddings(500)
    codebook = fit_residual_kmeans(
        embeddings, layers=3, size=8, iterations=5, progress=lambda *report: reports.append(report)
    )
    assert [report[:2] for report in reports] == [(layer, iteration) for layer in range(3) for iteration in range(1, 6)]
    for layer_index in range(3):
        objective = [value for layer, _, value in reports if layer == layer_index]
        assert objective[-1] < objective[0]
        error = float((codebook.residual_norms(embeddings)[:, layer_index + 1] ** 2).mean())
        assert error <= objective[-1] * 1.001  # the last update can only have improved it


def test_fit_with_the_same_seed_gives_the_same_codebook_and_another_seed_another() -> None:
    embeddings = make_embeddings(400)
    first, again, other = (fit_residual_kmeans(embeddings, layers=3, size=8, seed=seed) for seed in (3, 3, 4))
    assert first.id == again.id != other.id


@pytest.mark.parametrize("distinct", [1, 3])
def test_fit_on_fewer_distinct_embeddings_than_codewords_stays_finite(distinct: int) -> None:
    embeddings = np.repeat(make_embeddings(distinct), 20, axis=0)
    codebook = fit_residual_kmeans(embeddings, layers=3, size=16, iterations=4)
    assert codebook.residual_norms(embeddings)[:, -1].max() < 0.05


def test_fit_with_one_embedding_a_codeword_takes_the_embeddings_themselves() -> None:
    embeddings = make_embeddings(16)
    codebook = fit_residual_kmeans(embeddings, layers=3, size=16, iterations=2)
    assert codebook.residual_norms(embeddings)[:, 1].max() == 0
    assert gini(count_tokens(codebook.encode(embeddings), 16)[0]) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 33}, "32 embeddings cannot make 33 codewords per layer; give at least 33"),
        ({"layers": 2}, "layers must be 3 to 26, not 2"),
        ({"size": 0}, "size must be 1 to 65536 codewords per layer, not 0"),
        ({"iterations": 0}, "iterations must be at least 1, not 0"),
    ],
)
def test_fit_with_impossible_parameters_is_refused_with_the_numbers(change: dict[str, int], message: str) -> None:
    with pytest.raises(CodebookError, match=message):
        fit_residual_kmeans(make_embeddings(32), **{"layers": 3, "size": 4, **change})


def test_fit_on_nan_or_no_matrix_is_refused() -> None:
    with pytest.raises(CodebookError, match="row 0"):
        fit_residual_kmeans(np.full((4, 2), np.nan, np.float32), layers=3, size=2)
    with pytest.raises(CodebookError, match="shape"):
        fit_residual_kmeans(np.zeros(4, np.float32), layers=3, size=2)


def test_second_layer_of_real_embeddings_is_far_more_crowded_than_the_first(shared_data: Path) -> None:
    embeddings = np.load(shared_data / "amazon_games" / "items.minilm.f16.npy").astype(np.float32)
    codebook = fit_residual_kmeans(embeddings, layers=3, size=256, iterations=4)
    first, second, _ = (gini(row) for row in count_tokens(codebook.encode(embeddings), 256))
    assert second > first + 0.15


def test_numeric_modules_load_without_faiss_onnx_torch_or_safetensors() -> None:
    script = (
        "import sys, models.sids.layout, models.sids.census, models.codebooks.codebook, models.codebooks.onnx_encoder;"
        "print([name for name in ('faiss', 'onnx', 'torch', 'safetensors', 'transformers') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_layers_that_start_apart_share_the_first_layer_alone_with_layers_that_start_together() -> None:
    rows = np.random.default_rng(2).normal(size=(300, 8)).astype(np.float32)
    together = fit_residual_kmeans(rows, layers=3, size=10, seed=1)
    apart = fit_residual_kmeans(rows, layers=3, size=10, seed=1, shared_start=False)
    np.testing.assert_array_equal(together.codewords[0], apart.codewords[0])
    assert not np.array_equal(together.codewords[1], apart.codewords[1])
    assert apart == fit_residual_kmeans(rows, layers=3, size=10, seed=1, shared_start=False)
