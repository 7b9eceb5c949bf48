"""The order of the items that share one SID; on short SIDs it decides recall at item level.

What must hold: a ranker returns the items that it was given, each once, and the same ones always in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from models.codebook import Codebook
from store.encoding import StoredItem

if TYPE_CHECKING:
    from retriever.search_parts import ScoredSid

Embed = Callable[[Sequence[StoredItem]], npt.NDArray[np.floating]]
"""Vectors (N, D) of N items, of any length other than zero."""


@dataclass(frozen=True)
class RankingContext:
    """What is known where the items of one SID are put in order.

    ``sid``: what the search knows about the SID (full codes, log-probability of each item's left-out token), None if
    nothing; ``history``: the query's history items that are live, oldest first.
    """

    sid: ScoredSid | None = None
    history: Sequence[StoredItem] = ()


class Ranker(Protocol):
    """Orders items inside a SID, best first. What a ranker needs beyond the context it brings in its constructor."""

    def rank(self, items: Sequence[StoredItem], context: RankingContext) -> list[StoredItem]:
        """The live items of one SID, given in the order of ``context.sid.items``, best first."""


class WeightAndRecency:
    """Greatest weight first, then the newest update, then the item id: a total order, so answers repeat exactly."""

    def rank(self, items: Sequence[StoredItem], context: RankingContext) -> list[StoredItem]:
        """See ``Ranker``."""
        return sorted(items, key=lambda item: (-item.weight, -item.updated_at, item.id))


class LeftOutToken:
    """What the model thinks of the left-out layer-2 token first, then weight and recency.

    Only for a model that has seen layer-2 tokens: trained with layer-2 dropout, or on a layout without head tokens.
    """

    def rank(self, items: Sequence[StoredItem], context: RankingContext) -> list[StoredItem]:
        """See ``Ranker``."""
        ranked = WeightAndRecency().rank(items, context)
        if context.sid is None or context.sid.left_out is None:
            return ranked
        numbers, left_out = np.asarray(context.sid.items).tolist(), context.sid.left_out.tolist()
        by_number = dict(zip(numbers, left_out, strict=True))
        return sorted(ranked, key=lambda item: -by_number[item.number])


class HistorySimilarity:
    """Greatest cosine with the mean of the history's vectors first; equal ones, and all without a history, in the order
    of another ranker.

    ``embed``: the items' vectors, by ``reconstructions`` what their codes stand for; items that share a short SID then
    differ in the left-out codeword alone. ``otherwise``: by default the left-out token, then weight and recency.
    """

    def __init__(self, embed: Embed, otherwise: Ranker | None = None) -> None:
        self._embed = embed
        self._otherwise: Ranker = LeftOutToken() if otherwise is None else otherwise

    def rank(self, items: Sequence[StoredItem], context: RankingContext) -> list[StoredItem]:
        """See ``Ranker``."""
        ranked = self._otherwise.rank(items, context)
        if not context.history or len(ranked) < 2:
            return ranked
        taste = self._embed(context.history).mean(axis=0, dtype=np.float64)
        vectors = self._embed(ranked)
        # Row by row, not as a matrix product: equal vectors must get equal cosines wherever they stand.
        cosines = (vectors * taste).sum(axis=1) / np.maximum(np.sqrt((vectors * vectors).sum(axis=1)), 1e-12)
        return [ranked[place] for place in np.argsort(-cosines, kind="stable").tolist()]


def reconstructions(codebook: Codebook) -> Embed:
    """Vectors by the codes alone, which are all that the index keeps: sums of codewords, decoded if there is a decoder."""

    def embed(items: Sequence[StoredItem]) -> npt.NDArray[np.float32]:
        codes = np.array([item.codes for item in items], dtype=np.uint16)
        # Each once: a decoder's matrix product may differ in the last digit between equal rows.
        distinct, place = np.unique(codes, axis=0, return_inverse=True)
        return codebook.reconstruct(distinct)[place.ravel()]

    return embed
