"""Decoding: our beam search against transformers' constrained ``generate`` and against the bare forward passes.

All answer the same prompts with the same model over the same 20,000 items, full-length SIDs, 50 beams, on the same
cores (``decoding_rivals`` says what the bare passes are). ``generate`` runs the prompt once a *beam*, so our lead grows with
the prompt. Then 1, 8 and 32 queries at once, in batches as the retriever makes them, in queries a second.

Marginal decoding is the same model on a layout with the fullest tenth of the layer-2 tokens left out: each layer-1
token costs 26 tokens more. The random model here is the worst case, as its scores are too even for any of them to be
skipped; a trained one ran about a third of them.

In bfloat16 and int8 (`retriever.dtype`) the same search is held against float32: how much faster, and which share of the first
ten SIDs is the same; a trained model's share is higher. The target is for models of 0.1 B parameters and up (`--hidden-size 768
--model-layers 12`) where the processor multiplies such numbers.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.common.reporting import Result, Target, benchmark_arguments, report
from benchmarks.retrieval.decoding_rivals import CODEBOOK, Rivals, crowded_codes, in_batches, snapshot_of
from models.language.int8 import to_int8
from models.language.language_model import small_causal_lm
from models.sids.head_tokens import top_k
from models.sids.layout import Layout
from models.sids.vocabulary import SidVocabulary
from retriever.search.beam_search import ScoredSid, beam_search
from retriever.search.marginal_search import marginal_beam_search
from store.topology.layout_trie import SnapshotTrie
from streamer.settings.retriever import RetrieverSettings

LAYERS, SIZE, TEXT = 3, 256, 3000
LARGE = 90_000_000  # parameters
SHORT_PROMPT, LONG_PROMPT = 24, 56  # a query text; a text of 24 tokens and a history of ten items
AT_ONCE = (1, 8, 32)


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
    prompts = random.integers(TEXT, size=(max(AT_ONCE), LONG_PROMPT)).tolist()
    codes = crowded_codes(arguments.items, SIZE, random)
    layout = Layout(1, CODEBOOK, LAYERS, SIZE, ())
    heads = top_k(np.bincount(codes[:, 1], minlength=SIZE), SIZE // 10 + 1)
    shorter = Layout(2, CODEBOOK, LAYERS, SIZE, heads)
    rivals = Rivals(model, vocabulary, codes, arguments.beams)
    with snapshot_of(codes, SIZE) as snapshot:
        trie = SnapshotTrie(snapshot, layout)
        results = _measure(model, vocabulary, prompts, trie, SnapshotTrie(snapshot, shorter), rivals, arguments)
        results += _at_once(model, vocabulary, prompts, trie, rivals, arguments)
        results += _in_fewer_bits(model, vocabulary, prompts, trie, arguments)
    return report(_title(model, arguments), results, arguments.json)


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
    rivals: Rivals,
    arguments: Any,
) -> list[Result]:
    beams, goal = arguments.beams, Target.value_at_least(10)

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
            partial(rivals.bare, batch),
            partial(rivals.bare_shared, batch),
            partial(rivals.generate, batch),
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
    return results


def _at_once(
    model: Any, vocabulary: SidVocabulary, prompts: list[list[int]], trie: SnapshotTrie, rivals: Rivals, arguments: Any
) -> list[Result]:
    """Queries a second with so many of them at once, in batches as the retriever makes them."""
    size = RetrieverSettings().batch_size

    def ours(batch: list[list[int]]) -> Any:
        return beam_search(model, vocabulary, batch, trie, beams=arguments.beams)

    results = []
    for queries in AT_ONCE:
        asked = prompts[:queries]
        works = [in_batches(work, asked, size) for work in (ours, rivals.bare, rivals.bare_shared, rivals.generate)]
        mine, bare, shared, generated = (
            queries * 1000 / spent for spent in milliseconds(works, max(3, arguments.rounds // 5))
        )
        name = f"{queries} at once: "
        results += [
            Result(f"{name}against generate", mine, "queries/s", "queries/s", generated),
            Result(f"{name}against the bare forward passes", mine, "queries/s", "queries/s", bare),
            Result(f"{name}against those with a shared prompt", mine, "queries/s", "queries/s", shared),
        ]
    return results


def _in_fewer_bits(
    model: Any, vocabulary: SidVocabulary, prompts: list[list[int]], trie: SnapshotTrie, arguments: Any
) -> list[Result]:
    """What ``retriever.dtype`` gives, and costs in the first ten SIDs."""
    large = sum(parameter.numel() for parameter in model.parameters()) >= LARGE
    goal = Target.value_at_least(1.5) if large else None
    half, eight = copy.deepcopy(model).to(torch.bfloat16), copy.deepcopy(model)
    to_int8(eight)

    def search(each: Any, batch: list[list[int]]) -> list[list[ScoredSid]]:
        return beam_search(each, vocabulary, batch, trie, beams=arguments.beams)

    results = []
    for queries in (1, 8):
        works = [partial(search, each, prompts[:queries]) for each in (model, half, eight)]
        slow, *fast = milliseconds(works, arguments.rounds)
        results += [
            Result(f"{queries} × {LONG_PROMPT} tokens, {name}: against float32", slow / each, "× faster", target=goal)
            for name, each in zip(("bfloat16", "int8"), fast, strict=True)
        ]
    exact = search(model, prompts[:8])
    for name, other in (("bfloat16", half), ("int8", eight)):
        same = [
            len({sid.tokens for sid in one[:10]} & {sid.tokens for sid in two[:10]}) / 10
            for one, two in zip(search(other, prompts[:8]), exact, strict=True)
        ]
        results.append(Result(f"{name}: share of the first ten SIDs that float32 has", statistics.mean(same), ""))
    return results


if __name__ == "__main__":
    raise SystemExit(main())
