"""Which tokens of an old codebook each token of a new one stands for, so that what a model has learnt of the old ones is kept.

What must hold: layer by layer; the shares of a new token sum to 1; a new token that nothing is known of has none. A new codebook
whose codewords are the old ones in another order gets each token's own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.codebooks.codebook import Codebook, nearest_codewords


@dataclass(frozen=True, eq=False)
class Correspondence:
    """``new`` and ``old``: int64 (P,), SID token numbers (``layer_index * size + token``) of the two codebooks, ascending by
    ``new``; ``share``: float32 (P,) that the old token has in the new one. ``layers`` and ``size``: L and M of the new codebook.
    """

    new: npt.NDArray[np.int64]
    old: npt.NDArray[np.int64]
    share: npt.NDArray[np.float32]
    layers: int
    size: int

    def known(self) -> npt.NDArray[np.bool_]:
        """bool (L · M,): which new tokens stand for old ones."""
        flags = np.zeros(self.layers * self.size, dtype=bool)
        flags[self.new] = True
        return flags

    def or_else(self, other: Correspondence) -> Correspondence:
        """This one, and what ``other`` says of the tokens that this one does not know."""
        more = ~self.known()[other.new]
        new = np.concatenate((self.new, other.new[more]))
        order = np.argsort(new, kind="stable")
        return Correspondence(
            new[order],
            np.concatenate((self.old, other.old[more]))[order],
            np.concatenate((self.share, other.share[more]))[order],
            self.layers,
            self.size,
        )


def by_items(
    new_codes: npt.NDArray[np.integer], old_codes: npt.NDArray[np.integer], *, new_size: int, old_size: int
) -> Correspondence:
    """By the codes of the same items, row by row, in both codebooks, (N, L) and (N, L'): an old token has the share of a new
    token's items that had it on the same layer. Layers and sizes may differ; tokens without an item have no share, and neither
    do layers that the old codebook lacks.
    """
    if len(new_codes) != len(old_codes):
        raise ValueError(
            f"{len(new_codes)} rows of new codes, {len(old_codes)} of old ones: they must be of the same items"
        )
    new, old, share = [], [], []
    for layer_index in range(min(new_codes.shape[1], old_codes.shape[1])):
        pairs = new_codes[:, layer_index].astype(np.int64) * old_size + old_codes[:, layer_index].astype(np.int64)
        found, items = np.unique(pairs, return_counts=True)
        tokens = found // old_size
        of_token = np.bincount(tokens, weights=items, minlength=new_size)
        new.append(layer_index * new_size + tokens)
        old.append(layer_index * old_size + found % old_size)
        share.append((items / of_token[tokens]).astype(np.float32))
    return Correspondence(
        np.concatenate(new), np.concatenate(old), np.concatenate(share), int(new_codes.shape[1]), new_size
    )


def by_codewords(new: Codebook, old: Codebook) -> Correspondence:
    """Each new token stands for the old one of the nearest codeword on the same layer. For codewords that lie in one space."""
    numbers, nearest = [], []
    for layer_index in range(min(new.layers, old.layers)):
        found = nearest_codewords(
            new.codewords[layer_index], old.codewords[layer_index], old.half_squared_norms[layer_index]
        )
        numbers.append(layer_index * new.size + np.arange(new.size))
        nearest.append(layer_index * old.size + found.astype(np.int64))
    every = np.concatenate(numbers)
    return Correspondence(every, np.concatenate(nearest), np.ones(len(every), dtype=np.float32), new.layers, new.size)
