"""Writing into an index of ten million items: large sorted batches while catching up, small ones while live.

    python -m benchmarks ingest [--items 10000000] [--directory /a/disk/with/10/GB]

Ids are random, as they are in life: new ones, and those of items that are there already, which get other codes. The baseline of
a large batch is one as large as the indexer's while live; of a live commit, the same in an index of 100,000 items. A live commit
has as many updates as come in ten milliseconds at 2,000 a second, half of them of known items, and is timed from the call until
another process could see it: what an index of this size adds to freshness. Before each index is measured it is read ahead, as by
an indexer that starts far behind.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.common.reporting import Result, Target, benchmark_arguments, report
from benchmarks.index.scale_ingest import CODEBOOK, LAYERS, batch_of, crowded_codes, load
from store.files.read_ahead import read_ahead
from store.writing.writer import IndexWriter
from streamer.process.run import collect_garbage_rarely
from streamer.settings.pipeline import IndexerSettings

SIZE: Final = 256
FEW_ITEMS: Final = 100_000
TARGET: Final = Target.value_at_least(50_000)
_LIVE_RATE: Final = 2_000
_LIVE_SECONDS: Final = 0.01
_LIVE_COMMITS: Final = 500
_STATUS: Final = Path("/proc/self/status")


@dataclass
class Index:
    """An index under measurement, and how many items it holds; their numbers are those up to that."""

    writer: IndexWriter
    random: np.random.Generator
    items: int

    def numbers(self, count: int, known: float) -> NDArray[np.int64]:
        """Of items, of which the share ``known`` is there; the others are there from then on."""
        there = np.unique(self.random.integers(self.items, size=round(count * known)))
        new = np.arange(self.items, self.items + count - round(count * known))
        self.items += len(new)
        return np.concatenate([there, new])

    def apply(self, numbers: NDArray[np.int64]) -> float:
        """Seconds that a batch took."""
        codes = crowded_codes(self.random, len(numbers), SIZE)
        batch = batch_of(numbers, codes, self.random.random(len(numbers), np.float32))
        since = time.perf_counter()
        self.writer.apply(batch, {("item-codes", 0): self.items})
        return time.perf_counter() - since

    def items_a_second(self, batch_size: int, batches: int, known: float) -> float:
        written, seconds = 0, 0.0
        for _ in range(batches):
            numbers = self.numbers(batch_size, known)
            seconds += self.apply(numbers)
            written += len(numbers)
        return written / seconds

    def live_commits(self) -> NDArray[np.float64]:
        """Milliseconds of each of some hundred live commits, at their rate."""
        taken = []
        for _ in range(_LIVE_COMMITS):
            seconds = self.apply(self.numbers(round(_LIVE_RATE * _LIVE_SECONDS), 0.5))
            taken.append(1000 * seconds)
            time.sleep(max(0.0, _LIVE_SECONDS - seconds))
        return np.array(taken)


@contextmanager
def opened(directory: Path, items: int) -> Iterator[Index]:
    """A loaded index, its pages in memory where that has room."""
    with IndexWriter.open(directory, codebook_id=CODEBOOK, layers=LAYERS, size=SIZE) as writer:
        read_ahead(directory)
        yield Index(writer, np.random.default_rng(1), items)


class PeakMemory:
    """The greatest anonymous memory of this process while the block runs, in MB; 0 where there is no ``/proc``."""

    def __enter__(self) -> PeakMemory:
        self.megabytes = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            lines = _STATUS.read_text().splitlines() if _STATUS.exists() else []
            now = next((int(line.split()[1]) for line in lines if line.startswith("RssAnon:")), 0)
            self.megabytes = max(self.megabytes, now / 1000)


def measure(directory: Path, items: int) -> list[Result]:
    settings = IndexerSettings()
    live, catching_up = settings.batch_size, settings.catching_up_batch_size
    results: list[Result] = []
    since = time.perf_counter()
    load(directory / "many", items, SIZE)
    results.append(Result(f"loading {items:,} items", items / (time.perf_counter() - since), "items/s", target=TARGET))
    load(directory / "few", FEW_ITEMS, SIZE)
    with opened(directory / "many", items) as index:
        with PeakMemory() as memory:
            for known, what in ((0.0, "new"), (1.0, "known"), (0.5, "half of them known")):
                small = index.items_a_second(live, 4, known)
                large = index.items_a_second(catching_up, 2, known)
                name = f"upserts of random ids, {what}, batches of {catching_up:,}"
                target = TARGET if known == 0.5 else None
                results.append(Result(name, large, "items/s", f"batches of {live:,}", small, target))
        results.append(Result("the process' own memory at the most", memory.megabytes, "MB"))
        commits = index.live_commits()
    with opened(directory / "few", FEW_ITEMS) as index:
        baseline = index.live_commits()
    for percent in (50, 99):
        ours, floor = (float(np.percentile(taken, percent)) for taken in (commits, baseline))
        name = f"live commit p{percent} at {items:,} items"
        results.append(Result(name, ours, "ms", f"at {FEW_ITEMS:,} items", floor))
    return results


def main() -> int:
    parser = benchmark_arguments(__doc__)
    parser.add_argument("--items", type=int, default=10_000_000, help="items loaded first (default: %(default)s)")
    parser.add_argument("--directory", type=Path, help="where to put the temporary files (default: the system's)")
    arguments = parser.parse_args()
    collect_garbage_rarely()
    with tempfile.TemporaryDirectory(dir=arguments.directory, prefix="sidstream-benchmark-") as directory:
        results = measure(Path(directory), arguments.items)
    return report(f"Writing at {arguments.items:,} items", results, arguments.json)


if __name__ == "__main__":
    raise SystemExit(main())
