"""The constants of ``benchmarks.stream.sizing``, measured on this machine: bytes an item by database, memory an item, rates.

    python -m benchmarks sizing-constants --items 1000000 --json docs/benchmarks/sizing.json

The catalogue: ids of 16 characters, titles of 44, embeddings of 384 numbers, four attributes. Item ids are random, as they are
in life. Bytes are those of LMDB's pages, as a catalogue that was read from its topics leaves them: a rebuild. Memory is what
Python and NumPy hold after reading. What is not measured here says where it comes from, and can be given to ``sizing``.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Final

import lmdb
import numpy as np

from benchmarks.common.reporting import benchmark_arguments
from benchmarks.index.scale_ingest import CODEBOOK, LAYERS, batch_of, crowded_codes
from models.attributes import AttributeType, encode_attributes
from models.dense.mixture import nearest
from models.dense.vectors import quantise
from models.sids.layout import Layout
from retriever.dense.item_vectors import KEPT, LEADING
from retriever.eligibility.current import CurrentCatalogue
from store.reading.reader import IndexReader
from store.records.batch import CodesBatch
from store.writing.writer import IndexWriter

DIMENSION: Final = 384
SIZES: Final = (256, 4096)
_BATCH: Final = 100_000
_PAGE: Final = 4096
_TRACED: Final = 2_000_000  # items: memory is measured of no larger catalogue
_FILTERABLE: Final[dict[str, AttributeType]] = {
    "price": "number",
    "in_stock": "boolean",
    "brand": "string",
    "country": "string",
}


def catalogue_batch(random: np.random.Generator, begin: int, count: int, size: int) -> CodesBatch:
    """``count`` new items with vectors and attributes."""
    plain = batch_of(
        np.arange(begin, begin + count), crowded_codes(random, count, size), random.random(count, np.float32)
    )
    return CodesBatch(
        ids=plain.ids,
        codes=plain.codes,
        weights=plain.weights,
        titles=plain.titles,
        updated_at=plain.updated_at,
        deleted=plain.deleted,
        vectors=_vectors()[:count],
        attributes=_attributes()[:count],
    )


@cache
def _vectors() -> list[bytes]:
    """The same for each batch: they are as long as others."""
    random = np.random.default_rng(2)
    return quantise(random.standard_normal((_BATCH, DIMENSION), dtype=np.float32)).encode()


@cache
def _attributes() -> list[bytes]:
    return [
        encode_attributes(
            {
                "price": number % 997 / 10,
                "in_stock": number % 7 > 0,
                "brand": f"brand-{number % 4_001}",
                "country": "de",
            }
        )
        for number in range(_BATCH)
    ]


def bytes_by_database(directory: Path, items: int) -> dict[str, float]:
    """LMDB's pages of each database, as bytes an item; ``file``: of the whole file."""
    found = {}
    with lmdb.open(str(directory), readonly=True, lock=False, max_dbs=32) as environment:
        with environment.begin() as transaction:
            names = [bytes(name).decode() for name, _ in transaction.cursor()]
        for name in names:
            database = environment.open_db(name.encode(), create=False)
            with environment.begin() as transaction:
                stat = transaction.stat(database)
            pages = stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
            found[name] = pages * _PAGE / items
    found["file"] = (directory / "data.mdb").stat().st_size / items
    return {name: round(value, 2) for name, value in found.items()}


def held_bytes(work: Callable[[], object]) -> int:
    """What ``work`` leaves in memory, of Python and NumPy."""
    tracemalloc.start()
    try:
        made = work()
        held = tracemalloc.get_traced_memory()[0]
        del made
        return held
    finally:
        tracemalloc.stop()


def measured(items: int, size: int, directory: Path) -> dict[str, Any]:
    """One catalogue: built, looked at page by page, read as a retriever reads it."""
    random = np.random.default_rng(0)
    spent = 0.0
    with IndexWriter.open(directory, codebook_id=CODEBOOK, layers=LAYERS, size=size, map_size=1 << 32) as writer:
        for begin in range(0, items, _BATCH):
            batch = catalogue_batch(random, begin, min(_BATCH, items - begin), size)
            began = time.process_time()
            writer.apply(batch, {("item-codes", 0): begin + 1})
            spent += time.process_time() - began
    by_database = bytes_by_database(directory, items)
    layout = Layout(1, CODEBOOK, LAYERS, size, ())
    with IndexReader(directory) as reader, reader.snapshot() as snapshot:

        def read(types: Mapping[str, AttributeType]) -> CurrentCatalogue:
            catalogue = CurrentCatalogue(types, filters_kept=1)
            catalogue.roll_to(snapshot)
            catalogue.trie(snapshot, layout, None).warm_up()
            return catalogue

        began = time.process_time()
        read({})
        topology_seconds = time.process_time() - began
        # Traced reading is slow: a part of a large catalogue's time, and its memory an item is that of a smaller one.
        topology = held_bytes(lambda: read({})) if items <= _TRACED else None
        columns = held_bytes(lambda: read(_FILTERABLE)) if items <= _TRACED else None
    found: dict[str, Any] = {
        "size": size,
        "bytes_an_item": by_database,
        "processor_us_an_item_written": round(spent / items * 1e6, 2),
        "topology_us_an_item": round(topology_seconds / items * 1e6, 3),
    }
    if topology is not None and columns is not None:
        found |= {"topology_bytes": topology, "columns_bytes_an_item": round((columns - topology) / items, 2)}
    return found


def scan_milliseconds(items: int, together: int) -> float:
    """Of a query among so many that are asked together, a million items: what of them lies nearest by the leading directions, as
    the dense leg asks first.
    """
    random = np.random.default_rng(1)
    table = random.standard_normal((items, LEADING), dtype=np.float32)
    queries = random.standard_normal((together, LEADING), dtype=np.float32)
    spent = []
    for _ in range(5):
        began = time.process_time()
        for row in queries @ table.T:
            nearest(row, KEPT)
        spent.append(time.process_time() - began)
    return round(min(spent) * 1000 / together / (items / 1e6), 2)


def main() -> None:
    parser = benchmark_arguments(__doc__)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    arguments = parser.parse_args()
    catalogues = []
    for size in arguments.sizes:
        with tempfile.TemporaryDirectory(prefix="sidstream-sizing-") as directory:
            catalogues.append(measured(arguments.items, size, Path(directory)))
    found = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "items": arguments.items,
        "dimension": DIMENSION,
        "scan_ms_a_million_items": {together: scan_milliseconds(1_000_000, together) for together in (1, 8)},
        "catalogues": catalogues,
    }
    text = json.dumps(found, indent=2) + "\n"
    print(text)
    if arguments.json:
        arguments.json.write_text(text)


if __name__ == "__main__":
    main()
