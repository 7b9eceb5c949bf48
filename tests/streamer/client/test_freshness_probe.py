"""The freshness probe: a process of its own that sees an update once it is in the index, and not before."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from store.records.batch import CodesBatch
from store.writing.writer import IndexWriter
from streamer.client.freshness_probe import FreshnessProbe

PLACE = ("item-codes", 0)


def put(writer: IndexWriter, item_id: bytes, updated_at: int) -> None:
    batch = CodesBatch(
        ids=[item_id],
        codes=np.array([[1, 2, 3]], np.uint16),
        weights=np.ones(1, np.float32),
        titles=["kettle"],
        updated_at=np.array([updated_at]),
        deleted=np.zeros(1, np.bool_),
    )
    writer.apply(batch, {PLACE: updated_at})


def test_update_is_seen_once_the_very_one_is_in_the_index(tmp_path: Path) -> None:
    with IndexWriter.open(tmp_path, codebook_id="0" * 16, layers=3, size=8) as writer:
        put(writer, b"known", 1)
        with FreshnessProbe(tmp_path) as probe:
            probe.sent("known", 2)
            probe.sent("new", 3)
            assert probe.wait(0.3) == 2, "the update before is not the one that was sent"
            put(writer, b"known", 2)
            put(writer, b"new", 3)
            assert probe.wait(30) == 0
    assert probe.seen == 2
    assert 0 < probe.percentile_ms(50) <= probe.percentile_ms(100)
