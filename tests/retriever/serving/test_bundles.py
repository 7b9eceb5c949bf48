"""Bundles as records name them: loaded beside what answers, exchanged between batches, closed; a fault of one ends nothing."""

from __future__ import annotations

import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from prometheus_client import REGISTRY

from models.bundles.bundle import Bundle
from models.bundles.manifest import BundleError
from models.bundles.store import BundleStore
from models.codebooks.codebook import Codebook
from retriever.serving import bundles as module
from retriever.serving.bundles import BundlesOfRecord
from store.records.batch import CodesBatch
from store.writing.writer import IndexWriter
from streamer.process.health import Health, Part
from streamer.settings import Settings
from support.deployed import FollowedByHand, serving, stored_twins, twin
from support.processes import wait_until


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workshop")


@pytest.fixture(scope="module")
def twins(workshop: Path, tiny_model_bundle: Path) -> list[Bundle]:
    """Three bundles of one codebook, in the store ``workshop/store``."""
    return stored_twins(workshop / "store", tiny_model_bundle, ["a", "b", "c"], workshop)


@pytest.fixture
def settings(workshop: Path, twins: list[Bundle], tmp_path: Path, tiny_embeddings: NDArray[np.float32]) -> Settings:
    """With an index of twenty items of their codebook."""
    layout = twins[0].layout
    with IndexWriter.open(
        tmp_path / "index", codebook_id=layout.codebook_id, layers=layout.layers, size=layout.size
    ) as writer:
        codes = Codebook.load(twins[0].codebook_path).encode(tiny_embeddings[:20])
        ids = [f"item-{number}".encode() for number in range(20)]
        writer.apply(
            CodesBatch(ids, codes, np.ones(20, np.float32), [""] * 20, np.zeros(20, np.int64), np.zeros(20, bool)), {}
        )
    return Settings(
        bundle=tmp_path / "bundle", bundles=workshop / "store", index=tmp_path / "index", indexes=tmp_path / "indexes"
    )


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(module, "_START_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(module, "_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(module, "_LONGEST_RETRY_SECONDS", 0.1)


class Served:
    """What answers under records that a test sets."""

    def __init__(self, settings: Settings, follower: FollowedByHand) -> None:
        self.health = Health()
        self.of = BundlesOfRecord(settings, follower, self.health)
        assert self.of.start(threading.Event())

    def roles(self) -> tuple[str, str | None]:
        now = self.of.current.now
        return now.main.id, None if now.canary is None else now.canary.id

    def awaits(self, main: Bundle, canary: Bundle | None = None) -> None:
        expected = (main.id, None if canary is None else canary.id)
        wait_until(lambda: self.roles() == expected, what=f"{expected} answer", every=0.01)

    def awaits_reason(self, part: str) -> None:
        wait_until(lambda: part in (self.health.reason or ""), what=f"/ready says {part!r}", every=0.01)


def shown(bundle: Bundle, role: str) -> float | None:
    return REGISTRY.get_sample_value("sidstream_bundle_info", {"bundle": bundle.id, "role": role})


def test_canary_promotion_and_rollback_are_followed_and_what_nobody_needs_is_closed(
    settings: Settings, twins: list[Bundle]
) -> None:
    first, second, third = twins
    follower = FollowedByHand(serving(first))
    served = Served(settings, follower)
    with served.of:
        served.awaits(first)
        follower.current = serving(first, second, canary=second.id, share=0.25, number=1)
        served.awaits(first, second)
        wait_until(lambda: shown(second, "canary") == 1.0, what="the metrics name the canary")
        assert REGISTRY.get_sample_value("sidstream_canary_share_ratio") == 0.25
        answering = served.of.current.now
        counted = {answering.of(f"user-{number}").id for number in range(100)}
        assert counted == {first.id, second.id}
        canary = answering.canary
        assert canary is not None
        follower.current = serving(first, second, bundle=second.id, previous=first.id, number=2)
        served.awaits(second)
        assert served.of.current.now.main is canary, "what is loaded is not loaded again"
        wait_until(lambda: shown(second, "main") == 1.0, what="the metrics name what answers")
        assert (shown(first, "main"), shown(second, "canary")) == (None, None)
        follower.current = serving(first, second, third, bundle=first.id, number=3)
        served.awaits(first)
        model = weakref.ref(served.of.current.now.main.answerer._model)
        assert model() is not None
        follower.current = serving(third, number=4)
        served.awaits(third)
        wait_until(lambda: shown(first, "main") is None, what="the old one is closed")
        wait_until(lambda: model() is None, what="the old model is freed, without a search for circles")
        assert served.health.is_well(Part.BUNDLE)
    assert "bundles" not in {thread.name for thread in threading.enumerate()}


def test_batch_is_answered_to_its_end_by_what_it_began_with(settings: Settings, twins: list[Bundle]) -> None:
    first, second, _ = twins
    follower = FollowedByHand(serving(first))
    served = Served(settings, follower)
    with served.of:
        with served.of.current.held() as answering:
            follower.current = serving(second, number=1)
            served.awaits(second)
            time.sleep(0.05)
            assert answering.main.id == first.id
            assert answering.main.answerer is not None, "not closed while a batch holds it"
        wait_until(lambda: answering.main._answerer is None, what="closed once no batch holds it", every=0.01)


def test_bundle_that_is_not_on_this_host_is_told_and_taken_once_it_is(
    settings: Settings, twins: list[Bundle], tiny_model_bundle: Path, tmp_path: Path
) -> None:
    first, second, _ = twins
    coming = twin(tiny_model_bundle, tmp_path / "coming", str(tmp_path))
    follower = FollowedByHand(serving(first, second, canary=second.id, share=0.5))
    served = Served(settings, follower)
    assert served.roles() == (first.id, second.id), "a start loads the canary too"
    with served.of:
        before = REGISTRY.get_sample_value("sidstream_bundle_load_failures_total") or 0.0
        follower.current = serving(coming, number=1)
        served.awaits_reason(f"the bundle {coming.id} is deployed and cannot be loaded here")
        assert "copy it there" in (served.health.reason or "")
        assert served.roles() == (first.id, second.id), "what answered goes on"
        assert (REGISTRY.get_sample_value("sidstream_bundle_load_failures_total") or 0.0) > before
        assert shown(coming, "awaited") == 1.0
        BundleStore(settings.bundles).add(coming.directory)
        served.awaits(coming)
        wait_until(lambda: served.health.is_well(Part.BUNDLE), what="nothing is awaited any more")


def test_damaged_bundle_takes_nothing_over_and_a_rollback_of_it_is_at_once(
    settings: Settings, twins: list[Bundle], tiny_model_bundle: Path, tmp_path: Path
) -> None:
    first, _, _ = twins
    damaged = BundleStore(settings.bundles).add(twin(tiny_model_bundle, tmp_path / "x", str(tmp_path)).directory)
    weights = next(damaged.model_directory.glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    follower = FollowedByHand(serving(first))
    served = Served(settings, follower)
    with served.of:
        main = served.of.current.now.main
        follower.current = serving(first, damaged, canary=damaged.id, share=0.5, number=1)
        served.awaits_reason(damaged.id)
        assert served.roles() == (first.id, None), "main answers the canary's users meanwhile"
        follower.current = serving(first, damaged, number=2)
        wait_until(lambda: served.health.is_well(Part.BUNDLE), what="nothing is awaited any more")
        assert served.of.current.now.main is main


def test_bundle_of_another_codebook_waits_for_its_own_index(
    settings: Settings, twins: list[Bundle], tiny_embeddings: NDArray[np.float32], tmp_path: Path
) -> None:
    from models.bundles.building import FitSettings, fit_bundle

    first, _, _ = twins
    fit_bundle(tiny_embeddings[:, :6].copy(), tmp_path / "other", FitSettings(size=8, iterations=2))
    other = BundleStore(settings.bundles).add(tmp_path / "other")
    follower = FollowedByHand(serving(first))
    served = Served(settings, follower)
    with served.of:
        follower.current = serving(first, other, suffixes=("", "-other"), bundle=other.id, number=1)
        served.awaits_reason(f"There is no index in {settings.indexes / other.manifest.codebook_id}")
        assert served.roles() == (first.id, None)


def test_without_a_record_the_settings_bundle_answers_until_there_is_one(
    settings: Settings, twins: list[Bundle], tiny_model_bundle: Path
) -> None:
    first, second, _ = twins
    settings = settings.model_copy(update={"bundle": first.directory})
    follower = FollowedByHand()
    served = Served(settings, follower)
    with served.of:
        main = served.of.current.now.main
        assert (main.id, served.of.current.now.of("anybody")) == (first.id, main)
        follower.current = serving(first)
        wait_until(lambda: served.of.current.now.serving is not None, what="the record is followed", every=0.01)
        assert served.of.current.now.main is main, "the same bundle over the same index is not loaded again"
        follower.current = serving(first, second, bundle=second.id, number=1)
        served.awaits(second)


def test_without_a_record_a_bundle_that_is_missing_ends_the_start(settings: Settings) -> None:
    with pytest.raises(BundleError, match="is no bundle"):
        BundlesOfRecord(settings, FollowedByHand(), Health()).start(threading.Event())


def test_start_waits_for_what_the_record_names_and_takes_what_a_rollback_names_instead(
    settings: Settings, twins: list[Bundle], tiny_model_bundle: Path, tmp_path: Path
) -> None:
    first, _, _ = twins
    absent = twin(tiny_model_bundle, tmp_path / "absent", str(tmp_path))
    follower, health, started = FollowedByHand(serving(absent)), Health(), list[bool]()
    of = BundlesOfRecord(settings, follower, health)
    starting = threading.Thread(target=lambda: started.append(of.start(threading.Event())), daemon=True)
    starting.start()
    wait_until(lambda: f"the bundle {absent.id} cannot be loaded" in (health.reason or ""), what="/ready says why")
    follower.current = serving(first, number=1)
    starting.join(60)
    assert started == [True]
    with of:
        assert of.current.now.main.id == first.id
