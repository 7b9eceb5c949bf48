"""The dense space: known items keep what training counted, others get what their embedding speaks for."""

from __future__ import annotations

import numpy as np
import pytest

from models.dense.arrivals import unit
from models.dense.co_occurrence import CoOccurrence, co_occurrence_vectors
from models.dense.space import DenseSpace, KnownItems, fit_space, id_hashes

ITEMS, DIMENSION = 300, 12


def catalogue() -> tuple[np.ndarray, np.ndarray, list[list[int]]]:
    """Embeddings around 6 centres, id hashes, and histories within a centre."""
    random = np.random.default_rng(0)
    group = np.arange(ITEMS) % 6
    embeddings = unit(random.standard_normal((6, DIMENSION))[group] + 0.3 * random.standard_normal((ITEMS, DIMENSION)))
    histories = [
        random.choice(np.flatnonzero(group == number % 6), size=5, replace=False).tolist() for number in range(400)
    ]
    return embeddings, id_hashes(f"item {row}".encode() for row in range(ITEMS)), histories


def test_vectors_have_length_one_and_known_ones_hold_what_was_counted() -> None:
    embeddings, hashes, histories = catalogue()
    space, regression = fit_space(embeddings, hashes, histories)
    assert regression is not None
    vectors = space.items(embeddings, hashes)
    assert vectors.shape == (ITEMS, space.width) == (ITEMS, DIMENSION + 64)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    counted = co_occurrence_vectors(CoOccurrence.count(histories, ITEMS))
    together = unit(np.concatenate((embeddings, counted), axis=1))
    assert np.abs((vectors * together).sum(axis=1) - 1)[counted.any(axis=1)].max() < 1e-3
    assert not space.is_new(hashes).any()


def test_arrival_gets_the_vector_that_its_embedding_speaks_for_and_is_new() -> None:
    embeddings, hashes, histories = catalogue()
    known = np.arange(ITEMS) % 10 != 0
    space, _ = fit_space(embeddings, hashes, histories, known=known)
    assert (space.is_new(hashes) == ~known).all()
    vectors = space.items(embeddings, hashes)
    assert vectors[~known][:, DIMENSION:].any(axis=1).all()
    # It lies with its own group: nearer to known items of it than to others.
    cosines = vectors[~known] @ vectors[known].T
    same = (np.arange(ITEMS)[~known] % 6)[:, None] == (np.arange(ITEMS)[known] % 6)[None]
    assert cosines[same].mean() > cosines[~same].mean() + 0.5


def test_arrivals_in_no_history_leave_the_vectors_of_known_items_as_they_are() -> None:
    embeddings, hashes, histories = catalogue()
    known = np.arange(ITEMS) % 10 != 0
    without = [[item for item in history if known[item]] for history in histories]
    first, _ = fit_space(embeddings, hashes, histories, known=known)
    second, _ = fit_space(embeddings, hashes, without, known=known)
    np.testing.assert_array_equal(first.items(embeddings, hashes), second.items(embeddings, hashes))


def test_without_a_pair_in_a_history_the_space_has_embeddings_alone() -> None:
    embeddings, hashes, _ = catalogue()
    space, regression = fit_space(embeddings, hashes, [[3], []])
    assert (regression, space.width) == (None, DIMENSION)
    np.testing.assert_allclose(space.items(embeddings, hashes), embeddings, atol=1e-6)


def test_taste_is_the_mean_of_the_history_by_recency() -> None:
    space = DenseSpace(3, KnownItems(np.empty(0, dtype=np.uint64)))
    rows = np.eye(3, dtype=np.float32)
    np.testing.assert_allclose(
        space.taste(rows), np.array([1 / 3, 1 / 2, 1]) / np.linalg.norm([1 / 3, 1 / 2, 1]), rtol=1e-6
    )
    np.testing.assert_allclose(space.query(np.array([3.0, 0, 4])), [0.6, 0, 0.8], rtol=1e-6)
    assert space.is_new(np.arange(4, dtype=np.uint64)).all()


def test_ids_of_one_hash_are_refused() -> None:
    embeddings, hashes, histories = catalogue()
    with pytest.raises(ValueError, match="ids must differ"):
        fit_space(embeddings, np.concatenate((hashes[:1], hashes[:-1])), histories)


def test_hashes_are_the_same_everywhere() -> None:
    assert id_hashes([b"sku-17", "größe".encode()]).tolist() == [
        int.from_bytes(bytes.fromhex(digest), "little") for digest in HASHES
    ]


HASHES = ("a878e1e92541066a", "f4f8e155c9329ae9")
