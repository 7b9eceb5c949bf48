"""The index at a million items: loading it, upserting into it, reading the items of a query's SIDs, bytes an item.

The floor of writing is LMDB itself: the same bytes, encoded and sorted beforehand, put in the same batches into a
second environment, turn and turn about with the index. What the index adds to it is finding out which ids exist,
encoding, the census, the commit log and the offsets. The floor of reading is ``getmulti`` of the same keys with nothing
decoded. The SIDs read are short ones, of items: the layout that gives the most items.
Item ids are random, as they are in life: sequential ones flatter LMDB several times over.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import lmdb
import numpy as np

from benchmarks.common.clock import timed
from benchmarks.common.reporting import Result, Target, benchmark_arguments, report
from store.reading.reader import IndexReader
from store.records.batch import CodesBatch
from store.records.encoding import ItemEncoding, PathEncoding, number_keys
from store.writing.writer import IndexWriter

CODEBOOK = "0" * 16
LAYERS = 3
SIZES = (4096, 256)  # M: a short path is a key of the index only for the second
BEAMS = 50


def random_batch(random: np.random.Generator, count: int, size: int = SIZES[0]) -> CodesBatch:
    """New items with random ids; the second layer is crowded onto few tokens, as codebooks are."""
    codes = random.integers(size, size=(count, LAYERS)).astype(np.uint16)
    codes[:, 1] = (size * random.random(count) ** 4).astype(np.uint16)
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
    paths: list[tuple[bytes, bytes]]

    @classmethod
    def of(cls, batch: CodesBatch, first_number: int, encoding: PathEncoding) -> RawBatch:
        numbers = np.arange(first_number, first_number + len(batch), dtype=np.uint32)
        keys = number_keys(numbers)
        origin = np.zeros(len(batch), np.int32), np.zeros(len(batch), np.int64)
        values = ItemEncoding(LAYERS).encode(
            batch.ids, batch.codes, batch.weights, batch.titles, batch.updated_at, *origin
        )
        paths = encoding.encode(batch.codes, numbers, batch.weights)
        return cls(list(zip(keys, values, strict=True)), sorted(zip(batch.ids, keys, strict=True)), paths)


class RawStore:
    """LMDB with the index's databases and settings, and nothing of the index."""

    def __init__(self, path: Path, encoding: PathEncoding) -> None:
        self.encoding = encoding
        self._environment = lmdb.open(str(path), map_size=1 << 34, max_dbs=3, metasync=False, readahead=False)
        self._items = self._environment.open_db(b"items")
        self._ids = self._environment.open_db(b"ids")
        self._paths = self._environment.open_db(b"paths", dupsort=True, dupfixed=True)

    def put(self, batch: RawBatch) -> None:
        with self._environment.begin(write=True) as transaction:
            transaction.cursor(self._items).putmulti(batch.items, append=True)
            transaction.cursor(self._ids).putmulti(batch.ids)
            transaction.cursor(self._paths).putmulti(batch.paths)

    @property
    def bytes_used(self) -> int:
        return int((self._environment.info()["last_pgno"] + 1) * self._environment.stat()["psize"])

    def read(self, requests: list[tuple[bytes, bytes]]) -> int:
        """Reads the records of short paths, given as ``PathEncoding.first_records``; bytes."""
        with self._environment.begin() as transaction:
            cursor = transaction.cursor(self._paths)
            if self.encoding.whole_keys:
                keys = [key for key, _ in requests]
                width = self.encoding.value_bytes
                return len(cursor.getmulti(keys, dupdata=True, dupfixed_bytes=width, keyfixed=True))
            found = 0
            for key, lowest in requests:
                there = cursor.set_range_dup(key, lowest)
                while there and self.encoding.same_short_path(lowest, value := cursor.value()):
                    found += len(value)
                    there = cursor.next_dup()
            return found


def write_both(
    random: np.random.Generator, writer: IndexWriter, raw: RawStore, number: int, items: int, batch_size: int, size: int
) -> tuple[float, float]:
    """Writes ``items`` new items in batches of ``batch_size`` into the index and below it; items a second of both."""
    index_seconds = raw_seconds = 0.0
    for start in range(0, items, batch_size):
        batch = random_batch(random, batch_size, size)
        bare = RawBatch.of(batch, number + start, raw.encoding)
        index_seconds += timed(lambda batch=batch: writer.apply(batch, {("item-codes", 0): 1}))  # type: ignore[misc]
        raw_seconds += timed(lambda bare=bare: raw.put(bare))  # type: ignore[misc]
    return items / index_seconds, items / raw_seconds


def read_both(
    random: np.random.Generator, reader: IndexReader, raw: RawStore, repeats: int = 200
) -> tuple[float, float, float]:
    """Milliseconds (medians) of the items of a query's SIDs and of the raw read of the same keys, and items a query."""
    ours, reads, records = [], [], 0
    with reader.snapshot() as snapshot:
        there = np.concatenate([codes[:, [0, 2]] for codes, _ in snapshot.all_paths()])
        for _ in range(repeats):
            short = there[random.choice(len(there), BEAMS)]
            requests = raw.encoding.first_records(np.unique(short, axis=0))
            reads.append(timed(lambda requests=requests: raw.read(requests)))  # type: ignore[misc]
            ours.append(timed(lambda short=short: snapshot.items_below(short)))  # type: ignore[misc]
            records += len(snapshot.items_below(short).items)
    return 1000 * float(np.median(ours)), 1000 * float(np.median(reads)), records / repeats


def measure(items: int, size: int, directory: Path) -> list[Result]:
    """All rows of one number of codewords."""
    random = np.random.default_rng(0)
    directory.mkdir()
    (directory / "raw").mkdir()
    raw = RawStore(directory / "raw", PathEncoding(LAYERS, size))
    results: list[Result] = []
    with IndexWriter.open(directory / "index", codebook_id=CODEBOOK, layers=LAYERS, size=size) as writer:
        number = 0

        def written(name: str, count: int, batch_size: int, target: Target | None) -> None:
            nonlocal number
            ours, floor = write_both(random, writer, raw, number, count, batch_size, size)
            number += count
            results.append(Result(f"M = {size}: {name}", ours, "items/s", "bare LMDB puts", floor, target))

        written(f"load {items:,} items, batches of 50,000", items, 50_000, None)
        written("upsert new items, batches of 10,000", 200_000, 10_000, Target.ratio_at_least(0.6))
        written("upsert new items, batches of 1,000", 50_000, 1_000, Target.ratio_at_least(0.6))
        with IndexReader(directory / "index") as reader:
            ours, read, records = read_both(random, reader, raw)
        title = f"M = {size}: items of {BEAMS} SIDs ({records:,.0f} items)"
        results.append(Result(title, ours, "ms", "bare LMDB reads", read, Target.value_at_most(0.5)))
        used, floor = writer.storage().used_bytes / number, raw.bytes_used / number
        title = f"M = {size}: on disk, with commit log and free pages"
        results.append(Result(title, used, "B/item", "bare LMDB puts", floor))
    return results


def main() -> int:
    parser = benchmark_arguments(__doc__)
    parser.add_argument("--items", type=int, default=1_000_000, help="items loaded first (default: %(default)s)")
    parser.add_argument("--directory", type=Path, help="where to put the temporary files (default: the system's)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        results = [
            row for size in SIZES for row in measure(arguments.items, size, Path(directory) / f"{size}-codewords")
        ]
    return report(f"The index at {arguments.items:,} items", results, arguments.json)


if __name__ == "__main__":
    raise SystemExit(main())
