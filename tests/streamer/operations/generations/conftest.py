"""Two bundles of different codebooks that can answer, and settings of a pipeline that has the first one."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from streamer.settings import Settings
from support.other_codebook import other_codebook


@pytest.fixture(scope="session")
def other_bundle(tmp_path_factory: pytest.TempPathFactory, tiny_embeddings: NDArray[np.float32]) -> Path:
    """A bundle with a language model, of another codebook than the tiny ones."""
    return other_codebook(tmp_path_factory.mktemp("other") / "bundle", tiny_embeddings).directory


@pytest.fixture
def settings(pipeline_settings: Settings, tiny_model_bundle: Path) -> Settings:
    """With topics made, and the tiny bundle where ``fit`` and ``train`` leave theirs."""
    shutil.copytree(tiny_model_bundle, pipeline_settings.bundle)
    return pipeline_settings
