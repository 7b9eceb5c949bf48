"""The retriever waits for its host's index: until there is one, in its own format, and one of another codebook has caught up."""

from __future__ import annotations

import gzip
import threading
from pathlib import Path

import numpy as np
import pytest
from confluent_kafka import Producer
from numpy.typing import NDArray

from models.bundles.building import FitSettings, fit_bundle
from models.bundles.bundle import Bundle
from models.bundles.dense_part import fit_dense_part
from models.bundles.store import BundleStore
from retriever.serving import bundles as bundles_module
from retriever.serving.bundles import BundlesOfRecord
from store.files import environment
from store.records.batch import CodesBatch
from store.writing.writer import IndexWriter
from streamer.kafka.clients import producer_configuration
from streamer.process.health import Health
from streamer.settings import Settings
from support.deployed import FollowedByHand, serving
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
    with empty_index(settings.index, Bundle.open(tiny_model_bundle)), bundles:
        waiting.join(PATIENCE_SECONDS)
        assert started == [True]
        assert bundles.current.now.main.id == Bundle.open(tiny_model_bundle).id
    assert "format" not in (health.reason or "")


def test_bundle_of_another_codebook_takes_over_once_its_index_has_what_its_topic_had(
    pipeline_settings: Settings,
    tiny_model_bundle: Path,
    tiny_embeddings: NDArray[np.float32],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bundles_module, "_LONGEST_RETRY_SECONDS", 0.2)
    settings = pipeline_settings.model_copy(update={"bundles": tmp_path / "store", "indexes": tmp_path / "indexes"})
    first = BundleStore(settings.bundles).add(tiny_model_bundle)
    fit_bundle(tiny_embeddings[:, :6].copy(), tmp_path / "other", FitSettings(size=8, iterations=2))
    fitted = fit_dense_part(Bundle.open(tmp_path / "other"), tiny_embeddings[:, :6], [f"item-{n}" for n in range(600)])
    other = BundleStore(settings.bundles).add(fitted.directory)
    # The topic of the test's first pipeline stands for that of the second one.
    monkeypatch.setattr(bundles_module, "codes_topic_of", lambda settings, pipeline: settings.topics.item_codes)
    producer = Producer(producer_configuration(settings.kafka))
    producer.produce(settings.topics.item_codes, key="item-0", value=b"x", partition=0)
    producer.flush()

    follower, health = FollowedByHand(serving(first, other, suffixes=("", "-other"))), Health()
    with (
        empty_index(settings.index, first),
        empty_index(settings.indexes / other.manifest.codebook_id, other) as writer,
    ):
        bundles = BundlesOfRecord(settings, follower, health)
        assert bundles.start(threading.Event())
        with bundles:
            follower.current = serving(first, other, suffixes=("", "-other"), bundle=other.id, number=1)
            wait_until(lambda: "records of" in (health.reason or ""), what="/ready says that the index is behind")
            assert bundles.current.now.main.id == first.id
            nothing = np.empty((0, other.layout.layers), np.uint16)
            no_items = CodesBatch([], nothing, np.empty(0, np.float32), [], np.empty(0, np.int64), np.empty(0, bool))
            writer.apply(no_items, {(settings.topics.item_codes, 0): 1})
            wait_until(lambda: bundles.current.now.main.id == other.id, what="the other codebook answers")
            now = bundles.current.now
            assert (now.main.index, now.limits_of("anybody").dimension) == (
                settings.indexes / other.manifest.codebook_id,
                6,
            )


def empty_index(path: Path, bundle: Bundle) -> IndexWriter:
    layout = bundle.layout
    return IndexWriter.open(path, codebook_id=layout.codebook_id, layers=layout.layers, size=layout.size)
