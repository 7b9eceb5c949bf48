"""Which old tokens new ones stand for: by the items that have both, and by the nearest codeword."""

from __future__ import annotations

import numpy as np
import pytest

from models.codebooks.codebook import Codebook
from models.codebooks.correspondence import Correspondence, by_codewords, by_items

SIZE = 16


def codebook(seed: int, layers: int = 3, size: int = SIZE) -> Codebook:
    return Codebook(np.random.default_rng(seed).normal(size=(layers, size, 8)).astype(np.float32))


def permuted(old: Codebook, seed: int) -> tuple[Codebook, np.ndarray]:
    """The codewords of each layer in another order, and the old number (L, M) of each new one."""
    random = np.random.default_rng(seed)
    orders = np.array([random.permutation(old.size) for _ in range(old.layers)])
    return Codebook(np.stack([words[order] for words, order in zip(old.codewords, orders, strict=True)])), orders


def rows(found: Correspondence) -> dict[int, dict[int, float]]:
    table: dict[int, dict[int, float]] = {}
    for new, old, share in zip(found.new, found.old, found.share, strict=True):
        table.setdefault(int(new), {})[int(old)] = float(share)
    return table


def test_permuted_codewords_get_their_own_old_token_by_items_and_by_codewords() -> None:
    old = codebook(0)
    new, orders = permuted(old, 1)
    expected = {
        layer * SIZE + number: {layer * SIZE + int(orders[layer, number]): 1.0}
        for layer in range(3)
        for number in range(SIZE)
    }
    embeddings = np.random.default_rng(2).normal(size=(2_000, 8)).astype(np.float32)
    found = by_items(new.encode(embeddings), old.encode(embeddings), new_size=SIZE, old_size=SIZE)
    assert rows(by_codewords(new, old)) == expected
    seen = rows(found)
    assert len(seen) > 2 * SIZE
    assert seen == {token: expected[token] for token in seen}
    assert rows(found.or_else(by_codewords(new, old))) == expected


def test_shares_are_those_of_the_items_and_tokens_without_items_are_unknown() -> None:
    new = np.array([[0, 0, 1], [0, 1, 1], [0, 1, 1], [2, 0, 1]])
    old = np.array([[1, 0, 0], [1, 0, 0], [0, 0, 0], [0, 1, 0]])
    found = by_items(new, old, new_size=3, old_size=2)
    assert rows(found) == {
        0: {0: pytest.approx(1 / 3), 1: pytest.approx(2 / 3)},
        2: {0: 1.0},
        3 + 0: {2 + 0: 0.5, 2 + 1: 0.5},
        3 + 1: {2 + 0: 1.0},
        6 + 1: {4 + 0: 1.0},
    }
    assert np.flatnonzero(found.known()).tolist() == [0, 2, 3, 4, 7]


@pytest.mark.parametrize(("layers", "size"), [(4, 16), (3, 32), (3, 8), (5, 5)])
def test_other_numbers_of_layers_and_codewords_are_matched_layer_by_layer_as_far_as_both_go(
    layers: int, size: int
) -> None:
    old, new = codebook(0, layers=4), codebook(1, layers, size)
    embeddings = np.random.default_rng(2).normal(size=(500, 8)).astype(np.float32)
    by_item = by_items(new.encode(embeddings), old.encode(embeddings), new_size=size, old_size=SIZE)
    for found in (by_item, by_codewords(new, old)):
        np.testing.assert_array_equal(found.new // size, found.old // SIZE)
        assert found.new.max() // size == min(layers, 4) - 1
        np.testing.assert_allclose(np.bincount(found.new, weights=found.share)[np.unique(found.new)], 1.0, rtol=1e-6)
        assert found.known().shape == (layers * size,)


def test_codes_of_other_items_are_refused() -> None:
    with pytest.raises(ValueError, match="2 rows of new codes, 1 of old ones"):
        by_items(np.zeros((2, 3), int), np.zeros((1, 3), int), new_size=2, old_size=2)
