"""Queries that keep coming while something else happens, and what became of each: the proof that answering never stops."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final, Self

import numpy as np

from models.errors import SidstreamError
from retriever.client import Client
from streamer.events.records import Answer, Query
from streamer.settings import Settings

_PAUSE_SECONDS: Final = 0.15


class LiveQueries:
    """Asks the given queries over and over from a thread of its own, one at a time.

    ``exists``: whether an item id may be in the answer to a query asked at this ``time.monotonic()``; every answer is checked.
    """

    def __init__(self, settings: Settings, queries: Sequence[Query], exists: Callable[[str, float], bool]) -> None:
        self._settings = settings
        self._queries = queries
        self._exists = exists
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask_on, name="live-queries", daemon=True)
        self._milliseconds: list[float] = []
        self.unanswered = 0
        self.invalid_items = 0
        self.layouts: set[int] = set()

    @property
    def answered(self) -> int:
        """Queries that came back with at least one item."""
        return len(self._milliseconds)

    def percentile_ms(self, percent: float) -> float:
        """Milliseconds from asking to reading the answer."""
        return float(np.percentile(self._milliseconds, percent)) if self._milliseconds else float("nan")

    def _ask_on(self) -> None:
        with Client(self._settings) as client:
            number = 0
            while not self._stop.is_set():
                query = self._queries[number % len(self._queries)]
                number += 1
                started = time.monotonic()
                try:
                    [answer] = client.ask_all([query], timeout_seconds=15)
                except SidstreamError:
                    self.unanswered += 1
                    continue
                self._check(answer, started, (time.monotonic() - started) * 1000)
                self._stop.wait(_PAUSE_SECONDS)

    def _check(self, answer: Answer, asked_at: float, milliseconds: float) -> None:
        if answer.error is not None or not answer.items:
            self.unanswered += 1
            return
        self._milliseconds.append(milliseconds)
        self.invalid_items += sum(not self._exists(item.item_id, asked_at) for item in answer.items)
        if answer.layout is not None:
            self.layouts.add(answer.layout)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
