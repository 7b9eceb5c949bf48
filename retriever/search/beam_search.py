"""Constrained beam search over the trie of a snapshot: prompts in, the best Semantic IDs that exist out.

What must hold
- Every SID returned is held by at least one live item of the snapshot.
- The score of a SID is the plain sum of its tokens' natural log-probabilities, never divided by its length. With
  ``normaliser="vocabulary"`` (the default) these are softmax over the whole vocabulary: exactly the scores and the
  ranking of transformers' ``generate(num_beams=…, prefix_allowed_tokens_fn=…)``, which masks *after* its log-softmax.
  With ``"layers"`` the softmax is over the layers that may come next (layer-1 range; layer 2 ∪ 3; …), live or not:
  the distribution of the model *given that it writes a well-formed SID*. That needs the SID rows of ``lm_head``
  alone, which pays with a vocabulary of 100 k and more; for a trained model the two differ by the mass it wastes on
  other tokens. Neither is normalised over the live children alone: a prefix with one child would then get that child
  for nothing, and sparse branches would win.
- A token of layer L ends a SID; there is no end-of-sequence step. Finished SIDs wait in a pool of their own (best
  ``beams`` of them); unfinished hypotheses compete for ``beams`` places a step, and those that cannot reach the pool
  any more are dropped (scores only fall).

A hypothesis is a node of the trie, and a node is a range of rows of the sorted ``SidPaths``; so every step is a
handful of array operations for all queries together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from models.sids.vocabulary import SidVocabulary
from retriever.search.forward_passes import ForwardPasses, forward_passes
from retriever.search.search_parts import (
    Normaliser,
    Pool,
    ScoredSid,
    Trie,
    check_arguments,
    feed,
    first_step,
    greatest_of_each,
    log_probabilities,
    places_of,
    sids_of_pool,
    trie_levels,
)

__all__ = ["Normaliser", "ScoredSid", "Trie", "beam_search"]


@dataclass(frozen=True)
class _Hypotheses:
    """H hypotheses, grouped by query: trie node, score, place among the query's beams, and the first step's
    hypothesis they stem from.
    """

    query: npt.NDArray[np.intp]
    node: npt.NDArray[np.intp]
    score: npt.NDArray[np.float64]
    first: npt.NDArray[np.intp]
    parent: npt.NDArray[np.intp]  # place of the hypothesis that it extends


def beam_search(
    model: Any,
    vocabulary: SidVocabulary,
    prompts: list[list[int]],
    trie: Trie,
    *,
    beams: int = 50,
    normaliser: Normaliser = "vocabulary",
) -> list[list[ScoredSid]]:
    """The best SIDs of each prompt, best first, at most ``beams``; equal scores in the order of their tokens.

    ``prompts``: token ids, not empty, unequal lengths allowed. A list is empty only if the index has no live item or
    the model's scores for that prompt are not finite: tell the user which. The trie must stay readable (its snapshot
    open) during the call.
    """
    check_arguments(prompts, beams)
    live = trie.first_tokens()
    if len(live) == 0 or not prompts:
        return [[] for _ in prompts]
    with torch.inference_mode():
        passes = forward_passes(model, max(map(len, prompts)) + vocabulary.layers)
        return _search(passes, vocabulary, prompts, trie, live, beams, normaliser)


def _search(
    passes: ForwardPasses,
    vocabulary: SidVocabulary,
    prompts: list[list[int]],
    trie: Trie,
    live: npt.NDArray[np.int32],
    beams: int,
    normaliser: Normaliser,
) -> list[list[ScoredSid]]:
    queries, layers, size = len(prompts), vocabulary.layers, vocabulary.size
    query, first_tokens, score = first_step(passes, vocabulary, prompts, live, beams, normaliser)
    if len(query) == 0:
        return [[] for _ in prompts]
    paths = trie.paths(np.unique(first_tokens))
    levels = trie_levels(paths.tokens)
    hypotheses = _Hypotheses(
        query=query,
        node=np.searchsorted(levels[0].token, first_tokens),
        score=score,
        first=np.arange(len(query)),
        parent=np.zeros(len(query), dtype=np.intp),
    )
    pool = Pool(queries, beams)
    layer2: npt.NDArray[np.float32] = np.empty((0, size), dtype=np.float32)
    for depth in range(1, layers):
        place = places_of(hypotheses.query, queries)
        tokens = levels[depth - 1].token[hypotheses.node]
        state, read = feed(passes, vocabulary, queries, hypotheses.query, place, tokens, hypotheses.parent)
        # After the layer-1 token comes layer 2 or, its token left out, layer 3; from then on depth + 1 layers may
        # have been read.
        last = min(depth + 2, layers)
        following = log_probabilities(passes, vocabulary, state, depth, last, normaliser, read if depth > 1 else None)[
            hypotheses.query, place
        ]
        if depth == 1:
            layer2 = following[:, :size]
        # Every legal continuation of every hypothesis, in trie order.
        parent, node = levels[depth - 1].children(hypotheses.node)
        token = levels[depth].token[node]
        score = hypotheses.score[parent] + following[parent, token - depth * size]
        finished = token >= (layers - 1) * size
        pool.add(
            hypotheses.query[parent[finished]],
            levels[depth].start[node[finished]],
            score[finished],
            hypotheses.first[parent[finished]],
        )
        if finished.all():
            break
        open_ = np.flatnonzero(~finished)
        owner = hypotheses.query[parent[open_]]
        open_ = open_[score[open_] > pool.worst[owner]]
        kept = greatest_of_each(hypotheses.query[parent[open_]], score[open_], queries, beams)
        if len(kept) == 0:
            break
        at = open_[kept]
        hypotheses = _Hypotheses(
            query=hypotheses.query[parent[at]],
            node=node[at],
            score=score[at],
            first=hypotheses.first[parent[at]],
            parent=place[parent[at]],
        )
    return sids_of_pool(pool, paths, queries, lambda first, rows, _: layer2[first, paths.codes[rows, 1]])
