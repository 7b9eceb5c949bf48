"""The retriever waits for its host's index: until there is one, and until the indexer has upgraded one of an older format."""

from __future__ import annotations

import gzip
import threading
from pathlib import Path

from retriever.answering.worker import _wait_for_index
from store.files import environment
from store.reading.reader import IndexReader
from store.writing.writer import IndexWriter
from streamer.process.health import Health
from streamer.settings import Settings
from support.paths import TESTS
from support.patience import PATIENCE_SECONDS
from support.plain_index import CODEBOOK
from support.processes import wait_until


def test_index_of_an_older_format_is_waited_for_until_the_indexer_has_upgraded_it(tmp_path: Path) -> None:
    settings, health, found = Settings(index=tmp_path / "index"), Health(), list[IndexReader | None]()
    fixture = TESTS / "store" / "writing" / "fixtures" / "format_2.mdb.gz"
    settings.index.mkdir()
    (settings.index / environment.DATA_FILE).write_bytes(gzip.decompress(fixture.read_bytes()))
    waiting = threading.Thread(
        target=lambda: found.append(_wait_for_index(settings, threading.Event(), health)), daemon=True
    )
    waiting.start()
    expected = "has format 2, this sidstream reads 3: the indexer upgrades it in place when it starts"
    wait_until(lambda: expected in (health.reason or ""), what="the reason why it is not ready")
    with IndexWriter.open(settings.index, codebook_id=CODEBOOK, layers=3, size=16):
        waiting.join(PATIENCE_SECONDS)
    [reader] = found
    assert reader is not None
    with reader, reader.snapshot() as snapshot:
        assert snapshot.item_count == 346
    assert "format" not in (health.reason or "")
