"""The order of the items that share one SID; on short SIDs it decides recall at item level."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from store.encoding import StoredItem

if TYPE_CHECKING:
    from retriever.beam_search import ScoredSid


class Ranker(Protocol):
    """Orders items inside a SID, best first.

    ``items``: the live items of one SID, in the order of ``sid.items``; ``sid``: what the beam search knows about it
    (full codes, log P(c2 | c1) of each item's left-out token). A ranker that compares embeddings brings what it needs
    in its constructor.
    """

    def rank(self, items: Sequence[StoredItem], sid: ScoredSid | None = None) -> list[StoredItem]:
        """The same items, best first."""


class WeightAndRecency:
    """Greatest weight first, then the newest update, then the item id: a total order, so answers repeat exactly."""

    def rank(self, items: Sequence[StoredItem], sid: ScoredSid | None = None) -> list[StoredItem]:
        """See ``Ranker``."""
        return sorted(items, key=_weight_and_recency)


class LeftOutToken:
    """What the model thinks of the left-out layer-2 token first, then weight and recency.

    Only for a model that has seen layer-2 tokens (layer-2 dropout below 1, or a layout without head tokens in
    training).
    """

    def rank(self, items: Sequence[StoredItem], sid: ScoredSid | None = None) -> list[StoredItem]:
        """See ``Ranker``."""
        if sid is None or sid.left_out is None:
            return sorted(items, key=_weight_and_recency)
        by_number = dict(zip(np.asarray(sid.items).tolist(), sid.left_out.tolist(), strict=True))
        return sorted(items, key=lambda item: (-by_number[item.number], *_weight_and_recency(item)))


def _weight_and_recency(item: StoredItem) -> tuple[float, int, bytes]:
    return (-item.weight, -item.updated_at, item.id)
