"""From SIDs to items: the order of the items that share one SID, or of all items by their own probability; on short SIDs
it decides recall at item level (docs/study).

What must hold: a ranker returns the items that it was given, each once, and the same ones always in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
import numpy.typing as npt

from models.codebooks.codebook import Codebook
from store.records.encoding import StoredItem

if TYPE_CHECKING:
    from retriever.search.search_parts import ScoredSid

_LEAST_WEIGHT: Final = 1e-6  # an item of weight 0 is the last of its SID, not impossible

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


def item_log_probabilities(
    sid: ScoredSid, weights: npt.NDArray[np.number], *, smoothing: float = 0.0, by_left_out: bool = False
) -> npt.NDArray[np.float64]:
    """Natural log-probability of each item of a SID, (n,): that of the SID plus the log of the item's share of it.

    The share goes by weight: ``weights`` (n,), ``smoothing`` added to each, so that where weights are counts an item that
    was never counted is not impossible. ``by_left_out``: first by P(c2 | c1) of the left-out layer-2 tokens, then by weight
    among the items of one token.
    """
    shares = np.maximum(np.asarray(weights, dtype=np.float64) + smoothing, _LEAST_WEIGHT)
    if by_left_out and sid.left_out is not None:
        tokens, place = np.unique(sid.codes[:, 1], return_inverse=True)
        likely = np.full(len(tokens), -np.inf)
        np.maximum.at(likely, place, sid.left_out.astype(np.float64))
        shares = np.exp(likely - likely.max())[place] * shares / np.bincount(place, weights=shares)[place]
    log_probabilities: npt.NDArray[np.float64] = sid.score + np.log(shares / shares.sum())
    return log_probabilities


def by_own_probability(
    sids: Sequence[ScoredSid], read: Callable[[npt.NDArray[np.uint32]], Sequence[StoredItem]], limit: int
) -> list[tuple[StoredItem, ScoredSid, float]]:
    """The ``limit`` most probable items with their SID and log-probability, best first; equal ones by SID, then newest
    first, then by id.

    An item's probability is that of its SID times its share of the weight of the SID's live items: a SID that thirty
    items share no longer takes the first thirty places, which is what short SIDs lose at item level (docs/study).
    ``sids``: best first; ``read``: item numbers → live items. Buckets are read only while they can change the answer.
    """
    found: list[tuple[float, int, int, bytes, StoredItem]] = []
    worst = -np.inf
    for place, sid in enumerate(sids):
        if sid.score <= worst:  # no item is more probable than its SID, and scores fall from here on
            break
        items = read(sid.items)
        scores = item_log_probabilities(sid, np.array([item.weight for item in items])).tolist()
        found += [(-score, place, -item.updated_at, item.id, item) for item, score in zip(items, scores, strict=True)]
        if len(found) >= limit:
            found = sorted(found, key=lambda row: row[:4])[:limit]
            worst = -found[-1][0]
    found.sort(key=lambda row: row[:4])
    return [(item, sids[place], -score) for score, place, _, _, item in found[:limit]]


def reconstructions(codebook: Codebook) -> Embed:
    """Vectors by the codes alone, which are all that the index keeps: sums of codewords, decoded if there is a decoder."""

    def embed(items: Sequence[StoredItem]) -> npt.NDArray[np.float32]:
        codes = np.array([item.codes for item in items], dtype=np.uint16)
        # Each once: a decoder's matrix product may differ in the last digit between equal rows.
        distinct, place = np.unique(codes, axis=0, return_inverse=True)
        return codebook.reconstruct(distinct)[place.ravel()]

    return embed
