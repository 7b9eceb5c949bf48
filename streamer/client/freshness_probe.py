"""Freshness: the time from ``produce()`` of an item update until the item can be retrieved, seen from another process.

The probe reads the index as a retriever does. It needs updates that carry an ``updated_at`` of their own, by which it
knows that this very update has arrived, not an earlier one.
"""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Final, Self

import numpy as np

from store.reading.reader import IndexReader

_POLL_SECONDS: Final = 0.002


class FreshnessProbe:
    """Polls the index every 2 ms for the updates that it is told of; thread-safe.

    >>> with FreshnessProbe(reader) as probe:  # doctest: +SKIP
    ...     probe.sent("sku-1", updated_at=1700000000000)
    ...     probe.wait(10)
    ...     print(probe.percentile_ms(99))
    """

    def __init__(self, reader: IndexReader) -> None:
        self._reader = reader
        self._lock = threading.Lock()
        self._pending: dict[bytes, tuple[float, int]] = {}
        self._seconds: list[float] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="freshness", daemon=True)

    def sent(self, item_id: str, updated_at: int) -> None:
        """Call it right before ``produce()``."""
        with self._lock:
            self._pending[item_id.encode()] = (time.perf_counter(), updated_at)

    def wait(self, seconds: float) -> int:
        """Wait until everything sent was seen; how many were not after ``seconds``."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with self._lock:
                if not self._pending:
                    return 0
            time.sleep(_POLL_SECONDS)
        with self._lock:
            return len(self._pending)

    @property
    def seen(self) -> int:
        """How many updates were measured."""
        return len(self._seconds)

    def percentile_ms(self, percent: float) -> float:
        """Milliseconds within which ``percent`` of the measured updates could be retrieved."""
        return float(np.percentile(self._seconds, percent) * 1000) if self._seconds else float("nan")

    def _poll(self) -> None:
        while not self._stop.wait(_POLL_SECONDS):
            with self._lock:
                pending = list(self._pending.items())
            if not pending:
                continue
            with self._reader.snapshot() as snapshot:
                found = snapshot.find([item_id for item_id, _ in pending])
            now = time.perf_counter()
            with self._lock:
                for (item_id, (sent_at, updated_at)), item in zip(pending, found, strict=True):
                    if (
                        item is not None
                        and item.updated_at == updated_at
                        and self._pending.get(item_id) == (sent_at, updated_at)
                    ):
                        del self._pending[item_id]
                        self._seconds.append(now - sent_at)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
