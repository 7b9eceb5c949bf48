"""Why the items of an answer are there: probabilities by layer, parts of the mixture, what there was to choose from.

What must hold: only what a query asks for is worked out, so that the others do not wait for it; every figure is that of the
answer's own snapshot, layout and model.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from msgspec import UNSET

from models.bundles.bundle import Bundle
from models.language.prompts import PromptBuilder
from retriever.answering.asked import Answered, Asked, Found
from retriever.answering.item_scores import DIGITS, ItemScores, by_token, log_share, rounded
from retriever.answering.mixing import Mixer
from retriever.answering.why_not import WhyNot
from retriever.eligibility.current import CurrentCatalogue
from store.reading.snapshot import Snapshot
from store.topology.layout_trie import SnapshotTrie
from streamer.events.records import AnswerExplanation, AnswerItem, ItemExplanation
from streamer.settings.retriever import RetrieverSettings


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
        self._catalogue = catalogue
        self._mixer = mixer
        self._scores = ItemScores(settings, bundle, model, prompts)
        self._missing = WhyNot(settings, self._scores, catalogue, mixer)

    def details(
        self, one: Asked, own: Answered, found: Found | None, trie: SnapshotTrie, snapshot: Snapshot, sids: int
    ) -> dict[str, Any]:
        """The items of an answer, and the fields of its record that a query asks for beside them; ``sids``: that the search was
        to find.
        """
        details: dict[str, Any] = {"items": own.items}
        if one.query.explain is True:
            details["items"] = self._explained(one, own, found, trie, snapshot)
            details["explanation"] = self._of_answer(one, own, found, trie, snapshot, sids)
        if one.query.why_not:
            details["why_not"] = self._missing.of(one, own, found, trie, snapshot, sids)
        return details

    def _explained(
        self, one: Asked, own: Answered, found: Found | None, trie: SnapshotTrie, snapshot: Snapshot
    ) -> tuple[AnswerItem, ...]:
        stored = [item for item in snapshot.find([item.item_id.encode() for item in own.items]) if item is not None]
        sids = [trie.layout.sid_of(item.codes) for item in stored]
        searched = {sid.tokens for sid in found.sids} if found is not None else set()
        by_layer = self._scores.by_layer(one, found, sids)
        log_sids = self._scores.log_sids(one, found, trie, sids, by_layer)
        mixed = own.mixed or (None,) * len(own.items)
        explained = []
        for item, at, sid, eligible, scores, log_sid, parts in zip(
            own.items, stored, sids, trie.items_of(sids), by_layer, log_sids, mixed, strict=True
        ):
            own_share = log_share(at, eligible)
            log_model = None if parts is None else parts.log_model
            if parts is None and log_sid is not None and sid in searched:
                log_model = log_sid + own_share
            explanation = ItemExplanation(
                by_layer=by_token(trie, sid, scores),
                log_sid=rounded(log_sid),
                sid_items=len(eligible),
                share=round(float(np.exp(own_share)), DIGITS),
                log_model=rounded(log_model),
                log_dense=rounded(None if parts is None else parts.log_dense),
                cosine=rounded(None if parts is None else parts.cosine),
            )
            explained.append(msgspec.structs.replace(item, explanation=explanation))
        return tuple(explained)

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
        weights = self._mixer.weights(one.vector, model_answers="model" in own.legs)
        return msgspec.structs.replace(
            explanation,
            sharpness=weights.sharpness,
            share_of_dense=weights.share,
            share_of_dense_new=weights.share_of_new,
            boost_of_new=weights.boost_of_new,
            share_of_together=weights.together if one.vector.asked == "history" else 0.0,
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
