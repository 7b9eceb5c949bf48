"""The files that people give: text in lines and matrices of numbers, read or refused by what they look like.

What must hold: text is UTF-8, with or without a byte order mark, gzipped or not; a matrix is one ``.npy`` array of
numbers, whole, with finite rows. Nothing that may carry code is read. A refusal names the file, the line or row where
there is one, what the file looks like and what to do.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from models.errors import SidstreamError

_GZIP: Final = b"\x1f\x8b"
_NPY: Final = b"\x93NUMPY"
_UTF8_MARK: Final = b"\xef\xbb\xbf"
_UTF16_MARKS: Final = (b"\xff\xfe", b"\xfe\xff")
_POINTER: Final = b"version https://git-lfs"
# First bytes of what is given in place of an array or of text, what it is, and what to do.
_OTHERS: Final = (
    (_POINTER, "a Git LFS pointer in place of the file", "fetch the file itself with `git lfs pull`"),
    (b"/annex/objects/", "a git-annex pointer in place of the file", "fetch the file itself with `git annex get`"),
    (
        b"PK\x03\x04",
        "a zip archive, such as .npz, .pt or .xlsx",
        "take one array out of it and write it with numpy.save",
    ),
    (_GZIP, "compressed by gzip", "unpack it with `gunzip`"),
    (b"BZh", "compressed by bzip2", "unpack it with `bunzip2`"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", "unpack it with `unzstd`"),
    (b"\x80", "a Python pickle, which may carry code and is never read", "write the array with numpy.save"),
    (b"\x89HDF", "an HDF5 file", "read it with h5py and write the array with numpy.save"),
    (b"PAR1", "a Parquet file", "read it and write the array with numpy.save"),
    (_NPY, "a NumPy array", "give a text file here"),
)
_MOST_BYTES_OF_A_LINE: Final = 64 * 1024 * 1024
_NAMED_TYPES: Final = {
    "b": "truth values", "c": "complex numbers", "S": "text", "U": "text", "O": "Python objects", "M": "dates",
    "m": "durations", "V": "raw bytes (bfloat16 is saved like that)",
}  # fmt: skip


class DataFileError(SidstreamError):
    """A file that cannot be read, or that holds something else than it should."""


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines with their 1-based numbers, without line ends; blank lines are left out.

    Raises ``DataFileError`` for a missing, damaged or cut file, and for one that is no UTF-8 text.
    """
    try:
        with path.open("rb") as plain:
            yield from lines_of(path, plain)
    except FileNotFoundError:
        raise DataFileError(f"no file {path}; check the path") from None
    except OSError as error:
        raise DataFileError(f"{path} cannot be read: {error.strerror or error}") from error


def lines_of(path: Path | str, plain: BinaryIO) -> Iterator[tuple[int, str]]:
    """``numbered_lines`` of an open file of that name, from wherever it comes."""
    try:
        zipped = plain.read(len(_GZIP)) == _GZIP
        plain.seek(0)
        with gzip.GzipFile(fileobj=plain) if zipped else plain as file:
            yield from _lines(path, file)  # type: ignore[arg-type]
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataFileError(
            f"{path} cannot be read: its gzip data are damaged or cut ({error}); copy it again"
        ) from error
    except OSError as error:
        raise DataFileError(f"{path} cannot be read: {error.strerror or error}") from error


def _lines(path: Path | str, file: BinaryIO) -> Iterator[tuple[int, str]]:
    number = 0
    while raw := file.readline(_MOST_BYTES_OF_A_LINE):
        if number == 0:
            _require_text(path, raw)
            raw = raw.removeprefix(_UTF8_MARK)
        if len(raw) == _MOST_BYTES_OF_A_LINE:
            raise DataFileError(f"{path} line {number + 1} is longer than 64 MiB; give one record a line")
        for part in raw.rstrip(b"\r\n").split(b"\r"):  # a lone carriage return ends a line too
            number += 1
            if part.strip():
                yield number, _decoded(path, number, part)


def _require_text(path: Path | str, first: bytes) -> None:
    _require_none_of_the_others(path, first, wanted="UTF-8 text", known=_GZIP)
    if first.startswith(_UTF16_MARKS) or b"\0" in first[:200]:
        raise DataFileError(f"{path} looks like UTF-16, or holds no text: save it as UTF-8")


def _require_none_of_the_others(path: Path | str, first: bytes, *, wanted: str, known: bytes) -> None:
    for beginning, what, what_to_do in _OTHERS:
        if beginning != known and first.startswith(beginning):
            raise DataFileError(f"{path} is not {wanted}, but {what}: {what_to_do}")


def _decoded(path: Path | str, number: int, line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        byte = line[error.start]
        raise DataFileError(
            f"{path} line {number} is not UTF-8: byte {error.start + 1} of it is 0x{byte:02x}, which looks like Latin-1 or "
            f"Windows-1252; convert the file, such as by `iconv -f WINDOWS-1252 -t UTF-8`"
        ) from None


def plain_id(value: Any) -> Any:
    """Shops number their products: an integer id is the text of its digits, anything else stays.

    >>> plain_id(17), plain_id("17"), plain_id(True)
    ('17', '17', True)
    """
    return str(value) if type(value) is int else value


def read_matrix(path: Path) -> NDArray[np.float32]:
    """A ``.npy`` file of one array of numbers (N, D) as float32, rows finite; integers and other floats are converted.

    Raises ``DataFileError`` for anything else, by its name.
    """
    try:
        with path.open("rb") as file:
            _require_npy(path, file.read(64))
            file.seek(0)
            shape, dtype, start = _header(path, file)
            _require_numbers(path, shape, dtype)
            _require_whole(path, shape, dtype, path.stat().st_size - start)
            file.seek(0)
            matrix = np.lib.format.read_array(file, allow_pickle=False)
    except FileNotFoundError:
        raise DataFileError(f"no embeddings file {path}; give a .npy with one row an item") from None
    except OSError as error:
        raise DataFileError(f"{path} cannot be read: {error.strerror or error}") from error
    with np.errstate(over="ignore"):
        converted = np.ascontiguousarray(matrix, dtype=np.float32)
    _require_finite(path, matrix, converted)
    return converted


def _require_npy(path: Path, first: bytes) -> None:
    if not first:
        raise DataFileError(f"{path} is empty, 0 bytes: what wrote or copied it did not finish; make it again")
    if first.startswith(_NPY):
        return
    _require_none_of_the_others(path, first, wanted="a NumPy file of numbers", known=_NPY)
    looks = "text" if first.isascii() else "something else"
    raise DataFileError(
        f"{path} is not a NumPy file of numbers, but {looks} (it begins with {first[:16]!r}); write it with numpy.save"
    )


def _header(path: Path, file: BinaryIO) -> tuple[tuple[int, ...], np.dtype[np.generic], int]:
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    except Exception as error:  # NumPy parses the header as Python, in versions of its own
        raise DataFileError(f"{path} is damaged: its NumPy header cannot be read ({error}); make it again") from error
    return shape, dtype, file.tell()


def _require_numbers(path: Path, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> None:
    if dtype.names is not None:
        raise DataFileError(
            f"{path} holds records with the fields {', '.join(dtype.names)}; write the numbers alone, as one array (N, D)"
        )
    if dtype.kind not in "fiu":
        held = _NAMED_TYPES.get(dtype.kind, str(dtype))
        raise DataFileError(f"{path} holds {held} ({dtype}); embeddings are numbers: write float32 with numpy.save")
    if len(shape) != 2 or 0 in shape:
        raise DataFileError(f"{path} has the shape {shape}; embeddings have two axes: a row an item, D numbers each")


def _require_whole(path: Path, shape: tuple[int, ...], dtype: np.dtype[np.generic], held: int) -> None:
    rows, columns = shape
    promised = rows * columns * dtype.itemsize  # Python's integers: a header may promise any shape
    if held < promised:
        raise DataFileError(
            f"{path} is cut short: its header promises {rows:,} rows of {columns:,} {dtype} numbers, {promised:,} bytes, and "
            f"{held:,} are there; copy or make it again"
        )


def _require_finite(path: Path, matrix: NDArray[np.number], converted: NDArray[np.float32]) -> None:
    finite = np.isfinite(converted).all(axis=1)
    if finite.all():
        return
    first, count = int(np.argmin(finite)), int((~finite).sum())
    if np.isfinite(matrix[first].astype(np.float64)).all():
        raise DataFileError(
            f"{path}: {count:,} rows have numbers too large for float32, the first is row {first}; scale the embeddings, "
            "such as to length 1"
        )
    raise DataFileError(
        f"{path}: {count:,} rows have NaN or infinite values, the first is row {first}; compute them again"
    )
