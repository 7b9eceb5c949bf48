"""The retriever waits for its host's index: until there is one, and until the indexer has upgraded one of an older format."""

from __future__ import annotations

import gzip
import threading
from pathlib import Path

from models.bundles.bundle import Bundle
from retriever.serving.bundles import BundlesOfRecord
from store.files import environment
from store.writing.writer import IndexWriter
from streamer.process.health import Health
from streamer.settings import Settings
from support.deployed import FollowedByHand
from support.paths import TESTS
from support.patience import PATIENCE_SECONDS
from support.processes import wait_until


def test_index_of_an_older_format_is_waited_for_until_there_is_one_that_this_sidstream_reads(
    tmp_path: Path, tiny_model_bundle: Path
) -> None:
    settings, health, started = Settings(index=tmp_path / "index", bundle=tiny_model_bundle), Health(), list[bool]()
    fixture = TESTS / "store" / "writing" / "fixtures" / "format_2.mdb.gz"
    settings.index.mkdir()
    data = settings.index / environment.DATA_FILE
    data.write_bytes(gzip.decompress(fixture.read_bytes()))
    bundles = BundlesOfRecord(settings, FollowedByHand(), health)
    waiting = threading.Thread(target=lambda: started.append(bundles.start(threading.Event())), daemon=True)
    waiting.start()
    expected = "has format 2, this sidstream reads 3: the indexer upgrades it in place when it starts"
    wait_until(lambda: expected in (health.reason or ""), what="the reason why it is not ready")
    data.unlink()  # of a codebook of its own; this one's indexer makes another index
    layout = Bundle.open(tiny_model_bundle).layout
    with (
        IndexWriter.open(settings.index, codebook_id=layout.codebook_id, layers=layout.layers, size=layout.size),
        bundles,
    ):
        waiting.join(PATIENCE_SECONDS)
        assert started == [True]
        assert bundles.current.now.main.id == Bundle.open(tiny_model_bundle).id
    assert "format" not in (health.reason or "")
