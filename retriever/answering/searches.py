"""The model's searches for a batch of queries: which kind, how wide, and what they find.

What must hold: queries that are searched alike are searched together, and what one finds does not depend on the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import structlog

from models.bundles.bundle import Bundle
from models.language.prompts import PromptBuilder
from models.sids.layout import Layout
from retriever.answering.asked import Asked, Found, SearchKind
from retriever.answering.parts import given_sids
from retriever.device_search.search import DeviceSearch, is_for
from retriever.eligibility.current import CurrentCatalogue
from retriever.search.beam_search import beam_search
from retriever.search.exact_search import exact_search
from retriever.search.marginal_search import marginal_beam_search
from store.reading.snapshot import Snapshot
from store.topology.layout_trie import SnapshotTrie
from streamer.filters.grammar import Filter
from streamer.settings.retriever import RetrieverSettings

log = structlog.get_logger(__name__)


class Searches:
    """What a bundle's model finds among eligible items; nothing where there is no model."""

    def __init__(
        self,
        bundle: Bundle,
        model: Any | None,
        prompts: PromptBuilder | None,
        settings: RetrieverSettings,
        catalogue: CurrentCatalogue,
    ) -> None:
        self._bundle = bundle
        self._model = model
        self._prompts = prompts
        self._settings = settings
        self._catalogue = catalogue
        # On a card a step's copies to the host would cost more than the step.
        self._on_device = DeviceSearch(model, prompts.vocabulary) if prompts is not None and is_for(model) else None
        if self._on_device is not None and model is not None:
            log.info("search_on_device", device=str(model.device), works=self._on_device.works)

    def tries(self, asked: Sequence[Asked], snapshot: Snapshot, layout: Layout) -> list[SnapshotTrie]:
        """The trie of each query's eligible items; equal ones are one, so that they are searched together."""
        known: dict[tuple[Filter | None, bytes], SnapshotTrie] = {}
        tries = []
        for one in asked:
            key = one.filter, one.excluded.tobytes()
            if key not in known:
                known[key] = self._catalogue.trie(snapshot, layout, one.filter, one.excluded)
            tries.append(known[key])
        return tries

    def search(self, asked: Sequence[Asked], tries: Sequence[SnapshotTrie]) -> list[Found | None]:
        """SIDs of each query, None for one that the model is not asked. Queries with as many beams are searched together, so that
        an answer does not depend on what else was asked.
        """
        given = [one.part if one.is_answered else None for one in asked]
        found = [None if part is None else given_sids(part) for part in given]
        if self._model is None:
            return found
        # A prompt of nothing gives the same items to everybody: only where there is no vector either.
        searched_for = [one.is_searched and (one.reads_something or one.vector is None) for one in asked]
        kinds = [(self._kind(one), self.beams(one.query.limit)) for one in asked]
        wanted = {own for own, is_searched in zip(kinds, searched_for, strict=True) if is_searched}
        for kind, count in sorted(wanted):
            places = [place for place, own in enumerate(kinds) if own == (kind, count) and searched_for[place]]
            searched = self._searched(
                kind, [asked[place].prompt for place in places], [tries[place] for place in places], count
            )
            for place, each in zip(places, searched, strict=True):
                found[place] = each
        failed = sum(
            one.is_searched and each is not None and not each.sids and len(trie.first_tokens()) > 0
            for one, each, trie in zip(asked, found, tries, strict=True)
        )
        if failed:
            log.error("scores_not_finite", queries=failed, model=self._bundle.manifest.model_id)
        return found

    def beams(self, limit: int) -> int:
        """``retriever.beams``, doubled until ``limit`` items can be found: as many SIDs as beams are found, if so many are
        live, and a SID has one item at least. Doubled, so that queries of many limits share few searches.
        """
        beams = self._settings.beams
        while beams < limit:
            beams *= 2
        return max(self._settings.beams, min(beams, self._settings.maximum_limit))

    def _kind(self, one: Asked) -> SearchKind:
        """How the query is searched: as it asks, or exactly where its filter lets few items through, or as the settings say."""
        if self._settings.layout == "marginal":
            return "beam"
        if one.query.search is not msgspec.UNSET:
            return one.query.search
        if one.filter is not None and self._catalogue.eligible_count(one.filter) <= self._settings.exact_below:
            return "exact"
        return self._settings.search

    def _searched(
        self, kind: SearchKind, prompts: list[list[int]], tries: Sequence[SnapshotTrie], beams: int
    ) -> list[Found]:
        assert self._prompts is not None
        model, vocabulary, normaliser = self._model, self._prompts.vocabulary, self._settings.normaliser
        if kind == "exact":
            exact = exact_search(
                model, vocabulary, prompts, tries, sids=beams, budget=self._settings.exact_budget, normaliser=normaliser
            )
            return [Found(each.sids, "exact", each.complete, each.expansions) for each in exact]
        if self._settings.layout == "marginal":
            found = marginal_beam_search(
                model, vocabulary, prompts, tries, pinned=self._bundle.layout, beams=beams, normaliser=normaliser
            )
        elif self._on_device is not None:
            found = self._on_device.search(prompts, tries, beams=beams, normaliser=normaliser)
        else:
            found = beam_search(model, vocabulary, prompts, tries, beams=beams, normaliser=normaliser)
        return [Found(sids) for sids in found]
