"""The exact search against brute force over every live SID."""

from __future__ import annotations

import numpy as np
import pytest

from models.errors import SidstreamError
from models.sids.layout import Layout

torch = pytest.importorskip("torch")

from retriever.search import exact_search as module  # noqa: E402
from retriever.search.beam_search import beam_search  # noqa: E402
from retriever.search.exact_search import exact_search  # noqa: E402
from study.measures.catalogue_trie import CatalogueTrie  # noqa: E402
from support.decoding_cases import CODEBOOK, assert_same, llama, prompts_of, random_codes, vocabulary_of  # noqa: E402


@pytest.mark.parametrize("normaliser", ["vocabulary", "layers"])
@pytest.mark.parametrize("at_once", [1, 7, 128])
@pytest.mark.parametrize(("layers", "heads"), [(3, ()), (3, (0, 1, 4)), (3, tuple(range(8))), (4, (0, 1)), (5, (0, 2))])
def test_the_best_sids_are_those_of_scoring_every_live_sid(
    layers: int, heads: tuple[int, ...], at_once: int, normaliser: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PREFIXES_AT_ONCE", at_once)
    layout = Layout(1, CODEBOOK, layers, 8, heads)
    vocabulary = vocabulary_of(layers, 8)
    model = llama(vocabulary, seed=layers)
    trie = CatalogueTrie(random_codes(200, layers, 8, seed=2), layout)
    prompts = prompts_of(vocabulary, (2, 9, 4))
    everything = beam_search(
        model, vocabulary, prompts, trie, beams=10_000, normaliser=normaliser
    )  # brute force: nothing is dropped
    answers = exact_search(model, vocabulary, prompts, trie, sids=6, normaliser=normaliser, budget=10_000)
    for all_of_them, answer in zip(everything, answers, strict=True):
        assert answer.complete
        assert_same(answer.sids, [(sid.tokens, sid.score) for sid in all_of_them[:6]])
        for exact, sid in zip(answer.sids, all_of_them, strict=False):
            assert (exact.left_out is None) == (sid.left_out is None)
            if exact.left_out is not None and sid.left_out is not None:
                np.testing.assert_allclose(exact.left_out, sid.left_out, atol=1e-4)


def test_a_sid_whose_beginning_a_narrow_beam_drops_is_found() -> None:
    layout = Layout(1, CODEBOOK, 3, 16, (0, 1))
    vocabulary = vocabulary_of(3, 16)
    trie = CatalogueTrie(random_codes(600, 3, 16, seed=6), layout)
    prompts = prompts_of(vocabulary, (4, 7, 3, 12, 9, 5))
    missed = 0
    for seed in range(4):
        model = llama(vocabulary, seed=seed)
        by_beam = beam_search(model, vocabulary, prompts, trie, beams=3)
        exact = exact_search(model, vocabulary, prompts, trie, sids=3)
        for beam, answer in zip(by_beam, exact, strict=True):
            assert answer.complete
            assert answer.sids[-1].score >= beam[-1].score - 1e-4
            missed += [sid.tokens for sid in beam] != [sid.tokens for sid in answer.sids]
    assert missed > 0


def test_a_spent_budget_is_said_and_what_was_found_is_live_and_rightly_scored() -> None:
    layout = Layout(1, CODEBOOK, 3, 16, (0, 1))
    vocabulary = vocabulary_of(3, 16)
    trie = CatalogueTrie(random_codes(600, 3, 16, seed=6), layout)
    model = llama(vocabulary, seed=1)
    prompts = prompts_of(vocabulary, (4, 7))
    everything = beam_search(model, vocabulary, prompts, trie, beams=10_000)
    by_beam = beam_search(model, vocabulary, prompts, trie)
    for budget in (1, 5, 40):
        answers = exact_search(model, vocabulary, prompts, trie, budget=budget)
        for scored, beam, answer in zip(everything, by_beam, answers, strict=True):
            known = {sid.tokens: sid.score for sid in scored}
            assert not answer.complete
            assert answer.expansions <= budget
            assert_same(answer.sids, [(sid.tokens, known[sid.tokens]) for sid in answer.sids])
            assert len(answer.sids) == 50
            assert answer.sids[-1].score >= beam[-1].score  # never worse than the beam


def test_an_empty_trie_is_complete_at_once_and_a_budget_of_nothing_is_refused() -> None:
    layout = Layout(1, CODEBOOK, 3, 8, ())
    vocabulary = vocabulary_of(3, 8)
    trie = CatalogueTrie(np.empty((0, 3), dtype=np.uint16), layout)
    model, prompts = llama(vocabulary), prompts_of(vocabulary, (4,))
    (answer,) = exact_search(model, vocabulary, prompts, trie)
    assert (answer.sids, answer.complete, answer.expansions) == ([], True, 0)
    with pytest.raises(SidstreamError, match="budget"):
        exact_search(model, vocabulary, prompts, trie, budget=0)


def test_queries_of_one_batch_may_have_tries_of_their_own() -> None:
    """Each is answered as if it had been asked alone of its own trie, by the beam and by the exact search."""
    layout = Layout(1, CODEBOOK, 3, 16, (0, 3))
    vocabulary = vocabulary_of(3, 16)
    model = llama(vocabulary)
    codes = random_codes(500, 3, 16, seed=8)
    tries = [CatalogueTrie(codes, layout, np.arange(begin, 500, 3)) for begin in range(3)] + [
        CatalogueTrie(codes, layout)
    ]
    tries.append(CatalogueTrie(codes[:0], layout))
    prompts = prompts_of(vocabulary, (1, 20, 7, 13, 5))
    for search in (beam_search, lambda *of, beams: [each.sids for each in exact_search(*of, sids=beams)]):
        together = search(model, vocabulary, prompts, tries, beams=10)
        for prompt, trie, answer in zip(prompts, tries, together, strict=True):
            (alone,) = search(model, vocabulary, [prompt], trie, beams=10)
            assert_same(answer, [(sid.tokens, sid.score) for sid in alone])


def test_tries_of_several_layouts_or_of_another_number_are_refused() -> None:
    vocabulary = vocabulary_of(3, 8)
    codes = random_codes(50, 3, 8)
    tries = [CatalogueTrie(codes, Layout(1, CODEBOOK, 3, 8, heads)) for heads in ((), (1,))]
    model, prompts = llama(vocabulary), prompts_of(vocabulary, (4, 2))
    with pytest.raises(SidstreamError, match="several layouts"):
        beam_search(model, vocabulary, prompts, tries)
    with pytest.raises(SidstreamError, match="2 prompts and 1 tries"):
        beam_search(model, vocabulary, prompts, tries[:1])
