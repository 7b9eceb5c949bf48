"""Whether a process is alive and whether it is ready, with the reason when it is not; over HTTP as ``/live`` and ``/ready``.

Alive: its loop has turned a moment ago, or a call that may take long has not taken too long. Who is not alive is to be
restarted. Ready: its model is loaded, its store open, its input read as far as it went at the start, the broker answers,
its loop turns, and no call that has a time of its own is long over it. Who is not ready gets well by waiting: a broker that
is away must never make a process look dead.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import NamedTuple

from streamer.settings.process import MetricsSettings


class Part(StrEnum):
    """What must be well for a process to be ready, in the order in which the reasons are told."""

    STOPPING = "stopping"
    START = "start"
    """Bundle and model loaded, store open."""
    BROKER = "broker"
    """It answered when it was last asked."""
    REGISTRY = "registry"
    """The schema registry gives the schemas that the input names."""
    INDEX = "index"
    """The index that the indexer of this host makes is there."""
    BUNDLE = "bundle"
    """What is deployed to answer is what answers."""
    TOPICS = "topics"
    """They are still as the process needs them."""
    INPUT = "input"
    """Everything that was on the topics at the start is read."""


class _Call(NamedTuple):
    what: str
    since: float
    due_seconds: float = math.inf


class Health:
    """Set by the loop, read by the HTTP server; thread-safe. Unready until start, broker and input were said to be well."""

    def __init__(self, settings: MetricsSettings | None = None) -> None:
        settings = settings or MetricsSettings()
        self._stalled_seconds = settings.stalled_seconds
        self._slow_seconds = settings.slow_seconds
        self._lock = threading.Lock()
        self._reasons: dict[Part, str] = {
            Part.START: "starting",
            Part.BROKER: "the broker has not answered yet",
            Part.INPUT: "nothing is read yet",
        }
        self._turned_at = time.monotonic()
        # A start is a long call like any other: a model is loaded, an index checked.
        self._in_hand: dict[object, _Call] = {Part.START: _Call("the start", self._turned_at)}

    @property
    def ready(self) -> bool:
        return self.reason is None

    @property
    def reason(self) -> str | None:
        """Why the process is not ready, in sentences; ``None`` when it is."""
        now = time.monotonic()
        with self._lock:
            reasons = [self._reasons[part] for part in Part if part in self._reasons]
            overdue = [call for call in self._in_hand.values() if now - call.since > call.due_seconds]
        reasons += [f"{call.what} has not returned for {now - call.since:.0f} s" for call in overdue]
        if (stalled := self.stalled) is not None:
            reasons.append(stalled)
        return "; ".join(reasons) or None

    @property
    def stalled(self) -> str | None:
        """Why the process is not alive, in a sentence; ``None`` when it is."""
        now = time.monotonic()
        with self._lock:
            oldest = min(self._in_hand.values(), key=lambda call: call.since, default=None)
            silent = now - self._turned_at
        if oldest is not None:
            seconds = now - oldest.since
            if seconds > self._slow_seconds:
                return f"{oldest.what} has taken {seconds:.0f} s; metrics.slow_seconds allows {self._slow_seconds:g}"
        elif silent > self._stalled_seconds:
            return (
                f"the loop has not turned for {silent:.0f} s; metrics.stalled_seconds allows {self._stalled_seconds:g}"
            )
        return None

    def is_well(self, part: Part) -> bool:
        """Whether nothing is known against this part."""
        return part not in self._reasons

    def set_ready(self, part: Part) -> None:
        """This part is well again; the end of the start begins the watch over the loop."""
        if part not in self._reasons:
            return
        with self._lock:
            self._reasons.pop(part, None)
            if part is Part.START:
                self._in_hand.pop(Part.START, None)
                self._turned_at = time.monotonic()

    def set_unready(self, part: Part, reason: str) -> None:
        """``reason``: a sentence for a person."""
        with self._lock:
            self._reasons[part] = reason

    def progress(self) -> None:
        """The loop turns, or the start goes on; call it every turn, with or without anything to do."""
        self._turned_at = time.monotonic()
        if Part.START in self._in_hand:
            with self._lock:
                self._in_hand[Part.START] = _Call("the start", self._turned_at)

    @contextmanager
    def working(self, what: str, due_seconds: float = math.inf) -> Iterator[None]:
        """A call that may rightly take longer than a turn: decoding a batch, one attempt at a commit, a large LMDB batch.

        One that should have returned after ``due_seconds`` makes the process unready, long before it counts as dead.
        """
        token = object()
        with self._lock:
            self._in_hand[token] = _Call(what, time.monotonic(), due_seconds)
        try:
            yield
        finally:
            with self._lock:
                del self._in_hand[token]
                self._turned_at = time.monotonic()

    def doing(self) -> list[str]:
        """The long calls that are in hand, each with its seconds: what a process that does not end is stuck in."""
        now = time.monotonic()
        with self._lock:
            return [f"{call.what} for {now - call.since:.1f} s" for call in self._in_hand.values()]
