"""RQ-VAE: what it learns on a planted mixture, and that codebook, graph and bundle carry its encoder whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import onnx
import pytest
import safetensors.numpy
import torch

from models.bundles.bundle import Bundle, create_bundle
from models.codebooks.codebook import Codebook, CodebookError
from models.codebooks.dense_network import DenseNetwork, DenseNetworkError
from models.codebooks.onnx_encoder import OnnxEncoder
from models.codebooks.onnx_export import export_onnx
from models.codebooks.onnx_format import BLOCK_ROWS
from models.codebooks.rq_vae import ResidualQuantiser, RqVaeSettings, fit_rq_vae
from models.sids.census import count_tokens
from models.sids.layout import Layout

SMALL = RqVaeSettings(hidden=(32, 24), latent=8, epochs=30, batch_size=128)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Any:
    """OpenMP's waiting threads starve a busy two-core machine."""
    faiss.omp_set_num_threads(1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def planted() -> np.ndarray:
    """2,000 embeddings of 24 numbers: a kind, a sub-kind on top of it, and a little noise."""
    random = np.random.default_rng(7)
    kinds, parts = random.normal(0, 1.0, (12, 24)), random.normal(0, 0.4, (12, 24))
    choice = random.integers(0, 12, (2, 2000))
    return (0.3 + kinds[choice[0]] + parts[choice[1]] + random.normal(0, 0.05, (2000, 24))).astype(np.float32)


@pytest.fixture(scope="module")
def learned(planted: np.ndarray) -> tuple[Codebook, list[tuple[int, float]]]:
    """The codebook of ``planted`` and what its fitting reported."""
    reports: list[tuple[int, float]] = []
    codebook = fit_rq_vae(
        planted, layers=3, size=16, settings=SMALL, progress=lambda epoch, error: reports.append((epoch, error))
    )
    return codebook, reports


@pytest.fixture
def encoder_of(tmp_path: Path) -> Callable[[Codebook], OnnxEncoder]:
    def build(codebook: Codebook) -> OnnxEncoder:
        export_onnx(codebook, tmp_path / "encoder.onnx")
        return OnnxEncoder(tmp_path / "encoder.onnx")

    return build


def squared_error(codebook: Codebook, embeddings: np.ndarray) -> float:
    return float(((embeddings - codebook.reconstruct(codebook.encode(embeddings))) ** 2).sum(axis=1).mean())


def network(*widths: int, seed: int = 0) -> DenseNetwork:
    random = np.random.default_rng(seed)
    return DenseNetwork(
        tuple(
            (
                (random.normal(size=(outputs, inputs)) / np.sqrt(inputs)).astype(np.float32),
                random.normal(0, 0.1, outputs).astype(np.float32),
            )
            for inputs, outputs in pairwise(widths)
        )
    )


def latent_codebook(seed: int = 0, size: int = 8) -> Codebook:
    """3 x ``size`` codewords of 4 dimensions behind an encoder of 6, untrained."""
    codewords = np.random.default_rng(seed).normal(0, 0.5, (3, size, 4)).astype(np.float32)
    return Codebook(codewords, network(6, 10, 4, seed=seed), network(4, 10, 6, seed=seed + 1))


def near_ties(codebook: Codebook, embeddings: np.ndarray, first: np.ndarray, second: np.ndarray) -> list[str]:
    """One line an item whose codes differ: where they part and how near the two choices are in float64."""
    assert codebook.encoder is not None
    lines = []
    for item in np.flatnonzero((first != second).any(axis=1)):
        layer_index = int(np.argmax(first[item] != second[item]))
        residual = embeddings[item].astype(np.float64)
        for number, (weight, bias) in enumerate(codebook.encoder.layers):
            residual = weight.astype(np.float64) @ (np.maximum(residual, 0) if number else residual) + bias
        for earlier in range(layer_index):
            residual -= codebook.codewords[earlier, first[item, earlier]].astype(np.float64)
        one, other = (
            float(((residual - codebook.codewords[layer_index, codes[item, layer_index]]) ** 2).sum())
            for codes in (first, second)
        )
        lines.append(f"item {item}, layer index {layer_index}: squared distances {one!r} and {other!r}")
        assert abs(one - other) < 1e-4 * max(one, other), f"not a tie: {lines[-1]}"
    return lines


def test_reconstruction_error_falls_far_below_its_start_and_is_the_codebooks_own(
    planted: np.ndarray, learned: tuple[Codebook, list[tuple[int, float]]]
) -> None:
    codebook, reports = learned
    start = fit_rq_vae(planted, layers=3, size=16, settings=replace(SMALL, epochs=1))
    variance = float(((planted - planted.mean(axis=0)) ** 2).sum(axis=1).mean())
    error = squared_error(codebook, planted)
    print(f"\nvariance {variance:.2f}, after one epoch {squared_error(start, planted):.2f}, after all {error:.2f}")
    assert [epoch for epoch, _ in reports] == list(range(1, SMALL.epochs + 1))
    assert error < 0.5 * squared_error(start, planted)
    assert error < 0.25 * variance
    assert error == pytest.approx(reports[-1][1], rel=0.2)


def test_every_codeword_of_a_planted_mixture_is_in_use(
    planted: np.ndarray, learned: tuple[Codebook, list[tuple[int, float]]]
) -> None:
    dead = (count_tokens(learned[0].encode(planted), 16) == 0).sum(axis=1)
    print(f"\ndead codes per layer {dead.tolist()}")
    assert dead.max() <= 1


def test_same_seed_gives_the_same_codebook_and_the_callers_random_numbers_stay(planted: np.ndarray) -> None:
    settings = RqVaeSettings(hidden=(16,), latent=4, epochs=2, batch_size=256)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, again, other = (
        fit_rq_vae(planted[:600], layers=3, size=8, settings=settings, seed=seed) for seed in (3, 3, 4)
    )
    assert first.id == again.id != other.id
    assert torch.equal(torch.rand(1), expected)


def test_dead_codewords_are_moved_to_residuals_of_their_layer_and_the_others_stay() -> None:
    codewords = torch.full((3, 4, 2), 1000.0)
    codewords[:, 0] = 0.0
    quantiser = ResidualQuantiser(codewords, decay=0.9)
    latent = torch.tensor([[1.0, 2.0], [3.0, 4.0], [-1.0, 0.5]])
    quantiser.learn(latent)
    assert quantiser.used.tolist() == [[3, 0, 0, 0]] * 3
    before = quantiser.codewords.clone()
    revived = quantiser.revive(latent, torch.Generator().manual_seed(0))
    assert revived == 9
    assert torch.equal(quantiser.codewords[:, 0], before[:, 0])
    assert all(row in latent.tolist() for row in quantiser.codewords[0, 1:].tolist())
    assert quantiser.codewords.abs().max() < 10
    quantiser.learn(latent)
    assert (quantiser.used > 0).sum(dim=1).tolist()[0] > 1


def test_gradients_pass_the_quantisation_straight_and_the_commitment_pulls_towards_the_codewords() -> None:
    codewords = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.5, 0.0], [0.0, 0.5]], [[0.0, 0.0], [9.0, 9.0]]])
    quantiser = ResidualQuantiser(codewords, decay=1 - 1e-9)
    latent = torch.tensor([[1.6, 0.1]], requires_grad=True)
    quantised, committed = quantiser.learn(latent)
    assert quantised.tolist() == [[1.5, 0.0]]
    # Per layer the mean over d of (z - what the layers so far sum to)^2.
    assert float(committed.detach()) == pytest.approx((0.6**2 + 0.1**2) / 2 + 2 * (0.1**2 + 0.1**2) / 2, rel=1e-5)
    (through,) = torch.autograd.grad(quantised.sum(), latent, retain_graph=True)
    assert through.tolist() == [[1.0, 1.0]]
    (pull,) = torch.autograd.grad(committed, latent)
    np.testing.assert_allclose(pull.numpy(), [[0.6 + 0.1 + 0.1, 0.1 + 0.1 + 0.1]], rtol=1e-5)


@pytest.mark.parametrize("distinct", [1, 3])
def test_fit_on_fewer_distinct_embeddings_than_codewords_stays_finite(distinct: int) -> None:
    rows = np.random.default_rng(0).normal(size=(distinct, 6)).astype(np.float32)
    settings = RqVaeSettings(hidden=(8,), latent=4, epochs=3, batch_size=32)
    codebook = fit_rq_vae(np.repeat(rows, 30, axis=0), layers=3, size=16, settings=settings)
    assert np.isfinite(squared_error(codebook, rows))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, not 0"),
        ({"latent": 0}, "latent must be at least 1, not 0"),
        ({"hidden": (4, 0)}, "hidden widths"),
        ({"decay": 1.0}, "decay must lie"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
    ],
)
def test_impossible_settings_are_refused_with_the_value(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CodebookError, match=message):
        RqVaeSettings(**change)


def test_embeddings_that_cannot_be_fitted_are_refused() -> None:
    with pytest.raises(CodebookError, match="8 embeddings cannot make 16 codewords"):
        fit_rq_vae(np.zeros((8, 4), np.float32), layers=3, size=16, settings=SMALL)
    with pytest.raises(CodebookError, match="row 0"):
        fit_rq_vae(np.full((8, 4), np.nan, np.float32), layers=3, size=4)
    with pytest.raises(CodebookError, match="shape"):
        fit_rq_vae(np.zeros(4, np.float32), layers=3, size=2)


def test_numpy_encoder_is_torchs(planted: np.ndarray) -> None:
    dense = network(24, 10, 4)
    modules: list[torch.nn.Module] = []
    for weight, bias in dense.layers:
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0])
        linear.weight.data, linear.bias.data = torch.tensor(weight), torch.tensor(bias)
        modules += [linear, torch.nn.ReLU()]
    with torch.no_grad():
        expected = torch.nn.Sequential(*modules[:-1])(torch.from_numpy(planted)).numpy()
    np.testing.assert_allclose(dense(planted), expected, rtol=1e-4, atol=1e-5)


def test_id_covers_encoder_and_decoder_and_is_the_same_in_every_release() -> None:
    codebook = latent_codebook()
    assert codebook.encoder is not None
    others = {Codebook(codebook.codewords).id}
    for name in ("encoder", "decoder"):
        layers = [list(pair) for pair in getattr(codebook, name).layers]
        layers[1][1] = np.nextafter(layers[1][1], np.float32(9))
        changed = {"encoder": codebook.encoder, "decoder": codebook.decoder}
        changed[name] = DenseNetwork(tuple((weight, bias) for weight, bias in layers))
        others.add(Codebook(codebook.codewords, **changed).id)
    assert len({codebook.id, *others}) == 4
    ramp = np.arange(6, dtype=np.float32)
    pinned = Codebook(
        np.arange(24, dtype=np.float32).reshape(3, 4, 2),
        DenseNetwork(((ramp.reshape(2, 3), ramp[:2]),)),
        DenseNetwork(((ramp.reshape(3, 2), ramp[:3]),)),
    )
    assert pinned.id == "38cf9c0789589473"


def test_shapes_of_a_latent_codebook() -> None:
    codebook = latent_codebook()
    embeddings = np.random.default_rng(1).normal(size=(300, 6)).astype(np.float32)
    assert (codebook.dimension, codebook.codewords.shape) == (6, (3, 8, 4))
    codes = codebook.encode(embeddings)
    assert np.array_equal(codes, Codebook(codebook.codewords).encode(codebook.latent(embeddings)))
    assert codebook.latent(embeddings).shape == (300, 4)
    assert codebook.reconstruct(codes).shape == (300, 6)
    norms = codebook.residual_norms(embeddings)
    np.testing.assert_allclose(norms[:, 0], np.linalg.norm(codebook.latent(embeddings), axis=1), rtol=1e-6)


def test_networks_that_do_not_fit_are_refused() -> None:
    codewords = latent_codebook().codewords
    with pytest.raises(CodebookError, match="both or neither"):
        Codebook(codewords, network(6, 4))
    with pytest.raises(CodebookError, match="encoder 6 → 5 and decoder 4 → 6"):
        Codebook(codewords, network(6, 5), network(4, 6))
    with pytest.raises(CodebookError, match="encoder 6 → 4 and decoder 4 → 7"):
        Codebook(codewords, network(6, 4), network(4, 7))
    one = np.ones((2, 3), np.float32)
    for layers, message in [
        ((), "at least one layer"),
        (((one, np.ones(3, np.float32)),), "do not belong together"),
        (((one, one[:, 0]), (one, one[:, 0])), "dense layer 1"),
        (((one, np.ones(2)),), "must be float32"),
        (((one * np.float32(np.nan), one[:, 0]),), "NaN"),
    ]:
        with pytest.raises(DenseNetworkError, match=message):
            DenseNetwork(layers)


def test_saved_codebook_comes_back_with_its_networks_and_gives_the_same_bytes(tmp_path: Path) -> None:
    codebook = latent_codebook()
    codebook.save(tmp_path / "a.safetensors")
    loaded = Codebook.load(tmp_path / "a.safetensors")
    embeddings = np.random.default_rng(1).normal(size=(50, 6)).astype(np.float32)
    assert loaded == codebook
    assert np.array_equal(loaded.encode(embeddings), codebook.encode(embeddings))
    assert np.array_equal(
        loaded.reconstruct(codebook.encode(embeddings)), codebook.reconstruct(codebook.encode(embeddings))
    )
    loaded.save(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_file_with_a_network_changed_or_torn_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "codebook.safetensors"
    codebook = latent_codebook()
    codebook.save(path)
    tensors = dict(safetensors.numpy.load_file(path))
    metadata = {"sidstream": f"codebook 2 {codebook.id}"}
    moved = tensors | {"decoder.0.bias": tensors["decoder.0.bias"] + 1}
    path.write_bytes(safetensors.numpy.save(moved, metadata=metadata))
    with pytest.raises(CodebookError, match="damaged"):
        Codebook.load(path)
    del tensors["encoder.1.bias"]
    path.write_bytes(safetensors.numpy.save(tensors, metadata=metadata))
    with pytest.raises(CodebookError, match="the encoder lacks"):
        Codebook.load(path)


def test_file_of_plain_codewords_keeps_the_format_that_older_releases_read(tmp_path: Path) -> None:
    for codebook, version in ((Codebook(latent_codebook().codewords), "1"), (latent_codebook(), "2")):
        codebook.save(tmp_path / "codebook.safetensors")
        with safetensors.safe_open(tmp_path / "codebook.safetensors", framework="numpy") as file:
            assert file.metadata()["sidstream"].split()[1] == version


def test_exported_graph_takes_embeddings_and_gives_the_references_codes(
    planted: np.ndarray,
    learned: tuple[Codebook, list[tuple[int, float]]],
    encoder_of: Callable[[Codebook], OnnxEncoder],
    tmp_path: Path,
) -> None:
    codebook = learned[0]
    encoder = encoder_of(codebook)
    assert encoder.codebook_id == codebook.id
    assert (encoder.layers, encoder.size, encoder.dimension) == (3, 16, 24)
    together = encoder.encode(planted)
    ties = near_ties(codebook, planted, codebook.encode(planted), together)
    assert len(ties) <= 2
    for batch_rows in (1, 7, BLOCK_ROWS, BLOCK_ROWS + 1):
        for start in range(0, 600, 97):
            alone = encoder.encode(planted[start : start + batch_rows])
            assert np.array_equal(alone, together[start : start + batch_rows])
    onnx.checker.check_model(onnx.load(tmp_path / "encoder.onnx"), full_check=True)


def test_codes_of_real_embeddings_equal_the_reference_except_counted_near_ties(
    shared_data: Path, encoder_of: Callable[[Codebook], OnnxEncoder]
) -> None:
    embeddings = np.load(shared_data / "chorus_icecat" / "items.minilm.f16.npy").astype(np.float32)
    settings = RqVaeSettings(hidden=(128, 64), latent=32, epochs=2, batch_size=512)
    codebook = fit_rq_vae(embeddings[:4000], layers=3, size=64, settings=settings)
    encoder = encoder_of(codebook)
    codes = encoder.encode(embeddings)
    ties = near_ties(codebook, embeddings, codebook.encode(embeddings), codes)
    print(f"\n{len(ties)} near-ties in {len(embeddings)} items", *ties, sep="\n  ")
    assert len(ties) <= len(embeddings) // 1000
    for start in range(0, 1000, 49):
        for batch_rows in (1, 7, 256):
            assert np.array_equal(encoder.encode(embeddings[start : start + batch_rows]), codes[start:][:batch_rows])


def test_bundle_of_a_latent_codebook_opens_and_encodes_like_it(tmp_path: Path) -> None:
    codebook = latent_codebook()
    embeddings = np.random.default_rng(2).normal(size=(200, 6)).astype(np.float32)
    codes = codebook.encode(embeddings)
    layout = Layout(1, codebook.id, 3, 8, ())
    create_bundle(tmp_path / "bundle", codebook, layout, census=count_tokens(codes, 8))
    opened = Bundle.open(tmp_path / "bundle")
    encoder = OnnxEncoder(opened.encoder_path)
    assert Codebook.load(opened.codebook_path) == codebook
    assert (opened.manifest.dimension, encoder.dimension, encoder.codebook_id) == (6, 6, codebook.id)
    near_ties(codebook, embeddings, codes, encoder.encode(embeddings))


def test_loss_that_is_not_finite_ends_fitting_with_what_to_do() -> None:
    rows = np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32)
    settings = RqVaeSettings(hidden=(8,), latent=4, epochs=20, batch_size=16, learning_rate=1e10)
    with pytest.raises(CodebookError, match=r"NaN or infinite in epoch \d+ of 20; .* rate smaller than 1e\+10"):
        fit_rq_vae(rows, layers=3, size=8, settings=settings)
