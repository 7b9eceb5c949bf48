"""Exact search over the trie: branch and bound. A beam may drop the beginning of a good SID; this search drops none.

What must hold: without a word to the contrary the answer is that of scoring every live SID. Scores only fall along a SID, so
a prefix whose score is below the worst SID of the pool has nothing better below it. The most probable layer-1 tokens come first,
as many as a beam would take, and below them the most probable prefixes: the pool is soon full, and its worst SID the bound for
all the rest. A budget of expansions ends a search that a flat model would let run through the whole trie, and ``complete`` says
so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from models.errors import SidstreamError
from models.sids.layout import HEAD_LAYER_INDEX, PADDING
from models.sids.vocabulary import SidVocabulary
from retriever.search.beam_search import beam_search
from retriever.search.forward_passes import ForwardPasses, forward_passes
from retriever.search.readings import ModelPaths, Readings
from retriever.search.search_parts import (
    Normaliser,
    Pool,
    ScoredSid,
    Trie,
    check_arguments,
    first_step,
    greatest,
)

# Prefixes run at once before the pool is asked again which others can still reach it.
_PREFIXES_AT_ONCE: Final = 128


@dataclass(frozen=True, eq=False)
class ExactSids:
    """``sids``: best first; ``complete``: no SID that is not among them scores higher, otherwise they are the best of what the
    beam and this search found; ``expansions``: prefixes run by the model, those of the beam not counted.
    """

    sids: list[ScoredSid]
    complete: bool
    expansions: int


def exact_search(
    model: Any,
    vocabulary: SidVocabulary,
    prompts: list[list[int]],
    trie: Trie | Sequence[Trie],
    *,
    sids: int = 50,
    budget: int = 4096,
    normaliser: Normaliser = "vocabulary",
) -> list[ExactSids]:
    """The best ``sids`` SIDs of each prompt, as ``beam_search`` would give them with beams without end.

    ``budget``: prefixes of a query that the model may run; the most probable ones come first.
    """
    check_arguments(prompts, sids)
    if budget < 1:
        raise SidstreamError(f"the budget of an exact search must be at least one expansion, not {budget}")
    tries = list(trie) if isinstance(trie, Sequence) else [trie] * len(prompts)
    found = []
    with torch.inference_mode():
        for prompt, own in zip(prompts, tries, strict=True):
            exact = _Search(model, vocabulary, own, sids, budget, normaliser).run(prompt)
            if not exact.complete:
                (beam,) = beam_search(model, vocabulary, [prompt], own, beams=sids, normaliser=normaliser)
                exact = _with_others(exact, beam, sids)
            found.append(exact)
    return found


def _with_others(exact: ExactSids, others: Sequence[ScoredSid], count: int) -> ExactSids:
    """The best of both, for a search that its budget ended."""
    known = {sid.tokens for sid in exact.sids}
    both = [*exact.sids, *(sid for sid in others if sid.tokens not in known)]
    both.sort(key=lambda sid: (-sid.score, sid.tokens))
    return ExactSids(both[:count], exact.complete, exact.expansions)


class _Search:
    """One query's search."""

    def __init__(
        self,
        model: Any,
        vocabulary: SidVocabulary,
        trie: Trie,
        sids: int,
        budget: int,
        normaliser: Normaliser,
    ) -> None:
        self._model, self._vocabulary, self._trie, self._sids = model, vocabulary, trie, sids
        self._left, self._budget, self._normaliser = budget, budget, normaliser
        self._layers, self._size = vocabulary.layers, vocabulary.size
        self._pool = Pool(1, sids, vocabulary.layers)
        self._layer2 = np.empty((0, vocabulary.size), np.float32)  # after each layer-1 token that was run
        self._before = 0  # rows of ``_layer2`` before those of the layer-1 tokens that are run at the moment
        self._complete = True

    def run(self, prompt: list[int]) -> ExactSids:
        live = self._trie.first_tokens()
        if len(live) == 0:
            return ExactSids([], True, 0)
        passes = forward_passes(self._model, len(prompt) + self._layers)
        _, first_tokens, score = first_step(passes, self._vocabulary, [prompt], [live], len(live), self._normaliser)
        after_prompt = passes.mark()
        by_score = np.argsort(-score, kind="stable")
        for wave in (by_score[: self._sids], by_score[self._sids :]):
            chosen = np.sort(wave)
            chosen = chosen[self._affordable(score[chosen])]
            if len(chosen):
                passes.rewind(after_prompt, np.zeros(1, dtype=np.intp))
                self._search_below(passes, first_tokens[chosen], score[chosen])
        (sids,) = self._pool.sids(lambda first, _: self._layer2[first])
        return ExactSids(sids, self._complete, self._budget - self._left)

    def _search_below(
        self, passes: ForwardPasses, first_tokens: npt.NDArray[np.int32], score: npt.NDArray[np.float64]
    ) -> None:
        """Runs these layer-1 tokens (K,) and all prefixes below them that may lead to the pool."""
        query = np.zeros(len(first_tokens), dtype=np.intp)
        paths = ModelPaths(passes, self._vocabulary, self._normaliser, 1, query, first_tokens)
        self._before = len(self._layer2)
        self._layer2 = np.concatenate((self._layer2, paths.layer2))
        tokens, score, first = self._after_layer_1(paths, first_tokens, score)
        for depth in range(HEAD_LAYER_INDEX + 1, self._layers):
            tokens, score, first = self._longer(paths, tokens, score, first, depth)

    @property
    def _worst(self) -> float:
        return float(self._pool.worst[0])

    def _affordable(self, score: npt.NDArray[np.float64]) -> npt.NDArray[np.intp]:
        """Which prefixes (numbers, rising) can still reach the pool and are paid for; the budget goes to the best."""
        places = np.flatnonzero(score >= self._worst)
        if len(places) > self._left:
            self._complete = False
            places = np.sort(places[greatest(score[places], self._left)])
        self._left -= len(places)
        return places

    def _after_layer_1(
        self, paths: ModelPaths, first_tokens: npt.NDArray[np.int32], score: npt.NDArray[np.float64]
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float64], npt.NDArray[np.intp]]:
        owner, token = self._trie.children(first_tokens[:, None])
        following = np.concatenate((paths.layer2, paths.layer3), axis=1)
        return self._sorted_out(
            first_tokens[:, None], owner, token, score[owner] + following[owner, token - self._size], owner
        )

    def _longer(
        self,
        paths: ModelPaths,
        tokens: npt.NDArray[np.int32],
        score: npt.NDArray[np.float64],
        first: npt.NDArray[np.intp],
        depth: int,
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float64], npt.NDArray[np.intp]]:
        """Runs all prefixes of ``depth`` tokens that may lead to the pool, the best first; the prefixes one longer."""
        longer = [(np.empty((0, depth + 1), np.int32), np.empty(0), np.empty(0, np.intp))]
        waiting = np.argsort(-score, kind="stable")
        at_once = min(self._sids, _PREFIXES_AT_ONCE)  # as many as fill the pool come first
        while True:
            waiting = waiting[score[waiting] >= self._worst]
            if len(waiting) == 0:
                break
            chunk, waiting, at_once = np.sort(waiting[:at_once]), waiting[at_once:], _PREFIXES_AT_ONCE
            chunk = chunk[self._affordable(score[chunk])]
            if len(chunk) == 0:
                break
            short = tokens[chunk, 1] >= (HEAD_LAYER_INDEX + 1) * self._size
            following = np.empty((len(chunk), self._size), np.float32)
            for without_layer_2 in (False, True):
                rows = np.flatnonzero(short == without_layer_2)
                if len(rows):
                    readings = np.full((len(rows), self._layers - 2), PADDING, np.int32)
                    readings[:, : depth - 1] = tokens[chunk[rows], 1:]
                    following[rows] = paths.following(
                        Readings(first[chunk[rows]], readings, score[chunk[rows]]), depth + without_layer_2
                    )
            owner, token = self._trie.children(tokens[chunk])
            column = token - (depth + short[owner]) * self._size
            longer.append(
                self._sorted_out(
                    tokens[chunk], owner, token, score[chunk][owner] + following[owner, column], first[chunk][owner]
                )
            )
        return (
            np.concatenate([each[0] for each in longer]),
            np.concatenate([each[1] for each in longer]),
            np.concatenate([each[2] for each in longer]),
        )

    def _sorted_out(
        self,
        prefixes: npt.NDArray[np.int32],
        owner: npt.NDArray[np.intp],
        token: npt.NDArray[np.int32],
        score: npt.NDArray[np.float64],
        first: npt.NDArray[np.intp],
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float64], npt.NDArray[np.intp]]:
        """Finished SIDs go into the pool; the unfinished ones that can still reach it come back."""
        query = np.zeros(len(token), dtype=np.intp)
        finished = token >= (self._layers - 1) * self._size
        found = self._pool.candidates(query, score, finished)
        depth = prefixes.shape[1]
        ended = np.full((len(found), self._layers), PADDING, dtype=np.int32)
        ended[:, :depth], ended[:, depth] = prefixes[owner[found]], token[found]
        self._pool.add(query[found], ended, score[found], self._before + first[found])
        open_ = np.flatnonzero(~finished & (score >= self._worst))
        tokens = np.concatenate((prefixes[owner[open_]], token[open_, None]), axis=1)
        return tokens, score[open_], first[open_]
