"""Why the items of an answer are there: probabilities by layer, parts of the mixture, what there was to choose from.

What must hold: only what a query asks for is worked out, so that the others do not wait for it; every figure is that of the
answer's own snapshot, layout and model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import UNSET

from models.bundles.bundle import Bundle
from models.language.prompts import PromptBuilder
from models.sids.layout import HEAD_LAYER_INDEX
from retriever.answering.asked import Answered, Asked, Found
from retriever.answering.mixing import Mixer
from retriever.answering.ranking import item_log_probabilities
from retriever.eligibility.current import CurrentCatalogue
from retriever.search.search_parts import ScoredSid
from retriever.search.token_scores import token_scores
from store.reading.reader import Snapshot
from store.records.encoding import StoredItem
from store.topology.layout_trie import SnapshotTrie
from streamer.events.records import AnswerExplanation, AnswerItem, ItemExplanation
from streamer.settings import RetrieverSettings

_DIGITS = 6


class Explainer:
    """Explains what an ``Answerer`` with the same parts answered."""

    def __init__(
        self,
        settings: RetrieverSettings,
        bundle: Bundle,
        model: Any | None,
        prompts: PromptBuilder | None,
        catalogue: CurrentCatalogue,
        mixer: Mixer | None,
    ) -> None:
        self._settings = settings
        self._bundle = bundle
        self._model = model
        self._prompts = prompts
        self._catalogue = catalogue
        self._mixer = mixer

    def details(
        self, one: Asked, own: Answered, found: Found | None, trie: SnapshotTrie, snapshot: Snapshot, sids: int
    ) -> dict[str, Any]:
        """The items of an answer, and the fields of its record that a query asks for beside them; ``sids``: that the search was
        to find.
        """
        if one.query.explain is not True:
            return {"items": own.items}
        return {
            "items": self._explained(one, own, found, trie, snapshot),
            "explanation": self._of_answer(one, own, found, trie, snapshot, sids),
        }

    def _explained(
        self, one: Asked, own: Answered, found: Found | None, trie: SnapshotTrie, snapshot: Snapshot
    ) -> tuple[AnswerItem, ...]:
        stored = [item for item in snapshot.find([item.item_id.encode() for item in own.items]) if item is not None]
        sids = [trie.layout.sid_of(item.codes) for item in stored]
        searched = {sid.tokens: sid for sid in found.sids} if found is not None else {}
        by_layer = self.by_layer(one, found, sids)
        mixed = own.mixed or (None,) * len(own.items)
        explained = []
        for item, at, sid, eligible, scores, parts in zip(
            own.items, stored, sids, trie.items_of(sids), by_layer, mixed, strict=True
        ):
            log_share = _log_share(at, eligible.items, eligible.codes, eligible.weights)
            known = searched.get(sid)
            log_sid = known.score if known is not None else None if scores is None else float(scores.sum())
            log_model = parts.log_model if parts is not None else None if known is None else known.score + log_share
            explanation = ItemExplanation(
                by_layer=UNSET if scores is None else _by_token(trie, sid, scores),
                log_sid=_rounded(log_sid),
                sid_items=len(eligible),
                share=round(float(np.exp(log_share)), _DIGITS),
                log_model=_rounded(log_model),
                log_dense=_rounded(None if parts is None else parts.log_dense),
                cosine=_rounded(None if parts is None else parts.cosine),
            )
            explained.append(msgspec.structs.replace(item, explanation=explanation))
        return tuple(explained)

    def by_layer(
        self, one: Asked, found: Found | None, sids: Sequence[tuple[int, ...]]
    ) -> Sequence[npt.NDArray[np.float64] | None]:
        """The model's log-probabilities of the tokens of each SID; None where it was not asked, or sums over readings."""
        if found is None or not found.sids or self._prompts is None or self._settings.layout == "marginal":
            return [None for _ in sids]
        distinct = list(dict.fromkeys(sids))
        scores = token_scores(self._model, self._prompts.vocabulary, one.prompt, distinct)
        of_sid = dict(zip(distinct, scores, strict=True))
        return [of_sid[sid] for sid in sids]

    def _of_answer(
        self, one: Asked, own: Answered, found: Found | None, trie: SnapshotTrie, snapshot: Snapshot, sids: int
    ) -> AnswerExplanation:
        let_through, excluded = snapshot.item_count, len(one.excluded)
        if one.filter is not None:
            let_through = self._catalogue.eligible_count(one.filter)
            excluded = int(np.count_nonzero(self._catalogue.mask(one.filter)[one.excluded]))
        explanation = AnswerExplanation(
            layout_reason=self._layout_reason(trie),
            sids=UNSET if found is None else sids,
            expansions=found.expansions if found is not None and found.search == "exact" else UNSET,
            live_items=snapshot.item_count,
            let_through=let_through,
            excluded=excluded,
        )
        if self._mixer is None or one.vector is None or "dense" not in own.legs:
            return explanation
        weights, boost = self._mixer.weights(one.vector)
        return msgspec.structs.replace(
            explanation,
            sharpness=weights.sharpness,
            share_of_dense=weights.share,
            share_of_dense_new=weights.share_of_new,
            boost_of_new=boost,
        )

    def _layout_reason(self, trie: SnapshotTrie) -> str:
        own, read = self._bundle.layout.generation, trie.layout.generation
        if self._settings.layout == "pinned":
            return f"retriever.layout is pinned: SIDs are read under layout {own}, which the model was trained on"
        if self._settings.layout == "live":
            return (
                f"retriever.layout is live: SIDs are read under layout {read}, the index's newest; the model was trained on "
                f"layout {own} with layer-2 dropout, and writes SIDs with and without a layer-2 token"
            )
        return (
            f"retriever.layout is marginal: SIDs are those of layout {read}, the index's newest; the model writes those of "
            f"layout {own}, so that a SID's probability is a sum over them and is not told by layer"
        )


def _by_token(trie: SnapshotTrie, sid: tuple[int, ...], scores: npt.NDArray[np.float64]) -> dict[str, float]:
    return {
        trie.layout.sid_tokens_text([token]): round(score, _DIGITS)
        for token, score in zip(sid, scores.tolist(), strict=True)
    }


def _log_share(
    item: StoredItem, numbers: npt.NDArray[np.uint32], codes: npt.NDArray[np.uint16], weights: npt.NDArray[np.float32]
) -> float:
    """Of an item among those of its SID: what ``by_own_probability`` gives it; 0 of a SID that gives one item alone."""
    shares = item_log_probabilities(ScoredSid((), 0.0, None), codes[:, HEAD_LAYER_INDEX], weights)
    return float(shares[numbers == item.number].sum())


def _rounded(value: float | None) -> float | msgspec.UnsetType:
    return UNSET if value is None else round(value, _DIGITS)
