"""Attributes and filters at a million items: attributes that come alone, columns, filters that nobody has asked for yet, changes.

The floor of attributes that come alone is LMDB itself: the same records and attributes put in the same batches, turn and turn
about. The floor of a new filter is one comparison of one column in NumPy; what it adds is the other clauses and, for the trie,
the paths of the items. Random ids are changed: sequential ones flatter LMDB several times over.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Final

import lmdb
import numpy as np

from benchmarks.common.clock import timed
from benchmarks.common.reporting import Result, Target, benchmark_arguments, report
from models.attributes import Attributes, AttributeType, encode_attributes
from models.sids.layout import Layout
from retriever.eligibility.columns import Columns
from retriever.eligibility.current import CurrentCatalogue
from store.records.batch import CodesBatch
from store.records.encoding import number_keys
from store.records.item_attributes import AttributeRecord, AttributesBatch, encode_attribute_records
from store.writing.writer import IndexWriter
from streamer.filters.reading import FilterLimits, parsed_filter

CODEBOOK: Final = "0" * 16
LAYERS, SIZE = 3, 256
TYPES: Final[dict[str, AttributeType]] = {
    "price": "number", "brand": "string", "in_stock": "boolean", "tags": "strings"
}  # fmt: skip
LIMITS: Final = FilterLimits(64, 8, 1_024)
LOADED_AT_ONCE: Final = 20_000
# By the share of items that they let through: of prices that are spread evenly from 0 to 100.
FILTERS: Final[dict[str, dict[str, Any]]] = {
    "0.1 %": {"field": "price", "lt": 0.1},
    "10 %": {"field": "price", "lt": 10},
    "90 %": {"field": "price", "lt": 90},
    "four clauses, 6 %": {
        "all": [
            {"field": "price", "lte": 30},
            {"field": "in_stock", "eq": True},
            {"field": "brand", "in": [f"brand {number}" for number in range(60)]},
            {"not": {"field": "tags", "contains": "tag 3"}},
        ]
    },
}


def attributes_of(random: np.random.Generator, count: int) -> list[Attributes]:
    """As of a shop: a thousand brands and two hundred tags, the first ones more often."""
    prices = random.integers(0, 10_000, count).tolist()
    brands = (1_000 * random.random(count) ** 2).astype(int).tolist()
    stock = (random.random(count) < 0.9).tolist()
    tags = (200 * random.random((count, 3)) ** 2).astype(int).tolist()
    rows = zip(prices, brands, stock, tags, strict=True)
    return [
        {"price": price / 100, "brand": f"brand {brand}", "in_stock": there, "tags": [f"tag {tag}" for tag in own]}
        for price, brand, there, own in rows
    ]


def load(writer: IndexWriter, random: np.random.Generator, items: int) -> list[bytes]:
    """Items with attributes; their ids."""
    every: list[bytes] = []
    for _ in range(0, items, LOADED_AT_ONCE):
        count = min(LOADED_AT_ONCE, items - len(every))
        codes = random.integers(SIZE, size=(count, LAYERS)).astype(np.uint16)
        codes[:, 1] = (SIZE * random.random(count) ** 4).astype(np.uint16)
        ids = [b"%016x" % number for number in random.integers(2**63, size=count).tolist()]
        writer.apply(
            CodesBatch(
                ids, codes, np.ones(count, np.float32), ["Stainless steel kettle"] * count, np.zeros(count, np.int64),
                np.zeros(count, np.bool_), attributes=[encode_attributes(own) for own in attributes_of(random, count)],
            ),
            {("item-codes", 0): 1},
        )  # fmt: skip
        every += ids
    return every


def alone(
    writer: IndexWriter, directory: Path, random: np.random.Generator, ids: list[bytes], batch: int, turns: int
) -> tuple[float, float]:
    """Records of ``item-attributes`` a second, of known items: price and stock; ours, and bare LMDB's."""
    floor = lmdb.open(str(directory / f"floor-{batch}"), map_size=1 << 33, max_dbs=2, metasync=False, readahead=False)
    by_id, by_number = floor.open_db(b"records"), floor.open_db(b"attributes")
    ours = bare = 0.0
    for turn in range(turns):
        rows = np.unique(random.integers(len(ids), size=batch))
        prices = random.integers(0, 10_000, len(rows)).tolist()
        values = [encode_attributes({"price": price / 100, "in_stock": True}) for price in prices]
        changed = AttributesBatch(
            [ids[row] for row in rows.tolist()],
            list(values),
            np.zeros(len(rows), np.int32),
            np.full(len(rows), turn + 1),
        )
        ours += timed(lambda: writer.apply_attributes(changed, {("item-attributes", 0): 1}))  # noqa: B023
        pairs = sorted(
            (ids[row], encode_attribute_records([AttributeRecord(0, turn + 1, value)]))
            for row, value in zip(rows.tolist(), values, strict=True)
        )
        effective = [
            (key, value + b"x" * 60) for key, value in zip(number_keys(rows.astype(np.uint32)), values, strict=True)
        ]

        def put() -> None:
            with floor.begin(write=True) as transaction:
                transaction.cursor(by_id).putmulti(pairs)  # noqa: B023
                transaction.cursor(by_number).putmulti(effective)  # noqa: B023

        bare += timed(put)
    return batch * turns / ours, batch * turns / bare


def evaluated(columns: Columns, items: int) -> list[Result]:
    """New filters over the columns."""
    column = np.random.default_rng(1).random(items)
    plain = 1000 * min(timed(lambda: np.flatnonzero(column < 0.5).astype(np.uint32)) for _ in range(9))
    results = []
    for name, asked in FILTERS.items():
        wanted = parsed_filter(asked, TYPES, LIMITS)
        ours = 1000 * float(np.median([timed(lambda wanted=wanted: columns.eligible(wanted)) for _ in range(9)]))  # type: ignore[misc]
        title = f"items of a new filter, {name}"
        results.append(Result(title, ours, "ms", "one comparison in NumPy", plain, Target.value_at_most(10)))
    return results


def measure(items: int, directory: Path) -> list[Result]:
    """All rows."""
    random = np.random.default_rng(0)
    layout = Layout(0, CODEBOOK, LAYERS, SIZE, tuple(range(10)))
    results: list[Result] = []
    with IndexWriter.open(directory / "index", codebook_id=CODEBOOK, layers=LAYERS, size=SIZE) as writer:
        ids = load(writer, random, items)
        for batch, turns in ((10_000, 12), (1_000, 30)):
            ours, bare = alone(writer, directory, random, ids, batch, turns)
            title = f"attributes alone, batches of {batch:,}"
            target = Target.value_at_least(20_000) if batch == 10_000 else None
            results.append(Result(title, ours, "records/s", "bare LMDB puts", bare, target))
        with writer.snapshot() as snapshot:
            read = timed(lambda: [None for _ in snapshot.all_attributes()])
            build = timed(lambda: Columns.build(TYPES, snapshot.all_attributes()))
            results.append(Result("columns from the index", build, "s", "reading and decoding alone", read))
            columns = Columns.build(TYPES, snapshot.all_attributes())
            results += evaluated(columns, items)
            del columns
            catalogue = CurrentCatalogue(TYPES)
            catalogue.roll_to(snapshot)
            for name, asked in FILTERS.items():
                wanted = parsed_filter(asked, TYPES, LIMITS)
                first = 1000 * timed(lambda wanted=wanted: catalogue.trie(snapshot, layout, wanted))  # type: ignore[misc]
                again = 1000 * timed(lambda wanted=wanted: catalogue.trie(snapshot, layout, wanted))  # type: ignore[misc]
                title = f"trie of a new filter, {name}"
                results.append(Result(title, first, "ms", "the second time", again, Target.value_at_most(25)))
        for batch in (20, 1_000):
            alone(writer, directory / "..", random, ids, batch, 1)
            with writer.snapshot() as snapshot:
                ours = 1000 * timed(lambda: catalogue.roll_to(snapshot))
            title = f"{len(FILTERS)} filters in use follow {batch:,} changes"
            results.append(Result(title, ours, "ms"))
    return results


def main() -> int:
    parser = benchmark_arguments(__doc__)
    parser.add_argument("--items", type=int, default=1_000_000, help="items loaded first (default: %(default)s)")
    parser.add_argument("--directory", type=Path, help="where to put the temporary files (default: the system's)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        inner = Path(directory) / "inner"
        inner.mkdir()
        results = measure(arguments.items, inner)
    return report(f"Filters at {arguments.items:,} items", results, arguments.json)


if __name__ == "__main__":
    raise SystemExit(main())
