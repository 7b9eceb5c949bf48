"""Targets among the nearest neighbours of what is learnt: items that are nearly the same learn from what each is asked by, or
taken after (``sidstream train --neighbours`` for queries; the study alone tries it for histories).

What must hold: an item that arrived after training is no target.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from models.examples.made_queries import drawn_from_neighbours
from models.examples.records import TrainingExample
from models.towers.neighbours import nearest
from study.data.codebooks import of_length_1
from study.data.datasets import Dataset

Embedded = Callable[[Sequence[str]], npt.NDArray[np.float32]]


def of_queries(data: Dataset, embed: Embedded, count: int) -> tuple[TrainingExample, ...]:
    """Each training query, leading to one of the ``count`` items nearest to its embedding (``embed``: texts → (T, D))."""
    known = np.flatnonzero(~data.arrived)
    items = of_length_1(data.embeddings[known])
    queries = of_length_1(embed([query for query, _ in data.queries]))
    examples = [TrainingExample(query=query, item=str(item)) for query, item in data.queries]
    rows = nearest(queries, items, count)
    return tuple(drawn_from_neighbours(examples, queries, items, rows, [str(row) for row in known], seed=0))


def of_histories(
    data: Dataset, vectors: npt.NDArray[np.float32], count: int, longest: int
) -> tuple[TrainingExample, ...]:
    """Beside each history one example more: what came before one of its items, leading to one of the ``count`` others nearest to
    that item by ``vectors`` (N, D).
    """
    random = np.random.default_rng(0)
    known = np.flatnonzero(~data.arrived)
    items = of_length_1(vectors[known])
    row_of = np.full(len(vectors), -1)
    row_of[known] = np.arange(len(known))
    several = [history for history in data.histories if len(history) > 1]
    places = [int(random.integers(1, len(history))) for history in several]
    rows = row_of[[history[place] for history, place in zip(several, places, strict=True)]]
    found = nearest(items[rows], items, count + 1)
    # Without itself; where as near ones have crowded it out, without the farthest.
    own = found == rows[:, None]
    own[~own.any(axis=1), -1] = True
    others = found[~own].reshape(len(rows), count)
    examples = [
        TrainingExample(history=tuple(map(str, history[max(0, place - longest) : place])), item=str(history[place]))
        for history, place in zip(several, places, strict=True)
    ]
    return tuple(drawn_from_neighbours(examples, items[rows], items, others, [str(row) for row in known], seed=0))
