"""The study's references are the product's: on the models' cases and on every case, settings from the valid part."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from study.data.datasets import TestCase, load
from study.experiments.setting import some_cases
from study.measures.references import Embedded, reference_record


def test_record_has_the_models_cases_and_every_case_with_intervals_and_settings() -> None:
    data, valid = load("tiny"), load("tiny", "valid")
    cases = some_cases(data, 400)
    record = reference_record(data, valid, cases)
    assert list(record["recalls"]) == ["popularity", "co-occurrence", "neighbours", "co-occurrence and neighbours"]
    for name in record["recalls"]:
        assert record["recalls"][name]["cases"] == 400
        every = record["every case"][name]
        assert every["cases"] == len(data.cases)
        assert every["low 10"] <= every["10"] <= every["high 10"]
    assert "chosen on 1,200 cases of the valid part" in record["settings"]["co-occurrence"]
    # The next item is a neighbour of the last nine times of ten.
    assert record["every case"]["co-occurrence"]["50"] > 2 * record["every case"]["popularity"]["50"]
    [difference] = record["differences"].values()
    together, alone = (record["every case"][name]["10"] for name in ("co-occurrence and neighbours", "co-occurrence"))
    assert difference["10"] == pytest.approx(together - alone, abs=2e-5)


def test_other_embeddings_are_asked_by_queries_of_their_own_space() -> None:
    random = np.random.default_rng(0)
    queries, items = (random.normal(size=(60, 8)).astype(np.float32) for _ in range(2))
    data = replace(
        load("tiny"),
        embeddings=items,
        histories=(),
        cases=tuple(TestCase(case=row, relevant=(row,), query="asked") for row in range(60)),
        query_embeddings=queries,
        popularity=np.ones(60, dtype=np.int64),
    )
    other = random.normal(size=(60, 5)).astype(np.float32)
    other /= np.linalg.norm(other, axis=1, keepdims=True)
    record = reference_record(data, None, data.cases, {"others embed them": Embedded(other, other)})
    assert record["recalls"]["neighbours, items as others embed them"]["1"] == 1
    assert record["recalls"]["neighbours"]["1"] < 0.5
