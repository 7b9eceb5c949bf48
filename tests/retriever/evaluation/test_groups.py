"""Head, tail, new, and the values of attributes."""

from __future__ import annotations

import numpy as np
import pytest

from models.catalogue import CatalogueItem
from retriever.evaluation.cases import EvaluationCase, EvaluationError, TrainingData
from retriever.evaluation.groups import attribute_groups, popularity_groups, row_groups
from retriever.evaluation.metrics import Relevant


def relevant(*items: int) -> Relevant:
    return Relevant.of([EvaluationCase("", None, (), (item,), (1.0,)) for item in items])


def test_every_item_is_head_tail_or_new_and_in_one_of_them() -> None:
    training = TrainingData.of_sequences([[0] * 5, [1] * 4, [2, 3, 4, 5, 6, 7]], 12, "histories")
    groups = popularity_groups(training, 0.25, arrived=[0])
    assert np.flatnonzero(groups["new"]).tolist() == [0, 8, 9, 10, 11]
    assert np.flatnonzero(groups["head"]).tolist() == [1, 2]  # a quarter of seven, ties to the smaller row
    assert np.sum([groups[name] for name in ("head", "tail", "new")], axis=0).tolist() == [1] * 12
    assert (groups["old"] == ~groups["new"]).all()


def test_old_items_are_a_group_where_some_are_new_though_all_are_as_popular() -> None:
    groups = popularity_groups(TrainingData.of_weights([1.0] * 5), 0.1, arrived=[1, 4])
    assert {name: np.flatnonzero(mask).tolist() for name, mask in groups.items()} == {
        "new": [1, 4], "old": [0, 2, 3],
    }  # fmt: skip


def test_without_differences_of_popularity_there_is_no_head_and_without_new_items_no_such_group() -> None:
    assert popularity_groups(TrainingData.of_weights([1.0] * 5), 0.1) == {}
    weighed = popularity_groups(TrainingData.of_weights([5.0, 1.0, 1.0]), 0.1)
    assert {name: mask.tolist() for name, mask in weighed.items()} == {
        "head": [True, False, False], "tail": [False, True, True],
    }  # fmt: skip


def test_values_with_the_most_cases_are_groups_and_the_others_are_together() -> None:
    brands = [f"b{number}" for number in range(12)]
    items = [CatalogueItem(id=str(row), title="", brand=brands[row % 12]) for row in range(24)]
    items.append(CatalogueItem(id="none", title=""))
    asked = relevant(0, 12, 0, 1, 24)
    groups = attribute_groups(items, ["brand"], asked)
    assert list(groups)[:2] == ["brand=b0", "brand=b1"]
    assert list(groups)[-2:] == ["brand: 2 other values", "brand: none"]
    rows = row_groups(asked, groups)
    assert {name: int(mask.sum()) for name, mask in rows.items()} == {
        "all": 5,
        "brand=b0": 3,
        "brand=b1": 1,
        "brand: none": 1,
    }


def test_an_attribute_that_no_item_has_is_an_error_that_names_those_there_are() -> None:
    items = [CatalogueItem(id="a", title="", brand="x", type="lamp")]
    with pytest.raises(EvaluationError, match="'colour': it has brand, type"):
        attribute_groups(items, ["colour"], relevant(0))
    with pytest.raises(EvaluationError, match="nothing to look --by"):
        attribute_groups([CatalogueItem(id="a", title="")], ["brand"], relevant(0))
