"""A bundle with a tiny model, and an index of its first items."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from models.bundles.bundle import Bundle
from models.codebooks.codebook import Codebook
from store.writing.writer import IndexWriter
from support.answer_batches import LIVE, items_batch


@pytest.fixture
def bundle(tiny_model_bundle: Path) -> Bundle:
    return Bundle.open(tiny_model_bundle, need_model=True)


@pytest.fixture
def writer(tmp_path: Path, bundle: Bundle, tiny_embeddings: NDArray[np.float32]) -> Iterator[IndexWriter]:
    """An index of the first 300 items."""
    layout = bundle.layout
    with IndexWriter.open(
        tmp_path / "index", codebook_id=layout.codebook_id, layers=layout.layers, size=layout.size
    ) as writer:
        codes = Codebook.load(bundle.codebook_path).encode(tiny_embeddings[:LIVE])
        writer.apply(items_batch([f"item-{number}" for number in range(LIVE)], codes), {("item-codes", 0): LIVE})
        writer.put_layout(layout, {})
        yield writer
