"""What the study's models are compared with on the same split: popularity, item co-occurrence, nearest neighbours of the
embedding of a query or of the newest items of a history.

What must hold: each reference ranks all items for a test case and gives the rank of what was asked for; ties of
co-occurrence are broken by popularity, others by item number; items of the history are left out (nobody is offered what
he just bought), as they are from the language models' answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from models.dense.co_occurrence import CoOccurrence
from study.data.datasets import Dataset, TestCase
from study.measures.evaluation import Recall, recall

_NEVER: Final = 1_000_000
_RECENT: Final = (1, 3)  # how many of the newest history items are looked at, beside all of them


def reference_recalls(
    data: Dataset, cases: Sequence[TestCase], read_as: Mapping[str, npt.NDArray[np.float32]] | None = None
) -> dict[str, Recall]:
    """Recall by reference over these cases, as ``study.measures.evaluation`` counts it. ``read_as``: name → what is left of the
    items' embeddings (N, D) of length 1, for how much of a query's neighbourhood codes can keep.
    """
    found: dict[str, Callable[[TestCase], npt.NDArray[np.floating[Any]]]] = {}
    if data.histories:
        pairs = CoOccurrence.count(data.histories, len(data.embeddings))
        found["popularity"] = lambda _: data.popularity.astype(np.float64)
        for recent in (*_RECENT, 0):
            newest = f"the last {recent}" if recent > 1 else "the last" if recent else "all"
            found[f"co-occurrence with {newest}"] = partial(_together, pairs, recent, False)
            found[f"co-occurrence with {newest}, cosine"] = partial(_together, pairs, recent, True)
            found[f"nearest neighbours of {newest}"] = partial(_near_history, data, recent)
    if data.query_embeddings is not None:
        found["nearest neighbours of the query"] = partial(_near_query, data, data.embeddings)
        for name, vectors in (read_as or {}).items():
            found[f"nearest neighbours of the query, items as {name}"] = partial(_near_query, data, vectors)
    return {name: _recall(scores, data, cases) for name, scores in found.items()}


def _together(pairs: CoOccurrence, recent: int, cosine: bool, case: TestCase) -> npt.NDArray[np.float64]:
    scores = pairs.scores(case.history[-recent:], cosine=cosine)
    # Small counts are often equal: among equals the more popular item comes first, as a shop would do it.
    tie_break = pairs.popularity * (1e-6 / max(1, int(pairs.popularity.max())))
    return np.where(scores > 0, scores + tie_break, 0)


# Similarities are raised above 0: every item is a candidate.
def _near_history(data: Dataset, recent: int, case: TestCase) -> npt.NDArray[np.floating[Any]]:
    similarities: npt.NDArray[np.float32] = data.embeddings @ data.embeddings[list(case.history[-recent:])].mean(axis=0)
    return 2 + similarities


def _near_query(data: Dataset, vectors: npt.NDArray[np.float32], case: TestCase) -> npt.NDArray[np.floating[Any]]:
    assert data.query_embeddings is not None
    similarities: npt.NDArray[np.float32] = vectors @ data.query_embeddings[case.case]
    return 2 + similarities


def _recall(
    scores: Callable[[TestCase], npt.NDArray[np.floating[Any]]], data: Dataset, cases: Sequence[TestCase]
) -> Recall:
    rows: list[tuple[int, int]] = []
    for case in cases:
        values = scores(case).copy()
        values[list(case.history)] = -np.inf
        for item in case.relevant:
            value = values[item]
            # Not among the candidates: no score at all is no answer.
            rank = _NEVER if value <= 0 else 1 + int((values > value).sum()) + int((values[:item] == value).sum())
            rows.append((case.case, rank))
    table = np.asarray(rows, dtype=np.int64)
    return recall(table[:, 0], table[:, 1])
