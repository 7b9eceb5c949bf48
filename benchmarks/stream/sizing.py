"""What a catalogue needs: disk, memory, shards, processes, rebuild time. A calculator with its assumptions printed.

    python -m benchmarks sizing                                          # ten million, a hundred million, a billion items
    python -m benchmarks sizing --items 250e6 --queries 300 --updates 5000 --codebook-size 4096 --no-dense

Each figure is arithmetic on measured constants: those of ``docs/benchmarks/sizing.json`` (``benchmarks.stream.sizing_constants``
measures them on your machine; ``--constants`` names another file) and, for what a catalogue does not decide, the options below,
with the values of the slow machine of docs/benchmarks. Give what you measured. It simulates steady load; it is no promise, and
beyond the largest catalogue that was built it extrapolates, and says so.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from models.dense.vectors import bytes_an_item

CONSTANTS: Final = Path("docs/benchmarks/sizing.json")
_GIB: Final = 2**30
_BITMAP_UP_TO: Final = 512  # codewords: above, a topology is a sorted list
_PATH_BYTES: Final = 4  # of one distinct path of three layers in it
_RECORD_BYTES: Final = (
    90  # of item-codes and item-updates beside vector, embedding, title and attributes: key, codes, framing
)
_ATTRIBUTE_BYTES: Final = 60  # of an item's attributes, encoded
_MEASURED_TITLE: Final = 44
_DENSE_ROW_BYTES: Final = 12  # of an item beside its vectors: number, row, place in training
_LEADING_BYTES: Final = 4 * 96  # of the directions that are looked at first
_FAUST_EVENTS: Final = 3_000  # token counts a second that one monitor takes
_BUSY: Final = 0.7  # of a core or a disk: more, and queues grow
_ITEMS_A_NUMBER: Final = 2**32  # items an index can have


@dataclass(frozen=True)
class Load:
    """What is asked for. Field by field an option of the command line."""

    items: float = field(default=100e6, metadata={"help": "live items"})
    queries: float = field(default=100.0, metadata={"help": "queries a second"})
    updates: float = field(default=2_000.0, metadata={"help": "item updates a second"})
    codebook_size: int = field(default=256, metadata={"help": "codewords a layer, M"})
    layers: int = field(default=3, metadata={"help": "layers, L"})
    dimension: int = field(default=384, metadata={"help": "numbers of an embedding, D"})
    co_occurrence: int = field(default=64, metadata={"help": "numbers beside it in the dense leg, C"})
    title: int = field(default=_MEASURED_TITLE, metadata={"help": "bytes of a title"})
    dense: bool = field(default=True, metadata={"help": "keep vectors, and find items by them (retriever.dense)"})
    replication: int = field(default=3, metadata={"help": "replicas of the topics"})
    host_memory: float = field(
        default=64.0, metadata={"help": "GiB of a host for one retriever and the index's hot pages"}
    )
    host_cores: int = field(default=16, metadata={"help": "cores of a host"})
    rebuild_minutes: float = field(default=60.0, metadata={"help": "in which a shard's index is to be made anew"})
    dense_milliseconds: float = field(default=50.0, metadata={"help": "that a query's scan of vectors may take"})
    query_milliseconds: float = field(
        default=10.0,
        metadata={"help": "of one core that a query's search takes (yours: milliseconds.decode, on a core)"},
    )
    rank_milliseconds: float = field(default=2.0, metadata={"help": "of one core, to rank and answer it"})
    assigner_microseconds: float = field(default=8.0, metadata={"help": "of one core an update"})
    indexer_microseconds: float = field(
        default=4.0, metadata={"help": "of one core an item, beside the index: reading and decoding"}
    )
    broker_microseconds: float = field(default=6.0, metadata={"help": "of one core an update, of the broker"})
    scan_milliseconds: float = field(
        default=0.0,
        metadata={
            "help": "of one core that a scan of a million vectors takes; 0: as measured, alone and eight at once"
        },
    )


@dataclass(frozen=True)
class Catalogue:
    """Measured of one catalogue: ``items`` in it, and what each takes."""

    items: int
    size: int
    bytes_an_item: dict[str, float]
    written_microseconds: float
    columns_bytes: float


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    value: str
    how: str


def catalogues_of(paths: Sequence[Path]) -> list[Catalogue]:
    """All that was measured."""
    found = []
    for path in paths:
        content = json.loads(path.read_text())
        for run in content.get("runs", [content]):
            found += [
                Catalogue(
                    run["items"],
                    each["size"],
                    each["bytes_an_item"],
                    each["processor_us_an_item_written"],
                    each.get("columns_bytes_an_item", 0.0),
                )
                for each in run["catalogues"]
            ]
    return found


def scans_of(paths: Sequence[Path]) -> tuple[float, float]:
    """Milliseconds of a core for a million vectors, as measured: of a query alone, and of one among eight."""
    for path in paths:
        content = json.loads(path.read_text())
        for run in content.get("runs", [content]):
            if "scan_ms_a_million_items" in run:
                return run["scan_ms_a_million_items"]["1"], run["scan_ms_a_million_items"]["8"]
    return 0.0, 0.0


def nearest_catalogue(catalogues: Sequence[Catalogue], load: Load) -> Catalogue:
    """The largest one of the kind of codebook that is asked for, with the columns of the largest whose memory was measured."""
    bitmap = load.codebook_size <= _BITMAP_UP_TO
    kind = [one for one in catalogues if (one.size <= _BITMAP_UP_TO) == bitmap] or list(catalogues)
    columns = max((one for one in kind if one.columns_bytes), key=lambda one: one.items, default=kind[0]).columns_bytes
    return replace(max(kind, key=lambda one: one.items), columns_bytes=columns)


def written_microseconds(catalogues: Sequence[Catalogue], items: float) -> float:
    """Processor time to write an item into an index that ends with so many: a straight line in the logarithm of items."""
    points = sorted({one.items: one.written_microseconds for one in catalogues}.items())
    if len(points) == 1:
        return points[0][1]
    (first, low), (last, high) = points[0], points[-1]
    slope = (high - low) / math.log(last / first)
    return max(low, low + slope * math.log(max(items, first) / first))


@dataclass(frozen=True)
class Sizes:
    """Bytes an item, by where they lie."""

    index: float
    items: float
    ids: float
    paths: float
    attributes: float
    log: float
    memory: float

    @classmethod
    def of(cls, load: Load, measured: Catalogue) -> Sizes:
        by = measured.bytes_an_item
        vector = bytes_an_item(load.dimension) + 2 if load.dense else 0
        measured_vector = bytes_an_item(384) + 2
        items = by["items"] - measured_vector - _MEASURED_TITLE + vector + load.title
        # The log of changes, and pages that are free at the moment.
        others = by["file"] - sum(by[name] for name in ("items", "ids", "paths", "attributes"))
        index = items + by["ids"] + by["paths"] + by["attributes"] + others
        codes = _RECORD_BYTES + load.title + vector + _ATTRIBUTE_BYTES
        update = _RECORD_BYTES + load.title + 4 * load.dimension + _ATTRIBUTE_BYTES
        dense = 4 * (load.dimension + load.co_occurrence) + _DENSE_ROW_BYTES + _LEADING_BYTES if load.dense else 0
        path = 0 if load.codebook_size <= _BITMAP_UP_TO else _PATH_BYTES
        return cls(
            index=index,
            items=items,
            ids=by["ids"],
            paths=by["paths"],
            attributes=by["attributes"],
            log=(codes + update) * load.replication,
            memory=measured.columns_bytes + path + dense,
        )


def bitmap_bytes(load: Load) -> float:
    """Of a topology that does not grow with the catalogue."""
    return load.codebook_size**3 / 8 if load.codebook_size <= _BITMAP_UP_TO else 0.0


@dataclass(frozen=True)
class Plan:
    """How many of each, and why as many shards."""

    shards: int
    why: str
    rows: list[Row]


def planned(load: Load, catalogues: Sequence[Catalogue], scan: tuple[float, float] = (0.0, 0.0)) -> Plan:
    """The shards that memory, rebuilds, updates and the scan of vectors ask for, and what follows from them. ``scan``:
    milliseconds of a core for a million vectors, of a query alone and of one among eight.
    """
    sizes = Sizes.of(load, nearest_catalogue(catalogues, load))
    alone, among_eight = (load.scan_milliseconds,) * 2 if load.scan_milliseconds else scan
    alone, among_eight = (alone, among_eight) if load.dense else (0.0, 0.0)
    # A retriever's own memory, and of the index the pages that every query and update reads: paths and ids.
    hot = sizes.paths + sizes.ids
    wanted = {
        "memory": load.items * (sizes.memory + hot) / (load.host_memory * _GIB - bitmap_bytes(load)),
        "the scan of vectors": load.items / 1e6 * alone / load.dense_milliseconds,
        "item numbers": load.items / _ITEMS_A_NUMBER,
        "updates": load.updates
        * (load.indexer_microseconds + written_microseconds(catalogues, load.items))
        / 1e6
        / _BUSY,
        "rebuild time": _shards_to_rebuild(load, catalogues),
    }
    why = max(wanted, key=lambda name: wanted[name])
    shards = max(1, math.ceil(wanted[why]))
    of_shard = load.items / shards
    cost = load.indexer_microseconds + written_microseconds(catalogues, of_shard)
    largest = max(one.items for one in catalogues)
    extrapolated = "" if of_shard <= largest else f"; extrapolated from {largest:,} items"
    rounds = 1 if shards == 1 else 2
    ranked = rounds * load.rank_milliseconds + rounds * of_shard / 1e6 * among_eight
    a_query = load.query_milliseconds + ranked
    retrievers = shards * max(1, math.ceil(load.queries * a_query / 1000 / _BUSY))
    indexing = load.updates * cost / 1e6
    memory = retrievers * (of_shard * sizes.memory + bitmap_bytes(load)) + load.items * hot
    hosts = {
        "memory": memory / (load.host_memory * _GIB),
        "cores": (retrievers + indexing / _BUSY) / load.host_cores,
    }
    assigners = math.ceil(load.updates * load.assigner_microseconds / 1e6 / _BUSY)
    counts = shards * min(load.updates / shards, load.codebook_size) * load.layers
    update_bytes = sizes.log / load.replication

    def ratios(of: dict[str, float]) -> str:
        return ", ".join(f"{name} {value:,.2f}" for name, value in of.items())

    rows = [
        Row(
            "index",
            _size(load.items * sizes.index),
            f"{sizes.index:,.0f} B an item: items {sizes.items:,.0f}, ids {sizes.ids:,.0f}, paths {sizes.paths:,.0f}, attributes "
            f"{sizes.attributes:,.0f}, the rest free pages and the log of changes",
        ),
        Row(
            "topics",
            _size(load.items * sizes.log),
            f"{sizes.log:,.0f} B an item with {load.replication} replicas, compacted: item-updates and item-codes; what waits "
            "for compaction comes on top",
        ),
        Row(
            "topology",
            _size(bitmap_bytes(load) or load.items * _PATH_BYTES),
            "of a whole index: " + ("M³ bits, whatever the catalogue" if bitmap_bytes(load) else "4 B a distinct path"),
        ),
        Row("shards", f"{shards:,}", f"as {why} asks for: {ratios(wanted)}"),
        Row("items a shard", f"{of_shard:,.0f}", f"{_size(of_shard * sizes.index)} of disk each"),
        Row(
            "memory of a retriever",
            _size(of_shard * sizes.memory + bitmap_bytes(load)),
            f"{sizes.memory:,.0f} B an item of its shard"
            + (", nearly all of it vectors" if load.dense else "")
            + f"; and {_size(of_shard * hot)} of hot pages of the index (paths, ids), once a host",
        ),
        Row(
            "rebuild of a shard",
            f"{of_shard * cost / 1e6 / 60:,.1f} min",
            f"{1e6 / cost:,.0f} items/s on one core{extrapolated}; all shards at once",
        ),
        Row(
            "indexers",
            f"{shards:,}",
            f"one a shard (and host of it); {load.updates / shards * cost / 1e6:.1%} busy, saturated at "
            f"{1e6 / cost * _BUSY:,.0f}/s",
        ),
        Row(
            "assigners",
            f"{assigners:,}",
            f"saturated at {1e6 / load.assigner_microseconds * _BUSY:,.0f} updates/s each",
        ),
        Row(
            "retrievers",
            f"{retrievers:,}",
            f"of one core: {shards:,} × {load.queries:,.0f} searches/s, as each shard searches for each query; one takes "
            f"{a_query:,.1f} ms of a core, of which {a_query - load.query_milliseconds:,.1f} are not the model's: a retriever is "
            f"saturated at {1000 * _BUSY / a_query:,.0f}/s",
        ),
        Row(
            "hosts",
            f"{max(1, math.ceil(max(hosts.values()))):,}",
            f"of {load.host_cores} cores and {load.host_memory:,.0f} GiB, for indexers and retrievers: {ratios(hosts)}",
        ),
        Row(
            "partitions",
            f"{max(4, 2 * shards, assigners):,}",
            "at the least: two a shard, so that it can be divided once more, and one an assigner",
        ),
        Row(
            "brokers' cores",
            f"{load.updates * load.broker_microseconds / 1e6 / _BUSY:,.2f}",
            f"for updates: {_size(load.updates * update_bytes)}/s written, × {load.replication}; and "
            f"{load.queries * rounds:,.0f} records of queries/s, each read {shards:,} times and answered as often",
        ),
        Row(
            "counts' interval",
            f"{max(1.0, counts / _FAUST_EVENTS):,.1f} s",
            f"at the least (indexer.counts_interval_seconds): {counts:,.0f} counts at 1 s, and a monitor takes {_FAUST_EVENTS:,} "
            "a second",
        ),
    ]
    return Plan(shards, why, rows)


def _shards_to_rebuild(load: Load, catalogues: Sequence[Catalogue]) -> float:
    """The fewest shards of which each is made anew in time; an item costs less in a smaller index."""
    seconds, shards = load.rebuild_minutes * 60, 1
    while True:
        of_shard = load.items / shards
        cost = load.indexer_microseconds + written_microseconds(catalogues, of_shard)
        if of_shard * cost / 1e6 <= seconds:
            return max(0.01, of_shard * cost / 1e6 / seconds) if shards == 1 else shards
        shards += 1


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:,.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def parsed(arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[Load]]:
    """The options, and the loads that they ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--constants", type=Path, nargs="+", default=[CONSTANTS])
    parser.add_argument("--json", type=Path)
    for one in fields(Load):
        name = "--" + one.name.replace("_", "-")
        if one.name == "dense":
            parser.add_argument(
                name, action=argparse.BooleanOptionalAction, default=one.default, help=one.metadata["help"]
            )
        else:
            kind = float if isinstance(one.default, float) else int
            parser.add_argument(
                name, type=kind, default=None if one.name == "items" else one.default, help=one.metadata["help"]
            )
    found = parser.parse_args(arguments)
    given = {one.name: getattr(found, one.name) for one in fields(Load)}
    every = [given["items"]] if given["items"] is not None else [10e6, 100e6, 1e9]
    return found, [Load(**(given | {"items": items})) for items in every]


def main() -> None:
    arguments, loads = parsed()
    catalogues, scans = catalogues_of(arguments.constants), scans_of(arguments.constants)
    console = Console(highlight=False, width=160)
    plans: list[dict[str, Any]] = []
    for load in loads:
        plan = planned(load, catalogues, scans)
        table = Table(
            title=f"{load.items:,.0f} items, {load.queries:,.0f} queries/s, {load.updates:,.0f} updates/s",
            title_justify="left",
        )
        for column in ("", "", "how"):
            table.add_column(column)
        for row in plan.rows:
            table.add_row(row.name, row.value, row.how)
        console.print(table)
        plans.append(
            {"load": asdict(load), "shards": plan.shards, "why": plan.why, "rows": [asdict(row) for row in plan.rows]}
        )
    console.print("Assumed, each of them an option:")
    for one in fields(Load):
        if one.name not in ("items", "queries", "updates"):
            console.print(f"  --{one.name.replace('_', '-')} {getattr(loads[0], one.name)}: {one.metadata['help']}")
    console.print(
        f"Measured: {', '.join(map(str, arguments.constants))}. Cores and disks are planned to be {_BUSY:.0%} busy."
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(plans, indent=2) + "\n")


if __name__ == "__main__":
    main()
