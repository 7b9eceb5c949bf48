"""λ, γ and α chosen on validation cases: against both legs alone, and against trying everything."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from models.dense.arrivals import unit
from models.dense.choosing import ValidationCase, choose_weights
from models.dense.mixture import SHARES, SHARES_TOGETHER, MixtureWeights, gather, log_sum, mixed, rank_of

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


def recalls(
    cases: list[ValidationCase], vectors: np.ndarray, new: np.ndarray, weights: MixtureWeights
) -> tuple[float, float, float]:
    """Of all, old and new targets by one set of weights, the plain way."""
    hits = []
    for case in cases:
        cosines = (vectors @ case.query).astype(np.float64)
        candidates = gather(case.found, case.model, cosines, new)
        log_normaliser = log_sum(cosines, weights.sharpness)
        hits.append(rank_of(case.target, candidates, mixed(candidates, log_normaliser, weights)) <= 10)
    found, is_new = np.array(hits), new[[case.target for case in cases]]
    return float(found.mean()), float(found[~is_new].mean()), float(found[is_new].mean())


def test_worse_found_group_is_found_best_at_a_price_of_five_in_a_hundred() -> None:
    cases, vectors, new = made()
    grid = {"boosts": (0.0, 0.5, 1.0, 1.5)}
    chosen = choose_weights(cases, vectors, new, **grid)
    assert chosen.mixture.all > max(chosen.model_alone.all, chosen.dense_alone.all)
    assert (chosen.cases, chosen.new_cases) == (250, sum(new[case.target] for case in cases))
    tried = [
        recalls(
            cases,
            vectors,
            new,
            MixtureWeights(sharpness=chosen.weights.sharpness, share=float(share), boost_of_new=boost),
        )
        for share in np.linspace(0, 0.95, 20)
        for boost in grid["boosts"]
    ]
    best = max(every for every, _, _ in tried)
    assert chosen.best_of_all is not None
    assert chosen.best_of_all.all == pytest.approx(best, abs=1e-4)
    worst = max(min(old, fresh) for every, old, fresh in tried if every >= 0.95 * best)
    assert min(chosen.mixture.old, chosen.mixture.new) == pytest.approx(worst, abs=1e-4)
    assert recalls(cases, vectors, new, chosen.weights) == pytest.approx(
        (chosen.mixture.all, chosen.mixture.old, chosen.mixture.new), abs=1e-4
    )


def test_new_items_that_stand_behind_are_lifted() -> None:
    cases, vectors, new = made()
    # A tenth of the queries says less of its new target than of its old neighbours: without a lift hardly one is found.
    random = np.random.default_rng(5)
    far = [
        ValidationCase(
            unit((case.query + 0.45 * random.standard_normal(16))[None])[0], case.target, case.found, case.model
        )
        if new[case.target]
        else case
        for case in cases
    ]
    level = choose_weights(far, vectors, new, boosts=(0.0,))
    lifted = choose_weights(far, vectors, new)
    assert level.weights.boost_of_new == 0 < lifted.weights.boost_of_new
    assert lifted.mixture.new > level.mixture.new
    assert lifted.best_of_all is not None
    assert lifted.mixture.all >= 0.95 * lifted.best_of_all.all - 1e-4


def test_recall_of_all_counts_new_targets_for_their_share_where_more_of_them_were_drawn() -> None:
    cases, vectors, new = made()
    drawn = choose_weights(cases, vectors, new, share_of_new_targets=0.02)
    assert drawn.mixture.all == pytest.approx(0.98 * drawn.mixture.old + 0.02 * drawn.mixture.new, abs=1e-3)


def test_word_of_the_model_on_new_items_counts_for_nothing_unless_they_are_treated_as_old_ones() -> None:
    cases, vectors, new = made()
    alone = choose_weights(cases, vectors, new, boosts=(0.0,))
    as_old = choose_weights(cases, vectors, new, boosts=None)
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


def test_share_of_what_was_taken_together_is_chosen_where_that_knows_the_target_and_nothing_where_there_is_none() -> (
    None
):
    cases, vectors, new = made()
    assert choose_weights(cases, vectors, new).weights.together == 0
    random = np.random.default_rng(5)
    uninformed = [
        replace(case, query=unit(random.standard_normal((1, 16)))[0], found=case.found[:0], model=case.model[:0])
        for case in cases
    ]
    informed = []
    for number, case in enumerate(uninformed):
        rows = np.unique(random.choice(np.flatnonzero(~new), size=12))
        if number % 3 == 0 and not new[case.target]:
            rows = np.union1d(rows, [case.target])
        scores = np.where(rows == case.target, 0.5, 0.5 / len(rows))
        informed.append(replace(case, together=(rows, np.log(scores / scores.sum()))))
    chosen, without = (choose_weights(some, vectors, new) for some in (informed, uninformed))
    assert chosen.weights.together > 0
    assert chosen.mixture.old is not None
    assert chosen.mixture.old > (without.mixture.old or 0) + 0.2


def test_shares_of_three_legs_are_of_greatest_likelihood_of_the_old_targets_that_are_candidates() -> None:
    cases, vectors, new = made()
    random = np.random.default_rng(7)
    # Of some the target lies behind all others, and no leg proposes it.
    cases += [ValidationCase(-vectors[row], row, cases[0].found[:0], cases[0].model[:0]) for row in range(40)]
    cases = [
        replace(case, together=(rows, np.log(random.dirichlet(np.ones(len(rows))))))
        if number % 4 and len(case.found)
        else case
        for number, case in enumerate(cases)
        for rows in [np.unique([*random.choice(np.flatnonzero(~new), 12), *[case.target] * (number % 3 == 0)])]
        if not new[case.target] or number % 2  # some new targets, whose word must not count
    ]
    chosen = choose_weights(cases, vectors, new).weights

    def likelihood(together: float, share: float) -> float:
        weights = MixtureWeights(sharpness=chosen.sharpness, share=share, together=together)
        found = []
        for case in cases:
            cosines = (vectors @ case.query).astype(np.float64)
            candidates = gather(case.found, case.model, cosines, new, together=case.together)
            at = np.flatnonzero(candidates.rows == case.target)
            if len(at) and not new[case.target]:
                found.append(mixed(candidates, log_sum(cosines, chosen.sharpness), weights)[at[0]])
        assert 0 < len(found) < sum(not new[case.target] for case in cases)
        return float(np.mean(found))

    best = max(
        ((together, share) for together in SHARES_TOGETHER for share in SHARES), key=lambda tried: likelihood(*tried)
    )
    assert (chosen.together, chosen.share) == best
    assert chosen.together > 0
    assert chosen.share > 0


def test_few_cases_choose_nearly_the_shares_that_all_of_them_choose() -> None:
    cases, vectors, new = made(count=1_600)
    random = np.random.default_rng(3)
    informed = []
    for number, case in enumerate(cases):
        rows = random.choice(np.flatnonzero(~new), 12, replace=False)
        if number % 5 < 2 and not new[case.target]:
            rows[0] = case.target
        rows = np.unique(rows)
        informed.append(replace(case, together=(rows, np.full(len(rows), -np.log(len(rows))))))
    whole = choose_weights(informed, vectors, new).weights
    for start in range(0, 1_600, 400):
        part = choose_weights(informed[start : start + 400], vectors, new).weights
        assert abs(part.together - whole.together) <= 0.21
        assert abs(part.share - whole.share) <= 0.16
