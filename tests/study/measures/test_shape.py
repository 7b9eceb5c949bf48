"""The shape of codes: every number of a record against a count by hand, and no record grows with the items."""

from __future__ import annotations

from collections import Counter

import msgspec
import numpy as np
import pytest

from models.codebooks.codebook import Codebook
from models.sids.census import gini
from study.measures.shape import Shape, measure_shape

SIZE = 20


@pytest.fixture(scope="module")
def codebook() -> Codebook:
    return Codebook(np.random.default_rng(0).standard_normal((3, SIZE, 6)).astype(np.float32))


@pytest.fixture(scope="module")
def embeddings() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((700, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def shape(codebook: Codebook, embeddings: np.ndarray) -> Shape:
    return measure_shape(codebook, embeddings)


def test_layers_are_measured_with_their_dead_codes(shape: Shape, codebook: Codebook, embeddings: np.ndarray) -> None:
    codes = codebook.encode(embeddings)
    for number, layer in enumerate(shape.layers):
        counts = Counter(codes[:, number].tolist())
        row = [counts[token] for token in range(SIZE)]
        assert layer.gini == pytest.approx(gini(row), abs=1e-4)
        assert layer.dead == row.count(0)
        assert layer.largest_share == pytest.approx(max(row) / 700, abs=1e-5)
        assert layer.top_10_share == pytest.approx(sum(sorted(row)[-10:]) / 700, abs=1e-4)
        assert layer.standard_deviation == pytest.approx(np.std(row), abs=0.01)


def test_rank_curve_falls_from_the_largest_token_and_its_mean_is_even(shape: Shape) -> None:
    for layer in shape.layers:
        places, shares = zip(*layer.ranks, strict=True)
        assert (places[0], places[-1]) == (0, 1)
        assert list(shares) == sorted(shares, reverse=True)
        assert np.mean(shares) == pytest.approx(1, abs=1e-3)  # all 20 tokens are points of the curve


def test_flows_hold_every_item_once_and_meet_in_the_layer_between(shape: Shape) -> None:
    first, second = (np.array(flow.shares) for flow in shape.flows)
    assert first.sum() == pytest.approx(1, abs=1e-3)
    assert second.sum() == pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(first.sum(axis=0), second.sum(axis=1), atol=2e-4)
    assert first[0].sum() == first.sum(axis=1).max()  # the first group holds the most crowded tokens


def test_many_to_one_and_one_to_many_are_counted_at_the_most_crowded_tokens(
    shape: Shape, codebook: Codebook, embeddings: np.ndarray
) -> None:
    codes = codebook.encode(embeddings)
    for number, flow in enumerate(shape.flows):
        left, right = codes[:, number].tolist(), codes[:, number + 1].tolist()
        crowded_left = min(set(left), key=lambda token: (-left.count(token), token))
        crowded_right = min(set(right), key=lambda token: (-right.count(token), token))
        into = {one for one, other in zip(left, right, strict=True) if other == crowded_right}
        out_of = {other for one, other in zip(left, right, strict=True) if one == crowded_left}
        assert flow.into_largest == pytest.approx(len(into) / len(set(left)), abs=1e-4)
        assert flow.out_of_largest == pytest.approx(len(out_of) / SIZE, abs=1e-4)


def test_paths_and_buckets_are_those_of_the_codes(shape: Shape, codebook: Codebook, embeddings: np.ndarray) -> None:
    buckets = Counter(map(tuple, codebook.encode(embeddings).tolist()))
    assert shape.distinct == len(buckets)
    assert shape.largest == max(buckets.values())
    assert shape.sparsity == pytest.approx(len(buckets) / SIZE**3)


def test_residual_norms_start_with_the_embeddings_own(shape: Shape, embeddings: np.ndarray) -> None:
    assert len(shape.residual_norms) == 4
    expected = np.quantile(np.linalg.norm(embeddings, axis=1), (0.05, 0.25, 0.5, 0.75, 0.95))
    np.testing.assert_allclose(shape.residual_norms[0], expected, atol=1e-4)


def test_record_survives_json_and_does_not_grow_with_the_items(codebook: Codebook, embeddings: np.ndarray) -> None:
    few, many = measure_shape(codebook, embeddings), measure_shape(codebook, np.tile(embeddings, (20, 1)))
    encoded = msgspec.json.encode(few)
    assert msgspec.json.decode(encoded, type=Shape) == few
    assert len(msgspec.json.encode(many)) < len(encoded) + 100


def test_one_item_alone_can_be_measured(codebook: Codebook, embeddings: np.ndarray) -> None:
    shape = measure_shape(codebook, embeddings[:1])
    assert (shape.items, shape.distinct, shape.largest) == (1, 1, 1)
    assert shape.layers[0].gini == pytest.approx(1 - 1 / SIZE)
