"""Why an item is not in an answer: not there, not wanted, held back by the slate, out-scored, or lost by the search.

What must hold: a reason is what happened to the item in this answer's snapshot, and an item that is lost by the search alone is
never said to be out-scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import accumulate
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from msgspec import UNSET

from retriever.answering.asked import Answered, Asked, Found
from retriever.answering.item_scores import ItemScores, Sid, by_token, log_share, rounded
from retriever.answering.mixing import Mixer
from retriever.eligibility.current import CurrentCatalogue
from retriever.eligibility.explanation import failed_clauses
from retriever.search.beam_search import Step
from store.reading.snapshot import Snapshot
from store.records.encoding import StoredItem
from store.topology.layout_trie import SnapshotTrie
from streamer.events.records import NotAnswered
from streamer.settings.retriever import RetrieverSettings

_ANOTHER_RANKING: Final = "It was not among the candidates that are ranked: ask with a greater limit"
_LEVEL: Final = 1e-4  # scores that differ by less are one: sums of float32 in another order


@dataclass(frozen=True)
class _Lost:
    """Where a search dropped a SID: the layer, from 1, and what it lacked there."""

    layer: int
    by: float


class WhyNot:
    """Says it of what an ``Answerer`` with the same parts answered."""

    def __init__(
        self, settings: RetrieverSettings, scores: ItemScores, catalogue: CurrentCatalogue, mixer: Mixer | None
    ) -> None:
        self._settings = settings
        self._scores = scores
        self._catalogue = catalogue
        self._mixer = mixer

    def of(
        self, one: Asked, own: Answered, found: Found | None, trie: SnapshotTrie, snapshot: Snapshot, sids: int
    ) -> tuple[NotAnswered, ...]:
        """Of each item that the query asks for, in its order; ``sids``: that the search was to find."""
        ids = one.query.why_not or ()
        ranks = {item.item_id: rank for rank, item in enumerate(own.items, start=1)}
        stored = snapshot.find([item_id.encode() for item_id in ids])
        said: dict[str, NotAnswered] = {}
        eligible: dict[str, StoredItem] = {}
        for item_id, item in zip(ids, stored, strict=True):
            if item is None:
                said[item_id] = _not_indexed(item_id, snapshot)
            elif item_id in ranks:
                rank = ranks[item_id]
                said[item_id] = NotAnswered(
                    item_id=item_id,
                    reason="answered",
                    message=f"it is answered, at rank {rank} of {len(ranks)}",
                    rank=rank,
                    score=own.items[rank - 1].score,
                )
            elif (why := self._not_eligible(item_id, item, one)) is not None:
                said[item_id] = why
            elif item.number in own.held_back:
                said[item_id] = NotAnswered(
                    item_id=item_id,
                    reason="held_back",
                    message="the slate holds it back: better items have the places of its SID, prefix or value",
                )
            else:
                eligible[item_id] = item
        said |= self._not_found(eligible, one, own, found, trie, sids)
        return tuple(said[item_id] for item_id in ids)

    def _not_eligible(self, item_id: str, item: StoredItem, one: Asked) -> NotAnswered | None:
        if item.number in one.excluded:
            named = one.query.exclude is not UNSET and item_id in one.query.exclude
            message = (
                "the query's exclude names it"
                if named
                else "it is in the query's history, which answers may not name unless exclude_history is false"
            )
            return NotAnswered(item_id=item_id, reason="excluded", message=message)
        if one.filter is None or self._catalogue.mask(one.filter)[item.number]:
            return None
        clauses = failed_clauses(one.filter, self._catalogue.columns, item.number)
        return NotAnswered(
            item_id=item_id,
            reason="not_let_through",
            message=f"it fails {', '.join(clauses)} of the query's filter",
            clauses=clauses,
        )

    def _not_found(
        self,
        items: dict[str, StoredItem],
        one: Asked,
        own: Answered,
        found: Found | None,
        trie: SnapshotTrie,
        beams: int,
    ) -> dict[str, NotAnswered]:
        """Of eligible items that are not answered."""
        if not items:
            return {}
        sids = [trie.layout.sid_of(item.codes) for item in items.values()]
        by_layer = self._scores.by_layer(one, found, sids)
        log_sids = self._scores.log_sids(one, found, trie, sids, by_layer)
        shares = [log_share(item, held) for item, held in zip(items.values(), trie.items_of(sids), strict=True)]
        scores = self._item_scores(list(items.values()), one, own, log_sids, shares)
        searched = {sid.tokens for sid in found.sids} if found is not None else set()
        steps: list[Step] = []
        if found is not None and found.search == "beam" and not searched.issuperset(sids):
            steps = self._scores.steps(one, trie, beams)
        worst = own.items[-1].score if own.items else None
        said = {}
        for item_id, sid, layers, log_sid, score in zip(items, sids, by_layer, log_sids, scores, strict=True):
            lost = None
            if found is not None and found.sids and sid not in searched and log_sid is not None:
                lost = _lost_at(sid, layers, log_sid, steps, found.sids[-1].score, beams, trie.layout.size)
            remedy = _ANOTHER_RANKING
            if found is not None and log_sid is not None and sid not in searched:
                remedy = self._remedy(found, log_sid, beams)
            reason, message = _judged(score, worst, lost, len(own.items), remedy)
            said[item_id] = NotAnswered(
                item_id=item_id,
                reason=reason,
                message=message,
                sid=trie.layout.sid_tokens_text(sid),
                by_layer=by_token(trie, sid, layers),
                log_sid=rounded(log_sid),
                score=rounded(score),
                worst_score=rounded(worst),
                lost_at_layer=UNSET if lost is None else lost.layer,
                lost_by=UNSET if lost is None else rounded(lost.by),
            )
        return said

    def _item_scores(
        self,
        items: Sequence[StoredItem],
        one: Asked,
        own: Answered,
        log_sids: Sequence[float | None],
        shares: Sequence[float],
    ) -> list[float | None]:
        """What each item has by all that model and vectors say; None where neither says anything."""
        if "dense" not in own.legs or self._mixer is None or one.vector is None:
            by_sid = self._settings.ranking != "own_probability"
            return [
                None if log_sid is None else log_sid if by_sid else log_sid + share
                for log_sid, share in zip(log_sids, shares, strict=True)
            ]
        log_model = {
            item.number: -np.inf if log_sid is None else log_sid + share
            for item, log_sid, share in zip(items, log_sids, shares, strict=True)
        }
        eligible: npt.NDArray[np.uint32] | None = None
        if one.filter is not None:
            eligible = np.flatnonzero(self._catalogue.mask(one.filter)).astype(np.uint32)
        mixed = self._mixer.scores(one.vector, log_model, one.excluded, eligible, model_answers="model" in own.legs)
        return [mixed[item.number].score if item.number in mixed else None for item in items]

    def _remedy(self, found: Found, log_sid: float, beams: int) -> str:
        """What would have found the SID."""
        if len(found.sids) >= beams and log_sid <= found.sids[-1].score:
            return "The search was for fewer SIDs: ask with a greater limit, or raise retriever.beams"
        if found.search == "exact":
            return "The budget of the search ended: raise retriever.exact_budget"
        if self._settings.layout == "marginal":
            return "Raise retriever.beams"
        return 'Ask with search "exact", or raise retriever.beams'


def _judged(
    score: float | None, worst: float | None, lost: _Lost | None, answered: int, remedy: str
) -> tuple[Literal["outscored", "beyond_search", "not_scored"], str]:
    """The reason and its sentence; ``remedy``: what would have found a better item."""
    if score is None:
        return "not_scored", (
            "nothing says how probable it is: the model was not asked or its scores are not finite, and the item or the query "
            "has no vector"
        )
    where = "" if lost is None else f". The search dropped its SID at layer {lost.layer}, by {lost.by:.2f}"
    if worst is not None and abs(score - worst) <= _LEVEL:
        return "outscored", (
            f"its log-probability is {score:.2f} like that of the last of {answered:,} answered items: equal ones go by SID, "
            f"weight, newest update and id{where}"
        )
    if worst is not None and score < worst:
        return "outscored", (
            f"its log-probability is {score:.2f}, that of the last of {answered:,} answered items {worst:.2f}: "
            f"{worst - score:.2f} too little{where}"
        )
    better = "" if worst is None else f", more than {worst:.2f} of the last of {answered:,} answered items"
    return "beyond_search", f"its log-probability is {score:.2f}{better}, and it was not found{where}. {remedy}"


def _not_indexed(item_id: str, snapshot: Snapshot) -> NotAnswered:
    deletion = snapshot.deletion(item_id.encode())
    if deletion is None:
        return NotAnswered(
            item_id=item_id,
            reason="not_indexed",
            message="the index has no such item, and knows of no deletion in the last week: it was not published, is on its "
            "way, was refused (sidstream dlq), or deleted long ago",
        )
    at = datetime.fromtimestamp(deletion.timestamp / 1000, UTC).isoformat(timespec="seconds")
    return NotAnswered(
        item_id=item_id,
        reason="deleted",
        message=f"it is deleted, by a record of {at} in partition {deletion.partition} of item-codes (the index keeps no offset "
        "of it)",
        partition=deletion.partition,
        deleted_at=deletion.timestamp,
    )


def _lost_at(
    sid: Sid,
    by_layer: npt.NDArray[np.float64] | None,
    log_sid: float,
    steps: Sequence[Step],
    worst_sid: float,
    beams: int,
    size: int,
) -> _Lost | None:
    """The first step that does not keep the beginning of a SID; the pool of finished SIDs, where all did or no step is known."""
    scores = [] if by_layer is None else list(accumulate(by_layer.tolist()))
    for depth, (step, score) in enumerate(zip(steps, scores[:-1], strict=False), start=1):
        if not (step.tokens == np.array(sid[:depth])).all(axis=1).any():
            full = len(step.tokens) >= beams
            needed = max(float(step.worst[0]), float(step.score.min()) if full else -np.inf)
            return _Lost(sid[depth - 1] // size + 1, max(0.0, needed - score))
    # A better one is not lost there: the budget of an exact search ended, or a sum's steps are not known.
    return _Lost(sid[-1] // size + 1, worst_sid - log_sid) if worst_sid >= log_sid else None
