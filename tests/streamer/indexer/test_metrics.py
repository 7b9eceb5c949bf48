"""What the indexer shows of its index: an old snapshot is warned of once, with the process that holds it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from store.files.data_file import OldestReader
from store.writing.writer import IndexWriter
from streamer.indexer.metrics import StorageMetrics
from support.plain_index import CODEBOOK


def test_old_snapshot_is_shown_and_warned_of_once_until_another_one_is_the_oldest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1_000.0]
    oldest: list[OldestReader | None] = [None]
    monkeypatch.setattr("streamer.indexer.metrics.time.monotonic", lambda: now[0])
    monkeypatch.setattr(IndexWriter, "oldest_reader", lambda _writer: oldest[0])

    def shown(**after: Any) -> tuple[float | None, float | None]:
        now[0] += after["seconds"]
        metrics.show()
        names = ("sidstream_index_oldest_reader_seconds", "sidstream_index_oldest_reader_transactions")
        seconds, transactions = map(REGISTRY.get_sample_value, names)
        return seconds, transactions

    with IndexWriter.open(tmp_path / "index", codebook_id=CODEBOOK, layers=3, size=16) as writer:
        metrics = StorageMetrics(writer)
        with capture_logs() as told:
            assert shown(seconds=0) == (0, 0)
            oldest[0] = OldestReader(began=7, transactions=1, processes=(42,))
            assert shown(seconds=2) == (0, 1)
            oldest[0] = OldestReader(began=7, transactions=900, processes=(42,))
            assert shown(seconds=61) == (61, 900)
            assert shown(seconds=61) == (122, 900)
            assert [(line["event"], line["processes"]) for line in told] == [("old_snapshot_open", (42,))]
            oldest[0] = OldestReader(began=800, transactions=1, processes=(43,))
            assert shown(seconds=2) == (0, 1)
            oldest[0] = OldestReader(began=800, transactions=0, processes=(43,))
            assert shown(seconds=90) == (0, 0), "nothing was written since: it keeps no page"
            oldest[0] = OldestReader(began=800, transactions=1, processes=(43,))
            assert shown(seconds=2) == (2, 1), "an index at rest has made no snapshot old"
            oldest[0] = None
            assert shown(seconds=2) == (0, 0)
        assert len(told) == 1
