"""The indexer's own metrics: what the index holds, how large it is, and how long its commits take."""

from __future__ import annotations

import time
from typing import Final

from prometheus_client import Gauge, Histogram

from store.writer import IndexWriter

ITEMS: Final = Gauge("sidstream_index_items", "Live items in the index")
COMMIT_SECONDS: Final = Histogram(
    "sidstream_index_commit_seconds",
    "Seconds of one LMDB transaction: items, trie, census and offsets of a batch, synced to the disk",
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30),
)
_MAP_BYTES: Final = Gauge("sidstream_index_map_bytes", "Address space of the index; doubled whenever it is full")
_USED_BYTES: Final = Gauge("sidstream_index_used_bytes", "Pages of the index that were ever in use")
_DISK_FREE_BYTES: Final = Gauge(
    "sidstream_index_disk_free_bytes", "Free on the disk of the index; without any it cannot grow"
)

_STORAGE_SECONDS: Final = 1.0


class StorageMetrics:
    """Shows the sizes of an index, once a second; for the writer's thread."""

    def __init__(self, writer: IndexWriter) -> None:
        self._writer = writer
        self._shown_at = float("-inf")

    def show(self) -> None:
        now = time.monotonic()
        if now - self._shown_at < _STORAGE_SECONDS:
            return
        self._shown_at = now
        storage = self._writer.storage()
        _MAP_BYTES.set(storage.map_bytes)
        _USED_BYTES.set(storage.used_bytes)
        _DISK_FREE_BYTES.set(storage.disk_free_bytes)
