"""Arrivals are measured by the product's functions, on all cases, and chosen for on none of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

pytest.importorskip("torch")

from models.language.language_model import small_causal_lm
from study.data.datasets import load
from study.experiments.plan import scale
from study.experiments.setting import Setting, setting
from study.measures import arrivals
from study.measures.arrivals import choose_rule, measure_arrivals, validation_cases


def small(tmp_path: Path, *, choosing: bool) -> tuple[Setting, object]:
    """The tiny set, few of its cases, and a model that was not trained."""
    choice = msgspec.structs.replace(
        scale("tiny").base, arrivals=True, choosing=choosing, part="valid" if choosing else "test"
    )
    here = setting(choice, tmp_path)
    here = replace(here, data=replace(here.data, cases=here.data.cases[:60]))
    model = small_causal_lm(here.vocabulary, hidden_size=32, layers=1, heads=2, seed=0, architecture="llama")
    return here, model.eval()


@pytest.fixture(autouse=True)
def _few_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "VALIDATION_CASES", 60)
    monkeypatch.setattr(arrivals, "RESAMPLED", 50)


def test_all_cases_are_measured_and_the_kept_search_gives_the_same_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, model = small(tmp_path, choosing=False)
    cache = tmp_path / "kept" / "arrivals.npz"
    figures = measure_arrivals(here, model, cache, lambda what, share: None)
    new = sum(here.data.arrived[case.relevant[0]] for case in here.data.cases)
    for rule in ("the model alone", "the dense leg alone", "mixture"):
        assert [figures[rule][group]["cases"] for group in ("all", "old", "new")] == [60, 60 - new, new]
        for group in figures[rule].values():
            assert 0 <= group["low"] <= group["recall@10"] <= group["high"] <= 1
    # Walks among nearest neighbours: vectors find what a model without training does not.
    assert figures["the dense leg alone"]["new"]["recall@10"] > 0.2
    assert figures["the model alone"]["all"]["recall@10"] < 0.1
    assert 60 < figures["chosen"]["cases"] <= 120
    search, asked = arrivals._search, []

    def counted(*arguments: object) -> object:
        asked.append(arguments)
        return search(*arguments)

    monkeypatch.setattr(arrivals, "_search", counted)
    assert measure_arrivals(here, model, cache, lambda what, share: None) == figures
    assert len(asked) == 1, "the validation cases alone are searched again"


@pytest.mark.parametrize("choosing", [False, True])
def test_nothing_is_chosen_on_a_test_case_or_on_an_item_that_arrives_in_the_test(
    tmp_path: Path, choosing: bool
) -> None:
    here, model = small(tmp_path, choosing=choosing)
    in_test = load("tiny", arrivals=True).arrived
    assert choosing == bool((here.data.arrived & ~in_test).any())
    tested = {case.case: case.relevant for case in load("tiny", arrivals=True).cases}
    cases, share = validation_cases(here, ~in_test, here.data.arrived)
    assert (share > 0) == choosing
    for case in cases:
        assert not in_test[[*case.history, *case.relevant]].any()
        assert len(case.history) < len(load("tiny").cases[case.case].history)
        assert case.case in tested
    if choosing:
        rules = choose_rule(here, model, lambda what, share: None)
        alone, as_old = rules["new items by P_dense alone"], rules["new items as old ones"]
        assert alone["new_cases"] == as_old["new_cases"] > 0
        assert alone["weights"]["share_of_new"] == 1
        assert as_old["weights"]["share_of_new"] == as_old["weights"]["share"]
        assert alone["mixture"]["new"] >= as_old["mixture"]["new"]


def test_items_that_arrive_to_choose_by_are_in_no_training_history() -> None:
    data = load("tiny", "valid", arrivals=True, choosing=True)
    assert data.held_back == "choosing"
    assert not any(data.arrived[item] for history in data.histories for item in history)
    assert 0.12 < np.mean(data.arrived) < 0.26
