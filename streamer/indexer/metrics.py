"""The indexer's own metrics: what the index holds, how large it is, and how long its commits take."""

from __future__ import annotations

import time
from typing import Final

import structlog
from prometheus_client import Counter, Gauge, Histogram

from store.files.data_file import OldestReader
from store.writing.writer import IndexWriter

log = structlog.get_logger(__name__)

ITEMS: Final = Gauge("sidstream_index_items", "Live items in the index")
COMMIT_SECONDS: Final = Histogram(
    "sidstream_index_commit_seconds",
    "Seconds of one LMDB transaction: items, paths, census and offsets of a batch, synced to the disk",
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30),
)
_MAP_BYTES: Final = Gauge("sidstream_index_map_bytes", "Address space of the index; doubled whenever it is full")
_USED_BYTES: Final = Gauge("sidstream_index_used_bytes", "Pages of the index that were ever in use")
_DISK_FREE_BYTES: Final = Gauge(
    "sidstream_index_disk_free_bytes", "Free on the disk of the index; without any it cannot grow"
)

SPLIT_KEYS: Final = Gauge(
    "sidstream_index_split_keys", "Item ids that have records in more than one partition of item-codes"
)
STALE_UPDATES: Final = Counter(
    "sidstream_index_stale_updates", "Updates left out as older than what is there (indexer.order = updated_at)"
)
FILL_RATIO: Final = Gauge(
    "sidstream_index_fill_ratio",
    "Live items by indexer.maximum_items; 0 without a limit; from 1 on new items are refused",
)
_READER_SECONDS: Final = Gauge(
    "sidstream_index_oldest_reader_seconds",
    "How long the oldest snapshot of the index has been open, as seen by the indexer; LMDB reuses no page freed since",
)
_READER_TRANSACTIONS: Final = Gauge(
    "sidstream_index_oldest_reader_transactions", "Commits since the oldest open snapshot of the index began"
)

_STORAGE_SECONDS: Final = 1.0
_OLD_READER_SECONDS: Final = 60.0


class StorageMetrics:
    """Shows the sizes of an index, once a second; for the writer's thread."""

    def __init__(self, writer: IndexWriter) -> None:
        self._writer = writer
        self._shown_at = float("-inf")
        self._oldest: OldestReader | None = None
        self._oldest_since = 0.0
        self._warned = False

    def show(self) -> None:
        now = time.monotonic()
        if now - self._shown_at < _STORAGE_SECONDS:
            return
        self._shown_at = now
        storage = self._writer.storage()
        _MAP_BYTES.set(storage.map_bytes)
        _USED_BYTES.set(storage.used_bytes)
        _DISK_FREE_BYTES.set(storage.disk_free_bytes)
        self._show_oldest_reader(now)

    def _show_oldest_reader(self, now: float) -> None:
        oldest = self._writer.oldest_reader()
        # Nothing committed since: it keeps no page, and may be one of many that come and go on an index at rest.
        if oldest is None or not oldest.transactions or self._oldest is None or oldest.began != self._oldest.began:
            self._oldest_since, self._warned = now, False
        self._oldest = oldest
        seconds = now - self._oldest_since
        _READER_SECONDS.set(seconds)
        _READER_TRANSACTIONS.set(oldest.transactions if oldest is not None else 0)
        if oldest is not None and seconds > _OLD_READER_SECONDS and not self._warned:
            self._warned = True
            log.warning(
                "old_snapshot_open",
                processes=oldest.processes,
                seconds=round(seconds),
                commits_since=oldest.transactions,
                next="the index grows until it ends: a backup or verify ends by itself; stop a process that hangs",
            )
