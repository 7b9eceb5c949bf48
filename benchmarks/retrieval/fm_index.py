"""The constraint as an FM-index, as SEAL has it, against our prefix tree: memory, decoding step and update.

Floors, for one item. Memory: its codes take their entropy (2.8 bytes at L = 3 and M = 256), its number 4; the prefix
tree's record has 2 (L - 1) + 4 bytes, the FM-index L symbols of log2(L M) bits, a quarter more for rank, and the number.
Step: the FM-index needs two ranks a level of its wavelet matrix for every allowed token; the prefix tree keeps its topology
in memory, and a step reads the children of the beams' prefixes from it. Update: the prefix tree writes one record, a static
FM-index every symbol of the catalogue. Layout: a view of the one; of the other a rebuild, because SIDs change. The FM-index
lies in memory and dies with its process; ours is on disk, but for its topology, which is read and kept from there.

Times are processor time, medians, both sides turn and turn about: on a shared machine the clock on the wall tells of
the neighbours. Waiting for the disk is in the row that says so alone. A rebuild begins with codes that lie in memory.
Where ``wavelet-matrix`` is installed (``pip install wavelet-matrix``), rows with it say what a compiled rank structure
and an insertion into a dynamic FM-index cost, called from Python. A dynamic one spares an update's rebuild but not the
new layout's, and pays elsewhere: with version 4.0, about 50 bytes of memory a symbol and lists twice as slow.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import lmdb
import numpy as np
from numpy.typing import NDArray

from benchmarks.common.reporting import Result, benchmark_arguments, report
from benchmarks.retrieval.fm_structure import DynamicFmIndex, FmIndex, transform, wavelet_package
from models.sids.head_tokens import top_k
from models.sids.layout import Layout
from store.reading.reader import IndexReader
from store.records.batch import CodesBatch
from store.records.encoding import PathEncoding
from store.topology.current import CurrentTopology
from store.topology.layout_trie import SnapshotTrie
from store.writing.writer import IndexWriter

CODEBOOK: Final = "0" * 16
LAYERS: Final = 3
LOAD: Final = 50_000  # items a transaction while the catalogue is loaded
TREE: Final = "prefix tree"

Answer = TypeVar("Answer")
Clock = Callable[[], float]


def crowded_batch(random: np.random.Generator, count: int, size: int, layers: int = LAYERS) -> CodesBatch:
    """New items with random ids; the second layer is crowded onto few tokens, as codebooks are."""
    codes = random.integers(size, size=(count, layers)).astype(np.uint16)
    codes[:, 1] = (size * random.random(count) ** 4).astype(np.uint16)
    return CodesBatch(
        ids=[b"%016x" % number for number in random.integers(2**63, size=count).tolist()],
        codes=codes,
        weights=np.ones(count, np.float32),
        titles=[""] * count,
        updated_at=np.zeros(count, np.int64),
        deleted=np.zeros(count, np.bool_),
    )


def median_milliseconds(work: Callable[[], object], rounds: int, clock: Clock = time.process_time) -> float:
    """Median time of ``work``, by default of the processor."""
    return statistics.median(timed(work, clock)[1] for _ in range(rounds))


def timed(work: Callable[[], Answer], clock: Clock = time.process_time) -> tuple[Answer, float]:
    """What ``work`` returns, and its milliseconds, by default of the processor."""
    begin = clock()
    answer = work()
    return answer, 1000 * (clock() - begin)


def entropy_bytes(codes: NDArray[np.uint16]) -> float:
    """Bytes that an item's codes need, layers taken as independent."""
    shares = [np.bincount(column) / len(codes) for column in codes.T]
    return -sum(float((share[share > 0] * np.log2(share[share > 0])).sum()) for share in shares) / 8


@dataclass(frozen=True)
class Query:
    """One query on both: milliseconds of (FM-index, prefix tree) by step, and the bytes that each held."""

    milliseconds: dict[str, tuple[float, float]]
    held: tuple[int, int]

    @classmethod
    def run(
        cls, trie: SnapshotTrie, index: FmIndex, beams: int, random: np.random.Generator, compiled: Any = None
    ) -> Query:
        """Steps with beams chosen at random, as the language model would; raises if the two allow different tokens.

        ``compiled``: the same symbols as a ``wavelet_matrix.WaveletMatrix``, for a row of its own.
        """
        milliseconds = {}
        (_, token, low, high), fm = timed(lambda: index.children(*index.root()))
        live, ours = timed(trie.first_tokens)
        milliseconds["step 1, what may come first"] = fm, ours
        at = np.sort(random.choice(len(live), min(beams, len(live)), replace=False))

        begin, end, prefixes = low[at], high[at], live[at][:, None]
        (owner, token, low, high), fm = timed(lambda: index.children(begin, end))
        (parent, expected), ours = timed(lambda: trie.children(prefixes))
        milliseconds["step 2, below the beams' first tokens"] = fm, ours
        _hold_equal(owner, token, parent, expected)
        held = sum(array.nbytes for array in (owner, token, low, high)), parent.nbytes + expected.nbytes
        if compiled is not None:
            bounds = list(zip(begin.tolist(), end.tolist(), strict=True))
            _, fm = timed(lambda: [compiled.range_list(first, last) for first, last in bounds])
            milliseconds["step 2, the lists of wavelet-matrix"] = fm, ours

        unfinished = np.flatnonzero(token < (LAYERS - 1) * trie.layout.size)
        at = np.sort(random.choice(unfinished, min(beams, len(unfinished)), replace=False))
        begin, end = low[at], high[at]
        longer = np.stack((prefixes[owner[at], 0], token[at]), axis=1)
        (owner, token, low, high), fm = timed(lambda: index.children(begin, end))
        (parent, expected), ours = timed(lambda: trie.children(longer))
        milliseconds["step 3, below the beams' nodes"] = fm, ours
        _hold_equal(owner, token, parent, expected)

        at = np.sort(random.choice(len(token), min(beams, len(token)), replace=False))
        whole = list(zip(low[at].tolist(), high[at].tolist(), strict=True))
        sids = np.concatenate((longer[owner[at]], token[at, None]), axis=1).tolist()
        mine, fm = timed(lambda: [index.items_of(first, last) for first, last in whole])
        theirs, ours = timed(lambda: trie.items_of(sids))
        milliseconds["answer, items of the beams' SIDs"] = fm, ours
        if any(set(left.tolist()) != set(right.items.tolist()) for left, right in zip(mine, theirs, strict=True)):
            raise RuntimeError("FM-index and prefix tree name different items: the figures would mean nothing")
        return cls(milliseconds, held)

    @property
    def whole(self) -> tuple[float, float]:
        """Milliseconds of all steps, without those of ``compiled``."""
        columns = [pair for step, pair in self.milliseconds.items() if "wavelet-matrix" not in step]
        return sum(fm for fm, _ in columns), sum(ours for _, ours in columns)


def _hold_equal(owner: Any, token: Any, parent: Any, expected: Any) -> None:
    if not (np.array_equal(owner, parent) and np.array_equal(token, expected)):
        raise RuntimeError("FM-index and prefix tree allow different tokens: the figures would mean nothing")


def against_tree(name: str, pairs: list[tuple[float, float]], unit: str = "ms") -> Result:
    """A row of medians of (FM-index, prefix tree)."""
    fm, ours = (statistics.median(column) for column in zip(*pairs, strict=True))
    return Result(name, fm, unit, TREE, ours)


def measure(items: int, size: int, directory: Path, *, beams: int, rounds: int, batch: int) -> list[Result]:
    """All rows of one catalogue; its index is left in ``directory``."""
    random = np.random.default_rng(0)
    with (
        IndexWriter.open(directory / "index", codebook_id=CODEBOOK, layers=LAYERS, size=size) as writer,
        IndexReader(directory / "index") as reader,
    ):
        pages = _load(writer, directory / "alone", items, size, random)
        plain = Layout(1, CODEBOOK, LAYERS, size)
        short = Layout(2, CODEBOOK, LAYERS, size, tuple(top_k(writer.census()[1], size // 10)))
        topology = CurrentTopology()
        with reader.snapshot() as snapshot:
            blocks = list(snapshot.all_paths())
            held = topology.at(snapshot).nbytes
        codes, numbers = (np.concatenate(columns) for columns in zip(*blocks, strict=True))
        order = np.lexsort((numbers, *codes.T[::-1]))
        codes, numbers = codes[order], numbers[order]
        results = _memory(FmIndex.of(codes, numbers, plain), codes, pages, held)
        results += _steps(reader, topology, codes, numbers, (plain, short), beams, rounds, random)
        results += _updates(writer, codes, numbers, plain, rounds, batch, random)
        results.append(_layout_change(writer, reader, topology, short, codes, numbers))
    name = f"{items // 1000:,} k × {size}"
    return [
        Result(f"{name}: {row.name}", row.value, row.unit, row.baseline_name, row.baseline_value) for row in results
    ]


def _load(writer: IndexWriter, beside: Path, items: int, size: int, random: np.random.Generator) -> int:
    """Fills the index; returns the bytes of the prefix tree's pages.

    LMDB does not count the pages below a key, nor those that transactions left free. So the tree's records are written
    in the same order ``beside``, where there is nothing else, in one transaction, which leaves none free.
    """
    with lmdb.open(str(beside), map_size=1 << 32, max_dbs=1) as alone:
        paths = alone.open_db(b"paths", dupsort=True, dupfixed=True)
        empty = alone.info()["last_pgno"] + 1
        with alone.begin(write=True) as transaction:
            for begin in range(0, items, LOAD):
                batch = crowded_batch(random, min(LOAD, items - begin), size)
                writer.apply(batch, {})
                numbers = np.arange(begin, begin + len(batch), dtype=np.uint32)
                transaction.cursor(paths).putmulti(
                    PathEncoding(LAYERS, size).encode(batch.codes, numbers, batch.weights)
                )
        return int((alone.info()["last_pgno"] + 1 - empty) * alone.stat()["psize"])


def _memory(index: FmIndex, codes: NDArray[np.uint16], pages: int, held: int) -> list[Result]:
    count = len(codes)
    return [
        Result("memory, FM-index against the topology alone", index.nbytes / count, "B/item", TREE, held / count),
        Result("memory, FM-index against the tree's pages", index.nbytes / count, "B/item", TREE, pages / count),
        Result("memory, floor: entropy of the codes", entropy_bytes(codes), "B/item", TREE, pages / count),
    ]


def _steps(
    reader: IndexReader,
    topology: CurrentTopology,
    codes: NDArray[np.uint16],
    numbers: NDArray[np.uint32],
    layouts: tuple[Layout, Layout],
    beams: int,
    rounds: int,
    random: np.random.Generator,
) -> list[Result]:
    plain, short = layouts
    compiled = (
        None if wavelet_package is None else wavelet_package.WaveletMatrix(transform(codes, numbers, plain)[0].tolist())
    )
    queries: dict[str, list[Query]] = {}
    for name, layout in (("no head tokens", plain), ("top@10 % head tokens", short)):
        index = FmIndex.of(codes, numbers, layout)
        lists = compiled if layout is plain else None
        queries[name] = []
        for _ in range(rounds + 1):
            with reader.snapshot() as snapshot:
                trie = SnapshotTrie(snapshot, layout, topology.at(snapshot))
                queries[name].append(Query.run(trie, index, beams, random, lists))
        del queries[name][0]  # it warmed up
    first = queries["no head tokens"]
    return [
        *(against_tree(step, [query.milliseconds[step] for query in first]) for step in first[0].milliseconds),
        *(against_tree(f"query, {name}", [query.whole for query in found]) for name, found in queries.items()),
        against_tree("query, arrays held", [(fm / 1000, ours / 1000) for fm, ours in (q.held for q in first)], "kB"),
    ]


def _updates(
    writer: IndexWriter,
    codes: NDArray[np.uint16],
    numbers: NDArray[np.uint32],
    layout: Layout,
    rounds: int,
    batch: int,
    random: np.random.Generator,
) -> list[Result]:
    """New items into both; ``batch``: items of the amortised rows."""
    size = layout.size
    rebuild = median_milliseconds(lambda: FmIndex.of(codes, numbers, layout), 3)
    single = iter([crowded_batch(random, 1, size) for _ in range(2 * rounds)])
    alone = median_milliseconds(lambda: writer.apply(next(single), {}), rounds)
    wall = median_milliseconds(lambda: writer.apply(next(single), {}), rounds, time.perf_counter)
    many = iter([crowded_batch(random, batch, size) for _ in range(5)])
    upsert = 1000 * median_milliseconds(lambda: writer.apply(next(many), {}), 5) / batch
    results = [
        Result("update of one item, rebuild", rebuild, "ms", TREE, alone),
        Result("update of one item, rebuild; tree with the disk", rebuild, "ms", TREE, wall),
        Result(f"update in a batch of {batch:,}, rebuild", 1000 * rebuild / batch, "µs/item", TREE, upsert),
        Result("update, items from which a rebuild is cheaper", 1000 * rebuild / upsert, "items"),
    ]
    if wavelet_package is not None:
        dynamic = DynamicFmIndex(codes, layout)
        sids = [layout.sid_of(row) for row in crowded_batch(random, batch, size).codes.tolist()]
        insertion = 1000 * timed(lambda: dynamic.insert(sids))[1] / batch
        results.append(
            Result("update, insertion by wavelet-matrix", insertion, "µs/item", TREE, upsert),
        )
    return results


def _layout_change(
    writer: IndexWriter,
    reader: IndexReader,
    topology: CurrentTopology,
    short: Layout,
    codes: NDArray[np.uint16],
    numbers: NDArray[np.uint32],
) -> Result:
    """Until the first step could be taken under the new layout."""

    def view() -> None:
        writer.put_layout(short, {})
        with reader.snapshot() as snapshot:
            trie = SnapshotTrie(snapshot, short, topology.at(snapshot))
            trie.children(trie.first_tokens()[:, None])

    rebuild = median_milliseconds(lambda: FmIndex.of(codes, numbers, short), 3)
    return Result("layout change, rebuild", rebuild, "ms", TREE, timed(view)[1])


def main() -> int:
    """Runs the benchmark; it has no target to miss: it says what the other way would cost."""
    parser = benchmark_arguments(__doc__)
    parser.add_argument("--items", type=int, nargs="+", default=[20_000, 200_000, 1_000_000])
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 1024], help="codewords per layer, M")
    parser.add_argument("--beams", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--batch", type=int, default=10_000, help="items that share a transaction or a rebuild")
    parser.add_argument("--directory", type=Path, help="where to put the temporary files (default: the system's)")
    arguments = parser.parse_args()
    results: list[Result] = []
    for items in arguments.items:
        for size in arguments.sizes:
            with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
                chosen = {name: getattr(arguments, name) for name in ("beams", "rounds", "batch")}
                results += measure(items, size, Path(directory), **chosen)
    title = f"FM-index against the prefix tree, L = {LAYERS}, {arguments.beams} beams (names: items × M)"
    return report(title, results, arguments.json)


if __name__ == "__main__":
    raise SystemExit(main())
