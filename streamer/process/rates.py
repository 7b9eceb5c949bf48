"""How often each of many may do something: a token bucket each, and a bound on how many are remembered."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

# Whoever is not among the last so many starts with a full bucket: some 4 MB at the most.
REMEMBERED: Final = 10_000


class TokenBuckets:
    """``per_second`` tokens come into each one's bucket, at most ``burst`` lie there, what is done takes one.

    >>> buckets = TokenBuckets(per_second=1.0, burst=2, clock=lambda: 0.0)
    >>> [buckets.take("ada") for _ in range(3)]
    [0.0, 0.0, 1.0]
    """

    def __init__(
        self,
        *,
        per_second: float,
        burst: int,
        clock: Callable[[], float] = time.monotonic,
        remembered: int = REMEMBERED,
    ) -> None:
        self._per_second = per_second
        self._burst = burst
        self._clock = clock
        self._remembered = remembered
        # who → (tokens, seconds of the clock when that was so); whoever came last is the last.
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, who: str) -> float:
        """0 if there was a token, which is taken; else the seconds until there is one."""
        now = self._clock()
        tokens, since = self._buckets.pop(who, (float(self._burst), now))
        tokens = min(self._burst, tokens + (now - since) * self._per_second)
        allowed = tokens >= 1
        self._buckets[who] = (tokens - 1 if allowed else tokens, now)
        if len(self._buckets) > self._remembered:
            self._buckets.popitem(last=False)
        return 0.0 if allowed else (1 - tokens) / self._per_second
