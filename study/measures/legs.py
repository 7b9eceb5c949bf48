"""How far do model, vectors and co-occurrence get together? The ceiling of what one of them alone leaves out (docs/study).

What must hold: what is chosen is chosen on the valid part, and measured on the test part. The mixture is the product's; beside it
the candidates of all three are put in order by a linear combination of what each says of them, of greatest likelihood: the
product's search and dense space, and the co-occurrence that the references are compared by, its settings chosen too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from models.dense.choosing import ValidationCase, choose_weights, ranks_by
from models.dense.fit_mixture import validation_case
from models.dense.mixture import nearest
from models.dense.pairs import RowsTogether
from models.dense.space import DenseSpace, fit_space, id_hashes
from models.dense.vectors import quantise
from retriever.evaluation.bootstrap import resample
from retriever.evaluation.cases import EvaluationCase, TrainingData
from retriever.evaluation.references import (
    CoOccurrenceSettings,
    ReferenceData,
    best_co_occurrence,
    co_occurrence_scores,
)
from study.data.datasets import Dataset, TestCase
from study.measures.evaluation import CUTOFFS, recall
from study.measures.item_search import Found

Search = Callable[[Sequence[TestCase]], list[Found]]

CANDIDATES: Final = 100  # of the vectors, and of co-occurrence
LEGS: Final = {"model": (0, 1), "vectors": (2,), "co-occurrence": (3, 4)}  # columns of the features
COMBINATIONS: Final = (
    ("model",),
    ("vectors",),
    ("co-occurrence",),
    ("model", "vectors"),
    ("vectors", "co-occurrence"),
    ("model", "co-occurrence"),
    ("model", "vectors", "co-occurrence"),
)
MIXTURE: Final = "the product's mixture"
_LEAST_PROBABILITY: Final = 1e-5  # of what a leg did not find
_WIDTH: Final = 50
_CASES_AT_ONCE: Final = 256
_NEVER: Final = 1_000_000


@dataclass(frozen=True, eq=False)
class _Candidates:
    """Of each case: ``features`` float64 (C, 5), ``target``: its place among them, -1 if it is none."""

    features: list[npt.NDArray[np.float64]]
    target: list[int]


def measure_legs(data: Dataset, valid: Sequence[TestCase], cases: Sequence[TestCase], search: Search) -> dict[str, Any]:
    """Recall on ``cases`` by the product's mixture, its weights chosen on ``valid`` as ``sidstream train`` chooses them, and by
    combination of legs, with intervals; ``settings`` and ``mixture``: what was chosen; ``reached``: share of the cases whose
    item is a candidate at all; ``differences`` of recall@10 to the mixture, paired. Each case has one relevant item and a
    history.
    """
    embeddings = quantise(data.embeddings).unit()
    hashes = id_hashes(str(row).encode() for row in range(len(embeddings)))
    space, _ = fit_space(embeddings, hashes, data.histories, keep_pairs=True)
    vectors = space.items(embeddings, hashes)
    known = ReferenceData(
        TrainingData.of_sequences(data.histories, len(embeddings), "training histories"), data.embeddings
    )
    settings = best_co_occurrence(known, [_asked(case) for case in valid], _WIDTH, lambda *_: None)
    found_valid, found = search(valid), search(cases)
    gathered = partial(_candidates, space=space, vectors=vectors, known=known, settings=settings)
    fitted_on, measured_on = gathered(valid, found_valid), gathered(cases, found)
    numbers = np.array([case.case for case in cases])
    together = space.rows_together(hashes)
    asked = [_mixture_cases(*some, space, vectors, together) for some in ((valid, found_valid), (cases, found))]
    no_new = np.zeros(len(vectors), dtype=bool)
    chosen = choose_weights(asked[0], vectors, no_new, boosts=None)
    ranks: dict[str, npt.NDArray[np.int64]] = {MIXTURE: ranks_by(asked[1], vectors, no_new, chosen.weights)}
    weights: dict[str, list[float]] = {}
    for legs in COMBINATIONS:
        columns = [column for leg in legs for column in LEGS[leg]]
        fitted = _fit(fitted_on, columns)
        name = " + ".join(legs)
        ranks[name] = _ranks(measured_on, columns, fitted)
        weights[name] = [round(float(weight), 4) for weight in fitted]
    return {
        "recalls": {name: recall(numbers, found) for name, found in ranks.items()},
        "weights": weights,
        "settings": str(settings),
        "mixture": msgspec.to_builtins(chosen.weights),
        "reached": round(float(np.mean([target >= 0 for target in measured_on.target])), 4),
        "valid cases": len(valid),
        "differences": _differences(ranks),
    }


def _candidates(
    cases: Sequence[TestCase],
    found: Sequence[Found],
    *,
    space: DenseSpace,
    vectors: npt.NDArray[np.float32],
    known: ReferenceData,
    settings: CoOccurrenceSettings,
) -> _Candidates:
    features: list[npt.NDArray[np.float64]] = []
    targets: list[int] = []
    for start in range(0, len(cases), _CASES_AT_ONCE):
        block = cases[start : start + _CASES_AT_ONCE]
        together = co_occurrence_scores(known, [_asked(case) for case in block], settings).astype(np.float64)
        for case, scores, (rows, logs) in zip(block, together, found[start : start + _CASES_AT_ONCE], strict=True):
            own = list(case.history)
            cosines = (vectors @ space.taste(vectors[own])).astype(np.float64)
            cosines[own], scores[own] = -np.inf, 0.0
            shares = scores / max(scores.sum(), _LEAST_PROBABILITY)
            model = np.zeros(len(vectors))
            model[rows] = np.exp(logs)
            model[own] = 0
            near, often = nearest(cosines, CANDIDATES), nearest(scores, CANDIDATES, scores > 0)
            chosen = np.setdiff1d(np.union1d(np.union1d(rows, near), often), own)
            features.append(
                np.stack(
                    (
                        np.log(model[chosen] + _LEAST_PROBABILITY),
                        model[chosen] > 0,
                        cosines[chosen],
                        np.log(shares[chosen] + _LEAST_PROBABILITY),
                        shares[chosen] > 0,
                    ),
                    axis=1,
                )
            )
            at = np.flatnonzero(chosen == case.relevant[0])
            targets.append(int(at[0]) if len(at) else -1)
    return _Candidates(features, targets)


def _mixture_cases(
    cases: Sequence[TestCase],
    found: Sequence[Found],
    space: DenseSpace,
    vectors: npt.NDArray[np.float32],
    together: RowsTogether | None,
) -> list[ValidationCase]:
    return [
        validation_case(
            space.taste(vectors[list(case.history)]),
            case.relevant[0],
            found_rows,
            case.history,
            excluded=case.history,
            together=together,
        )
        for case, found_rows in zip(cases, found, strict=True)
    ]


def _fit(candidates: _Candidates, columns: Sequence[int]) -> npt.NDArray[np.float64]:
    """Weights of the columns of greatest likelihood of the targets among their candidates: a convex problem."""
    import torch

    rows = [
        (features[:, columns], target)
        for features, target in zip(candidates.features, candidates.target, strict=True)
        if target >= 0
    ]
    longest = max(len(features) for features, _ in rows)
    padded = torch.zeros((len(rows), longest, len(columns)), dtype=torch.float64)
    outside = torch.full((len(rows), longest), -np.inf, dtype=torch.float64)
    for number, (features, _) in enumerate(rows):
        padded[number, : len(features)] = torch.from_numpy(np.ascontiguousarray(features))
        outside[number, : len(features)] = 0
    targets = torch.tensor([target for _, target in rows])
    weights = torch.zeros(len(columns), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        value = torch.nn.functional.cross_entropy(padded @ weights + outside, targets) + 1e-4 * (weights**2).sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    return weights.detach().numpy()


def _ranks(candidates: _Candidates, columns: Sequence[int], weights: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Place of each target, counted from 1; of equal ones the last."""
    found = np.full(len(candidates.target), _NEVER, dtype=np.int64)
    for number, (features, target) in enumerate(zip(candidates.features, candidates.target, strict=True)):
        if target >= 0:
            values = features[:, columns] @ weights
            found[number] = int((values >= values[target]).sum())
    return found


def _differences(ranks: dict[str, npt.NDArray[np.int64]]) -> dict[str, dict[str, float]]:
    every = MIXTURE
    others = [name for name in ranks if name != every]
    hits = np.array([ranks[name] <= 10 for name in (every, *others)], dtype=np.float64)
    assert 10 in CUTOFFS
    found = resample(hits, np.ones(hits.shape, dtype=bool))
    differences = {}
    for number, name in enumerate(others, start=1):
        low, high = np.quantile(found.draws[:, 0] - found.draws[:, number], (0.025, 0.975)).tolist()
        point = float(found.point[0] - found.point[number])
        differences[f"{every} less {name}"] = {
            "10": round(point, 5), "low 10": round(low, 5), "high 10": round(high, 5)
        }  # fmt: skip
    return differences


def _asked(case: TestCase) -> EvaluationCase:
    return EvaluationCase(case.query, None, case.history, case.relevant, (1.0,) * len(case.relevant), -1)
