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
from itertools import pairwise
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch

from models.errors import SidstreamError
from models.vocabulary import SidVocabulary
from retriever.forward_passes import ForwardPasses, forward_passes
from store.trie_view import SidPaths

Normaliser = Literal["vocabulary", "layers"]


class Trie(Protocol):
    """What the search needs of ``store.trie_view.TrieView``."""

    def first_tokens(self) -> npt.NDArray[np.int32]:
        """Layer-1 tokens with at least one live item, ascending."""

    def paths(self, first: npt.NDArray[np.integer]) -> SidPaths:
        """All SIDs below these layer-1 tokens, rows sorted."""


@dataclass(frozen=True)
class ScoredSid:
    """One SID of an answer.

    ``tokens``: SID token numbers; ``score``: natural log-probability; ``items``: (n,) uint32 item numbers that share
    the SID; ``codes``: (n, L) uint16, row by row; ``left_out``: (n,) float32 log P(c2 | prompt, c1) of each item's
    left-out layer-2 token, None if the SID has its layer-2 token (all items then agree).
    """

    tokens: tuple[int, ...]
    score: float
    items: npt.NDArray[np.uint32]
    codes: npt.NDArray[np.uint16]
    left_out: npt.NDArray[np.float32] | None


@dataclass(frozen=True)
class _Level:
    """The trie's nodes at one depth, in row order: first row, last token, and first child at the next depth (one more
    at the end).
    """

    start: npt.NDArray[np.intp]
    token: npt.NDArray[np.int32]
    child: npt.NDArray[np.intp]


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

    ``prompts``: token ids, not empty, unequal lengths allowed. All lists are empty only if the index has no live
    item: tell the user. The trie must stay readable (its snapshot open) during the call.
    """
    if beams < 1:
        raise SidstreamError(f"beams must be at least 1, not {beams}")
    if not prompts:
        return []
    if not all(prompts):
        raise SidstreamError("a prompt without tokens cannot be completed: give every query a text or a history")
    live = trie.first_tokens()
    if len(live) == 0:
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
    state = passes.start(prompts)
    scores = _log_probabilities(passes, vocabulary, state, 0, 1, normaliser)[:, 0, :][:, live]
    chosen = [_best(row, beams) for row in scores]
    first_tokens = np.concatenate([live[places] for places in chosen])
    query = np.repeat(np.arange(queries), [len(places) for places in chosen])
    paths = trie.paths(np.unique(first_tokens))
    levels = _levels(paths.tokens)
    hypotheses = _Hypotheses(
        query=query,
        node=np.searchsorted(levels[0].token, first_tokens),
        score=np.concatenate([row[places] for row, places in zip(scores, chosen, strict=True)]).astype(np.float64),
        first=np.arange(len(query)),
        parent=np.zeros(len(query), dtype=np.intp),
    )
    pool = _Pool(queries, beams)
    layer2: npt.NDArray[np.float32] = np.empty((0, size), dtype=np.float32)
    for depth in range(1, layers):
        place, width = _places(hypotheses.query, queries)
        token_ids = np.full((queries, width), vocabulary.padding_id, dtype=np.int64)
        token_ids[hypotheses.query, place] = levels[depth - 1].token[hypotheses.node] + vocabulary.sid_base
        parents = np.zeros((queries, width), dtype=np.int64)
        parents[hypotheses.query, place] = hypotheses.parent
        state = passes.advance(token_ids, parents)
        # After the layer-1 token comes layer 2 or, its token left out, layer 3; from then on depth + 1 layers may
        # have been read.
        last = min(depth + 2, layers)
        log_probabilities = _log_probabilities(
            passes, vocabulary, state, depth, last, normaliser, token_ids - vocabulary.sid_base if depth > 1 else None
        )[hypotheses.query, place]
        if depth == 1:
            layer2 = log_probabilities[:, :size]
        # Every legal continuation of every hypothesis, in trie order.
        level = levels[depth]
        begin, end = levels[depth - 1].child[hypotheses.node], levels[depth - 1].child[hypotheses.node + 1]
        counts = end - begin
        parent = np.repeat(np.arange(len(counts)), counts)
        node = np.arange(len(parent)) + np.repeat(begin - (np.cumsum(counts) - counts), counts)
        token = level.token[node]
        score = hypotheses.score[parent] + log_probabilities[parent, token - depth * size]
        finished = token >= (layers - 1) * size
        pool.add(
            hypotheses.query[parent[finished]],
            level.start[node[finished]],
            score[finished],
            hypotheses.first[parent[finished]],
        )
        if finished.all():
            break
        open_ = np.flatnonzero(~finished)
        owner = hypotheses.query[parent[open_]]
        open_ = open_[score[open_] > pool.worst[owner]]
        kept = _best_of_each(hypotheses.query[parent[open_]], score[open_], queries, beams)
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
    return _answers(pool, paths, queries, vocabulary, layer2)


class _Pool:
    """Finished SIDs: the best ``beams`` of each query, and the score that a newcomer has to beat."""

    def __init__(self, queries: int, beams: int) -> None:
        self._queries, self._beams = queries, beams
        self.query = np.empty(0, dtype=np.intp)
        self.row = np.empty(0, dtype=np.intp)
        self.score = np.empty(0, dtype=np.float64)
        self.first = np.empty(0, dtype=np.intp)
        self.worst = np.full(queries, -np.inf)

    def add(
        self,
        query: npt.NDArray[np.intp],
        row: npt.NDArray[np.intp],
        score: npt.NDArray[np.float64],
        first: npt.NDArray[np.intp],
    ) -> None:
        """Adds finished SIDs, each named by its first row of ``SidPaths``."""
        if len(query) == 0:
            return
        query, row = np.concatenate((self.query, query)), np.concatenate((self.row, row))
        score, first = np.concatenate((self.score, score)), np.concatenate((self.first, first))
        order = np.lexsort((row, query))
        kept = order[_best_of_each(query[order], score[order], self._queries, self._beams)]
        self.query, self.row, self.score, self.first = query[kept], row[kept], score[kept], first[kept]
        held = np.bincount(self.query, minlength=self._queries)
        full = held >= self._beams
        self.worst[full] = self.score[np.cumsum(held)[full] - 1]


def _log_probabilities(
    passes: ForwardPasses,
    vocabulary: SidVocabulary,
    state: torch.Tensor,
    first_layer: int,
    end_layer: int,
    normaliser: Normaliser,
    last_tokens: npt.NDArray[np.int64] | None = None,
) -> npt.NDArray[np.float32]:
    """Log-probabilities (B, K, layers × size) of the tokens of layers [first_layer, end_layer).

    ``last_tokens``: (B, K) SID token numbers just read, where they decide which of these layers may follow.
    """
    size = vocabulary.size
    rows = slice(vocabulary.sid_base + first_layer * size, vocabulary.sid_base + end_layer * size)
    if normaliser == "vocabulary":
        everything = passes.logits(state, slice(0, vocabulary.total))
        logits, total = everything[:, :, rows], everything.logsumexp(dim=-1, keepdim=True)
    else:
        logits = passes.logits(state, rows)
        total = logits.logsumexp(dim=-1, keepdim=True)
        if last_tokens is not None and end_layer - first_layer > 1:
            # Past the second token just one layer may follow: the one after the layer of the last token.
            layer = (
                torch.from_numpy(last_tokens // size + 1 - first_layer)
                .to(logits.device)
                .clamp(0, end_layer - first_layer - 1)
            )
            total = logits.view(*logits.shape[:2], -1, size).logsumexp(dim=-1).gather(2, layer[:, :, None])
    result: npt.NDArray[np.float32] = (logits - total).cpu().numpy()
    return result


def _levels(tokens: npt.NDArray[np.int32]) -> list[_Level]:
    """The trie's nodes depth by depth, from sorted rows (R, L)."""
    rows, depths = tokens.shape
    starts: list[npt.NDArray[np.intp]] = []
    changed = np.zeros(max(rows - 1, 0), dtype=bool)
    for depth in range(depths):
        changed = changed | (tokens[1:, depth] != tokens[:-1, depth])
        starts.append(np.concatenate((np.zeros(min(rows, 1), dtype=np.intp), np.flatnonzero(changed) + 1)))
    levels = []
    for depth, start in enumerate(starts):
        below = starts[min(depth + 1, depths - 1)]
        child = np.append(np.searchsorted(below, start), len(below))
        levels.append(_Level(start=start, token=tokens[start, depth], child=child))
    return levels


def _best(scores: npt.NDArray[np.floating], count: int) -> npt.NDArray[np.intp]:
    """Places of the ``count`` greatest scores, greatest first, equal ones in their order."""
    if len(scores) <= count:
        return np.argsort(-scores, kind="stable")
    among = np.sort(np.argpartition(-scores, count - 1)[:count])
    return among[np.argsort(-scores[among], kind="stable")]


def _best_of_each(
    query: npt.NDArray[np.intp], scores: npt.NDArray[np.float64], queries: int, count: int
) -> npt.NDArray[np.intp]:
    """Places of each query's ``count`` greatest scores; ``query`` is ascending."""
    bounds = np.searchsorted(query, np.arange(queries + 1))
    return np.concatenate([begin + _best(scores[begin:end], count) for begin, end in pairwise(bounds.tolist())])


def _places(query: npt.NDArray[np.intp], queries: int) -> tuple[npt.NDArray[np.intp], int]:
    """Each hypothesis' place among those of its query (``query`` ascending), and the greatest number of them."""
    counts = np.bincount(query, minlength=queries)
    return np.arange(len(query)) - np.repeat(np.cumsum(counts) - counts, counts), int(counts.max())


def _answers(
    pool: _Pool, paths: SidPaths, queries: int, vocabulary: SidVocabulary, layer2: npt.NDArray[np.float32]
) -> list[list[ScoredSid]]:
    answers: list[list[ScoredSid]] = [[] for _ in range(queries)]
    if len(pool.row) == 0:
        return answers
    begins, ends = pool.row, _row_ends(paths.tokens)[pool.row]
    lengths = (paths.tokens[begins] >= 0).sum(axis=1)
    for query, begin, end, score, first, length in zip(
        pool.query.tolist(),
        begins.tolist(),
        ends.tolist(),
        pool.score.tolist(),
        pool.first.tolist(),
        lengths.tolist(),
        strict=True,
    ):
        codes = paths.codes[begin:end]
        answers[query].append(
            ScoredSid(
                tokens=tuple(paths.tokens[begin, :length].tolist()),
                score=score,
                items=paths.items[begin:end],
                codes=codes,
                left_out=layer2[first, codes[:, 1]] if length < vocabulary.layers else None,
            )
        )
    return answers


def _row_ends(tokens: npt.NDArray[np.int32]) -> npt.NDArray[np.intp]:
    """For each row (R, L) of sorted SIDs, one past the last row of the same SID."""
    new = np.flatnonzero((tokens[1:] != tokens[:-1]).any(axis=1)) + 1
    bounds = np.concatenate((new, [len(tokens)]))
    return bounds[np.searchsorted(bounds, np.arange(len(tokens)), side="right")]
