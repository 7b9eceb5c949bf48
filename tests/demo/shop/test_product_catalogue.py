"""The demo's shop: plausible, varied, long-tailed, repeatable; its fad is near-identical and new."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from demo.shop.fad import FAD_TYPE, fad_products
from demo.shop.product_catalogue import demo_catalogue, has_repeated_word, product_catalogue
from demo.shop.product_words import TYPE_OF, WORDS
from demo.shop.shoppers import colour_of, demonstration_queries, shopper_histories
from demo.shop.text_embedding import TextEmbedder
from models.catalogue import CatalogueItem


@pytest.fixture(scope="module")
def items() -> tuple[CatalogueItem, ...]:
    return product_catalogue(8_000)


def test_titles_and_ids_are_unique(items: tuple[CatalogueItem, ...]) -> None:
    assert len({item.title for item in items}) == len({item.id for item in items}) == 8_000


def test_no_title_repeats_a_word_or_runs_on(items: tuple[CatalogueItem, ...]) -> None:
    for item in items:
        assert not has_repeated_word(item.title), item.title
        assert item.title.startswith(item.brand)
        assert item.type in item.title
        assert 3 <= len(item.title.split()) <= 22
        assert not any(fault in item.title for fault in ("  ", " ,", ",,", "{", "for ,", "with ,"))


def test_every_type_is_sold_and_only_its_own_words_describe_it(items: tuple[CatalogueItem, ...]) -> None:
    assert {item.type for item in items} == set(TYPE_OF)
    for item in items:
        product = TYPE_OF[item.type]
        assert not product.sizes or sum(size in item.title for size in product.sizes) >= 1
        assert not product.colours or colour_of(item)


def test_types_brands_and_weights_have_long_tails(items: tuple[CatalogueItem, ...]) -> None:
    types = [n for _, n in Counter(item.type for item in items).most_common()]
    brands = [n for _, n in Counter(item.brand for item in items).most_common()]
    assert types[0] > 5 * types[-1]
    assert sum(brands[: len(brands) // 5]) > 0.4 * len(items)
    weights = np.sort([item.weight for item in items])
    assert weights.min() >= 1
    assert weights[-len(items) // 10 :].sum() > 0.3 * weights.sum()


def test_same_seed_gives_the_same_catalogue_and_another_seed_another(items: tuple[CatalogueItem, ...]) -> None:
    assert product_catalogue(8_000) == items
    assert product_catalogue(500, seed=8) != product_catalogue(500, seed=7)


def test_more_products_than_the_grammar_has_are_refused_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("demo.shop.product_catalogue._ATTEMPTS_PER_PRODUCT", 0)
    with pytest.raises(ValueError, match="ask for fewer"):
        product_catalogue(10)


def test_word_lists_name_only_types_that_exist_and_offer_choice() -> None:
    assert len(TYPE_OF) >= 40
    assert len(WORDS.departments) >= 10
    for product in TYPE_OF.values():
        assert set(product.goes_with) <= set(TYPE_OF), product.noun
        assert min(len(product.kinds), len(product.uses)) >= 3
        assert len(product.features) >= 5


def test_histories_follow_projects(items: tuple[CatalogueItem, ...]) -> None:
    histories = shopper_histories(items, 300)
    assert histories == shopper_histories(items, 300)
    by_id = {item.id: item for item in items}
    related = total = 0
    for history in histories.values():
        assert 2 <= len(history) == len(set(history)) <= 9
        for before, after in pairwise(history):
            related += by_id[after].type in (*TYPE_OF[by_id[before].type].goes_with, by_id[before].type)
            total += 1
    assert related > 0.8 * total


def test_demonstration_queries_use_types_and_items_of_the_shop(items: tuple[CatalogueItem, ...]) -> None:
    queries = demonstration_queries(items)
    ids = {item.id for item in items}
    assert len(queries) == 10
    assert sum(bool(query.history) for query in queries) == 2
    for query in queries:
        assert query.text or query.history
        assert set(query.history) <= ids
        assert set(query.expects) <= set(TYPE_OF)


def test_fad_is_new_to_the_catalogue_but_its_words_are_known(items: tuple[CatalogueItem, ...]) -> None:
    titles = " ".join(item.title for item in items)
    assert not any(FAD_TYPE in item.title for item in items)
    for word in ("glow-in-the-dark", "dinosaur", "water bottle", "kids"):
        assert word in titles


def test_fad_products_are_many_different_and_nearly_the_same_embedding() -> None:
    fad = fad_products(1_000)
    assert fad == fad_products(1_000)
    assert len({item.title for item in fad}) == len({item.id for item in fad}) == 1_000
    embeddings = TextEmbedder().embed_items(fad[:200])
    assert float((embeddings @ embeddings.T).min()) > 0.85
    with pytest.raises(ValueError, match="0 to"):
        fad_products(1_000_000)


def test_whole_shop_is_a_valid_catalogue_with_histories() -> None:
    shop = demo_catalogue(400, shoppers=20)
    assert (len(shop), shop.dimension) == (400, 128)
    assert shop.sequences
    assert shop.queries
