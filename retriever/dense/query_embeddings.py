"""A query's embedding: the one that it brings, else its text's if the bundle has a query tower.

What must hold: dense leg and prompt take it from here, so that both speak of one and the same vector.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import msgspec
import numpy as np
import numpy.typing as npt

from models.bundles.bundle import Bundle
from streamer.events.records import Query
from streamer.events.values.embeddings import query_embedding

if TYPE_CHECKING:
    from models.towers.text_encoder import TextEncoder


class QueryEmbeddings:
    """``dimension``: D of the bundle's embeddings; ``tower``: None for a bundle that was fitted without text towers."""

    def __init__(self, dimension: int, tower: TextEncoder | None = None) -> None:
        self._dimension = dimension
        self._tower = tower

    @classmethod
    def of(cls, bundle: Bundle) -> Self:
        """With the query tower that lies in the bundle's dense part."""
        record = bundle.manifest.dense
        if record is None or record.query_tower is None:
            return cls(bundle.manifest.dimension)
        from models.towers.text_encoder import TextEncoder

        return cls(bundle.manifest.dimension, TextEncoder(bundle.path(record.query_tower)))

    @property
    def reads_text(self) -> bool:
        """Whether a text has an embedding without the client's help."""
        return self._tower is not None

    def embedding(self, query: Query) -> npt.NDArray[np.floating] | None:
        """Embedding (D,) of a query, None if it has none."""
        if query.embedding is not msgspec.UNSET:
            return query_embedding(query.embedding, self._dimension)
        if self._tower is None or not query.text.strip():
            return None
        from models.towers.text_encoder import TextEncoderError

        try:
            return self._tower.encode([query.text]).reshape(-1)
        except TextEncoderError:  # nothing in it that is a word
            return None
