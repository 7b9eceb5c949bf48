"""The same catalogue from every kind of table; what cannot be taken is named by file, row and column."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.catalogue import Catalogue, CatalogueItem
from models.data_files import DataFileError
from models.tables.catalogues import is_table, read_catalogue, read_item_ids, read_items
from models.tables.columns import ColumnNames

pyarrow = pytest.importorskip("pyarrow")

ROWS = 5_000  # more than two blocks
NAMED = ColumnNames(id="sku", title="name", embedding="vec", weight="sold", attributes=("price", "tint=colour"))
EMBEDDINGS = np.random.default_rng(5).normal(size=(ROWS, 4)).astype(np.float16).astype(np.float32)
ITEMS = tuple(
    CatalogueItem(
        id=f"00{row}",
        title=f'"n", {row}',
        weight=row / 2,
        attributes={"price": row, "tint": "red"} if row % 3 else {"price": row},
    )
    for row in range(ROWS)
)


def table(vectors: Any, ids: list[Any] | None = None) -> Any:
    return pyarrow.table(
        {
            "sku": ids or [item.id for item in ITEMS],
            "name": [item.title for item in ITEMS],
            "sold": [item.weight for item in ITEMS],
            "price": [float(item.attributes["price"]) for item in ITEMS],  # type: ignore[arg-type]
            "colour": [item.attributes.get("tint") for item in ITEMS],
            "noise": [0] * ROWS,
            "vec": vectors,
        }
    )


def fixed(kind: Any) -> Any:
    values = pyarrow.array(EMBEDDINGS.ravel().astype(kind.to_pandas_dtype()), kind)
    return pyarrow.FixedSizeListArray.from_arrays(values, 4)


def lists(kind: Any) -> Any:
    values = pyarrow.array(EMBEDDINGS.ravel().astype(kind.to_pandas_dtype()), kind)
    return pyarrow.ListArray.from_arrays(np.arange(0, 4 * ROWS + 1, 4, dtype=np.int32), values)


def parquet_file(folder: Path) -> Path:
    from pyarrow import parquet

    parquet.write_table(table(lists(pyarrow.float64())), folder / "a.parquet", row_group_size=700)
    return folder / "a.parquet"


def arrow_file(folder: Path) -> Path:
    path = folder / "a.feather"
    found = table(fixed(pyarrow.float16()))
    with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_file(sink, found.schema) as writer:
        writer.write_table(found)
    return path


def dataset(folder: Path) -> Path:
    """As ``Dataset.save_to_disk`` of datasets 5.2.0 writes it: two shards that are streams, and what names them."""
    found, files = table(fixed(pyarrow.float32())), []
    for shard in range(2):
        files.append({"filename": f"data-{shard:05}-of-00002.arrow"})
        path = str(folder / files[-1]["filename"])
        with pyarrow.OSFile(path, "wb") as sink, pyarrow.ipc.new_stream(sink, found.schema) as writer:
            writer.write_table(found.slice(shard * 2_600, 2_600), max_chunksize=1_000)
    (folder / "state.json").write_text(json.dumps({"_data_files": files, "_split": None}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def csv_file(folder: Path, separator: str = ",") -> Path:
    path = folder / ("a.csv.gz" if separator == "," else "a.tsv")
    lines = [separator.join(("sku", "name", "sold", "price", "colour", "noise", "vec"))]
    for item, row in zip(ITEMS, EMBEDDINGS, strict=True):
        title = '"' + item.title.replace('"', '""') + '"'
        vector = f'"{json.dumps(row.tolist())}"' if separator == "," else " ".join(map(str, row.tolist()))
        price, colour = item.attributes["price"], item.attributes.get("tint", "")
        lines.append(separator.join((item.id, title, str(item.weight), str(price), str(colour), "0", vector)))
    text = "\n".join(lines).encode()
    path.write_bytes(gzip.compress(text, 1) if separator == "," else text)
    return path


def tsv_file(folder: Path) -> Path:
    return csv_file(folder, "\t")


def json_lines(folder: Path) -> Path:
    path = folder / "a.jsonl"
    with path.open("w") as file:
        for item, row in zip(ITEMS, EMBEDDINGS, strict=True):
            record = {"sku": item.id, "name": item.title, "sold": item.weight, "price": item.attributes["price"]}
            file.write(json.dumps({**record, "colour": item.attributes.get("tint"), "vec": row.tolist()}) + "\n")
    return path


def parts(folder: Path) -> Path:
    """A folder of Parquet files, beside what no table is."""
    from pyarrow import parquet

    found = table(fixed(pyarrow.float32()))
    parquet.write_table(found.slice(0, 100), folder / "part-0.parquet")
    parquet.write_table(found.slice(100), folder / "part-1.parquet")
    (folder / "_SUCCESS").touch()
    (folder / ".part-2.parquet").touch()
    (folder / "sequences.tsv").write_text("user_id\titems\nada\t000 001\n")
    return folder


@pytest.mark.parametrize(
    "write",
    [parquet_file, arrow_file, dataset, csv_file, tsv_file, json_lines, parts],
    ids=lambda write: write.__name__,
)
def test_every_kind_of_table_is_the_same_catalogue(write: Callable[[Path], Path], tmp_path: Path) -> None:
    source = write(tmp_path)
    assert is_table(source, NAMED)
    found = read_catalogue(source, NAMED)
    assert found.items == ITEMS
    assert np.array_equal(found.embeddings, EMBEDDINGS)
    assert found.sequences == ({"ada": ("000", "001")} if write is parts else {})
    assert read_items(source, NAMED) == ITEMS
    assert read_item_ids(source, NAMED) == tuple(item.id for item in ITEMS)


def test_address_is_read_as_the_file_is(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    memory.put(str(parquet_file(tmp_path)), "/catalogues/shop/a.parquet")
    memory.put(str(csv_file(tmp_path)), "/catalogues/text/a.csv.gz")
    for address in ("memory://catalogues/shop/a.parquet", "memory://catalogues/shop", "memory://catalogues/text"):
        found = read_catalogue(address, NAMED)
        assert found.items == ITEMS
        assert np.array_equal(found.embeddings, EMBEDDINGS)
    for address, why in (
        ("memory://catalogues/gone.parquet", "no file memory://catalogues/gone.parquet"),
        ("nothing://x", "nothing://x cannot be opened: Protocol not known"),
    ):
        with pytest.raises(DataFileError, match=why):
            read_catalogue(address)


def test_way_of_before_stays_and_a_folder_of_lines_may_have_its_embeddings_inside(tmp_path: Path) -> None:
    Catalogue(items=ITEMS[:3], embeddings=EMBEDDINGS[:3]).write(tmp_path / "folder")
    assert not is_table(tmp_path / "folder")
    assert read_catalogue(tmp_path / "folder").items == ITEMS[:3]
    with pytest.raises(DataFileError, match=r"has its embeddings in a file of their own"):
        read_catalogue(tmp_path / "folder", NAMED)
    (tmp_path / "folder" / "items.f32.npy").unlink()
    with pytest.raises(DataFileError, match=r"has no items\*\.npy"):
        read_catalogue(tmp_path / "folder")
    lines = json_lines(tmp_path)
    (tmp_path / "inside").mkdir()
    lines.rename(tmp_path / "inside" / "items.jsonl")
    assert read_catalogue(tmp_path / "inside", NAMED).items == ITEMS


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (['{"id": "a", "embedding": [1, 2]}', '{"id": "b", "embedding": [1]}'], "line 2, column embedding: has 1 numbers"),
        (['{"id": "a", "embedding": [1, "x"]}'], "line 1, column embedding: holds 'x', and an embedding is numbers"),
        (['{"id": "a", "embedding": [1, 1e300]}'], "line 1, column embedding: has a number too large for float32"),
        (['{"id": "a", "embedding": null}'], "line 1, column embedding: is null"),
        (['{"id": "a", "embedding": [1]}', "", "{"], "line 3: is no JSON object"),
        (['{"id": null, "embedding": [1]}'], "line 1, column id: is null, and an id is text or a whole number"),
        (['{"id": "", "embedding": [1]}'], "line 1, column id: is ''; ids have 1 to 256 bytes"),
        (['{"id": "a\\u0000", "embedding": [1]}'], "column id: is 'a.x00'; ids have no control characters"),
        (['{"id": 1.5, "embedding": [1]}'], "line 1, column id: is 1.5"),
        (['{"id": "a", "embedding": [1], "title": 7}'], "line 1, column title: is 7, and has to be text"),
        (['{"id": "a", "embedding": [1], "weight": -1}'], "line 1, column weight: is -1; weights are finite"),
        (['{"id": "a", "embedding": [1], "attributes": {"a b": 1}}'], "column attributes: names the attribute 'a b'"),
        (['{"id": "a", "embedding": [1], "attributes": {"x": {}}}'], "column attributes.x: is '{}' of the type dict"),
        (['{"id": "a", "embedding": [1]}', '{"id": "a", "embedding": [1]}'], "0 and 1 share the id 'a'"),
    ],
)  # fmt: skip
def test_row_that_cannot_be_taken_is_named(lines: list[str], why: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataFileError, match=why):
        read_catalogue(path)


def test_columns_that_are_not_there_or_twice_are_refused(tmp_path: Path) -> None:
    path = parquet_file(tmp_path)
    for columns, why in (
        (ColumnNames(), "has no column item_id or id; name it with --id"),
        (ColumnNames(id="sku"), "has no column embedding; name it with --embedding"),
        (ColumnNames(id="nix"), r"has no column 'nix' \(--id\); it has sku, name"),
        (ColumnNames(id="sku", embedding="vec", attributes=("a=nix",)), r"no column 'nix' \(--attribute a\)"),
        (ColumnNames(id="sku", embedding="vec", attributes=("a b",)), "'a b' is no name of an attribute"),
        (ColumnNames(id="sku", embedding="name"), "row 1, column name: is no list of numbers"),
    ):
        with pytest.raises(DataFileError, match=why):
            read_catalogue(path, columns)
    (tmp_path / "twice.csv").write_text("id,title,title,embedding\n1,a,b,0.5 1\n")
    with pytest.raises(DataFileError, match="the column 'title' twice"):
        read_catalogue(tmp_path / "twice.csv")


def test_files_that_are_no_table_are_refused_by_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    (tmp_path / "b.csv").write_bytes(b"")
    (tmp_path / "c.csv").write_bytes(b"id,embedding\n\xff,1 2\n")
    for name, why in (
        ("a.parquet", r"a\.parquet cannot be read as Parquet: .*; write it again"),
        ("b.csv", "is empty, 0 bytes"),
        ("c.csv", r"c\.csv cannot be read as CSV: .*invalid UTF8"),
        ("gone.parquet", "no file or folder"),
    ):
        with pytest.raises(DataFileError, match=why):
            read_catalogue(tmp_path / name)
    with pytest.raises(DataFileError, match=r"tables of several kinds \(csv, parquet\)"):
        read_catalogue(tmp_path)
    splits = tmp_path / "splits"
    splits.mkdir()
    (splits / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(DataFileError, match=r"the splits train, test: name one of them, such as .*splits/train"):
        read_catalogue(splits)
