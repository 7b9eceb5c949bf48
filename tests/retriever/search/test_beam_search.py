"""The beam search against transformers' own constrained ``generate``, against brute force, and against itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from models.sids.layout import Layout
from models.sids.vocabulary import SidVocabulary
from store.reading.reader import IndexReader
from store.records.batch import CodesBatch
from store.topology.layout_trie import SnapshotTrie
from store.writing.writer import IndexWriter

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from models.language.language_model import small_causal_lm  # noqa: E402
from retriever.search.beam_search import beam_search  # noqa: E402
from retriever.search.forward_passes import PlainPasses, SharedPromptPasses, forward_passes, honours_tree_attention  # noqa: E402
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


def qwen2(vocabulary: SidVocabulary) -> Any:
    torch.manual_seed(0)
    configuration = transformers.Qwen2Config(
        vocab_size=vocabulary.total,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    return sharpened(transformers.Qwen2ForCausalLM(configuration))


def qwen_style(vocabulary: SidVocabulary) -> Any:
    return sharpened(small_causal_lm(vocabulary, hidden_size=32, layers=2, heads=2, architecture="qwen"))


def baichuan_style(vocabulary: SidVocabulary) -> Any:
    """Rows of length 1 spread the scores already."""
    return small_causal_lm(vocabulary, hidden_size=32, layers=2, heads=2, architecture="baichuan").eval()


def generated(
    model: Any, vocabulary: SidVocabulary, prompt: list[int], sids: set[tuple[int, ...]], beams: int, *processors: Any
) -> list[tuple[tuple[int, ...], float]]:
    """What transformers' constrained beam search answers: SID token numbers and sum of log-probabilities."""
    children: dict[tuple[int, ...], set[int]] = {}
    for sid in sids:
        for depth in range(len(sid)):
            children.setdefault(sid[:depth], set()).add(vocabulary.sid_base + sid[depth])

    def allowed(_: int, sequence: Any) -> list[int]:
        prefix = tuple((sequence[len(prompt) :] - vocabulary.sid_base).tolist())
        return sorted(children.get(prefix, {vocabulary.padding_id}))

    # generate applies processors given by hand after prefix_allowed_tokens_fn; another normaliser has to come before
    # it.
    masked = transformers.PrefixConstrainedLogitsProcessor(allowed, beams)
    constraint: dict[str, Any] = (
        {"logits_processor": transformers.LogitsProcessorList([*processors, masked])}
        if processors
        else {"prefix_allowed_tokens_fn": allowed}
    )
    output = model.generate(
        input_ids=torch.tensor([prompt]),
        attention_mask=torch.ones((1, len(prompt)), dtype=torch.long),
        num_beams=beams,
        num_return_sequences=beams,
        max_new_tokens=vocabulary.layers,
        length_penalty=0.0,
        do_sample=False,
        **constraint,
        return_dict_in_generate=True,
        output_scores=True,
        pad_token_id=vocabulary.padding_id,
    )
    sequences = (output.sequences[:, len(prompt) :] - vocabulary.sid_base).tolist()
    return [(tuple(tokens), score) for tokens, score in zip(sequences, output.sequences_scores.tolist(), strict=True)]


@pytest.fixture(scope="module")
def lmdb_trie(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[SnapshotTrie, npt.NDArray[np.uint16]]]:
    """2,000 items in a real index, full-length SIDs."""
    path: Path = tmp_path_factory.mktemp("index")
    codes = random_codes(2000, 3, 32)
    batch = CodesBatch(
        ids=[f"item-{row}".encode() for row in range(len(codes))],
        codes=codes,
        weights=np.ones(len(codes), dtype=np.float32),
        titles=["" for _ in codes],
        updated_at=np.zeros(len(codes), dtype=np.int64),
        deleted=np.zeros(len(codes), dtype=bool),
    )
    with IndexWriter.open(path, codebook_id=CODEBOOK, layers=3, size=32) as writer:
        writer.apply(batch, {("item-codes", 0): len(codes)})
        with IndexReader(path) as reader, reader.snapshot() as snapshot:
            yield SnapshotTrie(snapshot, Layout(0, CODEBOOK, 3, 32, ())), codes


@pytest.mark.parametrize("make_model", [llama, qwen2, qwen_style, baichuan_style])
def test_full_length_sids_have_the_ranking_and_scores_of_generate(
    make_model: Any, lmdb_trie: tuple[SnapshotTrie, npt.NDArray[np.uint16]]
) -> None:
    trie, codes = lmdb_trie
    vocabulary = vocabulary_of()
    model = make_model(vocabulary)
    sids = set(map(tuple, Layout(0, CODEBOOK, 3, 32, ()).sid_tokens(codes).tolist()))
    prompts = prompts_of(vocabulary, (3, 11, 7))
    assert isinstance(forward_passes(model, 20), SharedPromptPasses)
    for prompt, answer in zip(prompts, beam_search(model, vocabulary, prompts, trie, beams=50), strict=True):
        assert len(answer) == 50
        assert_same(answer, generated(model, vocabulary, prompt, sids, 50))


def test_layers_normaliser_is_generate_with_log_softmax_over_the_layers_that_may_come_next(
    lmdb_trie: tuple[SnapshotTrie, npt.NDArray[np.uint16]],
) -> None:
    trie, codes = lmdb_trie
    vocabulary = vocabulary_of()
    model = llama(vocabulary)
    (prompt,) = prompts_of(vocabulary, (6,))
    sids = set(map(tuple, Layout(0, CODEBOOK, 3, 32, ()).sid_tokens(codes).tolist()))

    class OverLayers(transformers.LogitsProcessor):  # type: ignore[misc,name-defined]
        def __call__(self, input_ids: Any, scores: Any) -> Any:
            depth = input_ids.shape[1] - len(prompt)
            begin = vocabulary.sid_base + depth * vocabulary.size
            end = vocabulary.sid_base + min(depth + (2 if depth else 1), 3) * vocabulary.size
            return scores - scores[:, begin:end].logsumexp(dim=1, keepdim=True)

    (answer,) = beam_search(model, vocabulary, [prompt], trie, beams=50, normaliser="layers")
    assert_same(answer, generated(model, vocabulary, prompt, sids, 50, OverLayers()))


def brute_force(
    model: Any, vocabulary: SidVocabulary, prompt: list[int], sids: set[tuple[int, ...]], normaliser: str
) -> list[tuple[tuple[int, ...], float]]:
    """Every SID scored by a plain forward pass of its own."""
    scored = []
    for sid in sorted(sids):
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([prompt + [vocabulary.sid_base + token for token in sid]])).logits[0]
        score = 0.0
        for depth, token in enumerate(sid):
            row = logits[len(prompt) - 1 + depth]
            begin, end = 0, vocabulary.total
            if normaliser == "layers":
                layer = -1 if depth == 0 else sid[depth - 1] // vocabulary.size
                begin = vocabulary.sid_base + (layer + 1) * vocabulary.size
                end = begin + (2 if layer == 0 else 1) * vocabulary.size
            score += float(row[vocabulary.sid_base + token] - row[begin:end].logsumexp(dim=0))
        scored.append((sid, score))
    return sorted(scored, key=lambda pair: -pair[1])


@pytest.mark.parametrize("normaliser", ["vocabulary", "layers"])
@pytest.mark.parametrize(
    ("layers", "head_tokens"), [(3, (0, 1, 4)), (3, tuple(range(8))), (3, ()), (4, (0, 1, 4)), (4, ())]
)
def test_wide_beams_equal_brute_force_on_variable_length_sids(
    layers: int, head_tokens: tuple[int, ...], normaliser: Any
) -> None:
    size = 8
    codes = random_codes(150, layers, size, seed=3)
    layout = Layout(1, CODEBOOK, layers, size, head_tokens)
    vocabulary = vocabulary_of(layers, size)
    model = llama(vocabulary, seed=2)
    sids = sids_of(layout, codes)
    prompts = prompts_of(vocabulary, (2, 9))
    answers = beam_search(model, vocabulary, prompts, CatalogueTrie(codes, layout), beams=1000, normaliser=normaliser)
    for prompt, answer in zip(prompts, answers, strict=True):
        assert_same(answer, brute_force(model, vocabulary, prompt, sids, normaliser))


def test_left_out_tokens_carry_their_log_probability_after_the_layer_1_token() -> None:
    codes = random_codes(300, 3, 8, seed=5)
    layout = Layout(1, CODEBOOK, 3, 8, (0, 1))
    vocabulary = vocabulary_of(3, 8)
    model = llama(vocabulary)
    prompts = prompts_of(vocabulary, (5, 3))
    answers = beam_search(model, vocabulary, prompts, CatalogueTrie(codes, layout), beams=12)
    short = 0
    for prompt, answer in zip(prompts, answers, strict=True):
        for sid in answer:
            if len(sid.tokens) == 3:
                assert sid.left_out is None
                continue
            short += 1
            assert sid.left_out is not None
            with torch.inference_mode():
                row = model(input_ids=torch.tensor([[*prompt, vocabulary.sid_base + sid.tokens[0]]])).logits[0, -1]
            expected = row.log_softmax(dim=0)[list(vocabulary.layer_range(1))]
            np.testing.assert_allclose(sid.left_out, expected.numpy(), atol=1e-4)
    assert short > 0


def test_narrow_beams_on_variable_length_sids_find_the_best_of_those_that_they_keep() -> None:
    """Finished SIDs never push unfinished ones out: the same search written with plain loops over prefixes."""
    codes = random_codes(500, 3, 16, seed=6)
    layout = Layout(1, CODEBOOK, 3, 16, (0, 1, 2))
    vocabulary = vocabulary_of(3, 16)
    model = llama(vocabulary, seed=7)
    (prompt,) = prompts_of(vocabulary, (4,))
    sids = sids_of(layout, codes)
    beams = 6
    open_: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    finished: list[tuple[tuple[int, ...], float]] = []
    for _ in range(3):
        grown: list[tuple[tuple[int, ...], float]] = []
        for prefix, score in open_:
            with torch.inference_mode():
                tokens = [*prompt, *[vocabulary.sid_base + token for token in prefix]]
                row = model(input_ids=torch.tensor([tokens])).logits[0, -1].log_softmax(dim=0)
            nexts = {sid[len(prefix)] for sid in sids if sid[: len(prefix)] == prefix and len(sid) > len(prefix)}
            grown += [((*prefix, token), score + float(row[vocabulary.sid_base + token])) for token in nexts]
        finished += [pair for pair in grown if pair[0] in sids]
        open_ = sorted((pair for pair in grown if pair[0] not in sids), key=lambda pair: -pair[1])[:beams]
    (answer,) = beam_search(model, vocabulary, [prompt], CatalogueTrie(codes, layout), beams=beams)
    assert_same(answer, sorted(finished, key=lambda pair: -pair[1])[:beams])


def test_a_batch_of_queries_is_answered_like_each_query_alone() -> None:
    codes = random_codes(800, 3, 16, seed=8)
    layout = Layout(1, CODEBOOK, 3, 16, (0, 3))
    vocabulary = vocabulary_of(3, 16)
    model = llama(vocabulary)
    prompts = prompts_of(vocabulary, (1, 20, 7, 7, 13))
    trie = CatalogueTrie(codes, layout)
    together = beam_search(model, vocabulary, prompts, trie, beams=10)
    for prompt, answer in zip(prompts, together, strict=True):
        (alone,) = beam_search(model, vocabulary, [prompt], trie, beams=10)
        assert_same(answer, [(sid.tokens, sid.score) for sid in alone])


def test_an_empty_index_gives_empty_answers() -> None:
    layout = Layout(1, CODEBOOK, 3, 8, ())
    vocabulary = vocabulary_of(3, 8)
    trie = CatalogueTrie(np.empty((0, 3), dtype=np.uint16), layout)
    assert beam_search(llama(vocabulary), vocabulary, prompts_of(vocabulary, (4, 2)), trie) == [[], []]


def test_fewer_sids_than_beams_are_all_returned() -> None:
    codes = np.array([[1, 2, 3], [1, 2, 4], [5, 0, 0]], dtype=np.uint16)
    layout = Layout(1, CODEBOOK, 3, 8, (0,))
    vocabulary = vocabulary_of(3, 8)
    (answer,) = beam_search(llama(vocabulary), vocabulary, prompts_of(vocabulary, (4,)), CatalogueTrie(codes, layout))
    assert {sid.tokens for sid in answer} == {(1, 10, 19), (1, 10, 20), (5, 16)}


def test_a_model_that_ignores_four_dimensional_masks_gets_the_plain_passes() -> None:
    vocabulary = vocabulary_of(3, 8)
    torch.manual_seed(0)
    configuration = transformers.BloomConfig(
        vocab_size=vocabulary.total, hidden_size=32, n_layer=2, n_head=2, bos_token_id=None, eos_token_id=None
    )
    model = sharpened(transformers.BloomForCausalLM(configuration))
    assert not honours_tree_attention(model)
    assert isinstance(forward_passes(model, 20), PlainPasses)
    codes = random_codes(100, 3, 8, seed=9)
    layout = Layout(1, CODEBOOK, 3, 8, (0, 1))
    (prompt,) = prompts_of(vocabulary, (5,))
    (answer,) = beam_search(model, vocabulary, [prompt], CatalogueTrie(codes, layout), beams=500)
    assert_same(answer, brute_force(model, vocabulary, prompt, sids_of(layout, codes), "vocabulary"))
