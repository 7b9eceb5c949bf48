"""λ and α chosen on validation cases: against both legs alone, and against trying everything."""

from __future__ import annotations

import numpy as np
import pytest

from models.dense.arrivals import unit
from models.dense.choosing import ValidationCase, choose_weights
from models.dense.mixture import MixtureWeights, gather, log_sum, mixed, rank_of

ITEMS = 300


def made(seed: int = 0, count: int = 250) -> tuple[list[ValidationCase], np.ndarray, np.ndarray]:
    """Cases of two kinds: what the model knows, and what lies near the query; a fifth of the items is new and unknown to the
    model, which yet gives some of its probability to them, at random.
    """
    random = np.random.default_rng(seed)
    vectors = unit(random.standard_normal((ITEMS, 16)))
    new = random.random(ITEMS) < 0.2
    cases = []
    for number in range(count):
        target = int(random.integers(ITEMS))
        near = number % 2 == 0 or new[target]
        query = unit((vectors[target] + (0.25 if near else 3.0) * random.standard_normal(16))[None])[0]
        found = random.choice(ITEMS, size=40, replace=False)
        probabilities = random.dirichlet(np.full(40, 0.5)) * 0.5
        if not near:
            found[0], probabilities[0] = target, 0.3
        found, first = np.unique(found, return_index=True)
        cases.append(ValidationCase(query, target, found, np.log(probabilities[first] + 1e-9)))
    return cases, vectors, new


def test_mixture_finds_more_than_either_leg_and_no_share_of_the_grid_finds_more() -> None:
    cases, vectors, new = made()
    chosen = choose_weights(cases, vectors, new)
    assert chosen.mixture.all > max(chosen.model_alone.all, chosen.dense_alone.all)
    assert (chosen.cases, chosen.new_cases) == (250, sum(new[case.target] for case in cases))
    for share in np.linspace(0, 0.95, 20):
        weights = MixtureWeights(sharpness=chosen.weights.sharpness, share=float(share))
        ranks = []
        for case in cases:
            cosines = (vectors @ case.query).astype(np.float64)
            candidates = gather(case.found, case.model, cosines, new)
            ranks.append(
                rank_of(case.target, candidates, mixed(candidates, log_sum(cosines, weights.sharpness), weights))
            )
        assert np.mean(np.array(ranks) <= 10) <= chosen.mixture.all + 1e-4


def test_word_of_the_model_on_new_items_does_not_count_unless_validation_says_so() -> None:
    cases, vectors, new = made()
    alone = choose_weights(cases, vectors, new)
    as_old = choose_weights(cases, vectors, new, shares_of_new=None)
    assert alone.weights.share_of_new == 1
    assert as_old.weights.share_of_new == as_old.weights.share
    assert alone.mixture.new > as_old.mixture.new


def test_excluded_items_are_not_answered_and_do_not_stand_before_the_target() -> None:
    cases, vectors, new = made(count=40)
    excluded = [
        ValidationCase(case.query, case.target, case.found, case.model, tuple(set(range(ITEMS)) - {case.target}))
        for case in cases
    ]
    assert choose_weights(excluded, vectors, new).dense_alone.all == 1


def test_no_new_item_among_the_cases_is_said_and_no_case_at_all_is_refused() -> None:
    cases, vectors, new = made(count=30)
    assert choose_weights(cases, vectors, np.zeros_like(new)).mixture.new is None
    with pytest.raises(ValueError, match="no validation case"):
        choose_weights([], vectors, new)
