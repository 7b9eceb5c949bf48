"""What the searches over the trie are made of: the trie's levels, the pool of finished SIDs, log-probabilities, answers.

What must hold: every choice among equals follows the order of the rows, so answers repeat exactly; and nothing here
needs memory that grows with the number of hypotheses times the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch

from models.errors import SidstreamError
from models.sids.vocabulary import SidVocabulary
from retriever.search.forward_passes import ForwardPasses
from store.topology.trie_view import SidPaths

Normaliser = Literal["vocabulary", "layers"]
_LOGITS_AT_ONCE: Final = 2**25  # 128 MiB of float32; a vocabulary of 150 k would else need gigabytes for a wide step


class Trie(Protocol):
    """What the search needs of ``store.topology.trie_view.TrieView``."""

    def first_tokens(self) -> npt.NDArray[np.int32]:
        """Layer-1 tokens with at least one live item, ascending."""

    def paths(self, first: npt.NDArray[np.integer]) -> SidPaths:
        """All SIDs below these layer-1 tokens, rows sorted."""


@dataclass(frozen=True)
class ScoredSid:
    """One SID of an answer.

    ``tokens``: SID token numbers; ``score``: natural log-probability; ``items``: (n,) uint32 item numbers that share
    the SID; ``codes``: (n, L) uint16, row by row; ``left_out``: (n,) float32 log-probability of each item's left-out
    layer-2 token, None if the SID has its layer-2 token (all items then agree). ``beam_search`` gives log P(c2 |
    prompt, c1), ``marginal_beam_search`` log P(c2 | prompt, the whole SID): greater is better either way.
    """

    tokens: tuple[int, ...]
    score: float
    items: npt.NDArray[np.uint32]
    codes: npt.NDArray[np.uint16]
    left_out: npt.NDArray[np.float32] | None


@dataclass(frozen=True)
class Level:
    """The trie's nodes at one depth, in row order: first row, last token, and first child at the next depth (one more
    at the end, which is the number of nodes there).
    """

    start: npt.NDArray[np.intp]
    token: npt.NDArray[np.int32]
    child: npt.NDArray[np.intp]

    def children(self, node: npt.NDArray[np.intp]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        """All children of these nodes (H,), in order: which of the H they belong to, and their nodes a level below."""
        return ranges(self.child[node], self.child[node + 1])


class Pool:
    """Finished SIDs: the best ``beams`` of each query, and the score that a newcomer has to beat.

    ``row``: the first row of a SID in ``SidPaths``; ``origin``: whatever number the search gave with it.
    """

    def __init__(self, queries: int, beams: int) -> None:
        self._queries, self._beams = queries, beams
        self.query = np.empty(0, dtype=np.intp)
        self.row = np.empty(0, dtype=np.intp)
        self.score = np.empty(0, dtype=np.float64)
        self.origin = np.empty(0, dtype=np.intp)
        self.worst = np.full(queries, -np.inf)

    def add(
        self,
        query: npt.NDArray[np.intp],
        row: npt.NDArray[np.intp],
        score: npt.NDArray[np.float64],
        origin: npt.NDArray[np.intp],
    ) -> None:
        """Adds finished SIDs, each named by its first row of ``SidPaths``; a score that is no finite number is left out."""
        finite = np.isfinite(score)
        if not finite.any():
            return
        if not finite.all():
            query, row, score, origin = query[finite], row[finite], score[finite], origin[finite]
        query, row = np.concatenate((self.query, query)), np.concatenate((self.row, row))
        score, origin = np.concatenate((self.score, score)), np.concatenate((self.origin, origin))
        order = np.lexsort((row, query))
        kept = order[greatest_of_each(query[order], score[order], self._queries, self._beams)]
        self.query, self.row, self.score, self.origin = query[kept], row[kept], score[kept], origin[kept]
        held = np.bincount(self.query, minlength=self._queries)
        full = held >= self._beams
        self.worst[full] = self.score[np.cumsum(held)[full] - 1]


def check_arguments(prompts: list[list[int]], beams: int) -> None:
    """Raises ``SidstreamError`` for what no search can answer."""
    if beams < 1:
        raise SidstreamError(f"beams must be at least 1, not {beams}")
    if not all(prompts):
        raise SidstreamError("a prompt without tokens cannot be completed: give every query a text or a history")


def first_step(
    passes: ForwardPasses,
    vocabulary: SidVocabulary,
    prompts: list[list[int]],
    live: npt.NDArray[np.int32],
    beams: int,
    normaliser: Normaliser,
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int32], npt.NDArray[np.float64]]:
    """Runs the prompts; the best ``beams`` live layer-1 tokens of each, best first: query, SID token number and
    log-probability, (H,) each. A query has none if the model's scores for it are NaN.
    """
    state = passes.start(prompts)
    scores = log_probabilities(passes, vocabulary, state, 0, 1, normaliser)[:, 0, :][:, live]
    chosen = [greatest(row, beams) for row in scores]
    chosen = [places[np.isfinite(row[places])] for row, places in zip(scores, chosen, strict=True)]
    return (
        np.repeat(np.arange(len(prompts)), [len(places) for places in chosen]),
        np.concatenate([live[places] for places in chosen]),
        np.concatenate([row[places] for row, places in zip(scores, chosen, strict=True)]).astype(np.float64),
    )


def feed(
    passes: ForwardPasses,
    vocabulary: SidVocabulary,
    queries: int,
    query: npt.NDArray[np.intp],
    place: npt.NDArray[np.intp],
    token: npt.NDArray[np.integer],
    parent: npt.NDArray[np.intp],
) -> tuple[torch.Tensor, npt.NDArray[np.int64]]:
    """Advances by one SID token number a hypothesis, (H,) each, padded to a rectangle; the new state (B, K, …), and
    the token numbers as (B, K).

    ``query`` and ``place``: row (of ``queries``) and column of the hypothesis; ``parent``: the column that it extends.
    """
    shape = (queries, int(place.max()) + 1)
    token_ids = np.full(shape, vocabulary.padding_id, dtype=np.int64)
    token_ids[query, place] = token + vocabulary.sid_base
    parents = np.zeros(shape, dtype=np.int64)
    parents[query, place] = parent
    return passes.advance(token_ids, parents), token_ids - vocabulary.sid_base


def log_probabilities(
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
    width = vocabulary.total if normaliser == "vocabulary" else (end_layer - first_layer) * vocabulary.size
    step = max(1, _LOGITS_AT_ONCE // (width * max(1, state.shape[0])))
    blocks = []
    for begin in range(0, state.shape[1], step):
        block = slice(begin, begin + step)
        tokens = None if last_tokens is None else last_tokens[:, block]
        blocks.append(
            _block_log_probabilities(passes, vocabulary, state[:, block], first_layer, end_layer, normaliser, tokens)
        )
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks, axis=1)


def _block_log_probabilities(
    passes: ForwardPasses,
    vocabulary: SidVocabulary,
    state: torch.Tensor,
    first_layer: int,
    end_layer: int,
    normaliser: Normaliser,
    last_tokens: npt.NDArray[np.int64] | None = None,
) -> npt.NDArray[np.float32]:
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


def trie_levels(tokens: npt.NDArray[np.int32]) -> list[Level]:
    """The trie's nodes depth by depth, from sorted rows (R, L)."""
    rows, depths = tokens.shape
    starts: list[npt.NDArray[np.intp]] = []
    changed = np.zeros(max(rows - 1, 0), dtype=bool)
    for depth in range(depths):
        changed = changed | (tokens[1:, depth] != tokens[:-1, depth])
        starts.append(np.concatenate((np.zeros(min(rows, 1), dtype=np.intp), np.flatnonzero(changed) + 1)))
    nodes = []
    for depth, start in enumerate(starts):
        below = starts[min(depth + 1, depths - 1)]
        child = np.append(np.searchsorted(below, start), len(below))
        nodes.append(Level(start=start, token=tokens[start, depth], child=child))
    return nodes


def ranges(begin: npt.NDArray[np.intp], end: npt.NDArray[np.intp]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """The numbers of H ranges [begin, end), one range after the other, and before them which range each is from."""
    counts = end - begin
    owner = np.repeat(np.arange(len(counts)), counts)
    return owner, np.arange(len(owner)) + np.repeat(begin - (np.cumsum(counts) - counts), counts)


def greatest(scores: npt.NDArray[np.floating], count: int) -> npt.NDArray[np.intp]:
    """Places of the ``count`` greatest scores, greatest first, equal ones in their order."""
    if len(scores) <= count:
        return np.argsort(-scores, kind="stable")
    least = -np.partition(-scores, count - 1)[count - 1]
    above = np.flatnonzero(scores > least)
    among = np.sort(np.concatenate((above, np.flatnonzero(scores == least)[: count - len(above)])))
    return among[np.argsort(-scores[among], kind="stable")]


def greatest_of_each(
    query: npt.NDArray[np.intp], scores: npt.NDArray[np.float64], queries: int, count: int
) -> npt.NDArray[np.intp]:
    """Places of each query's ``count`` greatest scores; ``query`` is ascending."""
    bounds = np.searchsorted(query, np.arange(queries + 1))
    return np.concatenate([begin + greatest(scores[begin:end], count) for begin, end in pairwise(bounds.tolist())])


def places_of(query: npt.NDArray[np.intp], queries: int) -> npt.NDArray[np.intp]:
    """Each hypothesis' place among those of its query; ``query`` is ascending."""
    counts = np.bincount(query, minlength=queries)
    return np.arange(len(query)) - np.repeat(np.cumsum(counts) - counts, counts)


def sids_of_pool(
    pool: Pool,
    paths: SidPaths,
    queries: int,
    left_out: Callable[[int, slice, float], npt.NDArray[np.float32]],
) -> list[list[ScoredSid]]:
    """The pool as each query's SIDs, best first; ``left_out`` gives it for an origin, the rows of ``paths`` that share a
    SID without its layer-2 token, and its score.
    """
    found: list[list[ScoredSid]] = [[] for _ in range(queries)]
    if len(pool.row) == 0:
        return found
    begins, ends = pool.row, row_ends(paths.tokens)[pool.row]
    lengths = (paths.tokens[begins] >= 0).sum(axis=1)
    for query, begin, end, score, origin, length in zip(
        pool.query.tolist(),
        begins.tolist(),
        ends.tolist(),
        pool.score.tolist(),
        pool.origin.tolist(),
        lengths.tolist(),
        strict=True,
    ):
        found[query].append(
            ScoredSid(
                tokens=tuple(paths.tokens[begin, :length].tolist()),
                score=score,
                items=paths.items[begin:end],
                codes=paths.codes[begin:end],
                left_out=left_out(origin, slice(begin, end), score) if length < paths.tokens.shape[1] else None,
            )
        )
    return found


def row_ends(tokens: npt.NDArray[np.int32]) -> npt.NDArray[np.intp]:
    """For each row (R, L) of sorted SIDs, one past the last row of the same SID."""
    new = np.flatnonzero((tokens[1:] != tokens[:-1]).any(axis=1)) + 1
    bounds = np.concatenate((new, [len(tokens)]))
    return bounds[np.searchsorted(bounds, np.arange(len(tokens)), side="right")]
