"""The first acts of the demo, before anything streams: codebooks fitted and a small language model fine-tuned."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from demo.shop import Shop
from models.bundle import Bundle, add_language_model, create_bundle, staging_directory
from models.census import count_tokens
from models.codebook import Codebook, fit_residual_kmeans
from models.layout import Layout, top_k

LAYERS: Final = 3
HEAD_SHARE_OF_TOKENS: Final = 0.1  # top@K with K = 10 % of M
LAYER2_DROPOUT: Final = 0.3
_THREADS: Final = 2


@dataclass(frozen=True)
class Fitted:
    """The bundle without a model yet; ``census`` (L, M) and ``codes`` (N, L) are of the known products."""

    bundle: Bundle
    codebook: Codebook
    codes: NDArray[np.uint16]
    census: NDArray[np.int64]
    seconds: float


@dataclass(frozen=True)
class Trained:
    """``loss``: mean cross-entropy a SID token at the end, natural logarithm."""

    bundle: Bundle
    parameters: int
    examples: int
    loss: float
    seconds: float


def head_size(shop: Shop) -> int:
    """K of top@K."""
    return max(1, round(HEAD_SHARE_OF_TOKENS * shop.codebook_size))


def fit(shop: Shop, directory: Path, progress: Callable[[int, int, float], None]) -> Fitted:
    """Residual k-means on the known products, and a first layout that leaves out the K most crowded layer-2 tokens."""
    started = time.monotonic()
    codebook = fit_residual_kmeans(shop.known.embeddings, layers=LAYERS, size=shop.codebook_size, progress=progress)
    codes = codebook.encode(shop.known.embeddings)
    census = count_tokens(codes, shop.codebook_size)
    layout = Layout(
        generation=1,
        codebook_id=codebook.id,
        layers=LAYERS,
        size=shop.codebook_size,
        head_tokens=top_k(census[1], head_size(shop)),
    )
    bundle = create_bundle(directory, codebook, layout, census=census, embedding=shop.embedding)
    return Fitted(bundle, codebook, codes, census, time.monotonic() - started)


def train(shop: Shop, fitted: Fitted, progress: Callable[[int, int, float], None]) -> Trained:
    """A LLaMA-style model from scratch on queries and histories, with layer-2 dropout: it may follow the live layout."""
    import torch

    from models.language_model import save_language_model, small_causal_lm
    from models.prompts import PromptBuilder, PromptSettings
    from models.tokenizer import train_tokenizer
    from models.training import ExampleTable, TrainingSettings, fine_tune
    from models.vocabulary import SidVocabulary

    started = time.monotonic()
    torch.set_num_threads(_THREADS)
    tokenizer = train_tokenizer([example.query for example in shop.examples], size=3_000)
    vocabulary = SidVocabulary(text_size=tokenizer.size, user_buckets=0, layers=LAYERS, size=shop.codebook_size)
    prompts = PromptBuilder(vocabulary, tokenizer, PromptSettings(max_text_tokens=24, max_history=5))
    rows = {item.id: row for row, item in enumerate(shop.known.items)}
    table = ExampleTable(shop.examples, prompts, fitted.bundle.layout, rows, fitted.codes)
    model = small_causal_lm(vocabulary, hidden_size=128, layers=2, heads=4)
    settings = TrainingSettings(epochs=shop.epochs, batch_size=128, learning_rate=3e-3, layer2_dropout=LAYER2_DROPOUT)
    outcome = fine_tune(model, table, settings, progress)
    with staging_directory(fitted.bundle) as staged:
        save_language_model(model, tokenizer, staged)
        bundle = add_language_model(
            fitted.bundle,
            staged,
            vocabulary=vocabulary,
            prompt=prompts.settings,
            layer2_dropout=LAYER2_DROPOUT,
            training=outcome.to_dict(),
        )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Trained(bundle, parameters, outcome.examples, outcome.loss, time.monotonic() - started)
