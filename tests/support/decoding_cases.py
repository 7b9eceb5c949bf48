"""Small models, tries and prompts for tests of the searches."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from models.language.language_model import small_causal_lm
from models.sids.layout import Layout
from models.sids.vocabulary import SidVocabulary
from retriever.search.search_parts import ScoredSid

CODEBOOK = "0123456789abcdef"


def vocabulary_of(layers: int = 3, size: int = 32) -> SidVocabulary:
    return SidVocabulary(text_size=60, user_buckets=4, layers=layers, size=size)


def random_codes(items: int, layers: int, size: int, seed: int = 0) -> npt.NDArray[np.uint16]:
    """Crowded middle layer, so that prefixes and whole SIDs are shared."""
    random = np.random.default_rng(seed)
    codes = random.integers(size, size=(items, layers))
    codes[:, 1] = np.minimum(random.geometric(0.15, size=items) - 1, size - 1)
    return codes.astype(np.uint16)


def sharpened(model: Any) -> Any:
    """Random weights are nearly uniform; scaled up, scores spread as a trained model's do."""
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(12.0)
    return model.eval()


def llama(vocabulary: SidVocabulary, seed: int = 0) -> Any:
    return sharpened(small_causal_lm(vocabulary, hidden_size=32, layers=2, heads=2, seed=seed))


def prompts_of(vocabulary: SidVocabulary, lengths: tuple[int, ...], seed: int = 1) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [[vocabulary.begin_id, *random.integers(60, size=n).tolist(), vocabulary.separator_id] for n in lengths]


def assert_same(answer: list[ScoredSid], expected: list[tuple[tuple[int, ...], float]]) -> None:
    assert [sid.tokens for sid in answer] == [tokens for tokens, _ in expected]
    np.testing.assert_allclose([sid.score for sid in answer], [score for _, score in expected], atol=1e-4, rtol=0)


def sids_of(layout: Layout, codes: npt.NDArray[np.uint16]) -> set[tuple[int, ...]]:
    return {tuple(token for token in row if token >= 0) for row in layout.sid_tokens(codes).tolist()}
