"""What the searches over the trie are made of: the first step, the pool of finished SIDs, log-probabilities, answers.

What must hold: every choice among equals follows the order of the tokens, so answers repeat exactly; nothing here needs
memory that grows with the number of hypotheses times the vocabulary, or time that grows with the catalogue.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch

from models.errors import SidstreamError
from models.sids.layout import PADDING, Layout
from models.sids.vocabulary import SidVocabulary
from retriever.search.forward_passes import ForwardPasses, Logits

Normaliser = Literal["vocabulary", "layers"]
_LOGITS_AT_ONCE: Final = 2**25  # 128 MiB of float32; a vocabulary of 150 k would else need gigabytes for a wide step


class Trie(Protocol):
    """What the search needs of ``store.topology.layout_trie.LayoutTrie``."""

    layout: Layout

    def first_tokens(self) -> npt.NDArray[np.int32]:
        """Layer-1 tokens with at least one live item, ascending."""

    def children(self, prefixes: npt.NDArray[np.int32]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int32]]:
        """Every continuation of prefixes (H, d): which prefix, and the SID token number; ascending."""


class Tries:
    """The trie of each query of a batch: one for all, or one each where queries may be answered with different items."""

    def __init__(self, tries: Trie | Sequence[Trie], queries: int) -> None:
        """Raises ``SidstreamError`` if there are not as many as queries, or if they are read under several layouts."""
        each = list(tries) if isinstance(tries, Sequence) else [tries] * queries
        if len(each) != queries:
            raise SidstreamError(f"there are {queries} prompts and {len(each)} tries: give one trie, or one a prompt")
        if each and any(trie.layout.head_tokens != each[0].layout.head_tokens for trie in each):
            raise SidstreamError("the tries of one batch are read under several layouts: search for each layout apart")
        self.layout = each[0].layout if each else None
        self._distinct: list[Trie] = list({id(trie): trie for trie in each}.values())
        place = {id(trie): number for number, trie in enumerate(self._distinct)}
        self._of_query = np.array([place[id(trie)] for trie in each], dtype=np.intp)

    def first_tokens(self) -> list[npt.NDArray[np.int32]]:
        """Live layer-1 tokens of each query, ascending."""
        live = [trie.first_tokens() for trie in self._distinct]
        return [live[place] for place in self._of_query.tolist()]

    def children(
        self, query: npt.NDArray[np.intp], prefixes: npt.NDArray[np.int32]
    ) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int32]]:
        """``Trie.children`` of prefixes (H, d), each in the trie of its query (H,)."""
        if len(self._distinct) == 1:
            return self._distinct[0].children(prefixes)
        owners, tokens = [np.empty(0, dtype=np.intp)], [np.empty(0, dtype=np.int32)]
        which = self._of_query[query]
        for place in np.unique(which).tolist():
            rows = np.flatnonzero(which == place)
            owner, token = self._distinct[place].children(prefixes[rows])
            owners.append(rows[owner])
            tokens.append(token)
        owner, token = np.concatenate(owners), np.concatenate(tokens)
        order = np.argsort(owner, kind="stable")
        return owner[order], token[order]


@dataclass(frozen=True, eq=False)
class ScoredSid:
    """One SID of an answer.

    ``tokens``: SID token numbers; ``score``: natural log-probability; ``left_out``: (M,) float32 log-probability of each
    layer-2 token where the SID leaves its own out, else None. ``beam_search`` gives log P(c2 | prompt, c1),
    ``marginal_beam_search`` log P(c2 | prompt, the whole SID), -∞ where c2 is no head token: greater is better either way.
    ``weight``: of all its eligible items together, where other shards have some of them; 0 where this index has them all.
    """

    tokens: tuple[int, ...]
    score: float
    left_out: npt.NDArray[np.float32] | None
    weight: float = 0.0


class Pool:
    """Finished SIDs: the best ``beams`` of each query, best first, equal ones in the order of their tokens; and the score
    that a newcomer has to reach.

    ``tokens``: (P, L) padded at the end with -1; ``origin``: whatever number the search gave with a SID.
    """

    def __init__(self, queries: int, beams: int, layers: int) -> None:
        self._queries, self._beams = queries, beams
        self.query = np.empty(0, dtype=np.intp)
        self.tokens = np.empty((0, layers), dtype=np.int32)
        self.score = np.empty(0, dtype=np.float64)
        self.origin = np.empty(0, dtype=np.intp)
        self.worst = np.full(queries, -np.inf)

    def candidates(
        self, query: npt.NDArray[np.intp], score: npt.NDArray[np.float64], finished: npt.NDArray[np.bool_]
    ) -> npt.NDArray[np.intp]:
        """Which finished SIDs (numbers) may enter, at most ``beams`` a query; those given are ascending by query and tokens.

        A score that is no finite number never enters.
        """
        places = np.flatnonzero(finished & (score >= self.worst[query]) & np.isfinite(score))
        best = places[greatest_of_each(query[places], score[places], self._queries, self._beams)]
        best.sort()
        return best

    def add(
        self,
        query: npt.NDArray[np.intp],
        tokens: npt.NDArray[np.int32],
        score: npt.NDArray[np.float64],
        origin: npt.NDArray[np.intp],
    ) -> None:
        """Adds finished SIDs, (n, L) tokens padded at the end with -1."""
        if len(query) == 0:
            return
        query, score = np.concatenate((self.query, query)), np.concatenate((self.score, score))
        tokens, origin = np.concatenate((self.tokens, tokens)), np.concatenate((self.origin, origin))
        order = np.lexsort((*tokens.T[::-1], query))
        kept = order[greatest_of_each(query[order], score[order], self._queries, self._beams)]
        self.query, self.tokens, self.score, self.origin = query[kept], tokens[kept], score[kept], origin[kept]
        held = np.bincount(self.query, minlength=self._queries)
        full = held >= self._beams
        self.worst[full] = self.score[np.cumsum(held)[full] - 1]

    def sids(self, left_out: Callable[[int, float], npt.NDArray[np.float32]]) -> list[list[ScoredSid]]:
        """Each query's SIDs, best first; ``left_out`` gives that of a SID without its layer-2 token, by its origin and score."""
        bounds = np.searchsorted(self.query, np.arange(self._queries + 1)).tolist()
        return [[self._sid(place, left_out) for place in range(begin, end)] for begin, end in pairwise(bounds)]

    def _sid(self, place: int, left_out: Callable[[int, float], npt.NDArray[np.float32]]) -> ScoredSid:
        tokens, score = self.tokens[place].tolist(), float(self.score[place])
        short = tokens[-1] == PADDING
        return ScoredSid(
            tokens=tuple(token for token in tokens if token != PADDING),
            score=score,
            left_out=left_out(int(self.origin[place]), score) if short else None,
        )


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
    live: Sequence[npt.NDArray[np.int32]],
    beams: int,
    normaliser: Normaliser,
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int32], npt.NDArray[np.float64]]:
    """Runs the prompts; the best ``beams`` live layer-1 tokens of each: query, SID token number and log-probability, (H,)
    each, ascending by query and token. A query has none if the model's scores for it are NaN. ``live``: a query's tokens,
    ascending.
    """
    state = passes.start(prompts)
    after = log_probabilities(passes, vocabulary, state, 0, 1, normaliser)[:, 0, :]
    tokens, scores = [], []
    for row, own in zip(after, live, strict=True):
        places = np.sort(greatest(row[own], beams))
        places = places[np.isfinite(row[own[places]])]
        tokens.append(own[places])
        scores.append(row[own[places]])
    return (
        np.repeat(np.arange(len(prompts)), [len(places) for places in tokens]),
        np.concatenate(tokens),
        np.concatenate(scores).astype(np.float64),
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
    there = log_probabilities_there(passes, vocabulary, state, first_layer, end_layer, normaliser, last_tokens)
    result: npt.NDArray[np.float32] = there.cpu().numpy()
    return result


def log_probabilities_there(
    passes: Logits,
    vocabulary: SidVocabulary,
    state: torch.Tensor,
    first_layer: int,
    end_layer: int,
    normaliser: Normaliser,
    last_tokens: npt.NDArray[np.int64] | None = None,
) -> torch.Tensor:
    """``log_probabilities`` as float32 on the device of the model."""
    width = vocabulary.total if normaliser == "vocabulary" else (end_layer - first_layer) * vocabulary.size
    step = max(1, _LOGITS_AT_ONCE // (width * max(1, state.shape[0])))
    blocks = []
    for begin in range(0, state.shape[1], step):
        block = slice(begin, begin + step)
        tokens = None if last_tokens is None else last_tokens[:, block]
        blocks.append(
            _block_log_probabilities(passes, vocabulary, state[:, block], first_layer, end_layer, normaliser, tokens)
        )
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=1)


def _block_log_probabilities(
    passes: Logits,
    vocabulary: SidVocabulary,
    state: torch.Tensor,
    first_layer: int,
    end_layer: int,
    normaliser: Normaliser,
    last_tokens: npt.NDArray[np.int64] | None = None,
) -> torch.Tensor:
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
    return logits - total


def ranges(begin: npt.NDArray[np.intp], end: npt.NDArray[np.intp]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """The numbers of H ranges [begin, end), one range after the other, and before them which range each is from."""
    counts = end - begin
    owner = np.repeat(np.arange(len(counts)), counts)
    return owner, np.arange(len(owner)) + np.repeat(begin - (np.cumsum(counts) - counts), counts)


def greatest(scores: npt.NDArray[np.floating], count: int) -> npt.NDArray[np.intp]:
    """Places of the ``count`` greatest scores, greatest first, equal ones in their order."""
    if len(scores) <= count:
        return np.argsort(-scores, kind="stable")
    if count == 0:
        return np.empty(0, dtype=np.intp)
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
