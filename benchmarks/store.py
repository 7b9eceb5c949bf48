"""The index at a million items: loading it, upserting into it, reading the buckets of one beam-search step.

The floor of writing is LMDB itself: the same bytes, encoded and sorted beforehand, put in the same batches into a
second environment, turn and turn about with the index. What the index adds to it is finding out which ids exist,
encoding, the census and the offsets. The floor of reading is ``getmulti`` of the same buckets with nothing decoded.
Item ids are random, as they are in life: sequential ones flatter LMDB several times over.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmdb
import numpy as np

from benchmarks.reporting import Result, Target, benchmark_arguments, report
from models.sids.head_tokens import top_k
from models.sids.layout import Layout
from store.reading.reader import IndexReader
from store.records.batch import CodesBatch
from store.records.encoding import ItemEncoding, TrieEncoding, first_token_keys, number_keys
from store.topology.trie_view import TrieView
from store.writing.writer import IndexWriter

CODEBOOK = "0" * 16
LAYERS, SIZE = 3, 4096
BEAMS = 50
SECONDS = time.perf_counter


def random_batch(random: np.random.Generator, count: int) -> CodesBatch:
    """New items with random ids; the second layer is crowded onto few tokens, as codebooks are."""
    codes = random.integers(SIZE, size=(count, LAYERS)).astype(np.uint16)
    codes[:, 1] = (SIZE * random.random(count) ** 4).astype(np.uint16)
    return CodesBatch(
        ids=[b"%016x" % number for number in random.integers(2**63, size=count).tolist()],
        codes=codes,
        weights=random.random(count).astype(np.float32),
        titles=["Stainless steel kettle, 1.7 litres, cordless"] * count,
        updated_at=np.full(count, 1_700_000_000_000),
        deleted=np.zeros(count, np.bool_),
    )


@dataclass(frozen=True)
class RawBatch:
    """The same items as LMDB gets them: (key, value) pairs per database, in order."""

    items: list[tuple[bytes, bytes]]
    ids: list[tuple[bytes, bytes]]
    trie: list[tuple[bytes, bytes]]

    @classmethod
    def of(cls, batch: CodesBatch, first_number: int) -> RawBatch:
        numbers = np.arange(first_number, first_number + len(batch), dtype=np.uint32)
        keys = number_keys(numbers)
        origin = np.zeros(len(batch), np.int32), np.zeros(len(batch), np.int64)
        values = ItemEncoding(LAYERS).encode(
            batch.ids, batch.codes, batch.weights, batch.titles, batch.updated_at, *origin
        )
        trie = TrieEncoding(LAYERS).encode(batch.codes, numbers)
        return cls(list(zip(keys, values, strict=True)), sorted(zip(batch.ids, keys, strict=True)), trie)


class RawStore:
    """LMDB with the index's databases and settings, and nothing of the index."""

    def __init__(self, path: Path) -> None:
        self._environment = lmdb.open(str(path), map_size=1 << 34, max_dbs=3, metasync=False, readahead=False)
        self._items = self._environment.open_db(b"items")
        self._ids = self._environment.open_db(b"ids")
        self._trie = self._environment.open_db(b"trie", dupsort=True, dupfixed=True)

    def put(self, batch: RawBatch) -> None:
        with self._environment.begin(write=True) as transaction:
            transaction.cursor(self._items).putmulti(batch.items, append=True)
            transaction.cursor(self._ids).putmulti(batch.ids)
            transaction.cursor(self._trie).putmulti(batch.trie)

    def read(self, first: np.ndarray[Any, Any]) -> int:
        with self._environment.begin() as transaction:
            keys = first_token_keys(first)
            width = TrieEncoding(LAYERS).value_bytes
            cursor = transaction.cursor(self._trie)
            return len(cursor.getmulti(keys, dupdata=True, dupfixed_bytes=width, keyfixed=True))


def timed(work: Callable[[], object]) -> float:
    """Seconds that ``work`` takes."""
    start = SECONDS()
    work()
    return SECONDS() - start


def write_both(
    random: np.random.Generator, writer: IndexWriter, raw: RawStore, number: int, items: int, size: int
) -> tuple[float, float]:
    """Writes ``items`` new items in batches of ``size`` into the index and below it; items a second of both."""
    index_seconds = raw_seconds = 0.0
    for start in range(0, items, size):
        batch = random_batch(random, size)
        bare = RawBatch.of(batch, number + start)
        index_seconds += timed(lambda batch=batch: writer.apply(batch, {("item-codes", 0): 1}))  # type: ignore[misc]
        raw_seconds += timed(lambda bare=bare: raw.put(bare))  # type: ignore[misc]
    return items / index_seconds, items / raw_seconds


def read_both(
    random: np.random.Generator, reader: IndexReader, raw: RawStore, heads: tuple[int, ...], repeats: int = 100
) -> tuple[float, float, float]:
    """Milliseconds (medians) of a step's SID paths and of the raw read of the same buckets, and records a step."""
    layout = Layout(1, CODEBOOK, LAYERS, SIZE, heads)
    steps = [np.sort(random.choice(SIZE, BEAMS, replace=False)) for _ in range(repeats)]
    views, reads, records = [], [], 0
    with reader.snapshot() as snapshot:
        view = TrieView(snapshot, layout)
        for step in steps:
            views.append(timed(lambda step=step: view.paths(step)))  # type: ignore[misc]
            reads.append(timed(lambda step=step: raw.read(step)))  # type: ignore[misc]
            records += len(view.paths(step).items)
    return 1000 * float(np.median(views)), 1000 * float(np.median(reads)), records / repeats


def measure(items: int, directory: Path) -> list[Result]:
    random = np.random.default_rng(0)
    raw = RawStore(directory / "raw")
    results: list[Result] = []
    with IndexWriter.open(directory / "index", codebook_id=CODEBOOK, layers=LAYERS, size=SIZE) as writer:
        number = 0

        def written(name: str, count: int, size: int, target: Target | None) -> None:
            nonlocal number
            ours, floor = write_both(random, writer, raw, number, count, size)
            number += count
            results.append(Result(name, ours, "items/s", "bare LMDB puts", floor, target))

        written(f"load {items:,} items, batches of 50,000", items, 50_000, None)
        written("upsert new items, batches of 10,000", 200_000, 10_000, Target.ratio_at_least(0.6))
        written("upsert new items, batches of 1,000", 50_000, 1_000, Target.ratio_at_least(0.6))
        heads = tuple(top_k(writer.census()[1], SIZE // 10))
        with IndexReader(directory / "index") as reader:
            for name, tokens in (("no head tokens", ()), ("top@10 % head tokens", heads)):
                view, read, records = read_both(random, reader, raw, tokens)
                title = f"paths of {BEAMS} buckets ({records:,.0f} records), {name}"
                results.append(Result(title, view, "ms", "raw getmulti", read, Target.value_at_most(2.0)))
    return results


def main() -> int:
    parser = benchmark_arguments(__doc__)
    parser.add_argument("--items", type=int, default=1_000_000, help="items loaded first (default: %(default)s)")
    parser.add_argument("--directory", type=Path, help="where to put the temporary files (default: the system's)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        (Path(directory) / "raw").mkdir()
        results = measure(arguments.items, Path(directory))
    return report(f"The index at {arguments.items:,} items", results, arguments.json)


if __name__ == "__main__":
    raise SystemExit(main())
