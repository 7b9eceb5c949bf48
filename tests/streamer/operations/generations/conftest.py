"""Two bundles of different codebooks that can answer, and settings of a pipeline that has the first one."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from models.bundles.building import FitSettings, ModelSettings, fit_bundle, train_bundle
from models.bundles.bundle import Bundle
from models.codebooks.codebook import Codebook
from models.examples.records import TrainingExample
from models.training.settings import TrainingSettings
from streamer.settings import Settings


@pytest.fixture(scope="session")
def other_bundle(tmp_path_factory: pytest.TempPathFactory, tiny_embeddings: NDArray[np.float32]) -> Path:
    """A bundle with a language model, of another codebook than the tiny ones."""
    directory = tmp_path_factory.mktemp("other") / "bundle"
    fit_bundle(tiny_embeddings, directory, FitSettings(size=12, iterations=5, seed=3))
    bundle = Bundle.open(directory)
    names = [f"item-{number}" for number in range(len(tiny_embeddings))]
    train_bundle(
        bundle,
        [TrainingExample(query=f"thing number {number}", item=name) for number, name in enumerate(names)],
        names,
        Codebook.load(bundle.codebook_path).encode(tiny_embeddings),
        ModelSettings(hidden_size=32, model_layers=1, heads=2, tokenizer_size=300),
        TrainingSettings(max_steps=2, batch_size=64),
    )
    return directory


@pytest.fixture
def settings(pipeline_settings: Settings, tiny_model_bundle: Path) -> Settings:
    """With topics made, and the tiny bundle where ``fit`` and ``train`` leave theirs."""
    shutil.copytree(tiny_model_bundle, pipeline_settings.bundle)
    return pipeline_settings
