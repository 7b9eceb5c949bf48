"""Fixtures of every part: one real Apache Kafka a session, and names that no other test uses."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamer.broker import LocalBroker
from streamer.settings import Settings, load_settings
from streamer.topics import create, topic_specs

_SHARED_DATA = Path(os.environ.get("SIDSTREAM_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs the broker, so that ``-m 'not broker'`` is the quick round."""
    for item in items:
        if "broker" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.broker)


@pytest.fixture(autouse=True)
def _no_settings_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's own settings must not change what the tests see."""
    for name in list(os.environ):
        if name.startswith("SIDSTREAM_") and name not in ("SIDSTREAM_CACHE", "SIDSTREAM_SHARED_DATA"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBroker]:
    """A real Apache Kafka on free ports, started once a session. Never stop it in a test."""
    with LocalBroker(tmp_path_factory.mktemp("broker")) as running:
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
        assigner={"group": f"{unique_prefix}assigner"},
        monitor={"app_id": f"{unique_prefix}monitor"},
        retriever={"group": f"{unique_prefix}retriever"},
    )


@pytest.fixture
def pipeline_settings(broker_settings: Settings) -> Settings:
    """``broker_settings`` with every topic created."""
    create(broker_settings.kafka, topic_specs(broker_settings))
    return broker_settings


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a codebook of 3 × 16 codewords for 8 numbers, fitted on noise; it has no language model."""
    import numpy as np

    from models.bundle import create_bundle
    from models.census import count_tokens
    from models.codebook import fit_residual_kmeans
    from models.layout import Layout

    embeddings = np.random.default_rng(11).normal(size=(2_000, 8)).astype(np.float32)
    codebook = fit_residual_kmeans(embeddings, layers=3, size=16)
    directory = tmp_path_factory.mktemp("bundle") / "tiny"
    layout = Layout(generation=1, codebook_id=codebook.id, layers=3, size=16)
    create_bundle(directory, codebook, layout, census=count_tokens(codebook.encode(embeddings), 16))
    return directory
