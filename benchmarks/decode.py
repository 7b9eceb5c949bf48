"""Decoding: our beam search against transformers' constrained ``generate`` and against the bare forward passes.

All answer the same prompts with the same model over the same 20,000 items, full-length SIDs, 50 beams, on the same
cores. The bare forward passes are what no search can do without: the prompt once, then 50 tokens a query with a cache
of 50 copies of the prompt, twice, each with the logits of the whole vocabulary; no constraint, no choice of beams, no
re-ordering of the cache. They are also measured in the shape that ours have: one cache a query, its 50 beams one
sequence under a tree mask. ``generate`` runs the prompt once a *beam*, so our lead grows with the prompt.

Marginal decoding is the same model on a layout with the fullest tenth of the layer-2 tokens left out: each layer-1
token costs 26 tokens more. The random model here is the worst case, as its scores are too even for any of them to be
skipped; a trained one ran about a third of them.

In bfloat16 (`retriever.dtype`) the same search is held against float32: how much faster, and which share of the first ten SIDs is
the same. The target is for models of 0.1 B parameters and up (`--hidden-size 768 --model-layers 12`) where the processor
multiplies bfloat16.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from benchmarks.reporting import Result, Target, benchmark_arguments, report
from models.language.language_model import small_causal_lm
from models.sids.head_tokens import top_k
from models.sids.layout import Layout
from models.sids.vocabulary import SidVocabulary
from retriever.search.beam_search import beam_search
from retriever.search.forward_passes import SharedPromptPasses
from retriever.search.marginal_search import marginal_beam_search
from store.reading.reader import IndexReader
from store.records.batch import CodesBatch
from store.topology.layout_trie import SnapshotTrie
from store.writing.writer import IndexWriter

CODEBOOK = "0123456789abcdef"
LAYERS, SIZE, TEXT = 3, 256, 3000
LARGE = 90_000_000  # parameters
SHORT_PROMPT, LONG_PROMPT = 24, 56  # a query text; a text of 24 tokens and a history of ten items


def crowded_codes(items: int, random: np.random.Generator) -> np.ndarray[Any, np.dtype[np.uint16]]:
    """Codes with the crowded middle layer of a real catalogue (Gini about 0.65)."""
    weights = 1.0 / np.arange(1, SIZE + 1) ** 0.9
    codes = np.stack(
        [
            random.integers(SIZE, size=items),
            random.choice(SIZE, p=weights / weights.sum(), size=items),
            random.integers(SIZE, size=items),
        ],
        axis=1,
    )
    return codes.astype(np.uint16)


def milliseconds(calls: list[Callable[[], object]], rounds: int) -> list[float]:
    """Median time of each call, rounds interleaved so that a busy moment meets all of them."""
    times: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    for _ in range(rounds):
        for place, call in enumerate(calls):
            begin = time.perf_counter()
            call()
            times[place].append((time.perf_counter() - begin) * 1000)
    return [statistics.median(column) for column in times]


def main() -> int:
    """Runs the benchmark; 1 if a target is missed."""
    parser = benchmark_arguments(__doc__)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--beams", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--hidden-size", type=int, default=192)
    parser.add_argument("--model-layers", type=int, default=4)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    random = np.random.default_rng(0)
    vocabulary = SidVocabulary(text_size=TEXT, user_buckets=0, layers=LAYERS, size=SIZE)
    model = small_causal_lm(
        vocabulary, hidden_size=arguments.hidden_size, layers=arguments.model_layers, heads=4
    ).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(8.0)  # scores as unequal as a trained model's
    prompts = random.integers(TEXT, size=(8, LONG_PROMPT)).tolist()
    codes = crowded_codes(arguments.items, random)
    layout = Layout(1, CODEBOOK, LAYERS, SIZE, ())
    heads = top_k(np.bincount(codes[:, 1], minlength=SIZE), SIZE // 10 + 1)
    shorter = Layout(2, CODEBOOK, LAYERS, SIZE, heads)
    with tempfile.TemporaryDirectory() as directory:
        with IndexWriter.open(Path(directory), codebook_id=CODEBOOK, layers=LAYERS, size=SIZE) as writer:
            count = len(codes)
            writer.apply(
                CodesBatch(
                    ids=[f"item-{row}".encode() for row in range(count)],
                    codes=codes,
                    weights=np.ones(count, dtype=np.float32),
                    titles=[""] * count,
                    updated_at=np.zeros(count, dtype=np.int64),
                    deleted=np.zeros(count, dtype=bool),
                ),
                {},
            )
        with IndexReader(directory) as reader, reader.snapshot() as snapshot:
            return report(
                _title(model, arguments),
                _measure(
                    model,
                    vocabulary,
                    prompts,
                    SnapshotTrie(snapshot, layout),
                    SnapshotTrie(snapshot, shorter),
                    layout.sid_tokens(codes),
                    arguments,
                ),
                arguments.json,
            )


def _title(model: Any, arguments: Any) -> str:
    parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    return (
        f"Decoding: {arguments.items:,} items, {arguments.beams} beams, {parameters:.1f} M parameters, "
        f"{arguments.threads} thread(s)"
    )


def _measure(
    model: Any,
    vocabulary: SidVocabulary,
    prompts: list[list[int]],
    trie: SnapshotTrie,
    shorter: SnapshotTrie,
    sids: Any,
    arguments: Any,
) -> list[Result]:
    beams, goal = arguments.beams, Target.value_at_least(10)
    children: dict[tuple[int, ...], list[int]] = {}
    for sid in np.unique(sids, axis=0).tolist():
        for depth, token in enumerate(sid):
            below = children.setdefault(tuple(sid[:depth]), [])
            if not below or below[-1] != token + vocabulary.sid_base:
                below.append(token + vocabulary.sid_base)

    def allowed(batch: list[list[int]]) -> Callable[[int, Any], list[int]]:
        length = len(batch[0])
        return lambda _, sequence: children[tuple((sequence[length:] - vocabulary.sid_base).tolist())]

    def generate(batch: list[list[int]]) -> Any:
        with torch.inference_mode():
            return model.generate(
                input_ids=torch.tensor(batch),
                attention_mask=torch.ones((len(batch), len(batch[0])), dtype=torch.long),
                num_beams=beams,
                num_return_sequences=beams,
                max_new_tokens=LAYERS,
                length_penalty=0.0,
                do_sample=False,
                prefix_allowed_tokens_fn=allowed(batch),
                pad_token_id=vocabulary.padding_id,
            )

    def bare(batch: list[list[int]]) -> None:
        with torch.inference_mode():
            cache = transformers.DynamicCache()
            model(input_ids=torch.tensor(batch), past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache.batch_repeat_interleave(beams)
            tokens = torch.zeros((len(batch) * beams, 1), dtype=torch.long)
            for _ in range(LAYERS - 1):
                model(input_ids=tokens, past_key_values=cache, use_cache=True)

    def bare_shared(batch: list[list[int]]) -> None:
        with torch.inference_mode():
            passes = SharedPromptPasses(model)
            everything = slice(0, vocabulary.total)
            passes.logits(passes.start(batch), everything)
            zeros = np.zeros((len(batch), beams), dtype=np.int64)
            for _ in range(LAYERS - 1):
                passes.logits(passes.advance(zeros, zeros), everything)

    def ours(batch: list[list[int]], normaliser: Any = "vocabulary") -> Any:
        return beam_search(model, vocabulary, batch, trie, beams=beams, normaliser=normaliser)

    def marginal(batch: list[list[int]], normaliser: Any = "vocabulary") -> Any:
        pinned = trie.layout
        return marginal_beam_search(
            model, vocabulary, batch, shorter, pinned=pinned, beams=beams, normaliser=normaliser
        )

    results = []
    for queries, length, target in ((1, SHORT_PROMPT, None), (1, LONG_PROMPT, goal), (8, LONG_PROMPT, goal)):
        batch = [prompt[:length] for prompt in prompts[:queries]]
        works: list[Callable[[], Any]] = [
            partial(ours, batch),
            partial(ours, batch, "layers"),
            partial(bare, batch),
            partial(bare_shared, batch),
            partial(generate, batch),
            partial(marginal, batch),
            partial(marginal, batch, "layers"),
        ]
        one, layers_only, by_bare, by_shared, by_generate, summed, summed_layers = (
            time_each / queries for time_each in milliseconds(works, arguments.rounds)
        )
        name = f"{queries} × {length} tokens: "
        results += [
            Result(f"{name}against generate", by_generate / one, "× faster", target=target),
            Result(f"{name}against the bare forward passes", one, "ms a query", "ms", by_bare),
            Result(f"{name}against those with a shared prompt", one, "ms a query", "ms", by_shared),
            Result(f"{name}softmax over the SID rows alone", layers_only, "ms a query", "ms", by_shared),
            Result(f"{name}marginal decoding, worst case", summed, "ms a query", "ms ordinary", one),
            Result(f"{name}the same, over the SID rows alone", summed_layers, "ms a query", "ms ordinary", layers_only),
        ]
    half = copy.deepcopy(model).to(torch.bfloat16)
    large = sum(parameter.numel() for parameter in model.parameters()) >= LARGE

    def in_half(batch: list[list[int]]) -> Any:
        return beam_search(half, vocabulary, batch, trie, beams=beams)

    for queries in (1, 8):
        batch = prompts[:queries]
        works = [partial(in_half, batch), partial(ours, batch)]
        faster, slower = milliseconds(works, arguments.rounds)
        name = f"{queries} × {LONG_PROMPT} tokens, bfloat16: "
        goal = Target.value_at_least(1.5) if large else None
        results.append(Result(f"{name}against float32", slower / faster, "× faster", target=goal))
    same = [
        len({sid.tokens for sid in one[:10]} & {sid.tokens for sid in other[:10]}) / 10
        for one, other in zip(in_half(prompts), ours(prompts), strict=True)
    ]
    results.append(Result("bfloat16: share of the first ten SIDs that float32 has", statistics.mean(same), ""))
    return results


if __name__ == "__main__":
    raise SystemExit(main())
