"""How many records go into one LMDB transaction: whatever waits while few do, and many at once while far behind.

A transaction writes every page that it touches once. Random ids in a large index touch a page each, unless they are so many
that a page gets several. At ten million items, in memory, new ones took 28 µs each in batches of 8,000, 18 in batches of 200,000
and 10 in batches of 400,000; updates of known ones 31 and 18 in the latter two. What waits far behind is not fresh anyhow; the
batches become small again as the end comes near.

What must hold: memory has a bound, in records and in bytes, whatever waits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from confluent_kafka import Consumer, Message

from streamer.kafka.gather import drain

_SHARE: Final = 2  # of what waits, so that batches become smaller towards the end
_FETCH_SECONDS: Final = 0.05  # far behind, the client's queue is empty for a moment only
BATCH_BYTES: Final = (
    64 * 1024 * 1024
)  # of values; vectors and attributes make some records a hundred times as large as others


def batch_size(waiting: int, live: int, catching_up: int) -> int:
    """Records of the next batch; ``waiting``: how many there are, ``live`` and ``catching_up``: how many it may have at the most
    near the end and far from it.
    """
    return max(live, min(catching_up, waiting // _SHARE))


def gather(
    consumer: Consumer,
    live: int,
    catching_up: int,
    waiting: Callable[[], int],
    *,
    wait_seconds: float,
    on_end: Callable[[Message], None],
    on_progress: Callable[[], None],
) -> list[Message]:
    """The records of one batch, in order; waits only while there is none.

    ``waiting``: how many records there are, asked once ``live`` of them came at once; ``on_progress``: called between two parts.
    Raises what ``drain`` raises.
    """
    records = drain(consumer, live, wait_seconds, on_end)
    if len(records) < live:
        return records
    size = batch_size(waiting(), live, catching_up)
    left = BATCH_BYTES - sum(map(len, records))
    while len(records) < size and left > 0:
        on_progress()
        more = drain(consumer, min(live, size - len(records)), _FETCH_SECONDS, on_end)
        if not more:
            break
        left -= sum(map(len, more))
        records += more
    return records
