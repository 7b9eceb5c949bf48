"""Two pipelines of one host on one cluster, told apart by ``topics.prefix`` and their directories alone."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from confluent_kafka.admin import AdminClient
from numpy.typing import NDArray

from models.bundles.building import FitSettings, fit_bundle, train_bundle
from models.bundles.bundle import Bundle
from models.bundles.first_model import ModelSettings
from models.codebooks.codebook import Codebook
from models.examples.records import TrainingExample
from models.training.settings import TrainingSettings
from retriever.client import Client
from store.errors import IndexMissingError
from store.reading.reader import IndexReader
from streamer.client.publisher import ItemPublisher
from streamer.events.records import ALERT, DRIFT, LAYOUT
from streamer.kafka.clients import client_configuration
from streamer.local.broker import LocalBroker
from streamer.settings import Settings, load_settings
from support.processes import SidstreamProcess, committed_records, wait_until

ITEMS, LATER = 150, 30
# What a process would log that lost its name to the other pipeline's.
FIGHT = ("fenced", "took over", "process_died", "replaced", "transaction_aborted")


@pytest.fixture(scope="module")
def other_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the tiny bundle with a model, on other embeddings: another codebook."""
    directory = tmp_path_factory.mktemp("bundle") / "other"
    embeddings = np.random.default_rng(12).normal(size=(ITEMS, 8)).astype(np.float32)
    fit_bundle(embeddings, directory, FitSettings(size=16, iterations=5))
    bundle = Bundle.open(directory)
    names = [f"item-{number}" for number in range(ITEMS)]
    train_bundle(
        bundle,
        [TrainingExample(query=f"thing number {number}", item=name) for number, name in enumerate(names)],
        names,
        Codebook.load(bundle.codebook_path).encode(embeddings),
        ModelSettings(hidden_size=32, model_layers=1, heads=2, tokenizer_size=300),
        TrainingSettings(max_steps=10, batch_size=64),
    )
    return directory


@dataclass(frozen=True)
class Shop:
    """One of the two, with items of the same ids as the other's and titles of its own."""

    name: str
    settings: Settings

    def publish(self, embeddings: NDArray[np.float32], numbers: range) -> None:
        with ItemPublisher(self.settings) as publisher:
            for number in numbers:
                publisher.update(f"item-{number}", embeddings[number], title=f"{self.name} {number}")

    def indexed(self) -> int:
        try:
            with IndexReader(self.settings.index) as reader, reader.snapshot() as snapshot:
                return snapshot.item_count
        except IndexMissingError:  # the indexer is still making it
            return 0

    def published(self, topic: str, codec: Any) -> list[Any]:
        return [codec.decode(record.value()) for record in committed_records(self.settings, topic)]

    def judged_items(self) -> int:
        """Items in the newest drift record: what this pipeline's monitor has seen, judged and published."""
        drift = self.published(self.settings.topics.drift, DRIFT)
        return drift[-1].items if drift else 0


def test_two_pipelines_side_by_side_on_one_cluster_keep_everything_apart(
    broker: LocalBroker,
    unique_prefix: str,
    tiny_model_bundle: Path,
    other_bundle: Path,
    tiny_embeddings: NDArray[np.float32],
    tmp_path: Path,
) -> None:
    def shop(name: str, bundle: Path, **monitor: Any) -> Shop:
        directory = tmp_path / name
        shutil.copytree(bundle, directory / "bundle")
        return Shop(
            name,
            load_settings(
                bundle=directory / "bundle",
                index=directory / "index",
                kafka={"bootstrap_servers": broker.bootstrap_servers},
                topics={"prefix": f"{unique_prefix}{name}-"},
                monitor={"drift_interval_seconds": 0.5, **monitor},
                retriever={"maximum_wait_seconds": 300},
            ),
        )

    # Only the red one's monitor has a reason for a layout, and so for an alert.
    red = shop("red", tiny_model_bundle, method="all", minimum_items=50, baseline_fill=0.0)
    blue = shop("blue", other_bundle, method="none", minimum_items=1_000_000)
    shops = (red, blue)
    codebooks = {shop.name: Bundle.open(shop.settings.bundle).layout.codebook_id for shop in shops}
    assert codebooks["red"] != codebooks["blue"]

    with ExitStack() as stack:
        pipelines = [stack.enter_context(SidstreamProcess(shop.settings, "up", tmp_path / shop.name)) for shop in shops]
        for shop in shops:
            wait_until(lambda s=shop: "is up on" in _log(tmp_path, s), what=f"{shop.name} is up")
            shop.publish(tiny_embeddings, range(ITEMS))
        for shop in shops:
            wait_until(lambda s=shop: s.indexed() == ITEMS, what=f"{shop.name}: items indexed")
            wait_until(lambda s=shop: s.judged_items() == ITEMS, what=f"{shop.name}: items counted")
        for shop in shops:
            with Client(shop.settings) as client:
                answer = client.ask("thing number 7", limit=20, timeout_seconds=200)
            assert answer.error is None
            assert answer.codebook == codebooks[shop.name]
            assert answer.items
            assert all(item.title.startswith(f"{shop.name} ") for item in answer.items)
        # Both have been at work for a while: whoever had lost its journal or its partition would publish nothing more.
        for shop, more in ((blue, 2 * LATER), (red, LATER)):
            shop.publish(tiny_embeddings, range(ITEMS, ITEMS + more))
            wait_until(
                lambda s=shop, n=more: s.judged_items() == ITEMS + n,
                what=f"{shop.name}: more items counted",
            )
        assert (red.indexed(), blue.indexed()) == (ITEMS + LATER, ITEMS + 2 * LATER)
        wait_until(lambda: bool(red.published(red.settings.topics.alerts, ALERT)), what="red's alert of its layout")
        groups = [
            shop.settings.in_cluster(f"sidstream-{process}")
            for shop in shops
            for process in ("assigner", "monitor", "retriever")
        ]
        assert _members(red.settings, groups) == dict.fromkeys(groups, 1)
        assert [pipeline.stop() for pipeline in pipelines] == [0, 0]

    for shop in shops:
        fights = [line for line in _log(tmp_path, shop).splitlines() if any(word in line for word in FIGHT)]
        assert not fights
        drift = shop.published(shop.settings.topics.drift, DRIFT)
        assert {record.codebook for record in drift} == {codebooks[shop.name]}
    assert {record.codebook for record in red.published(red.settings.topics.layouts, LAYOUT)} == {codebooks["red"]}
    assert {record.codebook for record in red.published(red.settings.topics.alerts, ALERT)} == {codebooks["red"]}
    assert not blue.published(blue.settings.topics.layouts, LAYOUT)
    assert not blue.published(blue.settings.topics.alerts, ALERT)


def _log(directory: Path, shop: Shop) -> str:
    """Of all its processes: they share their supervisor's standard error."""
    path = directory / shop.name / "up.log"
    return path.read_text(errors="replace") if path.exists() else ""


def _members(settings: Settings, groups: list[str]) -> dict[str, int]:
    """How many members each consumer group has."""
    admin = AdminClient(client_configuration(settings.kafka))
    answers = admin.describe_consumer_groups(groups, request_timeout=20)
    return {group: len(answer.result().members) for group, answer in answers.items()}
