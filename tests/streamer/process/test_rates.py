"""Token buckets: what a rate and a burst let through, and that memory for strangers ends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.process.rates import TokenBuckets


@given(st.lists(st.tuples(st.floats(0, 2), st.sampled_from("abc")), max_size=60))
def test_no_user_gets_more_than_the_burst_and_the_rate(steps: list[tuple[float, str]]) -> None:
    now = 0.0
    rates = TokenBuckets(per_second=2.0, burst=3, clock=lambda: now)
    allowed: dict[str, int] = {}
    for seconds, user in steps:
        now += seconds
        allowed[user] = allowed.get(user, 0) + (rates.take(user) == 0)
    for count in allowed.values():
        assert count <= 3 + 2.0 * now + 1e-6


def test_bucket_fills_again_and_a_burst_is_served() -> None:
    now = 0.0
    rates = TokenBuckets(per_second=2.0, burst=3, clock=lambda: now)
    assert [rates.take("ada") for _ in range(4)] == [0, 0, 0, 0.5]
    now = 1.0
    assert [rates.take("ada") for _ in range(3)] == [0, 0, 0.5]


def test_memory_for_users_is_bounded_and_the_busy_one_is_not_forgotten() -> None:
    rates = TokenBuckets(per_second=0.001, burst=1, clock=lambda: 0.0, remembered=100)
    assert rates.take("busy") == 0
    for number in range(10_000):
        assert rates.take(f"user-{number}") == 0
        assert rates.take("busy") == pytest.approx(1_000)
    assert len(rates._buckets) == 100
