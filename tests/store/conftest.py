"""Index directories and a writer factory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from store.writing.writer import IndexWriter
from support.plain_index import CODEBOOK


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "index"


@pytest.fixture
def open_writer(path: Path) -> Iterator[Callable[..., IndexWriter]]:
    """Opens writers with L = 3, M = 16 unless told otherwise; closes what the test left open."""
    with ExitStack() as stack:

        def opened(**options: Any) -> IndexWriter:
            arguments: dict[str, Any] = {"codebook_id": CODEBOOK, "layers": 3, "size": 16, **options}
            return stack.enter_context(IndexWriter.open(arguments.pop("path", path), **arguments))

        yield opened
