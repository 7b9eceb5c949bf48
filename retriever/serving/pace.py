"""How a bundle is loaded beside one that answers: in pieces, with a rest after each while queries are answered.

Python runs one thread at a time: whoever reads vectors and attributes in one go would have each step of a search wait for it.

What must hold: a load goes on however busy the retriever is; it gives up for whoever needs its snapshot of the index to end, and
when the process ends.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from models.errors import SidstreamError
from retriever.serving.answering import CurrentAnswering

_REST: Final = 2.0  # for each second of work: a search beside it takes at most half as long again


# Every operation of a search gives up the interpreter and asks for it again, and whoever computes in Python hands it over when
# its turn has ended, after 5 ms by default: a search of a hundred operations would take half a second longer beside a load.
_TURN_SECONDS: Final = 0.0002


@contextmanager
def short_turns() -> Iterator[None]:
    """Threads take turns at the interpreter twenty-five times as often as by default."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(_TURN_SECONDS)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


class LoadInterruptedError(SidstreamError):
    """A load gave way; what was loaded so far is thrown away."""


class Pace:
    """Called between two pieces of a load."""

    def __init__(self, current: CurrentAnswering, stop: threading.Event) -> None:
        self._current = current
        self._stop = stop
        self._loading = True
        self._batches = current.batches
        self._since = time.perf_counter()

    def __call__(self, snapshot_is_awaited: bool = False) -> None:
        """``snapshot_is_awaited``: somebody can go on only once the snapshot that is read from has ended.

        Raises ``LoadInterruptedError``.
        """
        if not self._loading:
            return
        if snapshot_is_awaited:
            raise LoadInterruptedError("the index grew while it was read: it is read again")
        worked = time.perf_counter() - self._since
        if self._current.is_working or self._current.batches != self._batches:
            self._stop.wait(worked * _REST)
        if self._stop.is_set():
            raise LoadInterruptedError("the retriever ends")
        self._batches = self._current.batches
        self._since = time.perf_counter()

    def end(self) -> None:
        """The load is over: from here on whoever reads the index is the one that answers."""
        self._loading = False
