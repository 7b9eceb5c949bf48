"""From an item's id and embedding to its codes, as the bundle's codebook was fitted: on the embedding, or on the embedding beside
what histories said of the item.

What must hold: the codes of an item depend on its id, its embedding and the bundle alone. Needs no torch: the assigner runs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
import numpy.typing as npt

from models.bundles.bundle import Bundle
from models.codebooks.onnx_encoder import OnnxEncoder
from models.dense.codebook_input import CodebookInput
from models.dense.part import load_space
from models.dense.space import id_hashes


class ItemEncoder:
    """``encoder`` of the codebook; ``codebook_input``: None where it is the embedding."""

    def __init__(self, encoder: OnnxEncoder, codebook_input: CodebookInput | None = None) -> None:
        self._encoder = encoder
        self._input = codebook_input
        self.codebook_id = encoder.codebook_id
        self.dimension = encoder.dimension if codebook_input is None else codebook_input.space.dimension

    @classmethod
    def of(cls, bundle: Bundle, *, threads: int = 1) -> Self:
        """The encoder of a bundle. ``threads``: ONNX Runtime's within one call."""
        encoder = OnnxEncoder(bundle.encoder_path, threads=threads)
        record = bundle.manifest.codebook_input
        if record is None:
            return cls(encoder)
        return cls(encoder, CodebookInput(load_space(bundle.path(record.file), record), record.weight))

    def encode(self, embeddings: npt.NDArray[np.float32], ids: Sequence[bytes]) -> npt.NDArray[np.uint16]:
        """Codes uint16 (N, L) of items' embeddings float32 (N, D) and ids."""
        return self._encoder.encode(self.rows(embeddings, ids))

    def rows(self, embeddings: npt.NDArray[np.float32], ids: Sequence[bytes]) -> npt.NDArray[np.float32]:
        """What the codebook quantises of items' embeddings float32 (N, D) and ids: themselves, or (N, D + C) with what
        histories said of the items.
        """
        return embeddings if self._input is None else self._input.rows(embeddings, id_hashes(ids))

    def encode_queries(self, embeddings: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
        """Codes uint16 (N, L) of queries' embeddings float32 (N, D): those of a new item with that embedding."""
        if self._input is None:
            return self._encoder.encode(embeddings)
        return self._encoder.encode(self._input.rows(embeddings, None))
