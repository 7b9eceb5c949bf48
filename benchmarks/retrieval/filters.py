"""Filters at a million items: what a filter costs a query, the first time and again, and how many attributes change a second.

A query as the retriever answers it, from the snapshot to ten items, 50 beams, M = 256. A new filter is one that no query had
before: its items are found, and their paths become a topology of its own. A repeated one is there, rolled forward along the
commit log. A filter that lets through a thousand items or less is searched exactly, as the retriever does.
"""

from __future__ import annotations

import random as plain_random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from benchmarks.common.reporting import Result, Target, benchmark_arguments, report
from benchmarks.index.scale_ingest import CODEBOOK, LAYERS, batch_of, crowded_codes
from benchmarks.retrieval.scale import LIMIT, Queries
from models.attributes import AttributeType, encode_attributes
from models.sids.layout import Layout
from retriever.answering.ranking import by_own_probability
from retriever.eligibility.current import CurrentCatalogue
from retriever.search.beam_search import beam_search
from retriever.search.exact_search import exact_search
from store.reading.reader import IndexReader
from store.records.item_attributes import AttributesBatch
from store.writing.writer import IndexWriter
from streamer.filters.grammar import Compare, Filter, all_of, one_of

SIZE: Final = 256
TYPES: Final[dict[str, AttributeType]] = {
    "price": "number",
    "brand": "string",
    "in_stock": "boolean",
    "tags": "strings",
}
EXACT_BELOW: Final = 1_000
_LOAD_BATCH: Final = 50_000


def attributes_of(number: int, price: float) -> bytes:
    """What a shop keeps of an item beside its text."""
    return encode_attributes(
        {
            "price": round(price, 6),
            "brand": f"brand {number % 211}",
            "in_stock": number % 10 > 0,
            "tags": [f"tag {number % 7}", f"tag {number % 31}"],
        }
    )


def load(directory: Path, items: int) -> None:
    """Fills an index; prices are spread evenly from 0 to 1."""
    random = np.random.default_rng(0)
    with IndexWriter.open(directory, codebook_id=CODEBOOK, layers=LAYERS, size=SIZE, map_size=1 << 32) as writer:
        for begin in range(0, items, _LOAD_BATCH):
            numbers = np.arange(begin, min(items, begin + _LOAD_BATCH))
            codes = crowded_codes(random, len(numbers), SIZE)
            batch = batch_of(numbers, codes, random.random(len(numbers), np.float32))
            prices = random.random(len(numbers)).tolist()
            own = [attributes_of(number, price) for number, price in zip(numbers.tolist(), prices, strict=True)]
            writer.apply(type(batch)(**{**vars(batch), "attributes": own}), {})


@dataclass
class Filtered:
    """Queries with filters, as the retriever answers them."""

    reader: IndexReader
    catalogue: CurrentCatalogue
    queries: Queries
    layout: Layout

    def answer(self, wanted: Callable[[], Filter | None]) -> float:
        """Seconds of one query, from the snapshot to its items."""
        asked, batch = wanted(), self.queries.batch(1)
        started = time.perf_counter()
        with self.reader.snapshot() as snapshot:
            self.catalogue.roll_to(snapshot)
            trie = self.catalogue.trie(snapshot, self.layout, asked)
            model, vocabulary = self.queries.model, self.queries.vocabulary
            if asked is not None and self.catalogue.eligible_count(asked) <= EXACT_BELOW:
                sids = exact_search(model, vocabulary, batch, trie, sids=self.queries.beams)[0].sids
            else:
                (sids,) = beam_search(model, vocabulary, batch, trie, beams=self.queries.beams)
            if len(by_own_probability(sids, trie, LIMIT)) < LIMIT:
                raise RuntimeError("a query found fewer items than it asked for: the figures would mean nothing")
        return time.perf_counter() - started


def below(share: float, fresh: plain_random.Random) -> Filter:
    """A filter that lets through about this share, and that no query had before."""
    return Compare("price", "lt", share * (1 + fresh.random() / 100))


def measure(items: int, directory: Path, arguments: Any) -> list[Result]:
    started = time.perf_counter()
    load(directory, items)
    results = [Result("loaded, attributes with the updates", items / (time.perf_counter() - started), "items/s")]
    fresh = plain_random.Random(0)
    queries = Queries(SIZE, arguments.beams)
    with IndexReader(directory) as reader:
        catalogue = CurrentCatalogue(TYPES, filters_kept=16)
        started = time.perf_counter()
        with reader.snapshot() as snapshot:
            catalogue.roll_to(snapshot)
        results.append(Result("reading all attributes at the start", time.perf_counter() - started, "s"))
        filtered = Filtered(reader, catalogue, queries, Layout(0, CODEBOOK, LAYERS, SIZE))
        shares = (0.001, 0.1, 0.9)
        repeated = {share: below(share, fresh) for share in shares}
        stock = all_of([one_of("in_stock", [True]), one_of("brand", [f"brand {n}" for n in range(100)]), repeated[0.9]])
        calls: dict[str, Callable[[], Filter | None]] = {"no filter": lambda: None}
        calls |= {f"again, {share:.1%} of the items": partial(lambda one: one, one) for share, one in repeated.items()}
        calls["again, three clauses"] = lambda: stock
        calls |= {f"new, {share:.1%} of the items": partial(below, share, fresh) for share in shares}
        times: dict[str, list[float]] = {name: [] for name in calls}
        for turn in range(arguments.rounds + 2):
            for name, wanted in calls.items():
                seconds = filtered.answer(wanted)
                if turn >= 2:
                    times[name].append(1000 * seconds)
        plain = statistics.median(times.pop("no filter"))
        results.append(Result("a query without a filter", plain, "ms"))
        for name, of in times.items():
            median = statistics.median(of)
            again = name.startswith("again")
            target = Target.ratio_at_most(1.5) if again else None
            results.append(Result(f"a query with a filter, {name}", median, "ms", "ms, no filter", plain, target))
            if not again:
                results.append(
                    Result(f"{name}, more than without", median - plain, "ms", target=Target.value_at_most(25))
                )
        results += changes(directory, filtered, stock, items, arguments)
    return results


def changes(directory: Path, filtered: Filtered, wanted: Filter, items: int, arguments: Any) -> list[Result]:
    """Attributes that come alone: how many a second, and what following them costs the next query."""
    random = np.random.default_rng(1)
    with IndexWriter.open(directory, codebook_id=CODEBOOK, layers=LAYERS, size=SIZE) as writer:

        def change(count: int) -> float:
            numbers = np.unique(random.integers(items, size=count))
            ids = batch_of(numbers, np.zeros((len(numbers), 3), np.uint16), np.zeros(len(numbers), np.float32)).ids
            prices = random.random(len(numbers)).tolist()
            values: list[bytes | None] = [
                encode_attributes({"price": round(price, 6), "in_stock": price < 0.9}) for price in prices
            ]
            batch = AttributesBatch(
                ids, values, np.zeros(len(ids), np.int32), np.full(len(ids), int(time.time() * 1000), np.int64)
            )
            started = time.perf_counter()
            writer.apply_attributes(batch, {("item-attributes", 0): 1})
            return len(ids) / (time.perf_counter() - started)

        rates = [change(10_000) for _ in range(10)]
        filtered.answer(lambda: wanted)
        following, still = [], []
        for _ in range(arguments.rounds):
            change(250)
            following.append(1000 * filtered.answer(lambda: wanted))
            still.append(1000 * filtered.answer(lambda: wanted))
    return [
        Result(
            "attribute-only updates, batches of 10,000",
            statistics.median(rates),
            "items/s",
            target=Target.value_at_least(20_000),
        ),
        Result(
            "a filter again, after 250 changes (16 filters in use)",
            statistics.median(following),
            "ms",
            "ms, nothing changed",
            statistics.median(still),
        ),
    ]


def main() -> int:
    """Runs the benchmark; 1 if a target is missed."""
    parser = benchmark_arguments(__doc__)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--beams", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--directory", type=Path, help="where to put the temporary files (default: the system's)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        results = measure(arguments.items, Path(directory), arguments)
    return report(f"Filters over {arguments.items:,} items", results, arguments.json)


if __name__ == "__main__":
    raise SystemExit(main())
