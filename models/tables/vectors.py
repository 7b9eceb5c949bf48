"""A column of embeddings as one matrix: lists or fixed-size lists of numbers, or their text.

What must hold: a row's numbers are those of the column, as float32; a row without D finite numbers is refused by what is wrong
with it, and takes no other row along.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MOST_SAID = 60


def matrix_of(column: Any, dimension: int | None) -> tuple[NDArray[np.float32], NDArray[np.intp], dict[int, str]]:
    """The embeddings of a block: float32 (n, D), the places (n,) of their rows, and why the others are refused.

    column: a pyarrow array of lists of numbers or of text, or a list of Python values. dimension: D, None for that of the first
    row that has any.
    """
    faults: dict[int, str] = {}
    lists = column if isinstance(column, list) else _of_text(column)
    values, lengths = _flat_python(lists, faults) if isinstance(lists, list) else _flat_arrow(column, faults)
    if dimension is None:
        some = lengths[lengths > 0]
        dimension = int(some[0]) if len(some) else 1
    rows = np.flatnonzero(lengths == dimension)
    for row in np.flatnonzero((lengths >= 0) & (lengths != dimension)):
        faults[int(row)] = f"has {int(lengths[row])} numbers, and the rows before it {dimension}"
    starts = np.cumsum(np.maximum(lengths, 0)) - np.maximum(lengths, 0)
    if len(values) == len(rows) * dimension:  # nothing else between them
        found = values.reshape(len(rows), dimension)
    else:
        found = values[starts[rows, None] + np.arange(dimension)]
    with np.errstate(over="ignore", invalid="ignore"):
        matrix = np.ascontiguousarray(found, dtype=np.float32)
    finite = np.isfinite(matrix).all(axis=1)
    if not finite.all():
        for place in np.flatnonzero(~finite):
            too_large = np.isfinite(found[place].astype(np.float64)).all()
            faults[int(rows[place])] = (
                "has a number too large for float32" if too_large else "has a NaN, an infinite number or none"
            )
        matrix, rows = matrix[finite], rows[finite]
    return matrix, rows, faults


def _of_text(column: Any) -> Any:
    """The column itself, or the values of one that holds text (CSV)."""
    import pyarrow

    if pyarrow.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    types = pyarrow.types
    text = types.is_string(column.type) or types.is_large_string(column.type)
    lists = types.is_list(column.type) or types.is_large_list(column.type) or types.is_fixed_size_list(column.type)
    return column.to_pylist() if text or not lists else column


def _flat_arrow(column: Any, faults: dict[int, str]) -> tuple[NDArray[Any], NDArray[np.intp]]:
    """All numbers one after another, and how many each row has; -1 for one that is refused."""
    import pyarrow
    from pyarrow import compute

    lengths = np.asarray(compute.fill_null(compute.list_value_length(column), -1), dtype=np.intp)
    for row in np.flatnonzero(lengths < 0):
        faults[int(row)] = "is null: give each row an embedding"
    values = column.flatten()  # leaves null lists out
    kind = values.type
    if not (pyarrow.types.is_floating(kind) or pyarrow.types.is_integer(kind)):
        for row in np.flatnonzero(lengths >= 0):
            faults[int(row)] = f"holds {kind}, and an embedding is numbers"
        return np.empty(0, np.float32), np.full(len(lengths), -1, dtype=np.intp)
    if values.null_count:  # NaN, which is refused by its row
        values = values.cast(pyarrow.float64()) if pyarrow.types.is_integer(kind) else values
    return values.to_numpy(zero_copy_only=False), lengths


def _flat_python(column: list[Any], faults: dict[int, str]) -> tuple[NDArray[Any], NDArray[np.intp]]:
    lengths = np.full(len(column), -1, dtype=np.intp)
    parts: list[NDArray[Any]] = []
    for row, value in enumerate(column):
        try:
            part = _numbers(value)
        except ValueError as error:
            faults[row] = str(error)
            continue
        lengths[row] = len(part)
        parts.append(part)
    return (np.concatenate(parts) if parts else np.empty(0, np.float64)), lengths


def _numbers(value: Any) -> NDArray[np.float64]:
    """Raises ``ValueError`` with what the value is instead."""
    if value is None:
        raise ValueError("is null: give each row an embedding")
    if isinstance(value, str):
        text = value.strip()
        try:
            value = json.loads(text) if text.startswith("[") else [float(one) for one in text.replace(",", " ").split()]
        except ValueError:
            try:  # as NumPy prints an array
                value = [float(one) for one in text.strip("[]").split()]
            except ValueError:
                raise ValueError(f"is no list of numbers: {text[:_MOST_SAID]!r}") from None
    if not isinstance(value, list):
        raise ValueError(f"is no list of numbers, but {str(value)[:_MOST_SAID]!r}")
    for one in value:
        if type(one) is not float and type(one) is not int:
            raise ValueError(f"holds {str(one)[:_MOST_SAID]!r}, and an embedding is numbers")
    try:
        return np.array(value, dtype=np.float64)
    except OverflowError:
        raise ValueError("has a number too large for float32") from None
