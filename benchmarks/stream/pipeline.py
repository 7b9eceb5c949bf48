"""The pipeline on a real broker: items a second from `item-updates` to retrievable, and how fresh the index is.

Broker, assigner and indexer run as they do for a user, each in a process of its own; the benchmark publishes and reads
the index. Item ids are random, as they are in life. Baselines come from the same broker in the same minutes:

- throughput (`benchmarks.stream.throughput`): a transactional copy of the same records, raw, with the same client settings;
- freshness (`benchmarks.stream.freshness`): a bare `produce()` → `poll()` of the same records at the same rate.

Where the processor time of an item goes, stage by stage, is from a profiler (`benchmarks.stream.stages`), in a round of its own.
The first runs are thrown away, as a broker's first half minute is compilation.

With the defaults that takes about six minutes on two idle cores, and longer on a busy machine; `--rounds 1 --items 50000
--into 100000 --rates 2000 --seconds 5` is a look of about a minute, too short for figures to keep.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common.reporting import Result, benchmark_arguments, report
from benchmarks.stream.freshness import RATES, freshness_rows, warm_up
from benchmarks.stream.running_pipeline import DIMENSION, LAYERS, SIZE, Items, pipeline
from benchmarks.stream.throughput import throughput_rows
from store.checks.verification import verify
from store.reading.reader import IndexReader


def measure(
    directory: Path,
    items_count: int,
    rounds: int,
    into: int,
    rates: Sequence[float],
    seconds: float,
    *,
    stages: bool = True,
) -> list[Result]:
    items = Items()
    with pipeline(directory) as running:
        rows = throughput_rows(running, items, items_count, rounds, into, stages=stages)
        if rates:
            running.start("indexer")
            running.start("assigner")
            warm_up(running, items)
            rows += [row for rate in rates for row in freshness_rows(running, items, rate, seconds)]
            running.stop()
        with IndexReader(running.settings.index) as reader, reader.snapshot() as snapshot:
            faults = verify(snapshot)
        if faults:
            raise SystemExit(f"the index disagrees with itself: {faults}")
    return rows


def main() -> int:
    parser = benchmark_arguments(__doc__)
    parser.add_argument("--items", type=int, default=300_000, help="items of a round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, the median counts (default: %(default)s)")
    parser.add_argument("--into", type=int, default=1_000_000, help="items of the large index (default: %(default)s)")
    parser.add_argument("--no-stages", action="store_true", help="leave out the table by stage")
    parser.add_argument(
        "--rates", type=float, nargs="*", default=RATES, help="items/s of the freshness runs (default: %(default)s)"
    )
    parser.add_argument("--seconds", type=float, default=20, help="length of each freshness run (default: %(default)s)")
    parser.add_argument("--directory", type=Path, help="where to put the temporary files (default: the system's)")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.directory, prefix="sidstream-benchmark-") as directory:
        results = measure(
            Path(directory),
            asked.items,
            asked.rounds,
            asked.into,
            asked.rates,
            asked.seconds,
            stages=not asked.no_stages,
        )
    return report(f"The pipeline, {DIMENSION} numbers an item, {LAYERS} × {SIZE} codewords", results, asked.json)


if __name__ == "__main__":
    raise SystemExit(main())
