"""What becomes of a canary: promoted, taken back at once where it is worse for certain, or waited for."""

from __future__ import annotations

import pytest

from retriever.refreshing.judging import CanaryBounds, difference, judge
from streamer.interactions.hit_rates import BundleHitRates

BOUNDS = CanaryBounds(seconds=60, queries=100, tolerance=0.01)


def rates(hits: int, answered: int) -> BundleHitRates:
    return BundleHitRates(bundle="b", answered=answered, interacted=hits, hits={"any": {10: hits}})


def test_difference_of_two_shares_has_the_interval_of_newcombe() -> None:
    # Newcombe 1998, table II, example (a): 56/70 against 48/80.
    found, low, high = difference(rates(56, 70), rates(48, 80), 10)
    assert (found, low, high) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)


def test_canary_as_good_as_the_other_is_promoted_after_its_time_and_queries() -> None:
    verdict, why = judge(rates(30, 100), rates(600, 2_000), 60, BOUNDS)
    assert verdict == "promote"
    assert "0.300 of 100 answers" in why


@pytest.mark.parametrize(("answered", "seconds", "missing"), [(99, 600, "100 answers"), (400, 59, "minutes")])
def test_canary_is_waited_for_until_it_has_answered_enough_for_long_enough(
    answered: int, seconds: float, missing: str
) -> None:
    verdict, why = judge(rates(answered // 3, answered), rates(600, 2_000), seconds, BOUNDS)
    assert verdict == "wait"
    assert missing in why


def test_canary_that_is_worse_for_certain_is_taken_back_at_once() -> None:
    assert judge(rates(2, 90), rates(600, 2_000), 1, BOUNDS)[0] == "roll back"


def test_canary_that_only_seems_worse_is_not_taken_back() -> None:
    assert judge(rates(25, 100), rates(600, 2_000), 60, BOUNDS)[0] == "promote"


def test_canary_without_answers_is_waited_for() -> None:
    assert judge(rates(0, 0), rates(600, 2_000), 1e6, BOUNDS)[0] == "wait"
    assert judge(rates(0, 0), rates(0, 0), 1e6, CanaryBounds(seconds=0, queries=0))[0] == "promote"
