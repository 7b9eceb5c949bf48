"""The calculator of what a catalogue needs: its arithmetic, and that it says what it assumes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.stream import sizing
from benchmarks.stream.sizing import Load, catalogues_of, planned, written_microseconds

RUN = {
    "items": 1_000_000,
    "scan_ms_a_million_items": {"1": 40.0, "8": 10.0},
    "catalogues": [
        {
            "size": 256,
            "bytes_an_item": {"items": 600.0, "ids": 30.0, "paths": 20.0, "attributes": 70.0, "file": 730.0},
            "processor_us_an_item_written": 8.0,
            "columns_bytes_an_item": 20.0,
        }
    ],
}
LARGER = {**RUN, "items": 10_000_000, "catalogues": [{**RUN["catalogues"][0], "processor_us_an_item_written": 12.0}]}  # type: ignore[index]


@pytest.fixture
def constants(tmp_path: Path) -> Path:
    path = tmp_path / "sizing.json"
    path.write_text(json.dumps({"runs": [RUN, LARGER]}))
    return path


def test_a_small_catalogue_is_one_shard_and_a_larger_one_has_as_many_as_its_memory_asks_for(constants: Path) -> None:
    catalogues = catalogues_of([constants])
    alone = Load(items=1e6, dense=False, queries=10)
    assert planned(alone, catalogues).shards == 1
    many = planned(replace(alone, items=4e9, rebuild_minutes=1e6, host_memory=64), catalogues)
    # 4e9 × (20 of columns + 20 of paths + 30 of ids) bytes on hosts of 64 GiB less a bitmap of 2 MiB
    assert (many.shards, many.why) == (5, "memory")


def test_an_item_costs_more_in_a_larger_index_along_what_was_measured(constants: Path) -> None:
    catalogues = catalogues_of([constants])
    assert written_microseconds(catalogues, 1e6) == pytest.approx(8)
    assert written_microseconds(catalogues, 1e7) == pytest.approx(12)
    assert written_microseconds(catalogues, 1e8) == pytest.approx(16)
    assert written_microseconds(catalogues, 1e3) == pytest.approx(8)
    # 1e8 items × (13 + 16) µs are 48 minutes; in 30 of them, two shards, of 27.5 µs an item.
    load = Load(items=1e8, dense=False, rebuild_minutes=30)
    plan = planned(load, catalogues)
    assert (plan.shards, plan.why) == (2, "rebuild time")


def test_vectors_are_what_asks_for_shards_first(constants: Path) -> None:
    catalogues = catalogues_of([constants])
    plan = planned(Load(items=1e8), catalogues, sizing.scans_of([constants]))
    assert (plan.shards, plan.why) == (80, "the scan of vectors")
    assert planned(Load(items=1e8, dense=False), catalogues, sizing.scans_of([constants])).shards < 5


def test_table_says_what_it_assumes_and_the_json_holds_every_plan(
    constants: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "plans.json"
    monkeypatch.setattr("sys.argv", ["sizing", "--constants", str(constants), "--json", str(out), "--queries", "50"])
    sizing.main()
    shown = capsys.readouterr().out
    assert "1,000,000,000 items, 50 queries/s" in shown
    assert "--indexer-microseconds 4.0" in shown
    assert "extrapolated from 10,000,000 items" in shown or "rebuild of a shard" in shown
    plans = json.loads(out.read_text())
    assert [plan["load"]["items"] for plan in plans] == [1e7, 1e8, 1e9]
    assert all(
        {"shards", "retrievers", "rebuild of a shard"} <= {row["name"] for row in plan["rows"]} for plan in plans
    )
