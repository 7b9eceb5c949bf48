"""Arrow and Parquet files: the same data as JSON lines, in every container, and what is refused."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from models.data_files import DataFileError
from models.examples.records import read_training_file

pyarrow = pytest.importorskip("pyarrow")

EXAMPLES: list[dict[str, Any]] = [
    {"query": "red shoes", "user": "ada", "history": ["a", "b"], "item": "c", "embedding": [1.0, 0.5], "price": 3},
    {"query": "kettle", "user": None, "history": [], "item": "d", "embedding": None, "price": 4},
] * 3_000
SEQUENCES: list[dict[str, Any]] = [{"user_id": 7, "items": [1, 2, 3]}, {"user_id": 8, "items": [2]}]
EVENTS: list[dict[str, Any]] = [
    {"user": "ada", "item": item, "timestamp": datetime(2026, 1, day, tzinfo=UTC)} for item, day in (("b", 2), ("a", 1))
]


def write(path: Path, rows: list[dict[str, Any]], *, stream: bool = False) -> Path:
    table = pyarrow.Table.from_pylist(rows)
    if path.suffix == ".parquet":
        from pyarrow import parquet

        parquet.write_table(table, path, row_group_size=1_000)
        return path
    with pyarrow.OSFile(str(path), "wb") as sink:
        new = pyarrow.ipc.new_stream if stream else pyarrow.ipc.new_file
        with new(sink, table.schema) as writer:
            writer.write_table(table)
    return path


@pytest.mark.parametrize(("name", "stream"), [("e.parquet", False), ("e.arrow", False), ("e.arrow", True)])
def test_examples_are_those_of_json_lines(tmp_path: Path, name: str, stream: bool) -> None:
    lines = tmp_path / "e.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in EXAMPLES))
    found, expected = read_training_file(write(tmp_path / name, EXAMPLES, stream=stream)), read_training_file(lines)
    assert found == expected
    assert found.unread == ("price",)


def test_sequences_and_interactions_have_whole_numbers_for_ids_and_timestamps(tmp_path: Path) -> None:
    [first, _] = read_training_file(write(tmp_path / "s.feather", SEQUENCES)).data.histories
    assert (first.user, first.items) == ("7", ("1", "2", "3"))
    [history] = read_training_file(write(tmp_path / "t.parquet", EVENTS)).data.histories
    assert history.items == ("a", "b")


def test_times_in_nanoseconds_are_read_without_what_is_below_a_microsecond(tmp_path: Path) -> None:
    times = pyarrow.array([1_700_000_000_000_000_123, 1_700_000_000_000_000_001], pyarrow.timestamp("ns", "UTC"))
    table = pyarrow.table({"user": ["ada", "ada"], "item": ["b", "a"], "timestamp": times})
    from pyarrow import parquet

    parquet.write_table(table, tmp_path / "n.parquet")
    [history] = read_training_file(tmp_path / "n.parquet").data.histories
    assert sorted(history.items) == ["a", "b"]


def test_what_cannot_be_read_is_refused_by_its_name(tmp_path: Path) -> None:
    for name in ("x.parquet", "x.arrow"):
        path = tmp_path / name
        path.write_bytes(b"no table at all, whatever it is called")
        with pytest.raises(
            DataFileError, match=rf"x\{path.suffix} cannot be read as {path.suffix[1:]}: .*write it again"
        ):
            read_training_file(path)
    with pytest.raises(DataFileError, match="no file"):
        read_training_file(tmp_path / "gone.parquet")
    with pytest.raises(DataFileError, match=r"x\.arrow, row 2 names no item"):
        read_training_file(write(tmp_path / "x.arrow", [{"query": "a", "item": "b"}, {"query": "a", "item": None}]))
