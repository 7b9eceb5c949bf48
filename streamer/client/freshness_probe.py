"""Freshness: the time from ``produce()`` of an item update until the item can be retrieved, seen from another process.

The probe is a process of its own and reads the index as a retriever does, so that neither the publisher's interpreter nor the
indexer's is in what it measures. It looks at the number of the last transaction every half a millisecond, which costs a few
hundredths of a core, and reads only where there is a new one. Updates need an ``updated_at`` of their own, by which it knows
that this very update has arrived, not an earlier one.
"""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Iterator
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from store.reading.reader import IndexReader
from streamer.process.run import collect_garbage_rarely

_LOOK_SECONDS: Final = 0.0005
_ANYWAY_SECONDS: Final = 0.1  # an index that was replaced counts its commits anew
_START_SECONDS: Final = 60.0
_ANSWER_SECONDS: Final = 5.0
_UPDATE: Final = struct.Struct(
    "<dq"
)  # when it was sent, by the monotonic clock, and its updated_at; the item's id follows


class FreshnessProbe:
    """Watches an index for the updates that it is told of; thread-safe.

    >>> with FreshnessProbe(path) as probe:  # doctest: +SKIP
    ...     probe.sent("sku-1", updated_at=1700000000000)
    ...     probe.wait(10)
    ...     print(probe.percentile_ms(99))
    """

    def __init__(self, index: str | os.PathLike[str]) -> None:
        """``index``: a directory that holds an index already."""
        context: Any = get_context("spawn")
        self._lock = threading.Lock()
        theirs, self._updates = context.Pipe(duplex=False)
        self._answers, answers = context.Pipe(duplex=False)
        self._process = context.Process(
            target=_watch, args=(Path(index), theirs, answers), name="freshness", daemon=True
        )
        self._theirs = (theirs, answers)
        self.seconds: NDArray[np.float64] = np.empty(0)
        """Of each update that was measured until the last ``wait``, in the order in which they became retrievable."""
        self.processor_seconds = 0.0
        """User and system time that the probe's process took for looking, until the last ``wait``."""

    def sent(self, item_id: str, updated_at: int) -> None:
        """Call it right before ``produce()``."""
        with self._lock:
            self._updates.send_bytes(_UPDATE.pack(time.monotonic(), updated_at) + item_id.encode())

    def wait(self, seconds: float) -> int:
        """Wait until everything sent was seen; how many were not after ``seconds``."""
        with self._lock:
            self._updates.send_bytes(_UPDATE.pack(time.monotonic() + seconds, 0))
            if not self._answers.poll(seconds + _ANSWER_SECONDS):
                raise RuntimeError("the freshness probe's process does not answer")
            missing: int
            self.seconds, missing, self.processor_seconds = self._answers.recv()
            return missing

    @property
    def seen(self) -> int:
        """How many updates were measured by then."""
        return len(self.seconds)

    def percentile_ms(self, percent: float) -> float:
        """Milliseconds within which ``percent`` of the updates that were measured by then could be retrieved."""
        return float(np.percentile(self.seconds, percent) * 1000) if len(self.seconds) else float("nan")

    def __enter__(self) -> Self:
        self._process.start()
        for end in self._theirs:
            end.close()
        if not self._answers.poll(_START_SECONDS):
            raise RuntimeError("the freshness probe's process did not start")
        self._answers.recv()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._updates.close()
        self._process.join()
        self._answers.close()


class _Pending:
    """What was sent and is not retrievable yet."""

    def __init__(self) -> None:
        self.updates: dict[bytes, tuple[float, int]] = {}
        self.seconds: list[float] = []

    def look(self, reader: IndexReader) -> None:
        ids = list(self.updates)
        with reader.snapshot() as snapshot:
            now = (
                time.monotonic()
            )  # a retriever could have opened this snapshot by now; reading it is the probe's own time
            found = snapshot.find(ids)
        for item_id, item in zip(ids, found, strict=True):
            sent_at, updated_at = self.updates[item_id]
            if item is not None and item.updated_at == updated_at:
                del self.updates[item_id]
                self.seconds.append(now - sent_at)


def _watch(index: Path, updates: Connection, answers: Connection) -> None:
    """The probe's process: until its starter closes ``updates``, or ends."""
    collect_garbage_rarely()
    pending = _Pending()
    asked_until: float | None = None
    last, looked_at, started = -1, 0.0, os.times()
    with IndexReader(index) as reader:
        answers.send(True)
        while True:
            time.sleep(_LOOK_SECONDS)
            now, transaction = time.monotonic(), reader.last_transaction
            if transaction == last and now - looked_at < _ANYWAY_SECONDS:
                continue
            last, looked_at = transaction, now
            try:
                for sent_at, updated_at, item_id in _messages(updates):
                    if item_id:
                        pending.updates[item_id] = (sent_at, updated_at)
                    else:
                        asked_until = sent_at
            except EOFError:
                return
            if pending.updates:
                pending.look(reader)
            if asked_until is not None and (not pending.updates or now > asked_until):
                asked_until = None
                used = os.times()
                spent = used.user + used.system - started.user - started.system
                answers.send((np.array(pending.seconds), len(pending.updates), spent))


def _messages(updates: Connection) -> Iterator[tuple[float, int, bytes]]:
    """What waits in the pipe, which has room for more than comes between two looks."""
    while updates.poll():
        message = updates.recv_bytes()
        yield (*_UPDATE.unpack_from(message), message[_UPDATE.size :])
