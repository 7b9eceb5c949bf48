"""The embedding of text: stateless, repeatable, and close for products of one kind."""

from __future__ import annotations

import numpy as np
import pytest

from demo.shop.product_catalogue import product_catalogue
from demo.shop.text_embedding import TextEmbedder


def test_rows_are_finite_float32_of_length_one_even_for_empty_text() -> None:
    embeddings = TextEmbedder().embed(["glass kettle", "", "!?", "über-Kanne 3 L"])
    assert (embeddings.dtype, embeddings.shape) == (np.float32, (4, 128))
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
    assert TextEmbedder().embed([]).shape == (0, 128)


def test_new_embedder_agrees_whatever_was_embedded_before_and_beside() -> None:
    texts = [item.title for item in product_catalogue(3_000)]
    busy = TextEmbedder()
    together = busy.embed(texts)
    np.testing.assert_allclose(TextEmbedder().embed(texts[2_500:2_510]), together[2_500:2_510], atol=1e-6)


def test_numbers_stay_the_same_in_every_version() -> None:
    """A changed embedding makes every stored codebook wrong: change these numbers only together with the demo's bundle."""
    embedding = TextEmbedder().embed(["Brightwater 1.7 L glass electric kettle | electric kettle"])[0]
    np.testing.assert_allclose(embedding[:4], PINNED, atol=1e-5)


PINNED = (0.024131, 0.006111, -0.161497, -0.079561)


def test_same_words_are_closer_than_other_words() -> None:
    kettle, plural, other, bed = TextEmbedder().embed(["glass kettle", "glass kettles", "steel kettle", "dog bed"])
    assert kettle @ plural > kettle @ other > kettle @ bed


def test_nearest_neighbour_is_nearly_always_of_the_same_type() -> None:
    items = product_catalogue(3_000)
    embeddings = TextEmbedder().embed_items(items)
    similarity = embeddings @ embeddings.T
    np.fill_diagonal(similarity, -1)
    nearest = similarity.argmax(axis=1)
    same = np.mean([items[row].type == items[column].type for row, column in enumerate(nearest)])
    assert same > 0.98


@pytest.mark.parametrize("dimension", [0, 12, -8])
def test_dimension_that_is_no_multiple_of_eight_is_refused(dimension: int) -> None:
    with pytest.raises(ValueError, match="multiple of 8"):
        TextEmbedder(dimension)
