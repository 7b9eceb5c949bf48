"""An index of a whole catalogue at once, as the pipeline would make it: for measuring a model before anything streams."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.catalogue import CatalogueItem
from models.sids.layout import Layout
from store.records.batch import CodesBatch
from store.writing.writer import IndexWriter

_ITEMS_A_BATCH: Final = 10_000


def write_catalogue(
    path: Path,
    layout: Layout,
    items: Sequence[CatalogueItem],
    codes: NDArray[np.uint16],
    weights: NDArray[np.floating],
    *,
    vectors: Sequence[bytes] | None = None,
    topic: str = "item-codes",
) -> None:
    """Writes a new index in ``path``, read under ``layout``.

    ``codes``: (N, L) and ``weights``: (N,) of the items; ``vectors``: N (``models.dense.vectors``), None for an index without;
    ``topic``: of which the index then says that it has read so many records.
    """
    with IndexWriter.open(path, codebook_id=layout.codebook_id, layers=layout.layers, size=layout.size) as writer:
        for start in range(0, len(items), _ITEMS_A_BATCH):
            part = slice(start, start + _ITEMS_A_BATCH)
            some = items[part]
            batch = CodesBatch(
                ids=[item.id.encode() for item in some],
                codes=codes[part],
                weights=weights[part].astype(np.float32),
                titles=[item.title for item in some],
                updated_at=np.zeros(len(some), np.int64),
                deleted=np.zeros(len(some), np.bool_),
                vectors=None if vectors is None else list(vectors[part]),
            )
            writer.apply(batch, {(topic, 0): start + len(some)})
        writer.put_layout(layout, {})
