"""A bundle's layout, and the settings with that bundle."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.bundles.bundle import Bundle
from models.sids.layout import Layout
from streamer.settings import Settings


@pytest.fixture
def layout(tiny_bundle: Path) -> Layout:
    return Bundle.open(tiny_bundle).layout


@pytest.fixture
def settings(pipeline_settings: Settings, tiny_bundle: Path) -> Settings:
    return pipeline_settings.model_copy(update={"bundle": tiny_bundle})
