"""`sidstream fit --method`: each method's bundle opens and encodes alike; options of the other method are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from models.bundles.building import FitSettings, fit_bundle
from models.bundles.bundle import Bundle
from models.codebooks.codebook import Codebook, fit_residual_kmeans
from models.codebooks.onnx_encoder import OnnxEncoder
from models.codebooks.rq_vae import RqVaeSettings
from models.errors import SidstreamError
from models.sids.census import count_tokens
from sidstream import app

pytest.importorskip("torch")
pytest.importorskip("faiss")
pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def embeddings() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(200, 12)).astype(np.float32)


def test_rq_vae_bundle_opens_and_encodes_like_its_codebook(tmp_path: Path, embeddings: np.ndarray) -> None:
    np.save(tmp_path / "embeddings.npy", embeddings)
    choices = ["--method", "rq-vae", "--epochs", "3", "--latent", "5", "--size", "8", "--head", "top-k", "--k", "2"]
    answer = CliRunner().invoke(
        app, ["fit", str(tmp_path / "embeddings.npy"), "--bundle", str(tmp_path / "bundle"), *choices]
    )
    assert answer.exit_code == 0, answer.exception
    opened = Bundle.open(tmp_path / "bundle")
    codebook, encoder = Codebook.load(opened.codebook_path), OnnxEncoder(opened.encoder_path)
    assert codebook.codewords.shape == (3, 8, 5)
    assert opened.manifest.dimension == encoder.dimension == codebook.dimension == 12
    assert opened.manifest.codebook_id == encoder.codebook_id == codebook.id == opened.layout.codebook_id
    assert len(opened.layout.head_tokens) == 2
    codes = codebook.encode(embeddings)
    assert np.array_equal(np.array(opened.manifest.census), count_tokens(codes, 8))
    assert np.array_equal(encoder.encode(embeddings), codes)


def test_without_a_method_codebooks_are_fitted_by_k_means(tmp_path: Path, embeddings: np.ndarray) -> None:
    np.save(tmp_path / "embeddings.npy", embeddings)
    arguments = ["fit", str(tmp_path / "embeddings.npy"), "--bundle", str(tmp_path / "bundle"), "--size", "8"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    expected = fit_residual_kmeans(embeddings, layers=3, size=8, iterations=20, seed=0)
    assert Bundle.open(tmp_path / "bundle").manifest.codebook_id == expected.id


def test_epochs_are_reported_as_iterations_of_the_first_layer(tmp_path: Path, embeddings: np.ndarray) -> None:
    reports: list[tuple[int, int]] = []
    settings = FitSettings(size=8, method="rq-vae", rq_vae=RqVaeSettings(hidden=(8,), latent=4, epochs=3))
    fit_bundle(
        embeddings,
        tmp_path / "bundle",
        settings,
        progress=lambda layer_index, iteration, _: reports.append((layer_index, iteration)),
    )
    assert reports == [(0, 1), (0, 2), (0, 3)]


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (["--method", "vq"], "--method 'vq' is unknown: choose one of k-means, rq-vae"),
        (["--method", "rq-vae", "--iterations", "3"], "--iterations is for --method k-means"),
        (["--epochs", "3"], "--epochs and --latent are for --method rq-vae"),
        (["--latent", "3"], "--epochs and --latent are for --method rq-vae"),
    ],
)
def test_choices_that_make_no_sense_are_refused(tmp_path: Path, choices: list[str], message: str) -> None:
    answer = CliRunner().invoke(app, ["fit", str(tmp_path), "--bundle", str(tmp_path / "bundle"), *choices])
    assert isinstance(answer.exception, SidstreamError)
    assert message in str(answer.exception)
    assert not (tmp_path / "bundle").exists()
