"""How well a bundle's codebook still fits a catalogue that has changed since it was fitted: the hourglass, and new items' errors.

What must hold: it is measured on the codes that the assigner gives, so that what is said is what is stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from models.bundles.bundle import Bundle
from models.bundles.dense_part import dense_space_of
from models.bundles.item_encoder import ItemEncoder
from models.catalogue import Catalogue
from models.codebooks.codebook import Codebook
from models.dense.space import id_hashes
from models.sids.census import count_tokens, gini
from models.sids.layout import HEAD_LAYER_INDEX

FEWEST_NEW: Final = 50  # items: the mean error of fewer says little
_ROWS_AT_ONCE: Final = 65_536


class CodebookDrift(msgspec.Struct, frozen=True, kw_only=True):
    """``items`` of the catalogue, ``new_items`` that training did not know. ``error``: mean of ‖x − x̂‖² / ‖x‖² of known items,
    ``error_of_new`` that of new ones, 0 where there are none. ``gini`` of layer 2 now, ``gini_then`` of the items that the
    codebook was fitted on, of as many of them as there are now: fewer items lie less evenly on as many tokens.
    """

    items: int
    new_items: int
    error: float
    error_of_new: float
    gini: float
    gini_then: float

    def past(self, bounds: DriftBounds) -> list[str]:
        """Why the codebook should be fitted again, in sentences; none if it fits."""
        found = []
        grown = self.gini - self.gini_then
        if grown > bounds.gini:
            found.append(
                f"layer 2 is more crowded than when it was fitted: Gini {self.gini:.3f} after {self.gini_then:.3f}, "
                f"more than {bounds.gini:g} above"
            )
        if self.new_items >= FEWEST_NEW and self.error and self.error_of_new > bounds.error * self.error:
            found.append(
                f"{self.new_items:,} new items are {self.error_of_new / self.error:.2f} times as far from their codewords as "
                f"known ones, more than {bounds.error:g} times"
            )
        return found


@dataclass(frozen=True)
class DriftBounds:
    """``gini``: what layer 2's may have gained; ``error``: how many times that of known items the error of new ones may be."""

    gini: float = 0.1
    error: float = 1.25


def measure_drift(bundle: Bundle, catalogue: Catalogue) -> CodebookDrift:
    """Encodes the whole catalogue. Of a bundle without a dense part nobody knows which items are new: then none is."""
    encoder, codebook = ItemEncoder.of(bundle), Codebook.load(bundle.codebook_path)
    ids = [item.id.encode() for item in catalogue.items]
    counts = np.zeros((codebook.layers, codebook.size), dtype=np.int64)
    errors = np.empty(len(ids))
    for start in range(0, len(ids), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        rows = encoder.rows(catalogue.embeddings[part], ids[part])
        counts += count_tokens(encoder.encode(catalogue.embeddings[part], ids[part]), codebook.size)
        norms = codebook.residual_norms(rows).astype(np.float64)
        errors[part] = (norms[:, -1] / np.maximum(norms[:, 0], np.finfo(np.float32).tiny)) ** 2
    space = dense_space_of(bundle)
    new = np.zeros(len(ids), dtype=bool) if space is None else space.known.rows(id_hashes(ids)) < 0
    return CodebookDrift(
        items=len(ids),
        new_items=int(new.sum()),
        error=float(errors[~new].mean()) if (~new).any() else 0.0,
        error_of_new=float(errors[new].mean()) if new.any() else 0.0,
        gini=gini(counts[HEAD_LAYER_INDEX]),
        gini_then=gini(_drawn(np.array(bundle.manifest.census[HEAD_LAYER_INDEX], dtype=np.int64), len(ids))),
    )


def _drawn(counts: npt.NDArray[np.int64], items: int) -> npt.NDArray[np.int64]:
    """Counts (M,) of so many of the items that ``counts`` has, drawn at random and always alike; all, if they are no more."""
    if items >= counts.sum():
        return counts
    return np.random.default_rng(0).multivariate_hypergeometric(counts, items, method="marginals")
