"""Codebooks that collapsed: most codewords of a layer dead, or most items on one of them; what it comes from, what to do.

One embedding that is a thousand times as long as the others decides the scale of an RQ-VAE, and all others fall to a
single codeword; few different embeddings leave codewords without any. Nothing fails then, and no SID means anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

_DEAD_SHARE: Final = 0.5  # of a layer's codewords
_FULLEST_SHARE: Final = 0.5  # of all items, on one codeword
_FAR_LONGER: Final = 10.0  # times the median length
_ROUNDING: Final = 6  # decimals within which rows count as alike


@dataclass(frozen=True)
class CollapsedLayer:
    """One layer, counted from 1: how many of its ``size`` codewords no item has, and the share of items on the fullest."""

    layer: int
    size: int
    dead: int
    fullest_share: float

    def __str__(self) -> str:
        return (
            f"layer {self.layer}: {self.dead:,} of {self.size:,} codewords are dead, {self.fullest_share:.0%} of the items "
            "are on one"
        )


def collapsed_layers(census: NDArray[np.integer]) -> tuple[CollapsedLayer, ...]:
    """The layers of a census (L, M) that collapsed; none for a codebook of a single codeword, or without items."""
    size = census.shape[1]
    if size < 2 or not census[0].any():
        return ()
    dead, fullest = (census == 0).sum(axis=1), census.max(axis=1) / census.sum(axis=1)
    # Two codewords may share the items unevenly; of many, none should have half of them.
    return tuple(
        CollapsedLayer(number + 1, size, int(dead[number]), float(fullest[number]))
        for number in range(len(census))
        if dead[number] >= _DEAD_SHARE * size or (size > 3 and fullest[number] >= _FULLEST_SHARE)
    )


def likely_cause(embeddings: NDArray[np.float32], size: int) -> str:
    """What the embeddings (N, D) of a collapsed codebook of ``size`` codewords a layer suggest, and what to do about it."""
    lengths = np.linalg.norm(embeddings.astype(np.float64), axis=1)
    median, longest = float(np.median(lengths)), int(lengths.argmax())
    if lengths[longest] > _FAR_LONGER * median:
        far = int((lengths > _FAR_LONGER * median).sum())
        return (
            f"{far:,} of {len(lengths):,} embeddings are more than {_FAR_LONGER:g} times as long as the median, the longest is "
            f"row {longest} ({lengths[longest]:.3g} against {median:.3g}): leave such rows out or scale all to length 1, then "
            "fit again"
        )
    different = len({row.tobytes() for row in embeddings.round(_ROUNDING) + 0.0})  # + 0: no negative zeros
    if different < 2 * size:
        return (
            f"{len(lengths):,} embeddings have only {different:,} different values for {size:,} codewords: fit fewer "
            "codewords with --size, or look at how the embeddings are made"
        )
    return (
        "look for embeddings that are unlike all others, scale all to length 1, or fit fewer codewords with --size, then "
        "fit again"
    )
