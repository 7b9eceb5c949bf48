"""Marginal decoding against its definition: every path of the model's layout by a plain forward pass of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from models.errors import SidstreamError
from models.sids.layout import Layout
from models.sids.vocabulary import SidVocabulary

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from retriever.search import marginal_search, readings  # noqa: E402
from retriever.search.beam_search import beam_search  # noqa: E402
from retriever.search.forward_passes import PlainPasses, forward_passes  # noqa: E402
from retriever.search.marginal_search import marginal_beam_search  # noqa: E402
from study.measures.catalogue_trie import CatalogueTrie  # noqa: E402
from support.decoding_cases import (  # noqa: E402
    CODEBOOK,
    assert_same,
    llama,
    prompts_of,
    random_codes,
    sharpened,
    sids_of,
    vocabulary_of,
)

SIZE = 8
Path = tuple[int, ...]


def layout_of(layers: int, head_tokens: tuple[int, ...], generation: int = 0, size: int = SIZE) -> Layout:
    return Layout(generation, CODEBOOK, layers, size, head_tokens)


class PathProbabilities:
    """log P of token paths after one prompt, each by a forward pass over prompt and path."""

    def __init__(self, model: Any, vocabulary: SidVocabulary, prompt: list[int], normaliser: str = "vocabulary"):
        self.model, self.vocabulary, self.prompt, self.normaliser = model, vocabulary, prompt, normaliser
        self.known: dict[Path, float] = {}

    def all_of(self, paths: set[Path]) -> None:
        for length in {len(path) for path in paths}:
            group = sorted(path for path in paths if len(path) == length and path not in self.known)
            if group:
                self._run(group)

    def _run(self, group: list[Path]) -> None:
        base, size = self.vocabulary.sid_base, self.vocabulary.size
        sequences = torch.tensor([[*self.prompt, *[base + token for token in path]] for path in group])
        with torch.inference_mode():
            logits = self.model(input_ids=sequences, use_cache=False).logits.double()
        for path, rows in zip(group, logits, strict=True):
            score, layer = 0.0, -1
            for depth, token in enumerate(path):
                row = rows[len(self.prompt) - 1 + depth]
                begin, end = 0, self.vocabulary.total
                if self.normaliser == "layers":
                    begin = base + (layer + 1) * size
                    end = begin + (2 if layer == 0 else 1) * size
                score += float(row[base + token] - row[begin:end].logsumexp(dim=0))
                layer = token // size
            self.known[path] = score


def model_paths(sid: Path, layout: Layout, pinned: Layout) -> set[Path]:
    """Every path of the pinned layout that collapses into a SID."""
    codes = layout.codes_of(sid)
    second = layout.head_tokens if codes[1] is None else (codes[1],)
    return {pinned.sid_of([codes[0] or 0, token, *[code or 0 for code in codes[2:]]]) for token in second}


def brute_force(
    model: Any,
    vocabulary: SidVocabulary,
    prompt: list[int],
    codes: npt.NDArray[np.uint16],
    layout: Layout,
    pinned: Layout,
    normaliser: str = "vocabulary",
) -> tuple[dict[Path, float], PathProbabilities]:
    """Score of every live SID."""
    probabilities = PathProbabilities(model, vocabulary, prompt, normaliser)
    paths = {sid: model_paths(sid, layout, pinned) for sid in sids_of(layout, codes)}
    probabilities.all_of(set().union(*paths.values()))
    return {
        sid: float(np.logaddexp.reduce([probabilities.known[path] for path in sorted(of)])) for sid, of in paths.items()
    }, probabilities


def ordered(scores: dict[Path, float]) -> list[tuple[Path, float]]:
    return sorted(scores.items(), key=lambda pair: -pair[1])


PLAIN: tuple[int, ...] = ()
CASES = {
    "plain model, short SIDs live": (PLAIN, (0, 1, 4)),
    "plain model, no layer 2 at all": (PLAIN, tuple(range(SIZE))),
    "a token joined the head": ((0, 1), (0, 1, 4)),
    "one joined and one left": ((0, 1), (1, 4)),
    "the head shrank": ((0, 1, 4), (1,)),
    "the head vanished": ((0, 1), PLAIN),
    "model without layer 2": (tuple(range(SIZE)), (0, 3)),
    "all exchanged": ((0, 1), (2, 3)),
}


@pytest.mark.parametrize("normaliser", ["vocabulary", "layers"])
@pytest.mark.parametrize("layers", [3, 4])
@pytest.mark.parametrize("case", CASES)
def test_wide_beams_give_every_sid_the_sum_over_all_paths_that_it_may_stand_for(
    case: str, layers: int, normaliser: Any
) -> None:
    before, after = CASES[case]
    pinned, layout = layout_of(layers, before), layout_of(layers, after, 1)
    codes = random_codes(80, layers, SIZE, seed=3)
    vocabulary = vocabulary_of(layers, SIZE)
    model = llama(vocabulary, seed=2)
    prompts = prompts_of(vocabulary, (2, 9, 5))
    answers = marginal_beam_search(
        model,
        vocabulary,
        prompts,
        CatalogueTrie(codes, layout),
        pinned=pinned,
        beams=1000,
        normaliser=normaliser,
    )
    for prompt, answer in zip(prompts, answers, strict=True):
        expected, _ = brute_force(model, vocabulary, prompt, codes, layout, pinned, normaliser)
        assert len(answer) == len(expected)
        assert {sid.tokens for sid in answer} == expected.keys()
        np.testing.assert_allclose(
            [sid.score for sid in answer], [expected[sid.tokens] for sid in answer], atol=2e-5, rtol=0
        )
        scores = [sid.score for sid in answer]
        assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("layers", [3, 4, 5])
def test_narrow_beams_return_exact_scores_whatever_the_size_of_a_pass(
    layers: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(marginal_search, "_READINGS_AT_ONCE", [0, 4, 7, 16, 64, 10_000][seed])
    monkeypatch.setattr(readings, "_TOKENS_AT_ONCE", [5, 1, 30, 7, 1_000, 10_000][seed])
    random = np.random.default_rng(seed)
    heads = [tuple(np.flatnonzero(random.random(SIZE) < share).tolist()) for share in (0.3, 0.5)]
    pinned, layout = layout_of(layers, heads[0]), layout_of(layers, heads[1], 1)
    codes = random_codes(120, layers, SIZE, seed=seed)
    vocabulary = vocabulary_of(layers, SIZE)
    model = llama(vocabulary, seed=seed)
    prompts = prompts_of(vocabulary, (3, 1, 6), seed=seed)
    answers = marginal_beam_search(model, vocabulary, prompts, CatalogueTrie(codes, layout), pinned=pinned, beams=5)
    for prompt, answer in zip(prompts, answers, strict=True):
        expected, _ = brute_force(model, vocabulary, prompt, codes, layout, pinned)
        assert len(answer) == 5
        assert_same(answer, [(sid.tokens, expected[sid.tokens]) for sid in answer])


def test_narrow_beams_drop_nothing_that_belongs_to_the_best_below_their_layer_1_tokens() -> None:
    """Groups that cannot reach the pool are never run: the answer is that of running them all."""
    pinned, layout = layout_of(3, ()), layout_of(3, (0, 1, 2, 3, 4, 5, 6, 7), 1)
    codes = random_codes(200, 3, SIZE, seed=11)
    vocabulary = vocabulary_of(3, SIZE)
    model = llama(vocabulary, seed=4)
    beams = 4
    prompts = prompts_of(vocabulary, (4, 8))
    answers = marginal_beam_search(model, vocabulary, prompts, CatalogueTrie(codes, layout), pinned=pinned, beams=beams)
    for prompt, answer in zip(prompts, answers, strict=True):
        expected, probabilities = brute_force(model, vocabulary, prompt, codes, layout, pinned)
        probabilities.all_of({(int(first),) for first in np.unique(codes[:, 0])})
        first = sorted(np.unique(codes[:, 0]).tolist(), key=lambda token: -probabilities.known[(token,)])[:beams]
        below = {sid: score for sid, score in expected.items() if sid[0] in first}
        assert_same(answer, ordered(below)[:beams])


@pytest.mark.parametrize("layers", [3, 4])
@pytest.mark.parametrize(("before", "after"), [(PLAIN, (0, 1, 4)), ((0, 1), (1, 2, 3)), ((0, 1), (0, 1, 2))])
def test_left_out_tokens_carry_their_exact_posterior(
    layers: int, before: tuple[int, ...], after: tuple[int, ...]
) -> None:
    pinned, layout = layout_of(layers, before), layout_of(layers, after, 1)
    codes = random_codes(150, layers, SIZE, seed=5)
    codes[30:60] = codes[:30]
    codes[30:60, 1] = (codes[:30, 1] + 1) % SIZE  # items that share a short SID
    vocabulary = vocabulary_of(layers, SIZE)
    model = llama(vocabulary, seed=1)
    prompts = prompts_of(vocabulary, (5, 3))
    trie = CatalogueTrie(codes, layout)
    answers = marginal_beam_search(model, vocabulary, prompts, trie, pinned=pinned, beams=400)
    shared = 0
    for prompt, answer in zip(prompts, answers, strict=True):
        expected, probabilities = brute_force(model, vocabulary, prompt, codes, layout, pinned)
        for sid in answer:
            (items,) = trie.items_of([sid.tokens])
            np.testing.assert_array_equal(items.codes, codes[items.items])
            if len(sid.tokens) == layers:
                assert sid.left_out is None
                continue
            assert sid.left_out is not None
            own = [probabilities.known[pinned.sid_of(row)] for row in items.codes.tolist()]
            np.testing.assert_allclose(sid.left_out[items.codes[:, 1]], np.array(own) - expected[sid.tokens], atol=1e-4)
            shared += len(set(items.codes[:, 1].tolist())) > 1
    assert shared > 0


def test_equal_scores_come_in_the_order_of_their_tokens() -> None:
    """The pinned layout leaves out tokens that the trie writes: the SIDs of one short path score alike."""
    pinned, layout = layout_of(3, (0, 1, 2, 3)), layout_of(3, (3,), 1)
    codes = np.array([[1, token, 5] for token in (2, 0, 3, 1)] + [[1, 6, 5]], dtype=np.uint16)
    vocabulary = vocabulary_of(3, SIZE)
    prompts = prompts_of(vocabulary, (4,))
    for beams in (1000, 3):
        (answer,) = marginal_beam_search(
            llama(vocabulary),
            vocabulary,
            prompts,
            CatalogueTrie(codes, layout),
            pinned=pinned,
            beams=beams,
        )
        tied = [sid for sid in answer if sid.tokens != (1, 14, 21)]
        assert len({sid.score for sid in tied}) == 1
        assert [sid.tokens for sid in tied] == [(1, 8, 21), (1, 9, 21), (1, 10, 21), (1, 21)][: len(tied)]


def test_equal_head_tokens_are_an_ordinary_search() -> None:
    codes = random_codes(300, 3, SIZE, seed=8)
    layout, pinned = layout_of(3, (0, 1), 5), layout_of(3, (0, 1), 2)
    vocabulary = vocabulary_of(3, SIZE)
    model, trie = llama(vocabulary), CatalogueTrie(codes, layout)
    prompts = prompts_of(vocabulary, (4, 2))
    ordinary = beam_search(model, vocabulary, prompts, trie, beams=7)
    marginal = marginal_beam_search(model, vocabulary, prompts, trie, pinned=pinned, beams=7)
    for one, other in zip(ordinary, marginal, strict=True):
        assert_same(other, [(sid.tokens, sid.score) for sid in one])


def test_probabilities_of_all_sids_of_a_full_index_sum_to_that_of_all_paths() -> None:
    """A layout only groups paths: nothing is counted twice, nothing lost."""
    size = 4
    codes = np.stack(np.meshgrid(*[np.arange(size)] * 3, indexing="ij"), axis=-1).reshape(-1, 3).astype(np.uint16)
    vocabulary = vocabulary_of(3, size)
    model = llama(vocabulary, seed=3)
    pinned, layout = layout_of(3, (), size=size), layout_of(3, (1, 2), 1, size=size)
    prompts = prompts_of(vocabulary, (4, 7))
    plain = beam_search(model, vocabulary, prompts, CatalogueTrie(codes, pinned), beams=1000)
    summed = marginal_beam_search(model, vocabulary, prompts, CatalogueTrie(codes, layout), pinned=pinned, beams=1000)
    for one, other in zip(plain, summed, strict=True):
        total = np.logaddexp.reduce([sid.score for sid in one])
        assert np.logaddexp.reduce([sid.score for sid in other]) == pytest.approx(total, abs=1e-5)


def test_a_batch_of_queries_is_answered_like_each_query_alone() -> None:
    codes = random_codes(800, 3, 16, seed=8)
    pinned, layout = layout_of(3, (), size=16), layout_of(3, (0, 3, 5, 7), 1, size=16)
    vocabulary = vocabulary_of(3, 16)
    model, trie = llama(vocabulary), CatalogueTrie(codes, layout)
    prompts = prompts_of(vocabulary, (1, 20, 7, 7, 13))
    together = marginal_beam_search(model, vocabulary, prompts, trie, pinned=pinned, beams=10)
    for prompt, answer in zip(prompts, together, strict=True):
        (alone,) = marginal_beam_search(model, vocabulary, [prompt], trie, pinned=pinned, beams=10)
        assert_same(answer, [(sid.tokens, sid.score) for sid in alone])


def test_a_model_that_needs_the_plain_passes_is_summed_alike() -> None:
    vocabulary = vocabulary_of(4, SIZE)
    torch.manual_seed(0)
    configuration = transformers.BloomConfig(
        vocab_size=vocabulary.total, hidden_size=32, n_layer=2, n_head=2, bos_token_id=None, eos_token_id=None
    )
    model = sharpened(transformers.BloomForCausalLM(configuration))
    assert isinstance(forward_passes(model, 20), PlainPasses)
    codes = random_codes(50, 4, SIZE, seed=9)
    pinned, layout = layout_of(4, (0,)), layout_of(4, (0, 1), 1)
    (prompt,) = prompts_of(vocabulary, (5,))
    (answer,) = marginal_beam_search(
        model, vocabulary, [prompt], CatalogueTrie(codes, layout), pinned=pinned, beams=500
    )
    expected, _ = brute_force(model, vocabulary, prompt, codes, layout, pinned)
    assert_same(answer, ordered(expected))


def test_an_empty_index_gives_empty_answers() -> None:
    pinned, layout = layout_of(3, ()), layout_of(3, (0,), 1)
    vocabulary = vocabulary_of(3, SIZE)
    trie = CatalogueTrie(np.empty((0, 3), dtype=np.uint16), layout)
    prompts = prompts_of(vocabulary, (4, 2))
    assert marginal_beam_search(llama(vocabulary), vocabulary, prompts, trie, pinned=pinned) == [[], []]


@pytest.mark.parametrize(
    ("layout", "pinned", "message"),
    [
        (layout_of(4, (0,), 1), layout_of(3, ()), "the model 3 of 8"),
        (Layout(1, "f" * 16, 3, SIZE, (0,)), layout_of(3, ()), "codebook"),
    ],
)
def test_layouts_that_do_not_fit_are_refused(layout: Layout, pinned: Layout, message: str) -> None:
    vocabulary = vocabulary_of(3, SIZE)
    with pytest.raises(SidstreamError, match=message):
        marginal_beam_search(
            llama(vocabulary),
            vocabulary,
            prompts_of(vocabulary, (4,)),
            CatalogueTrie(random_codes(50, layout.layers, SIZE), layout),
            pinned=pinned,
        )
