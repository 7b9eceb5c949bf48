"""A table larger than memory: what reading one takes at most, and what goes on past rows that are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.tables.columns import ColumnNames
from models.tables.item_table import MOST_SAID, Faults, ItemTable

pyarrow = pytest.importorskip("pyarrow")


def test_memory_is_that_of_one_block_whatever_the_files_size(tmp_path: Path) -> None:
    from pyarrow import parquet

    rows, dimension = 40_000, 256
    path = tmp_path / "large.parquet"
    values = pyarrow.array(np.random.default_rng(0).normal(size=rows * dimension).astype(np.float32))
    table = pyarrow.table(
        {"id": np.arange(rows), "embedding": pyarrow.FixedSizeListArray.from_arrays(values, dimension)}
    )
    parquet.write_table(table, path, compression="none", use_dictionary=False)  # one row group of 41 MB
    del table, values
    pool = pyarrow.default_memory_pool()
    before, most, read = pool.bytes_allocated(), 0, 0
    for found in ItemTable.open(path).rows():
        read += len(found.items)
        most = max(most, pool.bytes_allocated() - before)
    assert read == rows
    assert most < path.stat().st_size / 4


def test_rows_that_are_refused_take_no_other_along(tmp_path: Path) -> None:
    path = tmp_path / "shop.csv"
    lines = ["id,size,embedding"]
    odd = {7: "7,38,1 x", 9: "9,38", 2_500: "2500,XL,1 2", 2_600: "2600,38,1 2 3"}
    lines += [odd.get(row, f"{row},38,1 {row}") for row in range(1, 3_001)]
    path.write_text("\n".join(lines) + "\n")
    # Only the first block decides that sizes are numbers: make it end before the size that is none.
    found, faults = [], Faults()
    import models.tables.blocks as blocks

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "_CSV_BLOCK_BYTES", 4_096)
        for rows in ItemTable.open(path, ColumnNames(attributes=("size",))).rows():
            found.extend(rows.items)
            faults.add(rows.faults)
            assert rows.embeddings is not None
            assert [f"row {item.id}" for item in rows.items] == rows.places
            assert rows.embeddings[:, 1].tolist() == [float(item.id) for item in rows.items]
    assert len(found) == 2_996
    assert [str(fault).removeprefix(str(path)) for fault in faults.first] == [
        " row 9: has 2 columns, and the header 3",
        " row 7, column embedding: is no list of numbers: '1 x'",
        " row 2600, column embedding: has 3 numbers, and the rows before it 2",
        " row 2500, column size: is 'XL', and the first rows of this column hold numbers",
    ]
    faults.add(faults.first * 10)
    assert (faults.count, len(faults.first)) == (44, MOST_SAID)
