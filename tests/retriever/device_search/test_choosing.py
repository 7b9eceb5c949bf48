"""Choices of fixed shape are the host's choices, ties and missing ones included."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from retriever.device_search.choosing import bits_of, choose  # noqa: E402
from retriever.search.search_parts import greatest  # noqa: E402


@pytest.mark.parametrize("count", [1, 3, 8, 40])
def test_chosen_are_the_greatest_the_first_of_equal_ones_in_their_order(count: int) -> None:
    random = np.random.default_rng(count)
    scores = random.integers(4, size=(50, 24)).astype(np.float64)  # full of ties
    scores[random.random(scores.shape) < 0.4] = -np.inf
    scores[0] = -np.inf
    places, found = choose(torch.from_numpy(scores), count)
    assert places.shape == found.shape == (50, count)
    for row, own in enumerate(scores):
        live = np.flatnonzero(np.isfinite(own))
        expected = np.sort(live[greatest(own[live], count)])
        assert places[row, : len(expected)].tolist() == expected.tolist()
        assert found[row, : len(expected)].tolist() == own[expected].tolist()
        assert torch.isneginf(found[row, len(expected) :]).all()


@pytest.mark.parametrize("size", [1, 7, 8, 13])
def test_bits_are_numpys(size: int) -> None:
    live = np.random.default_rng(size).random((3, 5, size)) < 0.5
    assert torch.equal(bits_of(torch.from_numpy(np.packbits(live, axis=2)), size), torch.from_numpy(live))
