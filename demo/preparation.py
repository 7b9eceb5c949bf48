"""The first acts of the demo, before anything streams: codebooks fitted and a small language model fine-tuned."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from demo.shop.shop import Shop
from models.bundles.building import FitSettings, Fitted, fit_bundle, train_bundle
from models.bundles.bundle import Bundle
from models.bundles.dense_part import fit_dense_part
from models.bundles.first_model import ModelSettings
from models.language.prompts import PromptSettings
from models.training.settings import ProgressCallback, TrainingSettings

HEAD_SHARE_OF_TOKENS: Final = 0.1  # top@K with K = 10 % of M
LAYER2_DROPOUT: Final = 0.3
# A slow machine learns less in it, and the story still has an end that is worth waiting for.
TRAINING_SECONDS: Final = 75.0
_THREADS: Final = 2


@dataclass(frozen=True)
class Trained:
    """``loss``: mean cross-entropy a SID token at the end, natural logarithm; ``seconds`` of training; ``share``: of the
    planned steps, below 1 if the time was up."""

    bundle: Bundle
    parameters: int
    loss: float
    seconds: float
    share: float


def head_size(shop: Shop) -> int:
    """K of top@K."""
    return max(1, round(HEAD_SHARE_OF_TOKENS * shop.codebook_size))


def fit(shop: Shop, directory: Path, progress: Callable[[int, int, float], None]) -> Fitted:
    """Residual k-means on the known products, and a first layout that leaves out the K most crowded layer-2 tokens."""
    settings = FitSettings(size=shop.codebook_size, head_method="top-k", k=head_size(shop))
    return fit_bundle(shop.known.embeddings, directory, settings, embedding=shop.embedding, progress=progress)


def train(shop: Shop, fitted: Fitted, progress: ProgressCallback) -> Trained:
    """A LLaMA-style model from scratch on queries and histories, with layer-2 dropout: it may follow the live layout."""
    import torch

    torch.set_num_threads(_THREADS)
    started = time.monotonic()
    bundle, outcome = train_bundle(
        fitted.bundle,
        shop.examples,
        [item.id for item in shop.known.items],
        fitted.codes,
        ModelSettings(hidden_size=128, model_layers=2, prompt=PromptSettings(max_text_tokens=24, max_history=5)),
        TrainingSettings(
            epochs=shop.epochs, learning_rate=3e-3, layer2_dropout=LAYER2_DROPOUT, seconds=TRAINING_SECONDS
        ),
        progress=progress,
    )
    bundle = fit_dense_part(bundle, shop.known.embeddings, [item.id for item in shop.known.items])
    record = bundle.manifest.language_model
    assert record is not None  # train_bundle adds one
    return Trained(
        bundle,
        parameters=int(record.training["parameters"]),
        loss=outcome.loss,
        seconds=time.monotonic() - started,
        share=outcome.steps / outcome.planned_steps,
    )
