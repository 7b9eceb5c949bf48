"""Queries in catalogues of several sizes: the cost of a decoding step depends on the beams, not on the catalogue.

One query and eight, from the snapshot to ten items with their titles, under three layouts: plain (full SIDs), shortened (the
fullest layer-2 tokens left out) and marginal (a model of the plain layout reads the shortened one). The catalogues lie side by
side and take turns, so that a busy moment meets all of them. The floor is the bare forward passes of the same model, beams and
prompts. With updates, a second process upserts items of the same index at the given rate, and the bare passes run beside it.

The constraint's share is the time in the trie (what may follow, for all beams) as a part of the steps after the prompt. A layout
switch is seen when a query could take its first step under the new layout: from the moment that the record reaches the process
that writes, updates going on. The random model here is the worst case of marginal decoding: its scores are too even to skip much.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from benchmarks.common.reporting import Result, Target, benchmark_arguments, report
from benchmarks.index.scale_ingest import CODEBOOK, LAYERS, Updates, load
from models.language.language_model import small_causal_lm
from models.sids.head_tokens import top_k
from models.sids.layout import Layout
from models.sids.vocabulary import SidVocabulary
from retriever.answering.ranking import by_own_probability
from retriever.search.beam_search import beam_search
from retriever.search.forward_passes import SharedPromptPasses
from retriever.search.marginal_search import marginal_beam_search
from store.files.environment import DATA_FILE
from store.reading.reader import IndexReader
from store.topology.current import CurrentTopology
from store.topology.layout_trie import SnapshotTrie

TEXT: Final = 3000
PROMPT: Final = 24
HEAD_TOKENS: Final = 26  # a tenth at M = 256
LIMIT: Final = 10
KINDS: Final = ("plain", "shortened", "marginal")
GROWTH: Final = Target.ratio_at_most(1.3)
SEEN: Final = Target.value_at_most(50)
SHARE: Final = Target.value_at_most(5)


class TimedTrie:
    """A trie that notes how long it was asked."""

    def __init__(self, trie: SnapshotTrie) -> None:
        self._trie = trie
        self.layout = trie.layout
        self.seconds = 0.0

    def first_tokens(self) -> Any:
        return self._timed(self._trie.first_tokens)

    def children(self, prefixes: Any) -> Any:
        return self._timed(partial(self._trie.children, prefixes))

    def _timed(self, work: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        try:
            return work()
        finally:
            self.seconds += time.perf_counter() - started


@dataclass
class Catalogue:
    """One index with its layouts, and the seconds that queries in it took."""

    directory: Path
    items: int
    size: int
    layouts: dict[str, Layout]
    reader: IndexReader
    topology: CurrentTopology = field(default_factory=CurrentTopology)

    @classmethod
    def loaded(cls, directory: Path, items: int, size: int) -> Catalogue:
        heads = top_k(load(directory, items, size), HEAD_TOKENS)
        plain, shorter = Layout(0, CODEBOOK, LAYERS, size), Layout(1, CODEBOOK, LAYERS, size, tuple(heads))
        return cls(
            directory, items, size, {"plain": plain, "shortened": shorter, "marginal": shorter}, IndexReader(directory)
        )


class Queries:
    """A small model, and queries to it."""

    def __init__(self, size: int, beams: int) -> None:
        self.vocabulary = SidVocabulary(text_size=TEXT, user_buckets=0, layers=LAYERS, size=size)
        self.model = small_causal_lm(self.vocabulary, hidden_size=192, layers=4, heads=4).eval()
        with torch.no_grad():
            self.model.get_output_embeddings().weight.mul_(8.0)  # scores as unequal as a trained model's
        self.prompts = np.random.default_rng(2).integers(TEXT, size=(64, PROMPT)).tolist()
        self.beams = beams
        self.asked = 0

    def batch(self, queries: int) -> list[list[int]]:
        """The next prompts: not always the same paths."""
        self.asked += queries
        return [self.prompts[(self.asked + place) % len(self.prompts)] for place in range(queries)]

    def answer(self, catalogue: Catalogue, kind: str, queries: int) -> tuple[float, float]:
        """Seconds from the snapshot to the items, and those of them that the trie took."""
        batch = self.batch(queries)
        started = time.perf_counter()
        with catalogue.reader.snapshot() as snapshot:
            trie = SnapshotTrie(snapshot, catalogue.layouts[kind], catalogue.topology.at(snapshot))
            timed = TimedTrie(trie)
            found = self._search(timed, catalogue, kind, batch)
            for sids in found:
                if len(by_own_probability(sids, trie, LIMIT)) < LIMIT:
                    raise RuntimeError("a query found fewer items than it asked for: the figures would mean nothing")
        return time.perf_counter() - started, timed.seconds

    def _search(self, trie: TimedTrie, catalogue: Catalogue, kind: str, batch: list[list[int]]) -> Any:
        if kind == "marginal":
            pinned = catalogue.layouts["plain"]
            return marginal_beam_search(self.model, self.vocabulary, batch, trie, pinned=pinned, beams=self.beams)
        return beam_search(self.model, self.vocabulary, batch, trie, beams=self.beams)

    def bare(self, queries: int, *, steps: int = LAYERS - 1) -> float:
        """Seconds of the forward passes alone: the prompts once, then ``steps`` times all beams."""
        batch = self.batch(queries)
        started = time.perf_counter()
        with torch.inference_mode():
            passes = SharedPromptPasses(self.model)
            everything = slice(0, self.vocabulary.total)
            passes.logits(passes.start(batch), everything)
            zeros = np.zeros((queries, self.beams), dtype=np.int64)
            for _ in range(steps):
                passes.logits(passes.advance(zeros, zeros), everything)
        return time.perf_counter() - started


def medians(calls: list[Callable[[], Any]], rounds: int) -> list[Any]:
    """Median of each call's figures, rounds interleaved; a call gives a number or several."""
    figures: list[list[Any]] = [[] for _ in calls]
    for turn in range(rounds + 2):
        for place, call in enumerate(calls):
            found = call()
            if turn >= 2:  # the first ones warm up
                figures[place].append(np.atleast_1d(found))
    return [np.median(np.stack(column), axis=0) for column in figures]


def quiet(catalogues: list[Catalogue], queries: Queries, rounds: int, name: str) -> list[Result]:
    """Without updates: every size in turn, and the bare passes between them."""
    results = []
    for kind in KINDS:
        for catalogue in catalogues:  # as the retriever does at its start
            with catalogue.reader.snapshot() as snapshot:
                SnapshotTrie(snapshot, catalogue.layouts[kind], catalogue.topology.at(snapshot)).warm_up()
        for count in (1, 8):
            asked = [partial(queries.answer, catalogue, kind, count) for catalogue in catalogues]
            turns = max(3, rounds // (4 if kind == "marginal" else 1))
            *found, (bare,), (prompt,) = medians(
                [*asked, partial(queries.bare, count), partial(queries.bare, count, steps=0)], turns
            )
            for catalogue, (seconds, of_trie) in zip(catalogues, found, strict=True):
                title = f"{name}{kind}, {count} at once, {catalogue.items:,} items"
                grown, share = catalogue is not catalogues[0], 100 * of_trie / (seconds - prompt)
                results.append(Result(title, 1000 * seconds, "ms", "ms bare passes", 1000 * bare))
                if grown:
                    smallest = f"ms, {catalogues[0].items:,} items"
                    results.append(Result(title, 1000 * seconds, "ms", smallest, 1000 * found[0][0], GROWTH))
                results.append(Result(f"{title}, the constraint", share, "% of the steps", target=SHARE))
    return results


def updated(
    catalogue: Catalogue, queries: Queries, rounds: int, rate: int
) -> tuple[dict[tuple[str, int], float], float]:
    """With updates: a query against the bare passes beside it, by kind and number of queries; and updates a second."""
    ratios = {}
    with Updates(catalogue.directory, catalogue.items, catalogue.size, rate) as updates:
        for kind in KINDS:
            for count in (1, 8):
                turns = max(3, rounds // (4 if kind == "marginal" else 1))
                (seconds, _), (bare,) = medians(
                    [partial(queries.answer, catalogue, kind, count), partial(queries.bare, count)], turns
                )
                ratios[kind, count] = seconds / bare
    assert updates.done is not None
    return ratios, updates.done.updates / updates.done.seconds


def switch_seen(catalogue: Catalogue, rate: int, switches: int) -> list[float]:
    """Milliseconds from a new layout until a query could take its first step under it, updates going on."""
    shorter = catalogue.layouts["shortened"].head_tokens
    seen = []
    with Updates(catalogue.directory, catalogue.items, catalogue.size, rate) as updates:
        for number in range(switches):
            heads = shorter[: len(shorter) - number % 5 - 1]
            layout = Layout(number + 1, CODEBOOK, LAYERS, catalogue.size, heads)
            time.sleep(0.1)  # the process is between two switches, as in life
            moment = updates.put_layout(layout)
            while True:
                with catalogue.reader.snapshot() as snapshot:
                    live = snapshot.live_layout()
                    if live is not None and live.generation == layout.generation:
                        trie = SnapshotTrie(snapshot, live, catalogue.topology.at(snapshot))
                        trie.children(trie.first_tokens()[:50, None])
                        seen.append(1000 * (time.monotonic() - moment))
                        break
                time.sleep(0.0005)
    return seen


def measure(sizes: list[int], items: list[int], directory: Path, arguments: Any) -> list[Result]:
    """All rows."""
    results: list[Result] = []
    for size in sizes:
        name = f"M = {size:,}: "
        with ExitStack() as stack:
            catalogues = []
            for count in items:
                catalogues.append(Catalogue.loaded(directory / f"{size}-{count}", count, size))
                stack.enter_context(catalogues[-1].reader)
            queries = Queries(size, arguments.beams)
            results += quiet(catalogues, queries, arguments.rounds, name)
            ratios = []
            for catalogue in catalogues:
                with catalogue.reader.snapshot() as snapshot:
                    held = catalogue.topology.at(snapshot).nbytes
                stored = (catalogue.directory / DATA_FILE).stat().st_size
                title = f"{name}{catalogue.items:,} items"
                results.append(Result(f"{title}, on disk", stored / catalogue.items, "B/item"))
                results.append(Result(f"{title}, topology in memory", held / catalogue.items, "B/item"))
                ratio, rate = updated(catalogue, queries, arguments.rounds, arguments.updates)
                ratios.append(ratio)
                results.append(Result(f"{title}, updates beside the queries", rate, "items/s"))
                for (kind, count), value in ratio.items():
                    row = f"{name}{kind}, {count} at once, {catalogue.items:,} items, updates beside"
                    smallest, of = f"× bare, {items[0]:,} items", ratios[0][kind, count]
                    target = GROWTH if catalogue is not catalogues[0] else None
                    results.append(Result(row, value, "× bare", smallest, of, target))
                times = switch_seen(catalogue, arguments.updates, arguments.switches)
                results.append(
                    Result(f"{title}, a layout is seen, updates beside", statistics.median(times), "ms", target=SEEN)
                )
                results.append(Result(f"{title}, the slowest of {len(times)}", max(times), "ms"))
    return results


def main() -> int:
    """Runs the benchmark; 1 if a target is missed."""
    parser = benchmark_arguments(__doc__)
    parser.add_argument(
        "--items", default="20000,1000000,10000000", help="sizes of the catalogues (default: %(default)s)"
    )
    parser.add_argument("--sizes", default="256,4096", help="codewords per layer, M (default: %(default)s)")
    parser.add_argument("--updates", type=int, default=5_000, help="a second (default: %(default)s)")
    parser.add_argument("--beams", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--switches", type=int, default=15, help="of the layout, a catalogue")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--directory", type=Path, help="where to put the temporary files (default: the system's)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    items = [int(count) for count in arguments.items.split(",")]
    sizes = [int(size) for size in arguments.sizes.split(",")]
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        results = measure(sizes, items, Path(directory), arguments)
    return report(f"Catalogues of {arguments.items} items, {arguments.beams} beams", results, arguments.json)


if __name__ == "__main__":
    raise SystemExit(main())
