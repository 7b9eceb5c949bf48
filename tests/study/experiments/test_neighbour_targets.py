"""Targets among neighbours: near in the space that is given, never itself beside a history, never an item that arrived later."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from study.data.datasets import load
from study.experiments.neighbour_targets import of_histories, of_queries

DATA = load("tiny")
LONGEST = 3


def test_one_example_more_a_history_leads_to_a_neighbour_of_an_item_from_what_came_before_it() -> None:
    arrived = np.zeros(len(DATA.embeddings), dtype=bool)
    arrived[::7] = True
    histories = tuple(tuple(item for item in history if not arrived[item]) for history in DATA.histories)
    data = replace(DATA, histories=histories, arrived=arrived)
    found = of_histories(data, DATA.embeddings, 4, LONGEST)
    several = [history for history in histories if len(history) > 1]
    assert len(found) == len(several)
    length = DATA.embeddings / np.linalg.norm(DATA.embeddings, axis=1, keepdims=True)
    places = set()
    for example, history in zip(found, several, strict=True):
        target = int(example.item)
        assert not arrived[target]
        place = next(
            place
            for place in range(1, len(history))
            if tuple(map(str, history[max(0, place - LONGEST) : place])) == example.history
            and _is_near(target, history[place], length, arrived)
        )
        places.add(place)
        assert target != history[place]
    assert len(places) > 2


def _is_near(target: int, item: int, length: np.ndarray, arrived: np.ndarray) -> bool:
    """Whether fewer than four other known items are nearer."""
    cosines = length @ length[item]
    others = ~arrived
    others[item] = False
    return target != item and int((cosines[others] > cosines[target] + 1e-6).sum()) < 4


def test_query_leads_to_one_of_its_nearest_items_and_the_nearer_the_likelier() -> None:
    queries = tuple((f"item {row}", row) for row in range(len(DATA.embeddings)))
    data = replace(DATA, queries=queries)
    own = {text: DATA.embeddings[row] for text, row in queries}
    found = of_queries(data, lambda texts: np.stack([own[text] for text in texts]), 5)
    assert [example.query for example in found] == [text for text, _ in queries]
    itself = np.mean([int(example.item) == row for example, (_, row) in zip(found, queries, strict=True)])
    assert 0.2 < itself < 1.0
