"""What the model says of items that a person asks about, found by its search or not.

What must hold: of what the search found the figures are the search's own, up to the order of float32 sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import UNSET

from models.bundles.bundle import Bundle
from models.language.prompts import PromptBuilder
from models.sids.layout import HEAD_LAYER_INDEX
from models.sids.vocabulary import SidVocabulary
from retriever.answering.asked import Asked, Found
from retriever.answering.ranking import item_log_probabilities
from retriever.search.beam_search import Step, beam_search
from retriever.search.marginal_search import marginal_beam_search
from retriever.search.search_parts import ScoredSid
from retriever.search.token_scores import token_scores
from store.records.encoding import StoredItem
from store.topology.layout_trie import LayoutTrie, SidItems, SnapshotTrie
from store.topology.topology import topology_of
from streamer.settings.retriever import RetrieverSettings

DIGITS: Final = 6
Sid = tuple[int, ...]


class ItemScores:
    """Scores under the settings' layout, by a bundle's model, if it has one."""

    def __init__(
        self, settings: RetrieverSettings, bundle: Bundle, model: Any | None, prompts: PromptBuilder | None
    ) -> None:
        self._marginal = settings.layout == "marginal"
        self._normaliser = settings.normaliser
        self._bundle = bundle
        self._model = model
        self._prompts = prompts

    def by_layer(self, one: Asked, found: Found | None, sids: Sequence[Sid]) -> list[npt.NDArray[np.float64] | None]:
        """The model's log-probabilities of the tokens of each SID, (d,); None where it was not asked, or sums over readings."""
        if found is None or not found.sids or self._marginal:
            return [None for _ in sids]
        distinct = list(dict.fromkeys(sids))
        scores = token_scores(self._model, self._vocabulary, one.prompt, distinct, normaliser=self._normaliser)
        of_sid = dict(zip(distinct, scores, strict=True))
        return [of_sid[sid] for sid in sids]

    def log_sids(
        self,
        one: Asked,
        found: Found | None,
        trie: SnapshotTrie,
        sids: Sequence[Sid],
        by_layer: Sequence[npt.NDArray[np.float64] | None],
    ) -> list[float | None]:
        """Log-probability of each SID: the search's, else the sum over ``by_layer``, else (marginal) that of a search among this
        SID alone; None where the model was not asked, or its score
        is not finite.
        """
        if found is None or not found.sids:
            return [None for _ in sids]
        known: dict[Sid, float | None] = {sid.tokens: sid.score for sid in found.sids}
        for sid, scores in zip(sids, by_layer, strict=True):
            if sid not in known:
                score = self._alone(one, trie, sid) if scores is None else float(scores.sum())
                known[sid] = score if np.isfinite(score) else None
        return [known[sid] for sid in sids]

    def _alone(self, one: Asked, trie: SnapshotTrie, sid: Sid) -> float:
        """A SID's sum over its readings does not depend on what else is live."""
        (held,) = trie.items_of([sid])
        layout = trie.layout
        alone = LayoutTrie(topology_of([held.codes[:1]], layout.layers, layout.size), layout)
        (found,) = marginal_beam_search(
            self._model,
            self._vocabulary,
            [one.prompt],
            alone,
            pinned=self._bundle.layout,
            beams=1,
            normaliser=self._normaliser,
        )
        return found[0].score if found else -np.inf  # a score that is not finite is no SID's

    def steps(self, one: Asked, trie: SnapshotTrie, beams: int) -> list[Step]:
        """What a beam search of the query keeps at each step; none where it sums over readings."""
        steps: list[Step] = []
        if not self._marginal:
            beam_search(
                self._model,
                self._vocabulary,
                [one.prompt],
                trie,
                beams=beams,
                observe=steps.append,
                normaliser=self._normaliser,
            )
        return steps

    @property
    def _vocabulary(self) -> SidVocabulary:
        assert self._prompts is not None
        return self._prompts.vocabulary


def log_share(item: StoredItem, eligible: SidItems) -> float:
    """Log of an eligible item's share of its SID, as ``by_own_probability`` has it."""
    shares = item_log_probabilities(ScoredSid((), 0.0, None), eligible.codes[:, HEAD_LAYER_INDEX], eligible.weights)
    return float(shares[eligible.items == item.number].sum())


def by_token(
    trie: LayoutTrie, sid: Sid, scores: npt.NDArray[np.float64] | None
) -> dict[str, float] | msgspec.UnsetType:
    """Token of a SID as text → its log-probability."""
    if scores is None or not np.isfinite(scores).all():  # JSON has no other numbers
        return UNSET
    texts = [trie.layout.sid_tokens_text([token]) for token in sid]
    return {text: round(score, DIGITS) for text, score in zip(texts, scores.tolist(), strict=True)}


def rounded(value: float | None) -> float | msgspec.UnsetType:
    """As a record has it; JSON has finite numbers alone."""
    return UNSET if value is None or not np.isfinite(value) else round(value, DIGITS)
