"""From SIDs to items: the order of the items that share one SID, or of all items by their own probability; on short SIDs
it decides recall at item level (docs/study).

What must hold: a ranker returns the items that it was given, each once, and the same ones always in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from models.bundles.bundle import Bundle
from models.codebooks.codebook import Codebook
from models.sids.layout import HEAD_LAYER_INDEX
from store.records.encoding import StoredItem
from streamer.settings.retriever import RetrieverSettings

if TYPE_CHECKING:
    from retriever.search.search_parts import ScoredSid
    from store.topology.layout_trie import SidItems

_SIDS_READ_AT_ONCE: Final = 8  # doubled as long as they can change the answer
_LEAST_WEIGHT: Final = 1e-6  # an item of weight 0 is the last of its SID, not impossible

Embed = Callable[[Sequence[StoredItem]], npt.NDArray[np.floating]]
"""Vectors (N, D) of N items, of any length other than zero."""


@dataclass(frozen=True)
class RankingContext:
    """What is known where the items of one SID are put in order.

    ``sid``: what the search knows about the SID (log-probabilities of left-out tokens), None if nothing; ``history``: the
    query's history items that are live, oldest first.
    """

    sid: ScoredSid | None = None
    history: Sequence[StoredItem] = ()


class Ranker(Protocol):
    """Orders items inside a SID, best first. What a ranker needs beyond the context it brings in its constructor."""

    def rank(self, items: Sequence[StoredItem], context: RankingContext) -> list[StoredItem]:
        """The live items of one SID, best first."""


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
        left_out = context.sid.left_out
        return sorted(ranked, key=lambda item: -float(left_out[item.codes[HEAD_LAYER_INDEX]]))


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


class ItemSource(Protocol):
    """Where the items of SIDs are read: ``store.topology.layout_trie.SnapshotTrie``."""

    def items_of(self, sids: Sequence[Sequence[int]]) -> list[SidItems]:
        """The items of each SID, given by its SID token numbers."""

    def updated_at(self, numbers: npt.NDArray[np.uint32]) -> npt.NDArray[np.int64]:
        """``updated_at`` of items (n,)."""

    def items(self, numbers: npt.NDArray[np.uint32]) -> list[StoredItem]:
        """These items, in the order asked for."""


class RankedItem(NamedTuple):
    """An item of an answer, the SID under which it was found, and its natural log-probability."""

    item: StoredItem
    sid: ScoredSid
    score: float


def item_log_probabilities(
    sid: ScoredSid,
    layer2: npt.NDArray[np.uint16],
    weights: npt.NDArray[np.number],
    *,
    smoothing: float = 0.0,
    by_left_out: bool = False,
) -> npt.NDArray[np.float64]:
    """Natural log-probability of each item of a SID, (n,): that of the SID plus the log of the item's share of it.

    The share goes by weight: ``weights`` (n,), ``smoothing`` added to each, so that where weights are counts an item that
    was never counted is not impossible. ``by_left_out``: first by P(c2 | c1) of the left-out layer-2 tokens, which are
    ``layer2`` (n,), then by weight among the items of one token.
    """
    shares = counted_weights(weights, smoothing)
    if by_left_out and sid.left_out is not None:
        tokens, place = np.unique(layer2, return_inverse=True)
        likely = sid.left_out[tokens].astype(np.float64)
        shares = np.exp(likely - likely.max())[place] * shares / np.bincount(place, weights=shares)[place]
    log_probabilities: npt.NDArray[np.float64] = sid.score + np.log(shares / max(float(shares.sum()), sid.weight))
    return log_probabilities


def counted_weights(weights: npt.NDArray[np.number], smoothing: float = 0.0) -> npt.NDArray[np.float64]:
    """What items of these weights (n,) count for in the share of a SID."""
    counted: npt.NDArray[np.float64] = np.maximum(np.asarray(weights, dtype=np.float64) + smoothing, _LEAST_WEIGHT)
    return counted


def by_own_probability(sids: Sequence[ScoredSid], source: ItemSource, limit: int) -> list[RankedItem]:
    """The ``limit`` most probable items, best first; equal ones by SID, then newest first, then by id.

    An item's probability is that of its SID times its share of the weight of the SID's live items: a SID that thirty
    items share no longer takes the first thirty places, which is what short SIDs lose at item level (docs/study).
    ``sids``: best first. The paths of a few SIDs are read at a time, and only while they can change the answer; of the items
    themselves only those that it names, and those that level with the last of them.
    """
    best = _Candidates(np.empty(0), np.empty(0, np.intp), np.empty(0, np.uint32))
    worst, read, at_once = -np.inf, 0, _SIDS_READ_AT_ONCE
    while (
        read < len(sids) and sids[read].score > worst
    ):  # no item is more probable than its SID, and scores fall from here
        chunk = sids[read : read + at_once]
        found = source.items_of([sid.tokens for sid in chunk])
        scores = [
            item_log_probabilities(sid, items.codes[:, HEAD_LAYER_INDEX], items.weights)
            for sid, items in zip(chunk, found, strict=True)
            if len(items)
        ]
        place = np.repeat(np.arange(read, read + len(chunk)), [len(items) for items in found])
        best = best.with_others(
            np.concatenate([np.empty(0), *scores]), place, np.concatenate([items.items for items in found])
        ).first(limit)
        if len(best.score) >= limit:
            worst = best.score[limit - 1]
        read, at_once = read + len(chunk), 2 * at_once
    numbers = best.newest(limit, source)
    items = source.items(numbers.number)
    order = sorted(
        range(len(items)),
        key=lambda row: (-numbers.score[row], numbers.place[row], -items[row].updated_at, items[row].id),
    )
    return [RankedItem(items[row], sids[numbers.place[row]], float(numbers.score[row])) for row in order[:limit]]


class _Candidates(NamedTuple):
    """Items before they are read, best first: score, place of the SID, and item number, (n,) each."""

    score: npt.NDArray[np.float64]
    place: npt.NDArray[np.intp]
    number: npt.NDArray[np.uint32]

    def with_others(
        self, score: npt.NDArray[np.float64], place: npt.NDArray[np.intp], number: npt.NDArray[np.uint32]
    ) -> _Candidates:
        """These and others, in no order."""
        return _Candidates(
            np.concatenate((self.score, score)),
            np.concatenate((self.place, place)),
            np.concatenate((self.number, number)),
        )

    def first(self, limit: int) -> _Candidates:
        """The ``limit`` best, best first, and all that level with the last of them."""
        order = np.lexsort((self.place, -self.score))
        if len(order) > limit:
            level = self._levels_with(order[limit - 1])[order]
            order = order[: max(limit, int(np.flatnonzero(level)[-1]) + 1)]
        return _Candidates(self.score[order], self.place[order], self.number[order])

    def newest(self, limit: int, source: ItemSource) -> _Candidates:
        """The same, of those that level with the last of ``limit`` only the newest: as many as only their ids can tell apart."""
        if len(self.score) <= limit:
            return self
        level = np.flatnonzero(self._levels_with(limit - 1))
        before, wanted = int(level[0]), limit - int(level[0])
        moments = source.updated_at(self.number[level])
        oldest = np.partition(-moments, wanted - 1)[wanted - 1]
        kept = np.concatenate((np.arange(before), level[-moments <= oldest]))
        return _Candidates(self.score[kept], self.place[kept], self.number[kept])

    def _levels_with(self, row: int) -> npt.NDArray[np.bool_]:
        level: npt.NDArray[np.bool_] = (self.score == self.score[row]) & (self.place == self.place[row])
        return level


def reconstructions(codebook: Codebook) -> Embed:
    """Vectors by the codes alone, which are all that the index keeps: sums of codewords, decoded if there is a decoder."""

    def embed(items: Sequence[StoredItem]) -> npt.NDArray[np.float32]:
        codes = np.array([item.codes for item in items], dtype=np.uint16)
        # Each once: a decoder's matrix product may differ in the last digit between equal rows.
        distinct, place = np.unique(codes, axis=0, return_inverse=True)
        return codebook.reconstruct(distinct)[place.ravel()]

    return embed


def ranker_of(settings: RetrieverSettings, bundle: Bundle) -> Ranker | None:
    """The ranker inside a SID; None: all items by their own probability."""
    if settings.ranking == "own_probability":
        return None
    if settings.ranking == "history_similarity":
        # What a model thinks of tokens that it has never seen is noise.
        seen = bundle.manifest.layer2_dropout > 0 or not bundle.layout.head_tokens
        otherwise: Ranker = LeftOutToken() if seen else WeightAndRecency()
        return HistorySimilarity(reconstructions(Codebook.load(bundle.codebook_path)), otherwise)
    return LeftOutToken() if settings.ranking == "left_out_token" else WeightAndRecency()
