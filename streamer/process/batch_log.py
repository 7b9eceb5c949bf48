"""What a process says of its batches: one line a batch at ``debug``, one a second for all of that second at ``info``."""

from __future__ import annotations

import time
from typing import Final

import structlog

log = structlog.get_logger(__name__)

_INTERVAL_SECONDS: Final = 1.0


class BatchSummary:
    """Add every batch; call ``idle`` when there is nothing to do."""

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._batches = self._events = 0
        self._seconds = 0.0

    def add(self, events: int, seconds: float) -> None:
        log.debug("batch", events=events, ms=round(seconds * 1000, 1))
        self._batches += 1
        self._events += events
        self._seconds += seconds
        self.idle()

    def idle(self) -> None:
        """Tell of the batches of the last second if it is over; an idle turn may come after every small batch."""
        if time.monotonic() - self._since < _INTERVAL_SECONDS:
            return
        if self._batches:
            log.info("batches", batches=self._batches, events=self._events, busy_ms=round(self._seconds * 1000))
        self._batches = self._events = 0
        self._seconds = 0.0
        self._since = time.monotonic()
