"""Whether a canary is promoted, taken back, or waited for: by what came of its answers beside those of the bundle that serves."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from streamer.interactions.hit_rates import BundleHitRates

Verdict = Literal["promote", "roll back", "wait"]


@dataclass(frozen=True)
class CanaryBounds:
    """``seconds``: how long a canary answers at least; ``queries``: how many; ``at``: hits count among so many first items;
    ``tolerance``: what its hit rate may be below the other's.
    """

    seconds: float = 3_600.0
    queries: int = 1_000
    at: int = 10
    tolerance: float = 0.01


def difference(one: BundleHitRates, other: BundleHitRates, at: int) -> tuple[float, float, float]:
    """Hit rate of ``one`` less that of ``other``, and the ends of its 95 % interval (Newcombe 1998, method 10: of two
    independent shares, from their Wilson intervals).
    """
    (low, high), (other_low, other_high) = one.interval(at), other.interval(at)
    rate, other_rate = one.rate(at), other.rate(at)
    found = rate - other_rate
    return (
        found,
        found - math.hypot(rate - low, other_high - other_rate),
        found + math.hypot(high - rate, other_rate - other_low),
    )


def judge(canary: BundleHitRates, serving: BundleHitRates, seconds: float, bounds: CanaryBounds) -> tuple[Verdict, str]:
    """What to do after ``seconds``, and why in a sentence. One that is worse for certain is taken back at once."""
    found, low, high = difference(canary, serving, bounds.at)
    said = (
        f"hit rate @{bounds.at} {canary.rate(bounds.at):.3f} of {canary.answered:,} answers, {serving.rate(bounds.at):.3f} of "
        f"{serving.answered:,} of the bundle that serves: {found:+.3f} ({low:+.3f} to {high:+.3f})"
    )
    if canary.answered and serving.answered and high < -bounds.tolerance:
        return "roll back", f"{said}, worse by more than {bounds.tolerance:g}"
    if canary.answered < bounds.queries:
        return "wait", f"{said}; {bounds.queries:,} answers are asked for"
    if seconds < bounds.seconds:
        return "wait", f"{said}; it has answered for {seconds / 60:,.0f} of {bounds.seconds / 60:,.0f} minutes"
    return "promote", said
