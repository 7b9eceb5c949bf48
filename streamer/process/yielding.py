"""Leaves the machine to others: small batches, and a rest after each, for work that nobody waits for yet.

What must hold: once the work is done there is neither. A rest is a part of what the batch took, so that on a faster machine, or
on one of its own, the work is faster too; the broker, whose work for us no priority of ours would lower, rests with us.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

# However slow a batch was: the loop must turn, and see what it is asked.
_LONGEST_REST_SECONDS: Final = 5.0


class Yielding:
    """``share`` of the time that may be worked, 0 to 1; ``batch_size``: records at once; ``until``: whether it is over."""

    def __init__(self, share: float, batch_size: int, until: Callable[[], bool]) -> None:
        self._share = share
        self._batch_size = batch_size
        self._until = until
        self._over = False

    @property
    def over(self) -> bool:
        """Once it is, it stays so: a backlog that comes later is one that somebody waits for."""
        self._over = self._over or self._until()
        return self._over

    def batch_size(self, own: int) -> int:
        """How many records the next batch may have."""
        return own if self.over else min(own, self._batch_size)

    def rest(self, seconds: float) -> float:
        """How many seconds to rest after a batch that took ``seconds``."""
        return 0.0 if self.over else min(seconds * (1 / self._share - 1), _LONGEST_REST_SECONDS)
