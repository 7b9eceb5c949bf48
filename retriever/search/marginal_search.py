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

from collections.abc import Iterator
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
    Level,
    Normaliser,
    Pool,
    ScoredSid,
    Trie,
    check_arguments,
    first_step,
    greatest_of_each,
    ranges,
    sids_of_pool,
    trie_levels,
)
from store.topology.trie_view import SidPaths

# Readings of a query before the pool is asked again which others can still reach it: a trained model then runs
# about a third of them.
_READINGS_AT_ONCE: Final = 128


def marginal_beam_search(
    model: Any,
    vocabulary: SidVocabulary,
    prompts: list[list[int]],
    trie: Trie,
    *,
    layout: Layout,
    pinned: Layout,
    beams: int = 50,
    normaliser: Normaliser = "vocabulary",
) -> list[list[ScoredSid]]:
    """The best SIDs of ``layout`` for each prompt by a model that writes SIDs of ``pinned``; else as ``beam_search``.

    ``trie``: read under ``layout``. ``prompts``: token ids; histories in them are SIDs of ``pinned``, which is what the
    model reads. ``left_out`` of a short SID is the exact posterior log P(c2 | prompt, SID) of each item's left-out
    token; items whose token the pinned layout leaves out as well share one value. With equal head tokens this is
    ``beam_search``, ``left_out`` included. Raises ``SidstreamError`` if layouts, vocabulary and trie do not fit.
    """
    check_arguments(prompts, beams)
    _check_layouts(vocabulary, layout, pinned)
    if layout.head_tokens == pinned.head_tokens:
        return beam_search(model, vocabulary, prompts, trie, beams=beams, normaliser=normaliser)
    live = trie.first_tokens()
    if len(live) == 0 or not prompts:
        return [[] for _ in prompts]
    with torch.inference_mode():
        passes = forward_passes(model, max(map(len, prompts)) + vocabulary.layers)
        query, first_tokens, score = first_step(passes, vocabulary, prompts, live, beams, normaliser)
        if len(query) == 0:
            return [[] for _ in prompts]
        paths = trie.paths(np.unique(first_tokens))
        if not np.array_equal(paths.tokens[:, -1] == PADDING, layout.is_head[paths.codes[:, HEAD_LAYER_INDEX]]):
            raise SidstreamError(
                f"the trie is not read under layout {layout.generation}: make it with TrieView(snapshot, layout)"
            )
        model_paths = ModelPaths(passes, vocabulary, normaliser, len(prompts), query, first_tokens)
        search = _MarginalSearch(model_paths, vocabulary, paths, layout, pinned, len(prompts), beams)
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
    tokens, so rows stay in the order of their SIDs, and each layer of the codes is one level of the trie.
    """

    def __init__(
        self,
        model_paths: ModelPaths,
        vocabulary: SidVocabulary,
        paths: SidPaths,
        layout: Layout,
        pinned: Layout,
        queries: int,
        beams: int,
    ) -> None:
        self._model_paths, self._paths, self._pinned = model_paths, paths, pinned
        self._layers, self._size, self._queries, self._beams = vocabulary.layers, vocabulary.size, queries, beams
        self._no_token = (HEAD_LAYER_INDEX + 1) * self._size
        aligned = paths.tokens.copy()
        short = aligned[:, -1] == PADDING
        aligned[short, HEAD_LAYER_INDEX + 1 :] = paths.tokens[short, HEAD_LAYER_INDEX:-1]
        aligned[short, HEAD_LAYER_INDEX] = self._no_token
        self._levels: list[Level] = trie_levels(aligned)
        # The readings of a left-out layer-2 token: the tokens that the pinned layout writes, then, if there is any
        # that it leaves out, the path without it.
        written = np.flatnonzero(layout.is_head & ~pinned.is_head)
        has_short_path = bool((layout.is_head & pinned.is_head).any())
        self._readings = np.append(written + self._size, [PADDING] * has_short_path).astype(np.int32)
        self._reading_of = np.where(pinned.is_head, len(written), np.searchsorted(written, np.arange(self._size)))
        self._pool = Pool(queries, beams)

    def after_layer_2(
        self, query: npt.NDArray[np.intp], first_tokens: npt.NDArray[np.int32], score: npt.NDArray[np.float64]
    ) -> Hypotheses:
        """All prefixes with the layer-2 token left out, and the best ``beams`` of those with it, grouped by query."""
        node_of = np.searchsorted(self._levels[0].token, first_tokens)
        parent, node = self._levels[0].children(node_of)
        token = self._levels[1].token[node]
        is_short = token == self._no_token
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
        tokens = np.full((len(reading), self._layers - 2), PADDING, dtype=np.int32)
        tokens[:, 0] = reading
        prefixes = Hypotheses(query[parent], node, bound, begin, Readings(first, tokens, path_score))
        open_ = np.flatnonzero(~is_short)
        kept = open_[greatest_of_each(prefixes.query[open_], bound[open_], self._queries, self._beams)]
        return prefixes.take(np.sort(np.concatenate((np.flatnonzero(is_short), kept))))

    def run(self, hypotheses: Hypotheses) -> list[list[ScoredSid]]:
        """From the prefixes of two layers to answers."""
        for depth in range(HEAD_LAYER_INDEX + 1, self._layers - 1):
            hypotheses = self._extended(hypotheses, depth)
        return self._finished(hypotheses)

    def _extended(self, hypotheses: Hypotheses, depth: int) -> Hypotheses:
        """The best ``beams`` prefixes one layer longer (layer index ``depth``)."""
        best = hypotheses.take(np.empty(0, dtype=np.intp))
        worst = np.full(self._queries, -np.inf)
        for _, chunk in self._chunks(hypotheses, worst):
            following = self._model_paths.following(chunk.readings, depth)
            parent, node, score = self._children(chunk, following, depth)
            found = greatest_of_each(chunk.query[parent], score, self._queries, self._beams)
            parent, node, score = parent[found], node[found], score[found]
            owner, row = ranges(chunk.begin[parent], chunk.begin[parent + 1])
            token = self._levels[depth].token[node][owner]
            readings = Readings(
                chunk.readings.first[row],
                appended(chunk.readings.tokens[row], token),
                chunk.readings.score[row] + following[row, token - depth * self._size],
            )
            begin = bounds_of(chunk.counts[parent])
            best = best.with_others(Hypotheses(chunk.query[parent], node, score, begin, readings))
            order = np.lexsort((best.node, best.query))
            kept = greatest_of_each(best.query[order], best.score[order], self._queries, self._beams)
            best = best.take(order[kept])
            held = np.bincount(best.query, minlength=self._queries)
            full = held >= self._beams
            worst[full] = best.score[np.cumsum(held)[full] - 1]
        return best

    def _finished(self, hypotheses: Hypotheses) -> list[list[ScoredSid]]:
        """The last layer: SIDs with their scores, and the share that each left-out token has in them."""
        depth = self._layers - 1
        codes = self._paths.codes
        bounds = np.append(self._levels[depth - 1].start, len(codes))
        row_begin, row_end = bounds[hypotheses.node], bounds[hypotheses.node + 1]
        short = self._paths.tokens[row_begin, -1] == PADDING
        # The log-probability of each item's own path, for the rows below every hypothesis without layer 2.
        own_begin = bounds_of(np.where(short, row_end - row_begin, 0))
        own = np.full(own_begin[-1], np.nan)
        for which, chunk in self._chunks(hypotheses, self._pool.worst):
            following = self._model_paths.following(chunk.readings, depth)
            parent, node, score = self._children(chunk, following, depth)
            self._pool.add(chunk.query[parent], self._levels[depth].start[node], score, which[parent])
            without = np.flatnonzero(short[which])
            owner, row = ranges(row_begin[which[without]], row_end[which[without]])
            reading = chunk.begin[without][owner] + self._reading_of[codes[row, HEAD_LAYER_INDEX]]
            at = (own_begin[which[without]] - row_begin[which[without]])[owner] + row
            own[at] = chunk.readings.score[reading] + following[reading, codes[row, depth]]

        def left_out(origin: int, rows: slice, score: float) -> npt.NDArray[np.float32]:
            shift = int(own_begin[origin] - row_begin[origin])
            return (own[rows.start + shift : rows.stop + shift] - score).astype(np.float32)

        return sids_of_pool(self._pool, self._paths, self._queries, left_out)

    def _chunks(
        self, hypotheses: Hypotheses, worst: npt.NDArray[np.float64]
    ) -> Iterator[tuple[npt.NDArray[np.intp], Hypotheses]]:
        """Hypotheses with their numbers, each query's best first, about ``_READINGS_AT_ONCE`` of each at a time; those
        that cannot surpass their query's ``worst``, which may rise between two chunks, never come.
        """
        counts = hypotheses.counts
        waiting = np.lexsort((hypotheses.node, -hypotheses.score, hypotheses.query))
        while True:
            query = hypotheses.query[waiting]
            waiting = waiting[hypotheses.score[waiting] > worst[query]]
            if len(waiting) == 0:
                return
            query = hypotheses.query[waiting]
            before = np.cumsum(counts[waiting])
            first = np.searchsorted(query, query)  # place of the query's best
            readings = before - (before - counts[waiting])[first]
            is_next = (readings <= _READINGS_AT_ONCE) | (np.arange(len(query)) == first)
            chosen = waiting[is_next]
            chosen = chosen[np.lexsort((hypotheses.node[chosen], hypotheses.query[chosen]))]
            waiting = waiting[~is_next]
            yield chosen, hypotheses.take(chosen)

    def _children(
        self, chunk: Hypotheses, following: npt.NDArray[np.float32], depth: int
    ) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.float64]]:
        """All continuations in the trie: the hypothesis extended, the node, and the sum over the readings."""
        parent, node = self._levels[depth - 1].children(chunk.node)
        column = self._levels[depth].token[node] - depth * self._size
        owner, row = ranges(chunk.begin[parent], chunk.begin[parent + 1])
        each = chunk.readings.score[row] + following[row, column[owner]]
        return parent, node, _log_of_sums(each, bounds_of(chunk.counts[parent]))


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
