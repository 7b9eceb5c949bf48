"""An index is read ahead where memory holds it, and left alone where not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from store.files.read_ahead import read_ahead
from store.writing.writer import IndexWriter
from support.plain_index import batch_of, random_events


def test_index_is_read_where_half_of_the_memory_holds_it(open_writer: Callable[..., IndexWriter], path: Path) -> None:
    writer = open_writer()
    writer.apply(batch_of(random_events(1, 1_000, ids=1_000)), {})
    size = (path / "data.mdb").stat().st_size
    turns: list[int] = []
    assert read_ahead(path, available=2 * size, on_progress=lambda: turns.append(1)) == size
    assert turns
    assert read_ahead(path, available=2 * size - 1) == 0
