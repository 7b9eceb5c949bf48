"""What the model thinks of given SIDs, token by token: for a person who asks why, not for a search.

What must hold: the sum over a SID's tokens is the score that ``beam_search`` and ``exact_search`` give it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from models.sids.vocabulary import SidVocabulary
from retriever.search.forward_passes import forward_passes
from retriever.search.search_parts import Normaliser, check_arguments, feed, log_probabilities


def token_scores(
    model: Any,
    vocabulary: SidVocabulary,
    prompt: list[int],
    sids: Sequence[tuple[int, ...]],
    *,
    normaliser: Normaliser = "vocabulary",
) -> list[npt.NDArray[np.float64]]:
    """Natural log-probability of each token of each SID after the prompt and the tokens before it: one (d,) a SID of d SID token
    numbers. Any SIDs will do, live or not; each is one beam of the passes.
    """
    check_arguments([prompt], 1)
    if not sids:
        return []
    layers, size, count = vocabulary.layers, vocabulary.size, len(sids)
    tokens = np.zeros((count, layers), dtype=np.int64)  # what stands behind a short SID is read and never looked at
    for row, sid in enumerate(sids):
        tokens[row, : len(sid)] = sid
    scores = np.zeros((count, layers))
    query, place = np.zeros(count, dtype=np.intp), np.arange(count)
    with torch.inference_mode():
        passes = forward_passes(model, len(prompt) + layers)
        state = passes.start([prompt])
        after = log_probabilities(passes, vocabulary, state, 0, 1, normaliser)[0, 0]
        scores[:, 0] = after[tokens[:, 0]]
        parent = np.zeros(count, dtype=np.intp)
        for depth in range(1, layers):
            state, read = feed(passes, vocabulary, 1, query, place, tokens[:, depth - 1], parent)
            last = min(depth + 2, layers)
            following = log_probabilities(
                passes, vocabulary, state, depth, last, normaliser, read if depth > 1 else None
            )[0]
            column = tokens[:, depth] - depth * size
            there = np.flatnonzero([len(sid) > depth for sid in sids])
            scores[there, depth] = following[there, column[there]]
            parent = place
    return [scores[row, : len(sid)] for row, sid in enumerate(sids)]
