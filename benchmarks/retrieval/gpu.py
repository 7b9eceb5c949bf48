"""Serving on a card: forward passes, the search and ``generate`` with 1, 8 and 32 queries at once, beside the floor that the
card's memory sets.

The floor of a search is what has to come out of memory at its measured copying speed: the weights once for the prompts and once
for each further layer, and with every further pass the keys and values of all prompts and of the beams before. The bare passes
are those of ``decoding_rivals``, and the search's own, of fixed shapes. The search is measured twice: as it runs on a card,
and as it would with a copy to the host at every step.

    python -m benchmarks gpu                     on the first card: writes gpu.md and gpu.json under .sidstream/benchmarks
    python -m benchmarks gpu --device cpu        a small version on the processor, which shows that it runs and nothing else

Without a card it ends with status 2 and says so. What does not fit the card's memory is told as such.
"""

from __future__ import annotations

import platform
import statistics
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import transformers

from benchmarks.common.reporting import Result, benchmark_arguments, report, write_markdown
from benchmarks.retrieval.decoding_rivals import CODEBOOK, Rivals, crowded_codes, snapshot_of
from models.errors import SidstreamError
from models.language.devices import device_named
from models.language.language_model import small_causal_lm
from models.sids.layout import Layout
from models.sids.vocabulary import SidVocabulary
from retriever.device_search.search import DeviceSearch
from retriever.device_search.static_passes import StaticPasses
from retriever.search.beam_search import beam_search
from store.topology.layout_trie import LayoutTrie, SnapshotTrie

NO_CARD: Final = 2
AT_ONCE: Final = (1, 8, 32)
LAYERS: Final = 3


@dataclass(frozen=True)
class Size:
    """What is measured: a model of the Llama kind, prompts of so many tokens, a catalogue."""

    hidden: int
    layers: int
    heads: int
    text: int
    prompt: int
    size: int
    items: int
    beams: int
    rounds: int
    copied: int


ON_A_CARD: Final = (
    Size(768, 12, 12, 32_000, 300, 256, 400_000, 50, 20, 1 << 30),
    Size(2048, 24, 16, 32_000, 300, 256, 400_000, 50, 10, 1 << 30),
)
ON_THE_PROCESSOR: Final = (Size(32, 2, 2, 100, 9, 16, 500, 5, 2, 1 << 22),)


class Clock:
    """Times calls on a device, which works on after a call has returned."""

    def __init__(self, device: torch.device, rounds: int) -> None:
        self._device, self._rounds = device, rounds

    def seconds(self, call: Callable[[], object]) -> float | None:
        """Median; None if the device's memory does not hold it."""
        times = []
        try:
            for _ in range(self._rounds + 2):  # the first ones choose kernels, and make a graph
                self._wait()
                begin = time.perf_counter()
                call()
                self._wait()
                times.append(time.perf_counter() - begin)
        except torch.OutOfMemoryError:
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            return None
        return statistics.median(times[2:])

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def main() -> int:
    """Runs the benchmark; 2 without a card."""
    parser = benchmark_arguments(__doc__)
    parser.add_argument("--device", default="cuda:0", help="a card, or cpu for a small version")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--report", type=Path, default=Path(".sidstream/benchmarks/gpu.md"), help="as Markdown")
    arguments = parser.parse_args()
    if arguments.device.partition(":")[0] == "cuda" and not torch.cuda.is_available():
        print(
            "no CUDA device here, so nothing was measured: run this on a machine with a card, or with --device cpu for a small "
            "version that shows that it runs",
            file=sys.stderr,
        )
        return NO_CARD
    try:
        device = device_named(arguments.device, option="--device")
    except SidstreamError as error:
        print(error, file=sys.stderr)
        return NO_CARD
    on_card = device.type == "cuda"
    name = (
        torch.cuda.get_device_name(device)
        if on_card
        else f"the processor ({platform.processor() or platform.machine()})"
    )
    title = f"Serving on {name}, {arguments.dtype}"
    results, notes = [], _about(device, name)
    for size in ON_A_CARD if on_card else ON_THE_PROCESSOR:
        more, said = _measured(size, device, arguments)
        results += more
        notes += said
    status = report(title, results, arguments.json)
    write_markdown(arguments.report, title, notes, results)
    print(f"written to {arguments.report}")
    return status


def _about(device: torch.device, name: str) -> list[str]:
    notes = [f"Device: {name}. torch {torch.__version__}, transformers {transformers.__version__}."]
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        notes.append(
            f"Compute capability {card.major}.{card.minor}, {card.multi_processor_count} multiprocessors, "
            f"{card.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}."
        )
    else:
        notes.append("Not a card: a small version that shows that it runs. Its figures say nothing about one.")
    return notes


def _measured(size: Size, device: torch.device, arguments: Namespace) -> tuple[list[Result], list[str]]:
    random = np.random.default_rng(0)
    dtype = getattr(torch, arguments.dtype)
    vocabulary = SidVocabulary(text_size=size.text, user_buckets=0, layers=LAYERS, size=size.size)
    model = small_causal_lm(
        vocabulary, hidden_size=size.hidden, layers=size.layers, heads=size.heads, max_positions=512
    )
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(8.0)  # scores as unequal as a trained model's
    model = model.to(device, dtype).eval()
    codes = crowded_codes(size.items, size.size, random)
    prompts = random.integers(size.text, size=(max(AT_ONCE), size.prompt)).tolist()
    rivals = Rivals(model, vocabulary, codes, size.beams)
    parameters = sum(weight.numel() for weight in model.parameters()) / 1e6
    clock = Clock(device, size.rounds)
    bandwidth = _bandwidth(clock, device, size.copied)
    notes = [
        f"{parameters:,.1f} M parameters: prompts of {size.prompt} tokens, {size.items:,} items, {size.beams} beams; copying "
        f"moves {bandwidth / 1e9:,.0f} GB/s."
    ]
    results = []
    with snapshot_of(codes, size.size) as snapshot:
        trie = SnapshotTrie(snapshot, Layout(1, CODEBOOK, LAYERS, size.size, ()))
        search = DeviceSearch(model, vocabulary)
        for queries in AT_ONCE:
            results += _at_once(model, vocabulary, trie, search, rivals, prompts[:queries], size, clock, bandwidth)
        if not search.works:
            notes.append("The search on the device does not answer as the host's does here: the host searched.")
        same = _same_first_ten(model, vocabulary, trie, search, prompts[:8], size.beams)
        captured, plans = search.graphs
    notes.append(
        f"{captured} of {plans} shapes ran as a CUDA graph. {same:.1%} of the first ten SIDs are those of the host's search."
    )
    return results, notes


def _bandwidth(clock: Clock, device: torch.device, count: int) -> float:
    """Bytes a second that a copy reads and writes."""
    source = torch.ones(count, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    spent = clock.seconds(lambda: target.copy_(source))
    assert spent is not None
    return 2 * count / spent


def floor_bytes(model: Any, queries: int, prompt: int, beams: int, layers: int) -> int:
    """Bytes that a search of ``layers`` layers has to read: weights and head once a pass, and each further pass the keys and
    values of the prompts and of the beams before.
    """
    weights = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    config = model.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    token = 2 * config.num_hidden_layers * config.num_key_value_heads * width * model.dtype.itemsize
    cache = sum(queries * (prompt + step * beams) * token for step in range(layers - 1))
    return int(layers * weights + cache)


def _at_once(
    model: Any,
    vocabulary: SidVocabulary,
    trie: LayoutTrie,
    search: DeviceSearch,
    rivals: Rivals,
    prompts: list[list[int]],
    size: Size,
    clock: Clock,
    bandwidth: float,
) -> list[Result]:
    queries = len(prompts)
    floor = floor_bytes(model, queries, size.prompt, size.beams, LAYERS) / bandwidth
    name = f"{sum(weight.numel() for weight in model.parameters()) / 1e6:,.0f} M, {queries} at once: "
    ours = clock.seconds(partial(search.search, prompts, trie, beams=size.beams))
    others = {
        "the search with a copy a step": partial(beam_search, model, vocabulary, prompts, trie, beams=size.beams),
        "bare passes of fixed shape": partial(_static_passes, model, vocabulary, prompts, size.beams),
        "bare passes, a shared prompt": partial(rivals.bare_shared, prompts),
        "bare passes, a cache a beam": partial(rivals.bare, prompts),
        "generate": partial(rivals.generate, prompts),
    }
    if ours is None:
        return [Result(f"{name}the search does not fit the memory", 0.0, "queries/s")]
    results = [Result(f"{name}against the memory's floor", queries / ours, "queries/s", "queries/s", queries / floor)]
    for other, call in others.items():
        spent = clock.seconds(call)
        if spent is None:
            results.append(Result(f"{name}{other} does not fit the memory", queries / ours, "queries/s"))
        else:
            results.append(Result(f"{name}against {other}", queries / ours, "queries/s", "queries/s", queries / spent))
    return results


def _static_passes(model: Any, vocabulary: SidVocabulary, prompts: list[list[int]], beams: int) -> None:
    device, shape = model.device, (len(prompts), len(prompts[0]))
    with torch.inference_mode():
        passes = StaticPasses(model, *shape, beams, LAYERS - 1)
        everything = slice(0, vocabulary.total)
        real = torch.ones(shape, dtype=torch.bool, device=device)
        passes.logits(passes.start(torch.tensor(prompts, device=device), real), everything)
        zeros = torch.zeros((shape[0], beams), dtype=torch.int64, device=device)
        for _ in range(LAYERS - 1):
            passes.logits(passes.advance(zeros, zeros), everything)


def _same_first_ten(
    model: Any, vocabulary: SidVocabulary, trie: LayoutTrie, search: DeviceSearch, prompts: list[list[int]], beams: int
) -> float:
    ours = search.search(prompts, trie, beams=beams)
    theirs = beam_search(model, vocabulary, prompts, trie, beams=beams)
    shares = []
    for one, other in zip(ours, theirs, strict=True):
        first = {sid.tokens for sid in other[:10]}
        shares.append(len({sid.tokens for sid in one[:10]} & first) / len(first))
    return statistics.mean(shares)


if __name__ == "__main__":
    raise SystemExit(main())
