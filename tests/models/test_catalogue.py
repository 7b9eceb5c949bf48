"""Catalogue folders: what is written is read back, real ones are read, and each fault is named with its file and line."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from models.catalogue import Catalogue, CatalogueError, CatalogueItem, CatalogueQuery, read_items
from models.data_files import DataFileError


def small_catalogue() -> Catalogue:
    return Catalogue(
        items=(
            CatalogueItem(
                id="kettle", title="Crème kettle, 1 L", brand="Alta", type="kettle", description="Boils.", weight=2.5
            ),
            CatalogueItem(id="bed", title="Dog bed"),
        ),
        embeddings=np.array([[1, 0, 0], [0, 0.6, 0.8]], dtype=np.float32),
        queries=(CatalogueQuery("q1", "water kettle"),),
        query_embeddings=np.array([[1, 0, 0]], dtype=np.float32),
        qrels={"q1": {"kettle": 3, "bed": 0}},
        sequences={"ann": ("bed", "kettle")},
    )


def folder(directory: Path, items: str, rows: int, dimension: int = 3) -> Path:
    (directory / "items.jsonl").write_text(items, encoding="utf-8")
    np.save(directory / "items.npy", np.ones((rows, dimension), dtype=np.float32))
    return directory


def test_written_catalogue_is_read_back_equal(tmp_path: Path) -> None:
    written = small_catalogue()
    written.write(tmp_path)
    read = Catalogue.read(tmp_path)
    assert (read.items, read.queries) == (written.items, written.queries)
    assert (read.qrels, read.sequences) == (written.qrels, written.sequences)
    np.testing.assert_array_equal(read.embeddings, written.embeddings)
    assert read.query_embeddings is not None
    assert (len(read), read.dimension) == (2, 3)


def test_equal_catalogues_are_written_as_equal_bytes(tmp_path: Path) -> None:
    for name in ("first", "second"):
        small_catalogue().write(tmp_path / name)
    for path in sorted((tmp_path / "first").iterdir()):
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes(), path.name


def test_pair_of_json_lines_and_matrix_is_read_with_numeric_ids_and_float16(tmp_path: Path) -> None:
    (tmp_path / "new.jsonl").write_text(
        '{"id": 7, "title": "Lamp", "anything": [1]}\n\n{"item_id": "8", "title": "Bulb"}\n'
    )
    np.save(tmp_path / "new.npy", np.ones((2, 4), dtype=np.float16))
    read = Catalogue.read_pair(tmp_path / "new.jsonl", tmp_path / "new.npy")
    assert [item.id for item in read.items] == ["7", "8"]
    assert read.embeddings.dtype == np.float32


@pytest.mark.parametrize(
    ("name", "items", "dimension"), [("chorus_icecat", 19_406, 384), ("amazon_games", 16_859, 384)]
)
def test_real_catalogue_is_read(shared_data: Path, name: str, items: int, dimension: int) -> None:
    read = Catalogue.read(shared_data / name)
    assert (len(read), read.dimension) == (items, dimension)
    assert bool(read.queries) == (name == "chorus_icecat")
    assert bool(read.sequences) == (name == "amazon_games")


@pytest.mark.parametrize(
    ("items", "rows", "message"),
    [
        ('{"id": "1", "title": "a"}\n{"id": "2", "title', 2, "line 2 is not an item"),
        ('{"id": "1", "title": "a"}\n[]\n', 2, "line 2 is not an item"),
        ('{"id": "1"}\n', 1, "line 1 is not an item"),
        ('{"title": "no id"}\n', 1, "line 1 is not an item"),
        ('{"id": "1", "title": "a"}\n', 2, "2 rows of embeddings for 1 items"),
        ('{"id": "1", "title": "a"}\n{"id": "1", "title": "b"}\n', 2, "share the id '1'"),
        ('{"id": "", "title": "a"}\n', 1, "1 to 256 bytes"),
        ('{"id": "1", "title": "a", "weight": -1}\n', 1, "weight -1"),
        ("", 0, "no items"),
    ],
)
def test_faulty_items_are_refused_with_the_place(tmp_path: Path, items: str, rows: int, message: str) -> None:
    with pytest.raises(DataFileError, match=message):
        Catalogue.read(folder(tmp_path, items, rows))


def test_missing_folder_items_and_embeddings_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match="no catalogue folder"):
        Catalogue.read(tmp_path / "nowhere")
    with pytest.raises(DataFileError, match=r"items\.jsonl"):
        Catalogue.read(tmp_path)
    (tmp_path / "items.jsonl").write_text('{"id": "1", "title": "a"}\n')
    with pytest.raises(DataFileError, match=r"no items\*\.npy"):
        Catalogue.read(tmp_path)
    with pytest.raises(DataFileError, match="no embeddings file"):
        Catalogue.read_pair(tmp_path / "items.jsonl", tmp_path / "none.npy")
    with pytest.raises(DataFileError, match="no file"):
        Catalogue.read_pair(tmp_path / "none.jsonl", tmp_path / "none.npy")


def test_two_embedding_files_are_refused_by_name(tmp_path: Path) -> None:
    folder(tmp_path, '{"id": "1", "title": "a"}\n', 1)
    np.save(tmp_path / "items.other.npy", np.ones((1, 3), dtype=np.float32))
    with pytest.raises(DataFileError, match=r"items\.npy, items\.other\.npy"):
        Catalogue.read(tmp_path)


@pytest.mark.parametrize("fault", [np.nan, np.inf])
def test_non_finite_embedding_is_refused_with_its_row(tmp_path: Path, fault: float) -> None:
    folder(tmp_path, '{"id": "1", "title": "a"}\n{"id": "2", "title": "b"}\n', 2)
    np.save(tmp_path / "items.npy", np.array([[1, 2], [3, fault]], dtype=np.float32))
    with pytest.raises(DataFileError, match="the first is row 1"):
        Catalogue.read(tmp_path)


def test_file_that_is_no_matrix_of_numbers_is_refused(tmp_path: Path) -> None:
    folder(tmp_path, '{"id": "1", "title": "a"}\n', 1)
    (tmp_path / "items.npy").write_bytes(b"not NumPy")
    with pytest.raises(DataFileError, match="not a NumPy file"):
        Catalogue.read(tmp_path)
    np.save(tmp_path / "items.npy", np.array(["text"]))
    with pytest.raises(DataFileError, match="holds text"):
        Catalogue.read(tmp_path)


def test_truncated_gzip_is_refused(tmp_path: Path) -> None:
    small_catalogue().write(tmp_path)
    path = tmp_path / "items.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(DataFileError, match="cannot be read"):
        Catalogue.read(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("qrels.tsv", "query_id\titem_id\trating\nq1\tkettle\tgood\n", "line 2 has the rating 'good'"),
        ("qrels.tsv", "query_id\titem_id\trating\nq1\tsofa\t1\n", "names item 'sofa'"),
        ("qrels.tsv", "query_id\titem_id\trating\nq9\tbed\t1\n", "query 'q9'"),
        ("sequences.tsv", "user_id\titems\nann\tbed sofa\n", "names item 'sofa'"),
        ("sequences.tsv", "user_id\nann\n", "needs items"),
        ("queries.tsv", "query_id\tquery\nq1\n", "line 2 has 1 columns"),
    ],
)
def test_faulty_table_is_refused_with_the_place(tmp_path: Path, name: str, text: str, message: str) -> None:
    small_catalogue().write(tmp_path)
    with gzip.open(tmp_path / f"{name}.gz", "wt", encoding="utf-8") as file:
        file.write(text)
    with pytest.raises(DataFileError, match=message):
        Catalogue.read(tmp_path)


def test_query_embeddings_of_another_dimension_are_refused(tmp_path: Path) -> None:
    small_catalogue().write(tmp_path)
    np.save(tmp_path / "queries.f32.npy", np.ones((1, 5), dtype=np.float32))
    with pytest.raises(DataFileError, match="same model"):
        Catalogue.read(tmp_path)


def test_attributes_of_items_are_read_and_written_and_left_out_where_there_are_none(tmp_path: Path) -> None:
    items = (
        CatalogueItem(
            id="a", title="kettle", attributes={"brand": "Acme", "price": 19.5, "new": True, "tags": ["red"]}
        ),
        CatalogueItem(id="b", title="lamp"),
    )
    catalogue = Catalogue(items=items, embeddings=np.eye(2, dtype=np.float32))
    catalogue.write(tmp_path)
    assert Catalogue.read(tmp_path).items == items
    lines = gzip.decompress((tmp_path / "items.jsonl.gz").read_bytes()).decode().splitlines()
    assert ["attributes" in line for line in lines] == [True, False]


def test_attributes_that_are_no_flat_object_are_refused_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text(
        '{"item_id": "a", "title": "kettle"}\n{"item_id": "b", "title": "lamp", "attributes": {"size": {"cm": 3}}}\n'
    )
    with pytest.raises(CatalogueError, match="line 2"):
        read_items(path)
