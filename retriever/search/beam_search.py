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

A hypothesis is a prefix of SIDs, and the trie's topology says what may follow it: a step is a handful of array operations
for all queries together, and what it costs depends on the beams, not on the catalogue.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from models.sids.layout import PADDING
from models.sids.vocabulary import SidVocabulary
from retriever.search.forward_passes import ForwardPasses, forward_passes
from retriever.search.search_parts import (
    Normaliser,
    Pool,
    ScoredSid,
    Trie,
    Tries,
    check_arguments,
    feed,
    first_step,
    greatest_of_each,
    log_probabilities,
    places_of,
)

__all__ = ["Normaliser", "ScoredSid", "Step", "Trie", "beam_search"]


@dataclass(frozen=True)
class _Hypotheses:
    """H hypotheses, ascending by query and tokens: SID token numbers (H, d), score, the first step's hypothesis they stem
    from, and the place among their query's beams of the hypothesis that they extend.
    """

    query: npt.NDArray[np.intp]
    tokens: npt.NDArray[np.int32]
    score: npt.NDArray[np.float64]
    first: npt.NDArray[np.intp]
    parent: npt.NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Step:
    """What a step of the search keeps, of all queries: SID token numbers (H, d), scores (H,), and of each query the score that a
    SID or prefix has to exceed.
    """

    tokens: npt.NDArray[np.int32]
    score: npt.NDArray[np.float64]
    worst: npt.NDArray[np.float64]


def beam_search(
    model: Any,
    vocabulary: SidVocabulary,
    prompts: list[list[int]],
    trie: Trie | Sequence[Trie],
    *,
    beams: int = 50,
    normaliser: Normaliser = "vocabulary",
    observe: Callable[[Step], object] | None = None,
) -> list[list[ScoredSid]]:
    """The best SIDs of each prompt, best first, at most ``beams``; equal scores in the order of their tokens.

    ``prompts``: token ids, not empty, unequal lengths allowed. ``trie``: one for all prompts, or one each under one layout. A
    list is empty only if its trie is empty or the model's scores for that prompt are not finite: tell the user which.
    ``observe`` is told each step, for a person who asks why.
    """
    check_arguments(prompts, beams)
    tries = Tries(trie, len(prompts))
    live = tries.first_tokens()
    if not any(map(len, live)):
        return [[] for _ in prompts]
    with torch.inference_mode():
        passes = forward_passes(model, max(map(len, prompts)) + vocabulary.layers)
        return _search(passes, vocabulary, prompts, tries, live, beams, normaliser, observe)


def _search(
    passes: ForwardPasses,
    vocabulary: SidVocabulary,
    prompts: list[list[int]],
    tries: Tries,
    live: list[npt.NDArray[np.int32]],
    beams: int,
    normaliser: Normaliser,
    observe: Callable[[Step], object] | None,
) -> list[list[ScoredSid]]:
    queries, layers, size = len(prompts), vocabulary.layers, vocabulary.size
    query, first_tokens, score = first_step(passes, vocabulary, prompts, live, beams, normaliser)
    hypotheses = _Hypotheses(
        query=query,
        tokens=first_tokens[:, None],
        score=score,
        first=np.arange(len(query)),
        parent=np.zeros(len(query), dtype=np.intp),
    )
    pool = Pool(queries, beams, layers)
    layer2: npt.NDArray[np.float32] = np.empty((0, size), dtype=np.float32)
    for depth in range(1, layers):
        if observe is not None:
            observe(Step(hypotheses.tokens, hypotheses.score, pool.worst.copy()))
        if len(hypotheses.query) == 0:
            break
        place = places_of(hypotheses.query, queries)
        state, read = feed(
            passes, vocabulary, queries, hypotheses.query, place, hypotheses.tokens[:, -1], hypotheses.parent
        )
        # After the layer-1 token comes layer 2 or, its token left out, layer 3; from then on depth + 1 layers may
        # have been read.
        last = min(depth + 2, layers)
        following = log_probabilities(passes, vocabulary, state, depth, last, normaliser, read if depth > 1 else None)[
            hypotheses.query, place
        ]
        if depth == 1:
            layer2 = following[:, :size]
        # Every legal continuation of every hypothesis, in the order of their tokens.
        owner, token = tries.children(hypotheses.query, hypotheses.tokens)
        score = hypotheses.score[owner] + following[owner, token - depth * size]
        owners_query = hypotheses.query[owner]
        finished = token >= (layers - 1) * size
        found = pool.candidates(owners_query, score, finished)
        ended = np.full((len(found), layers), PADDING, dtype=np.int32)
        ended[:, :depth], ended[:, depth] = hypotheses.tokens[owner[found]], token[found]
        pool.add(owners_query[found], ended, score[found], hypotheses.first[owner[found]])
        open_ = np.flatnonzero(~finished & (score > pool.worst[owners_query]))
        kept = np.sort(open_[greatest_of_each(owners_query[open_], score[open_], queries, beams)])
        from_ = owner[kept]
        hypotheses = _Hypotheses(
            query=hypotheses.query[from_],
            tokens=np.concatenate((hypotheses.tokens[from_], token[kept, None]), axis=1),
            score=score[kept],
            first=hypotheses.first[from_],
            parent=place[from_],
        )
    return pool.sids(lambda first, _: layer2[first])
