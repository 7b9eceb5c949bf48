"""The product's references on the study's sets: settings chosen on the valid part, measured on every case of the test.

What must hold: lists and settings are those of ``retriever.evaluation.references``, and so is the rule for ties; the cases that
the models are measured on are among all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from retriever.evaluation.bootstrap import resample
from retriever.evaluation.cases import EvaluationCase, TrainingData
from retriever.evaluation.metrics import Relevant
from retriever.evaluation.references import NEIGHBOURS, ReferenceData, references
from study.data.datasets import Dataset, TestCase
from study.measures.evaluation import CUTOFFS, Recall, recall

# Pairs of references whose difference is told: what each adds to the one before it.
_COMPARED: Final = (("co-occurrence and neighbours", "co-occurrence"),)


@dataclass(frozen=True, eq=False)
class Embedded:
    """``items`` float32 (N, D) of length 1, and the ``queries`` (Q, D) in their space, None for sets without."""

    items: npt.NDArray[np.float32]
    queries: npt.NDArray[np.float32] | None


def reference_record(
    data: Dataset,
    valid: Dataset | None,
    cases: Sequence[TestCase],
    read_as: Mapping[str, Embedded] | None = None,
) -> dict[str, Any]:
    """Recall by reference on ``cases`` (``recalls``) and on every case of the set (``every case``), the ``settings`` that were
    chosen on ``valid`` (None: there are none to choose), and ``differences`` between references on every case.

    ``read_as``: name → other embeddings, for how much of a query's neighbourhood codes can keep, or towers of our own find.
    """
    every = [_asked(data, case) for case in data.cases]
    tuning = [_asked(valid, case) for case in valid.cases] if valid is not None else []
    relevant = Relevant.of(every)
    numbers = np.array([case.case for case in data.cases])[relevant.case]
    chosen = np.isin(numbers, [case.case for case in cases])
    # Recall with the ranks of every list: what the models are measured by.
    ranks: dict[str, npt.NDArray[np.int64]] = {}
    settings: dict[str, str] = {}
    for name, reference_data in _data(data, read_as or {}).items():
        for found in references(reference_data, every, tuning, CUTOFFS[-1]):
            label = f"{found.name}{name}" if found.name == NEIGHBOURS else found.name
            ranks[label] = relevant.ranks(found.lists)
            how = f", chosen on {found.tuned_on:,} cases of the valid part" if found.tuned_on else ""
            settings[label] = f"{found.settings}{how}"
    return {
        "recalls": {name: recall(numbers, found, chosen) for name, found in ranks.items()},
        "every case": {name: recall(numbers, found) for name, found in ranks.items()},
        "settings": settings,
        "differences": _differences(relevant, ranks),
    }


def _data(data: Dataset, read_as: Mapping[str, Embedded]) -> dict[str, ReferenceData]:
    """What references know, by what stands after their name."""
    training = TrainingData.of_sequences(data.histories, len(data.embeddings), "training histories")
    found = {"": Embedded(data.embeddings, data.query_embeddings)}
    found |= {f", items as {name}": embedded for name, embedded in read_as.items()}
    return {name: ReferenceData(training, embedded.items, embedded.queries) for name, embedded in found.items()}


def _asked(data: Dataset, case: TestCase) -> EvaluationCase:
    row = case.case if data.query_embeddings is not None else -1
    return EvaluationCase(case.query, None, case.history, case.relevant, (1.0,) * len(case.relevant), row)


def _differences(relevant: Relevant, ranks: Mapping[str, npt.NDArray[np.int64]]) -> dict[str, Recall]:
    found: dict[str, Recall] = {}
    for one, other in _COMPARED:
        if one in ranks and other in ranks:
            values = [_shares(relevant, ranks[name]) for name in (one, other)]
            first, second = (resample(value, np.ones(value.shape, dtype=bool)) for value in values)
            difference = first.difference(second)
            figures: Recall = {"cases": relevant.cases}
            for k, *ends in zip(CUTOFFS, difference.point, difference.low, difference.high, strict=True):
                keys = (str(k), f"low {k}", f"high {k}")
                figures |= dict(zip(keys, (round(float(end), 5) for end in ends), strict=True))
            found[f"{one} less {other}"] = figures
    return found


def _shares(relevant: Relevant, ranks: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    rows = np.bincount(relevant.case, minlength=relevant.cases)
    return np.array([np.bincount(relevant.case, weights=ranks <= k, minlength=relevant.cases) / rows for k in CUTOFFS])
