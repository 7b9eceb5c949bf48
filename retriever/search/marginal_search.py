"""Exact marginal decoding: the SIDs of one layout by a language model that writes those of another.

A model stays on the layout that it was trained for, *pinned*; the trie is read under another one, say the live one. A
SID of the trie's layout gets the sum of the probabilities of all token paths of the pinned layout that it may stand
for: P(c1, c3) = Σ P(c2 | c1) · P(c3 | c1, c2) over every head token c2 of the trie's layout, live or not.

What must hold
- The score of every SID returned is that sum, to the precision of the model's own numbers. Nothing of it is left out
  for speed: a group of paths is dropped only when all of it together cannot reach the pool of finished SIDs.
- A path is counted once a SID. If the pinned layout itself leaves out a head token, its short path is one of the
  paths; and where the trie's layout writes out a token that the pinned one leaves out, the model says nothing about
  which of these SIDs it means, so that each gets the whole probability of the short path.
- The search is a beam in what the sums do not touch: the best ``beams`` layer-1 tokens are expanded, with all of their
  left-out layer-2 tokens and the best ``beams`` of the others; past layer 3 the best ``beams`` prefixes.

A hypothesis is a prefix of SIDs of the trie's layout, with its *readings*: the paths of the pinned layout that it may
stand for. They are run in tree passes over one prompt cache, those of the best hypotheses first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from models.errors import SidstreamError
from models.sids.layout import HEAD_LAYER_INDEX, PADDING, Layout
from models.sids.vocabulary import SidVocabulary
from retriever.search.beam_search import beam_search
from retriever.search.forward_passes import forward_passes
from retriever.search.readings import Hypotheses, ModelPaths, Readings, appended, bounds_of
from retriever.search.search_parts import (
    Normaliser,
    Pool,
    ScoredSid,
    Trie,
    Tries,
    check_arguments,
    first_step,
    greatest_of_each,
    ranges,
)

# Readings of a query before the pool is asked again which others can still reach it: a trained model then runs
# about a third of them.
_READINGS_AT_ONCE: Final = 128


def marginal_beam_search(
    model: Any,
    vocabulary: SidVocabulary,
    prompts: list[list[int]],
    trie: Trie | Sequence[Trie],
    *,
    pinned: Layout,
    beams: int = 50,
    normaliser: Normaliser = "vocabulary",
) -> list[list[ScoredSid]]:
    """The best SIDs of the trie's layout for each prompt by a model that writes SIDs of ``pinned``; else as ``beam_search``.

    ``prompts``: token ids; histories in them are SIDs of ``pinned``, which is what the model reads. ``left_out`` of a short
    SID is the exact posterior log P(c2 | prompt, SID); tokens that the pinned layout leaves out as well share one value. With
    equal head tokens this is ``beam_search``, ``left_out`` included. Raises ``SidstreamError`` if layouts and vocabulary do
    not fit.
    """
    check_arguments(prompts, beams)
    tries = Tries(trie, len(prompts))
    if (layout := tries.layout) is None:
        return []
    _check_layouts(vocabulary, layout, pinned)
    if layout.head_tokens == pinned.head_tokens:
        return beam_search(model, vocabulary, prompts, trie, beams=beams, normaliser=normaliser)
    live = tries.first_tokens()
    if not any(map(len, live)):
        return [[] for _ in prompts]
    with torch.inference_mode():
        passes = forward_passes(model, max(map(len, prompts)) + vocabulary.layers)
        query, first_tokens, score = first_step(passes, vocabulary, prompts, live, beams, normaliser)
        if len(query) == 0:
            return [[] for _ in prompts]
        model_paths = ModelPaths(passes, vocabulary, normaliser, len(prompts), query, first_tokens)
        search = _MarginalSearch(model_paths, vocabulary, tries, layout, pinned, len(prompts), beams)
        return search.run(search.after_layer_2(query, first_tokens, score))


def _check_layouts(vocabulary: SidVocabulary, layout: Layout, pinned: Layout) -> None:
    for name, one in (("layout", layout), ("pinned", pinned)):
        if (one.layers, one.size) != (vocabulary.layers, vocabulary.size):
            raise SidstreamError(
                f"{name} has {one.layers} layers of {one.size} tokens, the model {vocabulary.layers} of "
                f"{vocabulary.size}: use layouts of the model's own bundle"
            )
    if layout.codebook_id != pinned.codebook_id:
        raise SidstreamError(
            f"layout is for codebook {layout.codebook_id}, pinned for {pinned.codebook_id}: SIDs of one codebook mean "
            "nothing in another"
        )


class _MarginalSearch:
    """One search: the trie with the layers of all SIDs aligned, and the pool.

    Where a SID leaves out its layer-2 token, the mark ``_no_token`` stands in its place. It is greater than all layer-2
    tokens, so prefixes stay in the order of their SIDs.
    """

    def __init__(
        self,
        model_paths: ModelPaths,
        vocabulary: SidVocabulary,
        tries: Tries,
        layout: Layout,
        pinned: Layout,
        queries: int,
        beams: int,
    ) -> None:
        self._model_paths, self._tries, self._pinned = model_paths, tries, pinned
        self._layers, self._size, self._queries, self._beams = vocabulary.layers, vocabulary.size, queries, beams
        self._no_token = (HEAD_LAYER_INDEX + 1) * self._size
        # The readings of a left-out layer-2 token: the tokens that the pinned layout writes, then, if there is any
        # that it leaves out, the path without it.
        written = np.flatnonzero(layout.is_head & ~pinned.is_head)
        has_short_path = bool((layout.is_head & pinned.is_head).any())
        self._readings = np.append(written + self._size, [PADDING] * has_short_path).astype(np.int32)
        self._heads = np.flatnonzero(layout.is_head)
        self._reading_of_heads = np.where(
            pinned.is_head[self._heads], len(written), np.searchsorted(written, self._heads)
        )
        self._pool = Pool(queries, beams, vocabulary.layers)
        # Log-probability of each reading of each short SID that came near the pool.
        self._own: list[npt.NDArray[np.float64]] = []
        self._own_count = 0

    def after_layer_2(
        self, query: npt.NDArray[np.intp], first_tokens: npt.NDArray[np.int32], score: npt.NDArray[np.float64]
    ) -> Hypotheses:
        """All prefixes with the layer-2 token left out, and the best ``beams`` of those with it."""
        parent, token = self._tries.children(query, first_tokens[:, None])
        is_short = token >= self._no_token
        new = np.ones(len(parent), dtype=bool)
        new[1:] = ~is_short[1:] | ~is_short[:-1] | (parent[1:] != parent[:-1])
        parent, is_short = parent[new], is_short[new]
        token = np.where(is_short, np.int32(self._no_token), token[new])
        counts = np.where(is_short, len(self._readings), 1)
        begin = bounds_of(counts)
        owner, number = ranges(np.zeros_like(counts), counts)
        model_omits = self._pinned.is_head[np.where(is_short, 0, token - self._size)]
        reading = np.where(model_omits, np.int32(PADDING), token)[owner]
        of_short = is_short[owner]
        reading[of_short] = self._readings[number[of_short]]
        first = parent[owner]
        has_layer2 = reading != PADDING
        step = np.where(has_layer2, self._model_paths.layer2[first, np.where(has_layer2, reading - self._size, 0)], 0.0)
        path_score = score[first] + step
        # A path that goes on with layer 3 can be worth no more than that layer has in all.
        rest = np.where(has_layer2, 0.0, _log_of_row_sums(self._model_paths.layer3)[first])
        bound = _log_of_sums(path_score + rest, begin)
        paths = np.full((len(reading), self._layers - 2), PADDING, dtype=np.int32)
        paths[:, 0] = reading
        tokens = np.stack((first_tokens[parent], token), axis=1)
        prefixes = Hypotheses(query[parent], tokens, bound, begin, Readings(first, paths, path_score))
        open_ = np.flatnonzero(~is_short)
        kept = open_[greatest_of_each(prefixes.query[open_], bound[open_], self._queries, self._beams)]
        return prefixes.take(np.sort(np.concatenate((np.flatnonzero(is_short), kept))))

    def run(self, hypotheses: Hypotheses) -> list[list[ScoredSid]]:
        """From the prefixes of two layers to answers."""
        for depth in range(HEAD_LAYER_INDEX + 1, self._layers - 1):
            hypotheses = self._extended(hypotheses, depth)
        self._finish(hypotheses)
        return self._pool.sids(self._left_out)

    def _extended(self, hypotheses: Hypotheses, depth: int) -> Hypotheses:
        """The best ``beams`` prefixes one layer longer (layer index ``depth``)."""
        best: Hypotheses | None = None
        worst = np.full(self._queries, -np.inf)
        for chunk in self._chunks(hypotheses, worst):
            following = self._model_paths.following(chunk.readings, depth)
            parent, token, score = self._children(chunk, following, depth, worst)
            found = greatest_of_each(chunk.query[parent], score, self._queries, self._beams)
            parent, token, score = parent[found], token[found], score[found]
            owner, row = ranges(chunk.begin[parent], chunk.begin[parent + 1])
            readings = Readings(
                chunk.readings.first[row],
                appended(chunk.readings.tokens[row], token[owner]),
                chunk.readings.score[row] + following[row, token[owner] - depth * self._size],
            )
            tokens = np.concatenate((chunk.tokens[parent], token[:, None]), axis=1)
            longer = Hypotheses(chunk.query[parent], tokens, score, bounds_of(chunk.counts[parent]), readings)
            best = longer if best is None else best.with_others(longer)
            order = best.order
            kept = greatest_of_each(best.query[order], best.score[order], self._queries, self._beams)
            best = best.take(order[kept])
            held = np.bincount(best.query, minlength=self._queries)
            full = held >= self._beams
            worst[full] = best.score[np.cumsum(held)[full] - 1]
        return hypotheses if best is None else best

    def _finish(self, hypotheses: Hypotheses) -> None:
        """The last layer: SIDs with their scores into the pool, and what each reading of the short ones has in them."""
        depth = self._layers - 1
        for chunk in self._chunks(hypotheses, self._pool.worst):
            following = self._model_paths.following(chunk.readings, depth)
            parent, token, score = self._children(chunk, following, depth, self._pool.worst)
            found = self._pool.candidates(chunk.query[parent], score, np.ones(len(parent), dtype=bool))
            parent, token, score = parent[found], token[found], score[found]
            short = self._is_short(chunk)[parent]
            tokens = np.concatenate((chunk.tokens[parent], token[:, None]), axis=1)
            tokens[short, HEAD_LAYER_INDEX:-1] = tokens[short, HEAD_LAYER_INDEX + 1 :]
            tokens[short, -1] = PADDING
            origin = np.full(len(parent), -1, dtype=np.intp)
            origin[short] = self._own_count + np.arange(short.sum())
            rows = chunk.begin[parent[short]][:, None] + np.arange(len(self._readings))
            self._own.append(chunk.readings.score[rows] + following[rows, token[short, None] - depth * self._size])
            self._own_count += len(rows)
            self._pool.add(chunk.query[parent], tokens, score, origin)

    def _left_out(self, origin: int, score: float) -> npt.NDArray[np.float32]:
        """(M,) log-probability of each left-out layer-2 token given the SID."""
        for own in self._own:
            if origin < len(own):
                break
            origin -= len(own)
        left_out = np.full(self._size, -np.inf, dtype=np.float32)
        left_out[self._heads] = own[origin, self._reading_of_heads] - score
        return left_out

    def _is_short(self, hypotheses: Hypotheses) -> npt.NDArray[np.bool_]:
        short: npt.NDArray[np.bool_] = hypotheses.tokens[:, HEAD_LAYER_INDEX] == self._no_token
        return short

    def _chunks(self, hypotheses: Hypotheses, worst: npt.NDArray[np.float64]) -> Iterator[Hypotheses]:
        """Each query's best hypotheses first, about ``_READINGS_AT_ONCE`` readings of each at a time, ascending by query and
        tokens; those that cannot reach their query's ``worst``, which may rise between two chunks, never come.
        """
        hypotheses = hypotheses.take(hypotheses.order)
        counts = hypotheses.counts
        waiting = np.lexsort((np.arange(len(counts)), -hypotheses.score, hypotheses.query))
        while True:
            query = hypotheses.query[waiting]
            waiting = waiting[hypotheses.score[waiting] >= worst[query]]
            if len(waiting) == 0:
                return
            query = hypotheses.query[waiting]
            before = np.cumsum(counts[waiting])
            first = np.searchsorted(query, query)  # place of the query's best
            readings = before - (before - counts[waiting])[first]
            is_next = (readings <= _READINGS_AT_ONCE) | (np.arange(len(query)) == first)
            chosen = np.sort(waiting[is_next])
            waiting = waiting[~is_next]
            yield hypotheses.take(chosen)

    def _children(
        self, chunk: Hypotheses, following: npt.NDArray[np.float32], depth: int, worst: npt.NDArray[np.float64]
    ) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int32], npt.NDArray[np.float64]]:
        """The continuations in the trie that can reach their query's ``worst``, ascending: the hypothesis extended, the token,
        and the sum over the readings.
        """
        parents, tokens = [], []
        is_short = self._is_short(chunk)
        for short in (False, True):
            rows = np.flatnonzero(is_short == short)
            if len(rows):
                prefixes = chunk.tokens[rows]
                if short:  # as the trie has it: without the mark
                    prefixes = np.delete(prefixes, HEAD_LAYER_INDEX, axis=1)
                owner, token = self._tries.children(chunk.query[rows], prefixes)
                of_layer = token >= depth * self._size  # after a layer-1 token alone come layer-2 tokens as well
                parents.append(rows[owner[of_layer]])
                tokens.append(token[of_layer])
        parent, token = np.concatenate(parents), np.concatenate(tokens)
        order = np.argsort(parent, kind="stable")
        parent, token = parent[order], token[order]
        column = token - depth * self._size
        # Of most prefixes one reading, so that these need no sums.
        first = chunk.begin[parent]
        score = chunk.readings.score[first] + following[first, column]
        several = np.flatnonzero(chunk.counts > 1)
        runs = zip(*(np.searchsorted(parent, several, side=side).tolist() for side in ("left", "right")), strict=True)
        for hypothesis, (begin, end) in zip(several.tolist(), runs, strict=True):
            of_prefix = slice(chunk.begin[hypothesis], chunk.begin[hypothesis + 1])
            each = chunk.readings.score[of_prefix, None] + following[of_prefix].take(column[begin:end], axis=1)
            score[begin:end] = _log_of_column_sums(each, worst[chunk.query[hypothesis]])
        reaching = score >= worst[chunk.query[parent]]
        return parent[reaching], token[reaching], score[reaching]


def _log_of_column_sums(values: npt.NDArray[np.float64], worst: float) -> npt.NDArray[np.float64]:
    """log Σ exp (n,) of the columns of ``values`` (R, n); -∞, without the work, for one that cannot reach ``worst``."""
    greatest = values.max(axis=0)
    near = np.flatnonzero(greatest + np.log(len(values)) >= worst)
    sums = np.full(values.shape[1], -np.inf)
    sums[near] = greatest[near] + np.log(np.exp(values[:, near] - greatest[near]).sum(axis=0))
    return sums


def _log_of_sums(values: npt.NDArray[np.float64], bounds: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
    """log Σ exp over runs of ``values``, none of them empty; a run of one number gives just that number."""
    if len(bounds) == 1:
        return np.empty(0)
    greatest = np.maximum.reduceat(values, bounds[:-1])
    lengths = bounds[1:] - bounds[:-1]
    return greatest + np.log(np.add.reduceat(np.exp(values - np.repeat(greatest, lengths)), bounds[:-1]))


def _log_of_row_sums(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    greatest = values.max(axis=1).astype(np.float64)
    sums: npt.NDArray[np.float64] = np.exp(values - greatest[:, None]).sum(axis=1)
    np.log(sums, out=sums)
    sums += greatest
    return sums
