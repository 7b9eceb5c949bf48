"""Which loaded bundle answers whom, and the exchange of one such state for the next between two batches.

What must hold: a batch is answered by the bundles of one state, from its first query to its last; whoever exchanges it is told
when no batch works with the old one any more.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from retriever.answering.admission import BundleLimits
from retriever.serving.loaded_bundle import LoadedBundle
from streamer.events.serving import Serving


@dataclass(frozen=True, eq=False)
class Answering:
    """``main`` answers, and ``canary``, if there is one, the users that ``serving`` gives to it."""

    main: LoadedBundle
    canary: LoadedBundle | None = None
    serving: Serving | None = None

    def of(self, who: str) -> LoadedBundle:
        """The bundle that answers a user, or, without one, a query by its id."""
        if self.serving is None or self.canary is None:
            return self.main
        return self.canary if self.serving.answers(who) == self.canary.id else self.main

    def limits_of(self, who: str) -> BundleLimits:
        """What the queries of a user must keep to."""
        return self.of(who).limits

    @property
    def bundles(self) -> tuple[LoadedBundle, ...]:
        """Main, and the canary if there is one."""
        return (self.main,) if self.canary is None else (self.main, self.canary)


class CurrentAnswering:
    """What answers now. One thread takes it for its batches, another one exchanges it."""

    def __init__(self, first: Answering) -> None:
        self._condition = threading.Condition()
        self._now = first
        self._held: list[Answering] = []
        self.batches = 0  # that were begun

    @property
    def now(self) -> Answering:
        """What the next batch is answered by."""
        return self._now

    @property
    def is_working(self) -> bool:
        """Whether a batch is in hand."""
        return bool(self._held)

    @contextmanager
    def held(self) -> Iterator[Answering]:
        """What answers, to the end of the block: a batch."""
        with self._condition:
            taken = self._now
            self._held.append(taken)
            self.batches += 1
        try:
            yield taken
        finally:
            with self._condition:
                self._held.remove(taken)
                self._condition.notify_all()

    def exchange(self, following: Answering) -> None:
        """The next batch is answered by ``following``; returns once no batch holds what was there before."""
        with self._condition:
            before, self._now = self._now, following
            self._condition.wait_for(lambda: before not in self._held)
