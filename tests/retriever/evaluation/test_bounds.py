"""Bounds: what they say, what they cannot say, and by how much they are missed."""

from __future__ import annotations

import pytest

from retriever.evaluation.bounds import Bound, require_known
from retriever.evaluation.cases import EvaluationError

NAMES = ["recall@10", "recall@10:low", "recall@10/new", "recall@10-co-occurrence", "coverage@10", "unanswered"]


@pytest.mark.parametrize(
    ("text", "name", "kept"),
    [
        ("recall@10>=.4", "recall@10", True),
        ("recall@10 > 0.41", "recall@10", False),
        ("recall@10/new<=.41", "recall@10/new", True),
        ("recall@10-co-occurrence>=-1e-2", "recall@10-co-occurrence", True),
        ("ndcg@10/brand=Acme >= .5", "ndcg@10/brand=Acme", False),
    ],
)
def test_bound_is_kept_or_missed(text: str, name: str, kept: bool) -> None:
    bound = Bound.parse(text)
    assert bound.name == name
    assert (bound.missed_by({name: 0.41}) is None) == kept


def test_missed_bound_says_by_how_much() -> None:
    assert (
        Bound.parse("recall@10>=.45").missed_by({"recall@10": 0.4})
        == "recall@10>=.45: recall@10 is 0.4000, 0.0500 below"
    )
    assert "0.0200 above" in str(Bound.parse("unanswered<=.01").missed_by({"unanswered": 0.03}))
    assert "no case" in str(Bound.parse("recall@10/new>=0").missed_by({"recall@10/new": float("nan")}))


@pytest.mark.parametrize(
    "text",
    ["recall@10", "recall@10>=", "recall@10>=high", ">=.4", "recall@10=.4", "", "recall@10>=1.2.3", "recall@10<=1e999"],
)
def test_what_is_no_bound_is_an_error_with_an_example(text: str) -> None:
    with pytest.raises(EvaluationError, match=r"such as 'recall@10>=.4'"):
        Bound.parse(text)


def test_unknown_figure_is_an_error_that_names_the_known_ones() -> None:
    require_known([Bound.parse(f"{name}>=0") for name in NAMES], NAMES)
    with pytest.raises(EvaluationError, match=r"is recall@10 meant\? There are recall@10, recall@10/new"):
        require_known([Bound.parse("recal@10>=.4")], NAMES)
