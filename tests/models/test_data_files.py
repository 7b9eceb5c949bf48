"""Files that people give: what is read, and that everything else is refused by what it looks like."""

from __future__ import annotations

import gzip
import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.catalogue import read_items
from models.data_files import DataFileError, numbered_lines, read_matrix
from models.examples.records import read_examples

LINES = b'{"item_id": 1, "item": "x", "title": "caf\xc3\xa9"}\n{"item_id": 2, "item": "x", "title": "b"}\n'
MATRIX = np.arange(12, dtype=np.float32).reshape(4, 3)


def saved(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def archive() -> bytes:
    file = io.BytesIO()
    np.savez(file, one=MATRIX, two=MATRIX)
    return file.getvalue()


def header_of(shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        LINES,
        b"\xef\xbb\xbf" + LINES,
        LINES.replace(b"\n", b"\r\n"),
        LINES.replace(b"\n", b"\r"),
        b"\n  \n" + LINES.replace(b"\n", b"\n \t\n\n"),
        LINES.rstrip(b"\n"),
        gzip.compress(LINES),
        gzip.compress(b"\xef\xbb\xbf" + LINES),
    ],
    ids=["plain", "mark", "Windows", "carriage returns", "blank lines", "no last end", "gzip", "gzip and mark"],
)
def test_text_is_read_however_its_lines_end_and_with_or_without_mark_and_gzip(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "items.jsonl"
    path.write_bytes(content)
    assert [(item.id, item.title) for item in read_items(path)] == [("1", "café"), ("2", "b")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LINES.decode().encode("latin-1"), "line 1 is not UTF-8: byte .* is 0xe9, which looks like Latin-1"),
        (LINES + b'{"title": "\x93x\x94"}', "line 3 is not UTF-8: byte 12 of it is 0x93, .*iconv"),
        (LINES.decode().encode("utf-16"), "looks like UTF-16"),
        (LINES.decode().encode("utf-16-be"), "looks like UTF-16"),
        (gzip.compress(LINES * 1_000)[:-12], "damaged or cut .* copy it again"),
        (gzip.compress(LINES * 1_000)[:20] + b"\xff" * 40, "damaged or cut"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git LFS pointer .* `git lfs pull`"),
        (archive(), "a zip archive"),
        (saved(MATRIX), "a NumPy array"),
        (b"BZh91AY", "bzip2"),
    ],
)
def test_file_that_is_no_utf8_text_is_refused_by_what_it_looks_like(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "some [file].jsonl"
    path.write_bytes(content)
    for read in (numbered_lines, read_examples, read_items):
        with pytest.raises(DataFileError, match=message) as refused:
            list(read(path))  # type: ignore[operator]
        assert str(path) in str(refused.value)


def test_directory_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match="cannot be read: Is a directory"):
        list(numbered_lines(tmp_path))
    with pytest.raises(DataFileError, match="cannot be read: Is a directory"):
        read_matrix(tmp_path)


@pytest.mark.parametrize(
    "array",
    [
        MATRIX,
        MATRIX.astype(np.float16),
        MATRIX.astype(np.float64),
        MATRIX.astype(">f4"),
        MATRIX.astype(np.int8),
        MATRIX.astype(np.uint16),
        np.asfortranarray(MATRIX),
    ],
    ids=str,
)
def test_arrays_of_numbers_are_read_as_float32(tmp_path: Path, array: Any) -> None:
    (tmp_path / "items.npy").write_bytes(saved(array))
    read = read_matrix(tmp_path / "items.npy")
    assert (read.dtype, read.flags.c_contiguous) == (np.float32, True)
    assert np.array_equal(read, MATRIX)


class Evil:
    """Runs when it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("a pickle was read",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty, 0 bytes"),
        (saved(MATRIX)[:-5], "cut short: its header promises 4 rows of 3 float32 numbers, 48 bytes, and 43 are there"),
        (saved(MATRIX)[:40], "damaged: its NumPy header"),
        (saved(MATRIX)[:7], "damaged: its NumPy header"),
        (header_of((1 << 50, 1 << 30)) + b"\0" * 64, "cut short"),
        (b"\x93NUMPY\x01\x00\x76\x00" + b"(" * 118, "damaged: its NumPy header"),
        (archive(), "a zip archive, such as .npz"),
        (gzip.compress(saved(MATRIX)), "compressed by gzip: unpack it"),
        (pickle.dumps(Evil()), "a Python pickle, which may carry code"),
        (saved(np.array([[Evil()]], dtype=object)), "holds Python objects"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"item_id,embedding\n", "but text"),
        (saved(MATRIX.astype(np.complex64)), "holds complex numbers"),
        (saved(MATRIX > 3), "holds truth values"),
        (saved(np.array([["a"]])), "holds text"),
        (saved(np.array([[b"a"]])), "holds text"),
        (saved(np.zeros((2, 2), "datetime64[s]")), "holds dates"),
        (saved(np.zeros((2, 2), "V2")), "bfloat16"),
        (saved(np.zeros(3, [("id", "i4"), ("vector", "f4", 3)])), "records with the fields id, vector"),
        (saved(np.rec.array([(1, 2.0)], names="a,b")), "records with the fields a, b"),
        (saved(MATRIX[0]), r"shape \(3,\)"),
        (saved(MATRIX[None]), r"shape \(1, 4, 3\)"),
        (saved(np.float32(1)), r"shape \(\)"),
        (saved(MATRIX[:0]), r"shape \(0, 3\)"),
        (saved(MATRIX[:, :0]), r"shape \(4, 0\)"),
        (saved(np.array([[1.0], [1e300]])), "1 rows have numbers too large for float32, the first is row 1"),
        (saved(np.array([[1.0], [np.nan]])), "NaN or infinite values, the first is row 1"),
    ],
)
def test_file_that_is_no_matrix_is_refused_by_what_it_looks_like(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "items.npy"
    path.write_bytes(content)
    with pytest.raises(DataFileError, match=message) as refused:
        read_matrix(path)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"item_id": "a", "id": "b", "title": "t"}, "the item_id 'a' and the id 'b': give one of them"),
        ({"item_id": True, "title": "t"}, "is not an item"),
        ({"item_id": 1.5, "title": "t"}, "is not an item"),
        ({"item_id": None, "title": "t"}, "is not an item"),
        ({"item_id": "a", "title": None}, "is not an item"),
        ({"item_id": "a", "title": "t", "brand": 5}, "brand"),
        (["a", "t"], "is not an item"),
    ],
)
def test_faulty_item_is_refused_with_its_line(tmp_path: Path, item: Any, message: str) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text("\n" + json.dumps(item))
    with pytest.raises(DataFileError, match=f"line 2 .*{message}"):
        read_items(path)


def test_null_fields_equal_ids_and_integer_ids_of_items_are_read(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    item = {"item_id": 7, "id": "7", "title": "t", "brand": None, "type": None, "description": None, "weight": None}
    path.write_text(json.dumps(item))
    [read] = read_items(path)
    assert (read.id, read.brand, read.type, read.weight) == ("7", "", "", 1.0)


def test_integer_ids_and_nulls_of_examples_are_read(tmp_path: Path) -> None:
    path = tmp_path / "examples.jsonl"
    lines = [
        {"query": None, "user": 3, "history": [1, "2"], "item": 4},
        {"query": "q", "user": None, "history": None, "item": "5"},
    ]
    path.write_text("\ufeff" + "\n\n".join(map(json.dumps, lines)), encoding="utf-8")
    one, other = read_examples(path)
    assert (one.query, one.user, one.history, one.item) == ("", "3", ("1", "2"), "4")
    assert (other.user, other.history, other.item) == (None, (), "5")


@pytest.mark.parametrize("line", ['{"item": null}', '{"item": ""}', "{}"])
def test_example_without_an_item_is_refused_with_its_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "examples.jsonl"
    path.write_text('{"item": "a"}\n' + line)
    with pytest.raises(DataFileError, match="line 2 names no item"):
        list(read_examples(path))
