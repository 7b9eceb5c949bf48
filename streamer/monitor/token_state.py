"""What the monitor remembers of a token: its newest absolute count, and its net change in a rolling window.

Nothing is incremented on an event: a count replaces an older one, and the difference goes into the window's bucket of the
event's own time. The same event again, or an older one, changes nothing, so redelivery is harmless. No bucket lies in the
future: one that did would push those of the present out of the window.

Counts of several shards add up. One that counts a partition which others count too takes the place of theirs: the catalogue is
divided anew.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.sids.layout import HEAD_LAYER_INDEX
from streamer.events.records import TokenCount
from streamer.shards.partitions import EVERY, overlap

Bucket = tuple[int, int]  # start in milliseconds since the epoch, net change of the count


@dataclass(frozen=True)
class WindowShape:
    """``buckets`` buckets of ``bucket_ms`` milliseconds each."""

    bucket_ms: int
    buckets: int

    @classmethod
    def of(cls, bucket_seconds: float, buckets: int) -> WindowShape:
        return cls(max(1, round(bucket_seconds * 1000)), buckets)

    @property
    def seconds(self) -> float:
        return self.bucket_ms * self.buckets / 1000

    def first_start(self, now: int) -> int:
        """Start of the oldest bucket of the window that ends with the bucket of ``now``."""
        return now - now % self.bucket_ms - (self.buckets - 1) * self.bucket_ms


class ShardCount(msgspec.Struct, frozen=True, array_like=True):
    """What a token's count is in some partitions, and the ``as_of`` that it is of."""

    n: int
    as_of: int


class TokenState(msgspec.Struct, frozen=True, omit_defaults=True):
    """A value of the table ``token_counts``: count ``n``, the ``as_of`` that it is of, and the buckets, oldest first.

    ``shards``: partitions → what ``n`` is the sum of, ``as_of`` being the last one's; empty where one index holds all.
    """

    n: int
    as_of: int
    window: tuple[Bucket, ...] = ()
    shards: dict[str, ShardCount] = {}


_DECODER: Final = msgspec.json.Decoder(TokenState)
encode_state: Final = msgspec.json.encode  # JSON: a person can read the changelog with a console consumer
decode_state: Final = _DECODER.decode


def apply_count(
    state: TokenState | None, count: TokenCount, at: int | None, shape: WindowShape, *, now: int
) -> TokenState | None:
    """The token's next state, or ``None`` when ``count`` is not newer than ``state``.

    ``at``: the event's time in milliseconds; ``None``, below zero (Kafka's way to say that there is none) or after ``now``,
    the event counts as of ``now``. A token without a state counts as zero items until then.
    """
    if at is None or not 0 <= at <= now:
        at = now
    if state is None:
        state = TokenState(n=0, as_of=-1)
    partitions = count.partitions or EVERY
    counts = state.shards or {EVERY: ShardCount(state.n, state.as_of)}
    known = counts.get(partitions)
    if known is not None and count.as_of <= known.as_of:
        return None
    counts = {other: of_other for other, of_other in counts.items() if not overlap(other, partitions)}
    counts[partitions] = ShardCount(count.n, count.as_of)
    n = sum(of_shard.n for of_shard in counts.values())
    window = _add(state.window, n - state.n, at, shape, now)
    return TokenState(n, count.as_of, window, {} if partitions == EVERY else counts)


def divided_anew(state: TokenState | None, count: TokenCount) -> list[str]:
    """The partitions whose counts in ``state`` a newer one takes the place of, though it counts other partitions than they."""
    if state is None:
        return []
    partitions = count.partitions or EVERY
    known = list(state.shards) or [EVERY]
    return [other for other in known if other != partitions and overlap(other, partitions)]


def growth_in(window: Iterable[Bucket], now: int, shape: WindowShape) -> int:
    """Net change in the window that ends ``now``."""
    first = shape.first_start(now)
    return sum(change for start, change in window if first <= start <= now)


def _add(window: tuple[Bucket, ...], change: int, at: int, shape: WindowShape, now: int) -> tuple[Bucket, ...]:
    start = at - at % shape.bucket_ms
    # A table of before may hold buckets of the future.
    buckets = {begin: net for begin, net in window if begin <= now}
    if change:
        buckets[start] = buckets.get(start, 0) + change
    newest = max(buckets, default=start)
    first = shape.first_start(max(newest, at))
    return tuple((begin, net) for begin, net in sorted(buckets.items()) if begin >= first and net)


class LiveCensus:
    """Counts of one codebook as an array beside the table, so that a timer need not touch the table's every entry.

    ``counts``: int64 (L, M). It holds nothing that the table does not: after a recovery it is filled from it anew.
    """

    def __init__(self, layers: int, size: int, shape: WindowShape) -> None:
        self.counts: NDArray[np.int64] = np.zeros((layers, size), dtype=np.int64)
        self.as_of = -1
        self._shape = shape
        self._windows: dict[int, tuple[Bucket, ...]] = {}

    def put(self, layer_index: int, token: int, state: TokenState) -> None:
        self.counts[layer_index, token] = state.n
        self.as_of = max(self.as_of, state.as_of)
        if layer_index == HEAD_LAYER_INDEX:
            if state.window:
                self._windows[token] = state.window
            else:
                self._windows.pop(token, None)

    def growth(self, now: int) -> NDArray[np.int64]:
        """int64 (M,): net change of each layer-2 token in the window that ends ``now``."""
        result = np.zeros(self.counts.shape[1], dtype=np.int64)
        first = self._shape.first_start(now)
        stale = []
        for token, window in self._windows.items():
            result[token] = growth_in(window, now, self._shape)
            if window[-1][0] < first:
                stale.append(token)
        for token in stale:
            del self._windows[token]
        return result

    def clear(self) -> None:
        self.counts[:] = 0
        self.as_of = -1
        self._windows.clear()
