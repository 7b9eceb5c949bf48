"""Fixtures of every part: one real Apache Kafka a session, and names that no other test uses."""

from __future__ import annotations

import gc
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import hypothesis
import numpy as np
import pytest
from numpy.typing import NDArray

from streamer.events.topics import topic_specs
from streamer.kafka.admin import create
from streamer.local.broker import LocalBroker
from streamer.settings import Settings, load_settings
from support.schema_registry import SchemaRegistry

# A broker that lives for seconds or minutes gains nothing from Java's optimising compiler, which takes half of its time.
os.environ.setdefault("JDK_JAVA_OPTIONS", "-XX:TieredStopAtLevel=1")

# Numbers that tests compare are the processor's, and training, the retriever and their processes take a card where they see one.
# SIDSTREAM_TESTS_ON_CARD=1 leaves it in sight, for the tests that are for it (tests/retriever/device_search/test_graph.py).
if "SIDSTREAM_TESTS_ON_CARD" not in os.environ:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

hypothesis.settings.register_profile("events alone", deadline=None)  # a slow machine is no fault of what is tested
hypothesis.settings.load_profile("events alone")

_SHARED_DATA = Path(os.environ.get("SIDSTREAM_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))


# A Kafka client that is collected in a thread of its own ends the process (librdkafka joins that thread), and a test that keeps
# an exception keeps the clients of its frames in a cycle: so cycles are collected between two tests, in this thread.
gc.disable()
_GARBAGE: Final = 100_000  # objects made and not freed since


def pytest_runtest_logfinish() -> None:
    """After each test."""
    if gc.get_count()[0] > _GARBAGE:
        gc.collect()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs the broker, so that ``-m 'not broker'`` is the quick round."""
    for item in items:
        if "broker" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.broker)


@pytest.fixture(autouse=True)
def _no_settings_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's own settings must not change what the tests see."""
    for name in list(os.environ):
        if name.startswith(("SIDSTREAM_", "OTEL_")) and name not in ("SIDSTREAM_CACHE", "SIDSTREAM_SHARED_DATA"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBroker]:
    """A real Apache Kafka on free ports, started once a session. Never stop it in a test."""
    with LocalBroker(tmp_path_factory.mktemp("broker"), short_lived=True) as running:
        yield running


@pytest.fixture(scope="session")
def schema_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SchemaRegistry]:
    """A real schema registry, started once a session. Whoever pauses it resumes it."""
    with SchemaRegistry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The directory with the real catalogues."""
    if not _SHARED_DATA.is_dir():
        pytest.skip(f"no real catalogues at {_SHARED_DATA} (SIDSTREAM_SHARED_DATA names another place)")
    return _SHARED_DATA


@pytest.fixture
def unique_prefix(request: pytest.FixtureRequest) -> str:
    """A prefix for topics, groups and transactional ids that no other test has: ``short-test-name-1a2b3c4d-``."""
    slug = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower().removeprefix("test_"))[:40].strip("-")
    return f"{slug}-{uuid.uuid4().hex[:8]}-"


@pytest.fixture
def broker_settings(broker: LocalBroker, unique_prefix: str, tmp_path: Path) -> Settings:
    """Settings on the session's broker with topics, groups and directories of this test alone; no topic exists yet."""
    return load_settings(
        bundle=tmp_path / "bundle",
        index=tmp_path / "index",
        kafka={"bootstrap_servers": broker.bootstrap_servers},
        topics={"prefix": unique_prefix},
        # A busy machine takes a while to load a model.
        retriever={"maximum_wait_seconds": 300},
    )


@pytest.fixture
def pipeline_settings(broker_settings: Settings) -> Settings:
    """``broker_settings`` with every topic created."""
    create(broker_settings.kafka, topic_specs(broker_settings))
    return broker_settings


TINY_ITEMS = 600


@pytest.fixture(scope="session")
def tiny_embeddings() -> NDArray[np.float32]:
    """Embeddings of ``item-0`` … of the tiny bundles: noise, (600, 8)."""
    return np.random.default_rng(11).normal(size=(TINY_ITEMS, 8)).astype(np.float32)


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory, tiny_embeddings: NDArray[np.float32]) -> Path:
    """A bundle of a codebook of 3 × 16 codewords for 8 numbers; it has no language model."""
    from models.bundles.building import FitSettings, fit_bundle

    directory = tmp_path_factory.mktemp("bundle") / "tiny"
    fit_bundle(tiny_embeddings, directory, FitSettings(size=16, iterations=5))
    return directory


@pytest.fixture(scope="session")
def tiny_model_bundle(
    tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path, tiny_embeddings: NDArray[np.float32]
) -> Path:
    """The tiny bundle with a language model that was trained for a few steps, with layer-2 dropout."""
    from models.bundles.building import train_bundle
    from models.bundles.bundle import Bundle
    from models.bundles.first_model import ModelSettings
    from models.codebooks.codebook import Codebook
    from models.examples.records import TrainingExample
    from models.training.settings import TrainingSettings

    directory = tmp_path_factory.mktemp("bundle") / "tiny-model"
    shutil.copytree(tiny_bundle, directory)
    bundle = Bundle.open(directory)
    names = [f"item-{number}" for number in range(TINY_ITEMS)]
    train_bundle(
        bundle,
        [TrainingExample(query=f"thing number {number}", item=name) for number, name in enumerate(names)],
        names,
        Codebook.load(bundle.codebook_path).encode(tiny_embeddings),
        ModelSettings(hidden_size=32, model_layers=1, heads=2, tokenizer_size=300),
        TrainingSettings(max_steps=10, batch_size=64, layer2_dropout=0.3),
    )
    return directory
