"""Queries made from catalogue text: they read like queries, are repeatable, and histories lead to their next item."""

from __future__ import annotations

import numpy as np
import pytest

from models.catalogue import CatalogueItem
from models.examples.made_queries import (
    MAXIMUM_HISTORY,
    drawn_from_neighbours,
    example_queries,
    examples_from_catalogue,
)
from models.examples.records import TrainingExample

KETTLE = CatalogueItem(
    id="1",
    title="Alta Juno 1.7 L glass electric kettle with a soft-open lid, sage green",
    brand="Alta",
    type="electric kettle",
)
MEMORY = CatalogueItem(id="2", title="KYOCERA 870LM00075 printer memory 256 MB DRAM", brand="KYOCERA")
GAME = CatalogueItem(id="3", title="Virtua Tennis 2009 - Nintendo Wii")
BARE = CatalogueItem(id="4", title="80")
ITEMS = (KETTLE, MEMORY, GAME, BARE)


def test_shop_title_gives_the_ways_people_ask() -> None:
    queries = example_queries(KETTLE, count=200, seed=1)
    expected = {
        "electric kettle",
        "alta electric kettle",
        "glass electric kettle",
        "electric kettle sage green",
        "alta juno",
    }
    assert expected <= set(queries)
    assert "glass electric kettles" in queries


@pytest.mark.parametrize("item", ITEMS)
def test_queries_are_lower_case_short_and_made_of_the_items_words(item: CatalogueItem) -> None:
    queries = example_queries(item, count=50, seed=2)
    assert queries
    for query in queries:
        words = query.split()
        assert query == query.lower().strip()
        assert len(words) == len(set(words)) <= 12


def test_name_is_guessed_where_the_catalogue_has_no_type() -> None:
    assert "printer memory" in example_queries(MEMORY, count=60, seed=3)
    assert "kyocera 870lm00075" in example_queries(MEMORY, count=60, seed=3)
    assert any("virtua tennis" in query for query in example_queries(GAME, count=60, seed=3))


def test_same_seed_gives_the_same_examples_and_another_seed_others() -> None:
    first, again, other = (examples_from_catalogue(ITEMS, per_item=6, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    assert {example.item for example in first} == {item.id for item in ITEMS}
    assert all(example.query and not example.history for example in first)


def test_history_gives_one_example_for_each_item_but_the_first() -> None:
    histories = {"ann": ("1", "3", "2"), "bob": ("4",), "eve": ("gone", "2", "3")}
    examples = examples_from_catalogue(ITEMS, per_item=0, seed=1, histories=histories)
    assert [(example.user, example.history, example.item) for example in examples] == [
        ("ann", ("1",), "3"),
        ("ann", ("1", "3"), "2"),
        ("eve", ("2",), "3"),
    ]


def test_long_history_is_cut_to_its_newest_items_and_positions_are_drawn() -> None:
    items = [CatalogueItem(id=str(number), title=f"Lamp {number}") for number in range(30)]
    examples = examples_from_catalogue(
        items, per_item=0, seed=1, histories={"ann": [item.id for item in items]}, per_history=5
    )
    assert len(examples) == 5
    for example in examples:
        target = int(example.item)
        assert example.history == tuple(str(at) for at in range(max(0, target - MAXIMUM_HISTORY), target))


def test_negative_number_of_examples_is_refused() -> None:
    with pytest.raises(ValueError, match="per_item is -1"):
        examples_from_catalogue(ITEMS, per_item=-1, seed=1)


def test_queries_lead_to_their_nearest_items_in_proportion_to_the_likelihood() -> None:
    angles = np.array([0.0, 0.2, 0.4, 1.5])
    items = np.stack((np.cos(angles), np.sin(angles)), axis=1).astype(np.float32)
    count = 20_000
    queries = np.tile(items[:1], (count, 1))
    examples = [TrainingExample(f"query {number}", item="d") for number in range(count)]
    nearest = np.tile(np.array([[0, 1, 2]]), (count, 1))
    found = drawn_from_neighbours(examples, queries, items, nearest, "abcd", seed=1)
    assert [example.query for example in found] == [example.query for example in examples]
    shares = np.array([sum(example.item == item for example in found) for item in "abcd"]) / count
    likelihood = np.exp(30 * np.cos(angles[:3]))
    np.testing.assert_allclose(shares[:3], likelihood / likelihood.sum(), atol=0.015)
    assert shares[3] == 0
    assert found == drawn_from_neighbours(examples, queries, items, nearest, "abcd", seed=1)
