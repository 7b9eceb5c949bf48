"""A bundle of another codebook than the tiny ones of ``conftest``, for what changes from one to the other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.bundles.building import FitSettings, fit_bundle, train_bundle
from models.bundles.bundle import Bundle
from models.bundles.first_model import ModelSettings
from models.codebooks.codebook import Codebook
from models.examples.records import TrainingExample
from models.training.settings import TrainingSettings


def other_codebook(directory: Path, embeddings: NDArray[np.float32]) -> Bundle:
    """With a language model of two steps; ``embeddings`` (N, D) of ``item-0`` …"""
    bundle = fit_bundle(embeddings, directory, FitSettings(size=12, iterations=5, seed=3)).bundle
    names = [f"item-{number}" for number in range(len(embeddings))]
    trained, _ = train_bundle(
        bundle,
        [TrainingExample(query=f"thing number {number}", item=name) for number, name in enumerate(names)],
        names,
        Codebook.load(bundle.codebook_path).encode(embeddings),
        ModelSettings(hidden_size=32, model_layers=1, heads=2, tokenizer_size=300),
        TrainingSettings(max_steps=2, batch_size=64),
    )
    return trained
