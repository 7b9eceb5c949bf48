"""Legs together: the combination leans on the leg that knows, and each figure is that of a count by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from study.data.datasets import Dataset, TestCase, neighbour_walks
from study.data.synthetic import planted_hourglass
from study.measures.item_search import Found
from study.measures.legs import measure_legs

pytest.importorskip("torch")

ITEMS = 400
EMBEDDINGS = planted_hourglass(ITEMS, seed=0, size=8)[0]
WALKS = neighbour_walks(EMBEDDINGS, users=600, longest=8, seed=0)
HISTORIES = tuple(walk[:-2] for walk in WALKS)


def dataset() -> Dataset:
    return Dataset(
        name="tiny",
        embeddings=EMBEDDINGS,
        titles=("",) * ITEMS,
        histories=HISTORIES,
        queries=(),
        cases=(),
        arrived=np.zeros(ITEMS, dtype=bool),
        popularity=np.bincount(np.concatenate([np.array(history) for history in HISTORIES]), minlength=ITEMS),
    )


def cases(last: int) -> list[TestCase]:
    """Targets that are not in the history, as the test's are mostly."""
    found = [TestCase(number, (walk[last],), history=walk[:last]) for number, walk in enumerate(WALKS)]
    return [case for case in found if case.relevant[0] not in case.history]


def knows_half_of_them(asked: Sequence[TestCase]) -> list[Found]:
    random = np.random.default_rng(len(asked))
    found = []
    for case in asked:
        known = case.relevant[0] if random.random() < 0.5 else int(random.integers(ITEMS))
        others = np.setdiff1d(random.integers(ITEMS, size=20), [known])
        found.append((np.array([known, *others]), np.log(np.array([0.5, *(0.5 / len(others),) * len(others)]))))
    return found


def knows_nothing(asked: Sequence[TestCase]) -> list[Found]:
    return [(np.empty(0, dtype=np.int64), np.empty(0)) for _ in asked]


def test_legs_that_know_different_things_find_more_together_than_each_alone() -> None:
    found = measure_legs(dataset(), cases(-2), cases(-1), knows_half_of_them)
    at_10 = {name: figures["10"] for name, figures in found["recalls"].items()}
    together = at_10["model + vectors + co-occurrence"]
    assert at_10["model"] == pytest.approx(0.5, abs=0.07)
    assert together > max(at_10["model"], at_10["vectors"], at_10["co-occurrence"]) + 0.1
    assert together <= found["reached"] <= 1
    mixture = at_10["the product's mixture"]
    assert mixture > max(at_10["model"], at_10["vectors"], at_10["co-occurrence"]) + 0.1
    assert found["mixture"]["together"] > 0
    difference = found["differences"]["the product's mixture less model"]
    assert difference["10"] == pytest.approx(mixture - at_10["model"], abs=1e-4)
    assert 0 < difference["low 10"] < difference["10"] < difference["high 10"]


def test_a_leg_that_finds_nothing_changes_nothing() -> None:
    found = measure_legs(dataset(), cases(-2), cases(-1), knows_nothing)["recalls"]
    assert found["model"]["50"] == 0 or found["model"]["10"] < 0.1
    assert found["model + vectors"] == found["vectors"]
    assert found["model + co-occurrence"] == found["co-occurrence"]
