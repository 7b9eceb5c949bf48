"""Sets that are made: the planted hourglass is crowded in layer 2 alone, as strongly as asked; even and uneven embeddings."""

from __future__ import annotations

import numpy as np
import pytest

from models.codebooks.codebook import fit_residual_kmeans
from models.sids.census import count_tokens, gini
from study.data.synthetic import planted_hourglass, skewed_embeddings, uniform_embeddings


def planted_ginis(strength: float, seed: int = 0, size: int = 64, items: int = 4_000) -> list[float]:
    embeddings, codebook = planted_hourglass(items, seed=seed, size=size, strength=strength)
    return [gini(row) for row in count_tokens(codebook.encode(embeddings), size)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", [32, 64, 256])
def test_layer_2_alone_is_crowded(seed: int, size: int) -> None:
    first, second, third = planted_ginis(1.2, seed, size, items=20 * size)
    assert second > 0.6
    assert first < 0.1
    assert third < 0.1


@pytest.mark.parametrize("seed", range(3))
def test_without_strength_no_layer_is_crowded(seed: int) -> None:
    assert max(planted_ginis(0, seed)) < 0.15


def test_the_stronger_the_more_crowded() -> None:
    second = [planted_ginis(strength)[1] for strength in (0, 0.5, 1, 1.5)]
    assert second == sorted(second)
    assert second[-1] > second[0] + 0.6


def test_most_items_of_the_crowded_layer_are_near_their_layer_1_codeword() -> None:
    embeddings, codebook = planted_hourglass(4_000, seed=0)
    near = codebook.encode(embeddings)[:, 1] == 0
    after_first = codebook.residual_norms(embeddings)[:, 1]
    assert near.sum() == count_tokens(codebook.encode(embeddings), codebook.size)[1].max()
    assert after_first[near].max() < 0.5 * after_first[~near].min()


def test_the_same_seed_gives_the_same_set_and_another_seed_another() -> None:
    (first, codebook), (again, same), (other, _) = (planted_hourglass(500, seed=seed) for seed in (0, 0, 1))
    assert first.dtype == np.float32
    assert first.shape == (500, 64)
    assert np.array_equal(first, again)
    assert codebook == same
    assert not np.array_equal(first, other)


def test_even_embeddings_make_no_hourglass_and_uneven_ones_do() -> None:
    ginis = {}
    for name, embeddings in (("even", uniform_embeddings(3_000, seed=0)), ("uneven", skewed_embeddings(3_000, seed=0))):
        np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
        codes = fit_residual_kmeans(embeddings, layers=3, size=32, seed=0).encode(embeddings)
        ginis[name] = [gini(row) for row in count_tokens(codes, 32)]
    assert max(ginis["even"]) < 0.2
    assert ginis["uneven"][1] > 0.4
    assert ginis["uneven"][1] > ginis["uneven"][0]
