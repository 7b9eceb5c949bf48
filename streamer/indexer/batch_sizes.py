"""How many records go into one LMDB transaction: whatever waits while few do, and many at once while far behind.

A transaction writes every page that it touches once. Random ids in a large index touch a page each, unless they are so many
that a page gets several. At ten million items with the file in memory and the disk to itself, batches of 400,000 took in 50 k
items/s, half of them known, batches of 30,000 44 k; of known ones alone the two are equal (docs/benchmarks/ingest.json). The step
from 10,000 to 30,000 is the larger one. What waits far behind is not fresh anyhow; batches become small again towards the end.

What must hold: memory has a bound, in records and in bytes, whatever waits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from confluent_kafka import Consumer, Message

from streamer.kafka.gather import drain

_SHARE: Final = 2  # of what waits, so that batches become smaller towards the end
_FETCH_SECONDS: Final = 0.05  # far behind, the client's queue is empty for a moment only
# Of values; vectors and attributes make some records a hundred times as large as others.
BATCH_BYTES: Final = 64 * 1024 * 1024


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
