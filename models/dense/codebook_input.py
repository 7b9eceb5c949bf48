"""What a codebook is fitted on: an item's embedding, beside it what histories say of the item.

What must hold: fitting and encoding make it in one and the same way, from the space that is kept with the codebook and changes
with it alone: a later training counts other histories, and codes that are stored must not mean something else by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.dense.arrivals import unit
from models.dense.part import SpaceRecord
from models.dense.space import DenseSpace, fit_space, id_hashes
from models.errors import SidstreamError


class CodebookInputRecord(SpaceRecord, frozen=True, kw_only=True):
    """The space's record, and the ``weight`` of the co-occurrence vectors."""

    weight: float


@dataclass(frozen=True, eq=False)
class CodebookInput:
    """``space`` with co-occurrence vectors; ``weight``: their length beside an embedding of length 1."""

    space: DenseSpace
    weight: float

    def rows(
        self, embeddings: npt.NDArray[np.floating], hashes: npt.NDArray[np.uint64] | None
    ) -> npt.NDArray[np.float32]:
        """float32 (N, D + C) of embeddings (N, D) of items with these id hashes (N,); None for what is no item: a query."""
        own = unit(embeddings)
        return np.concatenate((own, np.float32(self.weight) * self.space.beside(own, hashes)), axis=1)


def fit_codebook_input(
    embeddings: npt.NDArray[np.floating],
    ids: Sequence[str],
    histories: Sequence[Sequence[int]],
    weight: float,
    *,
    seed: int = 0,
) -> tuple[CodebookInput, npt.NDArray[np.float32]]:
    """Of a catalogue's embeddings (N, D), its item ids, and histories of rows; and the rows (N, D + C) to fit on. Raises
    ``SidstreamError`` if no two items stand in one history.
    """
    if len(ids) != len(embeddings):
        raise SidstreamError(f"{len(ids):,} item ids, but {len(embeddings):,} embeddings: they must belong together")
    hashes = id_hashes(item.encode() for item in ids)
    space, regression = fit_space(embeddings, hashes, histories, seed=seed)
    if regression is None:
        raise SidstreamError(
            "no two items of the catalogue stand in one history, so that there is no co-occurrence: give sequences or "
            "interactions with --histories, or leave --co-occurrence out"
        )
    found = CodebookInput(space, weight)
    return found, found.rows(embeddings, hashes)
