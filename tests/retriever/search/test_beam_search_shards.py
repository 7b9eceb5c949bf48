"""Searches over parts of a catalogue against one over the whole: what of it adds up, and what does not.

The theorem (docs/scale.md). A prefix's score depends on neither trie nor shard, and falls from a prefix to what follows it. So

1. the k best SIDs of the whole are the k best of what k-best searches of the parts find (``exact_search``, or beams without end);
2. a beam finds each SID of its part that scores above ``lost``, the best prefix that it has dropped. Hence the SIDs that all
   parts find and that score above every part's ``lost`` are the best of the whole, in this order.

It does not hold that a part's beam keeps what a beam over the whole keeps of this part: what the whole drops early may stay in
the part, where it has fewer rivals, and push out later what the whole keeps.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.sids.layout import Layout

torch = pytest.importorskip("torch")

from retriever.search.beam_search import ScoredSid, Step, beam_search  # noqa: E402
from retriever.search.exact_search import exact_search  # noqa: E402
from study.measures.catalogue_trie import CatalogueTrie  # noqa: E402
from support.decoding_cases import CODEBOOK, llama, prompts_of, random_codes, sids_of, vocabulary_of  # noqa: E402

SIZE = 12
VOCABULARIES = {layers: vocabulary_of(layers, SIZE) for layers in (3, 4)}
MODELS = {layers: [llama(VOCABULARIES[layers], seed=seed) for seed in range(3)] for layers in (3, 4)}
Sid = tuple[int, ...]


@st.composite
def divisions(draw: st.DrawFn) -> tuple[int, Layout, list[npt.NDArray[np.uint16]]]:
    """Model, layout, and the codes of each part of a catalogue; parts share paths, as items do."""
    layers = draw(st.sampled_from([3, 3, 4]))
    heads = draw(st.sampled_from([(), (0, 1), tuple(range(SIZE))]))
    codes = random_codes(draw(st.integers(1, 150)), layers, SIZE, seed=draw(st.integers(0, 10)))
    of_part = np.random.default_rng(draw(st.integers(0, 10))).integers(draw(st.integers(2, 4)), size=len(codes))
    parts = [codes[of_part == part] for part in np.unique(of_part)]
    return draw(st.integers(0, 2)), Layout(1, CODEBOOK, layers, SIZE, heads), parts


def best_of(found: Sequence[Sequence[ScoredSid]], count: int) -> list[tuple[Sid, float]]:
    """The best of all parts', each SID once; scores are of sums in another order, and equal but for the last digits."""
    every = {sid.tokens: sid.score for part in found for sid in part}
    return sorted(every.items(), key=lambda one: (-one[1], one[0]))[:count]


def assert_same(own: Sequence[tuple[Sid, float]], whole: Sequence[tuple[Sid, float]]) -> None:
    assert [score for _, score in own] == pytest.approx([score for _, score in whole], abs=1e-4)
    for (tokens, score), (other, _) in zip(own, whole, strict=True):
        level = [sid for sid, value in whole if abs(value - score) < 1e-4]
        assert tokens == other or tokens in level or abs(score - whole[-1][1]) < 1e-4


@settings(max_examples=25)
@given(divisions(), st.integers(1, 12))
def test_best_of_exact_searches_of_the_parts_are_the_best_of_the_whole(
    divided: tuple[int, Layout, list[npt.NDArray[np.uint16]]], count: int
) -> None:
    seed, layout, parts = divided
    vocabulary, model = VOCABULARIES[layout.layers], MODELS[layout.layers][seed]
    prompts = prompts_of(vocabulary, (5,))
    found = []
    for codes in [np.concatenate(parts), *parts]:
        [exact] = exact_search(model, vocabulary, prompts, CatalogueTrie(codes, layout), sids=count, budget=100_000)
        assert exact.complete
        found.append(exact.sids)
    assert_same(best_of(found[1:], count), [(sid.tokens, sid.score) for sid in found[0]])


def lost_by(kept: Sequence[Step], every: dict[Sid, float], part: set[Sid], beams: int, found: set[Sid]) -> float:
    """The score of the best prefix of a part that its beam dropped; -inf if it dropped none. ``every``: of all prefixes."""
    stayed = [{tuple(row) for row in step.tokens.tolist()} for step in kept]
    lost = -np.inf
    for sid in part - found:
        for depth, of_step in enumerate(stayed, start=1):
            if len(sid) > depth and sid[:depth] not in of_step:
                lost = max(lost, every[sid[:depth]])
                break
        else:
            lost = max(lost, every[sid])  # it came to the pool, which held ``beams`` better ones
    return lost


@settings(max_examples=25)
@given(divisions(), st.integers(1, 6))
def test_what_beams_of_the_parts_find_above_what_they_dropped_are_the_best_of_the_whole(
    divided: tuple[int, Layout, list[npt.NDArray[np.uint16]]], beams: int
) -> None:
    seed, layout, parts = divided
    vocabulary, model = VOCABULARIES[layout.layers], MODELS[layout.layers][seed]
    prompts = prompts_of(vocabulary, (5,))
    whole = np.concatenate(parts)
    steps: list[Step] = []
    [everything] = beam_search(
        model, vocabulary, prompts, CatalogueTrie(whole, layout), beams=10_000, observe=steps.append
    )
    every: dict[Sid, float] = {sid.tokens: sid.score for sid in everything}
    for step in steps:
        every |= zip(map(tuple, step.tokens.tolist()), step.score.tolist(), strict=True)
    found, lost = [], -np.inf
    for codes in parts:
        kept: list[Step] = []
        [own] = beam_search(model, vocabulary, prompts, CatalogueTrie(codes, layout), beams=beams, observe=kept.append)
        found.append(own)
        lost = max(lost, lost_by(kept, every, sids_of(layout, codes), beams, {sid.tokens for sid in own}))
    sure = [(tokens, score) for tokens, score in best_of(found, 10_000) if score > lost + 1e-4]
    expected = [(sid.tokens, sid.score) for sid in everything if sid.score > lost + 1e-4]
    assert len(sure) == pytest.approx(len(expected), abs=sum(abs(sid.score - lost) < 3e-4 for sid in everything))
    assert_same(sure[: len(expected)], expected[: len(sure)])


def test_beam_of_a_part_may_drop_what_a_beam_over_the_whole_keeps_of_it() -> None:
    layout, vocabulary = Layout(1, CODEBOOK, 3, SIZE, ()), VOCABULARIES[3]
    dropped = first_token_dropped = 0
    for seed in range(12):
        codes = random_codes(300, 3, SIZE, seed=seed)
        part = codes[np.random.default_rng(seed).random(len(codes)) < 0.5]
        prompts = prompts_of(vocabulary, (4, 7, 3, 12), seed=seed)
        model = MODELS[3][seed % 3]
        kept: list[list[Step]] = [[], []]
        answers = [
            beam_search(model, vocabulary, prompts, CatalogueTrie(some, layout), beams=3, observe=steps.append)
            for some, steps in zip((codes, part), kept, strict=True)
        ]
        live = sids_of(layout, part)
        for of_whole, of_part in zip(*answers, strict=True):
            dropped += len({sid.tokens for sid in of_whole} & live - {sid.tokens for sid in of_part})
        # Of the first step it does hold: there the rivals are those of the whole, or fewer.
        first = [np.unique(steps[0].tokens) for steps in kept]
        live_first = {sid[0] for sid in live}
        first_token_dropped += len(set(first[0].tolist()) & live_first - set(first[1].tolist()))
    assert dropped > 0
    assert first_token_dropped == 0
