"""Sets that are made: a planted hourglass, whose items' codes are known because they were made from them; embeddings that are
spread evenly, and unevenly (paper § 3.2).

What must hold: an item of the hourglass is the sum of one codeword a layer and a little noise; layers 1 and 3 are drawn
evenly, layer 2 by a power of the rank, its first codeword being zero (items near the centre of their layer-1 cluster). So
under the planted codebook layers 1 and 3 are even and layer 2 is crowded, for certain; what a fitted codebook
makes of it is another matter.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from models.codebooks.codebook import Codebook
from models.dense.arrivals import unit

_LENGTHS = (
    1.0,
    0.4,
    0.12,
)  # of the codewords of layers 1, 2 and 3: each layer is told apart under the noise of the next
_NOISE = 0.01


def planted_hourglass(
    items: int, *, seed: int, size: int = 64, dimension: int = 64, strength: float = 1.2
) -> tuple[npt.NDArray[np.float32], Codebook]:
    """Embeddings float32 (items, dimension) and the codebook (3, size, dimension) that they were made from.

    ``strength``: layer-2 codeword of rank r is drawn with a probability proportional to 1 / r^strength; 0: evenly, no
    hourglass.
    """
    random = np.random.default_rng(seed)
    codewords = random.standard_normal((len(_LENGTHS), size, dimension))
    codewords *= np.asarray(_LENGTHS)[:, None, None] / np.linalg.norm(codewords, axis=2, keepdims=True)
    codewords[1, 0] = 0
    shares = 1 / np.arange(1, size + 1) ** strength
    codes = np.stack(
        (
            random.permutation(np.arange(items) % size),
            random.choice(size, size=items, p=shares / shares.sum()),
            random.permutation(np.arange(items) % size),
        )
    )
    noise = _NOISE * random.standard_normal((items, dimension)) / np.sqrt(dimension)
    embeddings = sum((codewords[layer, tokens] for layer, tokens in enumerate(codes)), start=noise)
    return embeddings.astype(np.float32), Codebook(codewords.astype(np.float32))


def uniform_embeddings(items: int, *, seed: int, dimension: int = 64) -> npt.NDArray[np.float32]:
    """float32 (items, dimension), spread evenly over the unit sphere."""
    drawn = np.random.default_rng(seed).standard_normal((items, dimension))
    return unit(drawn)


def skewed_embeddings(
    items: int, *, seed: int, dimension: int = 64, kinds: int = 500, width: float = 0.6
) -> npt.NDArray[np.float32]:
    """float32 (items, dimension) of length 1: ``kinds`` of items around centres that are spread evenly; the kind of rank r has a
    share proportional to 1 / r of the items, and lies within ``width`` of its centre on average.
    """
    random = np.random.default_rng(seed)
    centres = uniform_embeddings(kinds, seed=seed, dimension=dimension)
    shares = 1 / np.arange(1, kinds + 1)
    kind = random.choice(kinds, size=items, p=shares / shares.sum())
    drawn = centres[kind] + width * random.standard_normal((items, dimension)) / np.sqrt(dimension)
    return unit(drawn)
