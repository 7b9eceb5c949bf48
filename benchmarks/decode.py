"""Decoding: our beam search against transformers' constrained ``generate`` and against the bare forward passes.

All three answer the same queries with the same model over the same 20,000 items, full-length SIDs, 50 beams, on the
same cores. The bare forward passes are what a step cannot do without: the prompt once, then a batch of 50 tokens with
a cache of 50 copies of it, twice, each with the logits of the whole vocabulary; no constraint, no choice of beams, no
re-ordering of the cache.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from benchmarks.reporting import Result, Target, benchmark_arguments, report
from models.language_model import small_causal_lm
from models.layout import Layout
from models.vocabulary import SidVocabulary
from retriever.beam_search import beam_search
from retriever.forward_passes import SharedPromptPasses
from store.index import CodesBatch, IndexWriter
from store.reader import IndexReader
from store.trie_view import TrieView

CODEBOOK = "0123456789abcdef"
LAYERS, SIZE, TEXT = 3, 256, 3000


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
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--hidden-size", type=int, default=160)
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
    prompts = [
        [vocabulary.begin_id, *random.integers(TEXT, size=22).tolist(), vocabulary.separator_id] for _ in range(8)
    ]
    codes = crowded_codes(arguments.items, random)
    layout = Layout(1, CODEBOOK, LAYERS, SIZE, ())
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
                _measure(model, vocabulary, prompts, TrieView(snapshot, layout), layout.sid_tokens(codes), arguments),
                arguments.json,
            )


def _title(model: Any, arguments: Any) -> str:
    parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    return (
        f"Decoding: {arguments.items:,} items, {arguments.beams} beams, {parameters:.1f} M parameters, "
        f"prompts of 24 tokens, {arguments.threads} threads"
    )


def _measure(
    model: Any, vocabulary: SidVocabulary, prompts: list[list[int]], trie: TrieView, sids: Any, arguments: Any
) -> list[Result]:
    beams = arguments.beams
    children: dict[tuple[int, ...], list[int]] = {}
    for sid in np.unique(sids, axis=0).tolist():
        for depth, token in enumerate(sid):
            below = children.setdefault(tuple(sid[:depth]), [])
            if not below or below[-1] != token + vocabulary.sid_base:
                below.append(token + vocabulary.sid_base)
    at = {"query": 0}

    def prompt() -> list[int]:
        at["query"] = (at["query"] + 1) % len(prompts)
        return prompts[at["query"]]

    def ours(normaliser: Any = "vocabulary") -> Any:
        return beam_search(model, vocabulary, [prompt()], trie, beams=beams, normaliser=normaliser)

    def eight() -> Any:
        return beam_search(model, vocabulary, prompts, trie, beams=beams)

    def generate() -> Any:
        given = prompt()

        def allowed(_: int, sequence: Any) -> list[int]:
            return children[tuple((sequence[len(given) :] - vocabulary.sid_base).tolist())]

        with torch.inference_mode():
            return model.generate(
                input_ids=torch.tensor([given]),
                attention_mask=torch.ones((1, len(given)), dtype=torch.long),
                num_beams=beams,
                num_return_sequences=beams,
                max_new_tokens=LAYERS,
                length_penalty=0.0,
                do_sample=False,
                prefix_allowed_tokens_fn=allowed,
                pad_token_id=vocabulary.padding_id,
            )

    def bare() -> Any:
        with torch.inference_mode():
            cache = transformers.DynamicCache()
            given = torch.tensor([prompt()])
            model(input_ids=given, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache.batch_repeat_interleave(beams)
            for _ in range(LAYERS - 1):
                model(input_ids=torch.zeros((beams, 1), dtype=torch.long), past_key_values=cache, use_cache=True)

    def bare_shared() -> Any:
        with torch.inference_mode():
            passes = SharedPromptPasses(model)
            everything = slice(0, vocabulary.total)
            passes.logits(passes.start([prompt()]), everything)
            for _ in range(LAYERS - 1):
                zeros = np.zeros((1, beams), dtype=np.int64)
                passes.logits(passes.advance(zeros, zeros), everything)

    calls = [ours, lambda: ours("layers"), generate, bare, bare_shared, eight]
    one, layers_only, by_generate, by_bare, by_shared, by_eight = milliseconds(calls, arguments.rounds)
    return [
        Result("beam search, against generate", one, "ms", "ms generate", by_generate, Target.ratio_at_most(0.1)),
        Result("beam search, against the bare forward passes", one, "ms", "ms bare passes", by_bare),
        Result("… against those passes with a shared prompt", one, "ms", "ms bare passes", by_shared),
        Result("… with a softmax over the SID rows alone", layers_only, "ms", "ms bare passes", by_shared),
        Result("eight queries a batch, each", by_eight / 8, "ms", "ms one alone", one),
        Result("generate, times slower", by_generate / one, "×"),
    ]


if __name__ == "__main__":
    raise SystemExit(main())
