"""The dense part of a bundle as a file: the space (known items, what training counted of them, the regression), and as a
record of the manifest: the weights of the mixture and how they were chosen.

What must hold: what is read back is what was written; a file that does not fit its record is refused; the record is small
and readable, the arrays lie in one safetensors file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import numpy as np

from models.dense.arrivals import Regression
from models.dense.mixture import MixtureWeights
from models.dense.pairs import ItemPairs
from models.dense.space import DenseSpace, KnownItems, Together
from models.dense.vectors import QuantisedVectors
from models.errors import SidstreamError

VERSION: Final = 3  # 1: the regression was linear, without landmarks; 2: without pairs
Asked = Literal["embedding", "history"]
"""What a query is held against items by: its own embedding (sent, or of its text), or its history's."""

# Before anything was measured: between the two sets of docs/new-items.md, whose λ were chosen as 29 and 10; γ of the set that has
# histories, for the queries that bring one.
UNMEASURED: Final = MixtureWeights(sharpness=15.0, share=0.5, together=0.7)


class SpaceRecord(msgspec.Struct, frozen=True, kw_only=True):
    """``version`` of the file; ``file``: its name in the bundle; ``dimension``: D of embeddings, ``beside``: C of the
    co-occurrence vectors, 0 without, ``landmarks`` and ``kernel_sharpness`` of their regression; ``known``: how many items
    training knew; ``pairs``: of them that were taken together, 0 if that was not kept.
    """

    version: int
    file: str
    dimension: int
    known: int
    beside: int = 0
    landmarks: int = 0
    kernel_sharpness: float = 0.0
    pairs: int = 0


class DenseRecord(SpaceRecord, frozen=True, kw_only=True):
    """A space, and ``weights`` by what a query brings, for what was measured; ``figures``: how they were chosen, for people;
    ``query_tower``: the file that embeds texts, None without.
    """

    weights: dict[Asked, MixtureWeights] = {}
    figures: dict[str, Any] = {}
    query_tower: str | None = None

    def weights_of(self, asked: Asked) -> MixtureWeights:
        """The weights for a query: those measured for its kind, else the defaults."""
        return self.weights.get(asked, UNMEASURED)


def save_space(space: DenseSpace, path: Path) -> None:
    """Writes the arrays of a space."""
    from safetensors.numpy import save_file

    arrays: dict[str, Any] = {"known": space.known.hashes.view(np.int64)}
    if space.together is not None:
        arrays |= {
            "steps": space.together.vectors.steps,
            "scales": space.together.vectors.scales,
            "matrix": space.together.regression.matrix,
        }
        if space.together.regression.landmarks is not None:
            arrays["landmarks"] = space.together.regression.landmarks
        if space.pairs is not None:
            arrays |= {
                "pair_starts": space.pairs.starts,
                "pair_items": space.pairs.items,
                "pair_weights": space.pairs.weights,
            }
    save_file(arrays, path)


def space_facts(space: DenseSpace, file: str) -> dict[str, Any]:
    """The fields of a ``SpaceRecord`` of a space that is saved under this name."""
    regression = None if space.together is None else space.together.regression
    landmarks = None if regression is None else regression.landmarks
    return {
        "version": VERSION,
        "file": file,
        "dimension": space.dimension,
        "known": len(space.known.hashes),
        "beside": space.width - space.dimension,
        "landmarks": 0 if landmarks is None else len(landmarks),
        "kernel_sharpness": 0.0 if regression is None else regression.sharpness,
        "pairs": 0 if space.pairs is None else len(space.pairs.items),
    }


def load_space(path: Path, record: SpaceRecord) -> DenseSpace:
    """Reads the space of a record. Raises ``SidstreamError`` if the file is another's."""
    from safetensors.numpy import load_file

    if record.version > VERSION:
        raise SidstreamError(
            f"the space {path} is of version {record.version}, this sidstream reads {VERSION}: update sidstream, or "
            "train the bundle again"
        )
    arrays = load_file(path)
    known = KnownItems(arrays["known"].view(np.uint64))
    together = None
    wanted: dict[str, tuple[int, ...]] = {"known": (record.known,)}
    if record.beside:
        regressed_from = record.landmarks if record.version > 1 else record.dimension
        wanted |= {
            "steps": (record.known, record.beside),
            "scales": (record.known,),
            "matrix": (regressed_from, record.beside),
        }
        if record.version > 1:
            wanted["landmarks"] = (record.landmarks, record.dimension)
        if record.pairs:
            wanted |= {
                "pair_starts": (record.known + 1,),
                "pair_items": (record.pairs,),
                "pair_weights": (record.pairs,),
            }
    ordered = bool((known.hashes[1:] > known.hashes[:-1]).all())
    if {name: array.shape for name, array in arrays.items()} != wanted or not ordered:
        raise SidstreamError(f"the space {path} does not fit the bundle's manifest: train the bundle again")
    if record.beside:
        regression = Regression(arrays.get("landmarks"), record.kernel_sharpness, arrays["matrix"])
        pairs = None
        if record.pairs:
            pairs = ItemPairs(arrays["pair_starts"], arrays["pair_items"], arrays["pair_weights"])
        together = Together(QuantisedVectors(arrays["steps"], arrays["scales"]), regression, pairs)
    return DenseSpace(record.dimension, known, together)
