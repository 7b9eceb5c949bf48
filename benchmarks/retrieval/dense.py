"""The dense leg: a query against the vectors of a catalogue, all of them scanned or the leading directions first.

Vectors are those of amazon_games where the study's data lie beside the project (a made mixture of 500 centres elsewhere), each
many times with noise of a third of its length: neighbourhoods are crowded, which is the hard case for screening. What it loses is
counted: the share of the true nearest hundred that it keeps, and by how much the log of the sum over the catalogue is off.

    python -m benchmarks dense [--items 20000,400000] [--json PATH]
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from benchmarks.common.reporting import Result, Target, benchmark_arguments, report
from models.dense.arrivals import unit
from models.dense.space import DenseSpace, KnownItems
from models.dense.vectors import quantise
from retriever.dense.item_vectors import SCREENED_FROM, ItemVectors

DATA: Final = Path(__file__).parents[3] / "shared" / "data" / "amazon_games" / "items.minilm.f16.npy"
QUERIES: Final = 8
SHARPNESS: Final = 15.0
NEAREST: Final = 100
ROUNDS: Final = 7
LEAST_KEPT: Final = 0.95


def main() -> int:
    parser = benchmark_arguments(__doc__)
    parser.add_argument("--items", default="20000,400000", help="sizes of the catalogue, separated by commas")
    arguments = parser.parse_args()
    results: list[Result] = []
    for count in map(int, arguments.items.split(",")):
        results += _measured(count)
    return report("Dense leg: one core of whatever NumPy takes, processor time", results, arguments.json)


def _measured(count: int) -> list[Result]:
    vectors = _vectors(count)
    dimension = vectors.shape[1]
    hashes = np.arange(count, dtype=np.uint64)
    space = DenseSpace(dimension, KnownItems(hashes[: count - count // 50]))
    scanning, screening = ItemVectors(space, screened_from=count + 1), ItemVectors(space, screened_from=SCREENED_FROM)
    began = time.process_time()
    for table in (scanning, screening):
        table.put(np.arange(count), quantise(vectors), hashes)
    loaded = (time.process_time() - began) / 2
    random = np.random.default_rng(1)
    noise = random.standard_normal((QUERIES, dimension)) / (3 * np.sqrt(dimension))
    queries = unit(vectors[random.integers(count, size=QUERIES)] + noise)
    none = [np.empty(0, dtype=np.int64)] * QUERIES
    results = [Result(f"{count:,} items: vectors read into memory", count / loaded, "items/s")]
    for name, size in (("one query", 1), (f"{QUERIES} queries", QUERIES)):
        asked, nothing = queries[:size], none[:size]
        flat = _seconds(scanning, asked, nothing)
        own = _seconds(screening, asked, nothing)
        # Below SCREENED_FROM both do the same; above it, screening must pay.
        target = Target.ratio_at_most(0.7) if count > 2 * SCREENED_FROM else None
        results.append(Result(f"{count:,} items, {name}", own * 1_000, "ms", "all scanned", flat * 1_000, target))
    kept, off = [], []
    for exact, held in zip(
        scanning.held_against(queries, none, none), screening.held_against(queries, none, none), strict=True
    ):
        nearest = np.argpartition(-exact.cosines, NEAREST)[:NEAREST]
        kept.append(float((held.cosines[nearest] > -np.inf).mean()))
        off.append(abs(exact.log_sum(SHARPNESS) - held.log_sum(SHARPNESS)))
    share = Result(
        f"{count:,} items: of the nearest {NEAREST}",
        float(np.mean(kept)),
        "kept",
        None,
        None,
        Target.value_at_least(LEAST_KEPT),
    )
    return [*results, share, Result(f"{count:,} items: log of the sum is off by", float(np.max(off)), "at most")]


def _vectors(count: int) -> npt.NDArray[np.float32]:
    random = np.random.default_rng(0)
    some = np.load(DATA) if DATA.is_file() else random.standard_normal((500, 384))
    chosen = unit(some.astype(np.float32))[random.integers(len(some), size=count)]
    noise = random.standard_normal(chosen.shape, dtype=np.float32) / np.float32(3 * np.sqrt(chosen.shape[1]))
    return unit(chosen + noise)


def _seconds(table: ItemVectors, queries: npt.NDArray[np.float32], nothing: Sequence[npt.NDArray[np.int64]]) -> float:
    """Median processor time; the first call, which may learn the directions, does not count."""
    table.held_against(queries, nothing, nothing)
    times = []
    for _ in range(ROUNDS):
        began = time.process_time()
        table.held_against(queries, nothing, nothing)
        times.append(time.process_time() - began)
    return float(np.median(times))


if __name__ == "__main__":
    raise SystemExit(main())
