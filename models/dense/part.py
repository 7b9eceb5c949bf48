"""The dense part of a bundle as a file: the space (known items, what training counted of them, the ridge matrix), and as a
record of the manifest: the weights of the mixture and how they were chosen.

What must hold: what is read back is what was written; a file that does not fit its record is refused; the record is small
and readable, the arrays lie in one safetensors file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import numpy as np

from models.dense.mixture import MixtureWeights
from models.dense.space import DenseSpace, KnownItems, Together
from models.dense.vectors import QuantisedVectors
from models.errors import SidstreamError

VERSION: Final = 1
Asked = Literal["embedding", "history"]
"""What a query is held against items by: its own embedding (sent, or of its text), or its history's."""

# Before anything was measured: between the two sets of docs/new-items.md, whose λ were chosen as 29 and 10.
UNMEASURED: Final = MixtureWeights(sharpness=15.0, share=0.5)


class DenseRecord(msgspec.Struct, frozen=True, kw_only=True):
    """``version`` of the file; ``file``: its name in the bundle; ``dimension``: D of embeddings, ``beside``: C of the
    co-occurrence vectors, 0 without; ``known``: how many items training knew; ``weights`` by what a query brings, for what was
    measured; ``boost_of_new``: β unless the settings say another; ``figures``: how the weights were chosen, for people;
    ``query_tower``: the file that embeds texts, None without.
    """

    version: int
    file: str
    dimension: int
    known: int
    beside: int = 0
    weights: dict[Asked, MixtureWeights] = {}
    boost_of_new: float = 0.0
    figures: dict[str, Any] = {}
    query_tower: str | None = None

    def weights_of(self, asked: Asked, *, has_model: bool) -> MixtureWeights:
        """The weights for a query: those measured for its kind, else the defaults; without a model the dense leg alone."""
        chosen = self.weights.get(asked, UNMEASURED)
        return chosen if has_model else msgspec.structs.replace(chosen, share=1.0, share_of_new=1.0)


def save_space(space: DenseSpace, path: Path) -> None:
    """Writes the arrays of a space."""
    from safetensors.numpy import save_file

    arrays: dict[str, Any] = {"known": space.known.hashes.view(np.int64)}
    if space.together is not None:
        arrays |= {
            "steps": space.together.vectors.steps,
            "scales": space.together.vectors.scales,
            "matrix": space.together.matrix,
        }
    save_file(arrays, path)


def load_space(path: Path, record: DenseRecord) -> DenseSpace:
    """Reads the space of a record. Raises ``SidstreamError`` if the file is another's."""
    from safetensors.numpy import load_file

    if record.version > VERSION:
        raise SidstreamError(
            f"the dense part {path} is of version {record.version}, this sidstream reads {VERSION}: update sidstream, or "
            "train the bundle again"
        )
    arrays = load_file(path)
    known = KnownItems(arrays["known"].view(np.uint64))
    together = None
    if record.beside:
        together = Together(QuantisedVectors(arrays["steps"], arrays["scales"]), arrays["matrix"])
    space = DenseSpace(record.dimension, known, together)
    shapes = (
        () if together is None else (together.vectors.steps.shape, together.vectors.scales.shape, together.matrix.shape)
    )
    wanted = ((record.known, record.beside), (record.known,), (record.dimension, record.beside))
    ordered = bool((known.hashes[1:] > known.hashes[:-1]).all())
    if len(known.hashes) != record.known or (shapes and shapes != wanted) or not ordered:
        raise SidstreamError(f"the dense part {path} does not fit the bundle's manifest: train the bundle again")
    return space
