"""From queries to answers: prompt, search, ranking, all from one snapshot of the index and under one layout.

What must hold: whatever an answer names was a live and eligible item in the answer's snapshot; the answer is that of the same
search over an index that holds the eligible items alone; and it does not depend on what else was asked with it. A query is
answered by the language model and the dense leg together where both have something to go on, else by one of them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

import msgspec
import numpy as np
import structlog

from models.attributes import AttributeType
from models.bundles.bundle import Bundle
from models.bundles.item_encoder import ItemEncoder
from models.errors import SidstreamError
from models.language.prompts import PromptBuilder
from models.sids.layout import Layout
from retriever.answering.asked import Answered, Asked, Found, Numbers
from retriever.answering.explaining import Explainer
from retriever.answering.metrics import DECODE_SECONDS
from retriever.answering.mixing import Mixer, ToMix, candidates_for, read_items
from retriever.answering.parts import (
    Shard,
    given_history,
    given_sums,
    given_vectors,
    of_another_bundle,
    order_of,
)
from retriever.answering.ranking import RankingContext, by_own_probability, ranker_of
from retriever.answering.searches import Searches
from retriever.answering.slates import Slate, SlateGroups, fill
from retriever.dense.leg import DenseQuery, MixedItem
from retriever.dense.query_embeddings import QueryEmbeddings
from retriever.eligibility.current import CurrentCatalogue
from retriever.eligibility.explanation import NOTHING_ELIGIBLE, why_nothing
from retriever.search.beam_search import ScoredSid
from store.reading.reader import IndexReader
from store.reading.snapshot import Snapshot
from store.records.encoding import StoredItem
from store.topology.layout_trie import SnapshotTrie, require_layout
from streamer.events.records import Answer, AnswerError, AnswerItem, excludes_history
from streamer.filters.grammar import Filter
from streamer.settings.retriever import RetrieverSettings
from streamer.shards.partitions import EVERY

log = structlog.get_logger(__name__)

# A title may be a quarter of a megabyte; a hundred of them would make an answer that no topic takes.
_TITLE_CHARACTERS: Final = 1_000
_SIDS_READ_AT_ONCE: Final = 8
_HISTORY_WITHOUT_MODEL: Final = 20  # newest items that make a query's vector where no model says how many it reads
NOTHING_TO_GO_ON: Final = "NothingToGoOn"


class RetrieverError(SidstreamError):
    """Bundle, index and settings do not fit together."""


class Answerer:
    """Answers queries from an index with a bundle's model and its dense part, or one of them."""

    def __init__(
        self,
        *,
        bundle: Bundle,
        model: Any | None,
        prompts: PromptBuilder | None,
        reader: IndexReader,
        settings: RetrieverSettings,
        filterable: Mapping[str, AttributeType] | None = None,
        partitions: str = EVERY,
    ) -> None:
        """``model`` and ``prompts``: None for a bundle that has no language model yet; ``partitions``: those that the index
        holds, of a shard.

        Raises ``RetrieverError`` or ``IndexMismatchError`` if these do not fit together, before the first query does."""
        if settings.layout == "live" and model is not None and bundle.manifest.layer2_dropout == 0:
            raise RetrieverError(
                "retriever.layout is 'live', but the bundle's model was trained without layer-2 dropout: it would lose the "
                "items of every head token. Train it with `sidstream train --layer2-dropout 0.3`, or set it to 'pinned' "
                "or 'marginal'"
            )
        self._bundle = bundle
        self._model = model
        self._prompts = prompts
        self._reader = reader
        self._settings = settings
        self._filterable = filterable or {}
        if settings.layout == "marginal" and settings.search == "exact":
            raise RetrieverError(
                "retriever.search is 'exact' and retriever.layout 'marginal', which do not go together: set one of them otherwise"
            )
        self._mixer = Mixer.of_settings(settings, bundle, has_model=model is not None)
        # Those newest ones of a history that the model reads: a long history must not slow the ranking of every SID.
        self._history_read = _HISTORY_WITHOUT_MODEL if prompts is None else prompts.settings.max_history
        title_characters = 0 if prompts is None else prompts.title_characters
        self._shard = Shard(partitions, self._mixer, history_read=self._history_read, title_characters=title_characters)
        self._encoder = ItemEncoder.of(bundle) if prompts is not None and prompts.settings.query_codes else None
        embeds = self._mixer is not None or self._encoder is not None
        self._embeddings = QueryEmbeddings.of(bundle) if embeds else None
        self._catalogue = CurrentCatalogue(self._filterable, filters_kept=settings.filters_kept)
        with reader.snapshot() as snapshot:
            require_layout(snapshot, bundle.layout)
            self._shard.partition_count = snapshot.partition_count
            self._catalogue.roll_to(snapshot)  # read here, so that the first query does not wait for it
            self._catalogue.trie(snapshot, self._layout(snapshot), None).warm_up()
            if self._mixer is not None:
                self._mixer.roll_to(snapshot)
        self._searches = Searches(bundle, model, prompts, settings, self._catalogue)
        self._ranker = ranker_of(settings, bundle)
        self._explainer = Explainer(settings, bundle, model, prompts, self._catalogue, self._mixer)

    def answers(self, asked: Sequence[Asked]) -> list[Answer]:
        """One answer a query, in order, from one snapshot."""
        started = time.perf_counter()
        with self._reader.snapshot() as snapshot:
            layout = self._layout(snapshot)
            self._shard.partition_count = snapshot.partition_count
            self._catalogue.roll_to(snapshot)
            if self._mixer is not None:
                self._mixer.roll_to(snapshot)
            for one in asked:
                if one.part is not None:
                    one.refused = of_another_bundle(one.part, self._bundle.id, layout.generation)
                if self._embeddings is not None:
                    one.embedding = self._embeddings.embedding(one.query)
                self._read_history(one, snapshot, layout)
                if self._mixer is not None:
                    one.vector = self._vector(one, self._mixer)
            tries = self._searches.tries(asked, snapshot, layout)
            prepared = time.perf_counter()
            found = self._searches.search(asked, tries)
            decoded = time.perf_counter()
            position = {f"{topic}/{partition}": offset for (topic, partition), offset in snapshot.position.items()}
            answered = self._answered(asked, found, tries)
            details = [
                self._explainer.details(one, own, each, trie, snapshot, self._searches.beams(one.query.limit))
                for one, own, each, trie in zip(asked, answered, found, tries, strict=True)
            ]
            errors = [
                None if self._has_answer(one, own, each) else self._why_nothing(one, each, trie, snapshot)
                for one, own, each, trie in zip(asked, answered, found, tries, strict=True)
            ]
            parts = [
                self._shard.answered_part(
                    one,
                    each,
                    own.order,
                    trie,
                    snapshot,
                    partial(self._eligible, one.filter),
                    self._searches.beams(one.query.limit),
                )
                for one, own, each, trie in zip(asked, answered, found, tries, strict=True)
            ]
        ended = time.perf_counter()
        DECODE_SECONDS.labels(self._bundle.id).observe(decoded - prepared)
        spent = {
            "prepare": round((prepared - started) * 1000, 2),
            "decode": round((decoded - prepared) * 1000, 2),
            "rank": round((ended - decoded) * 1000, 2),
            "queries_in_batch": len(asked),
        }
        return [
            self.answer(
                one.query_id,
                **detail,
                legs=own.legs if self._mixer is not None else msgspec.UNSET,
                note=own.note or msgspec.UNSET,
                layout=layout.generation,
                position=position,
                skipped_history=one.skipped,
                milliseconds={"waited": round(one.waited_ms, 2), **spent},
                error=error,
                search=msgspec.UNSET if each is None else each.search,
                search_complete=each.complete if each is not None and each.search == "exact" else msgspec.UNSET,
                part=part,
            )
            for one, own, each, error, detail, part in zip(asked, answered, found, errors, details, parts, strict=True)
        ]

    def answer(self, query_id: str, **fields: Any) -> Answer:
        """An answer of this bundle with these fields of the record."""
        manifest = self._bundle.manifest
        fields.setdefault("part", self._shard.part())
        return Answer(
            query_id=query_id,
            layout_mode=self._settings.layout,
            codebook=manifest.codebook_id,
            bundle=self._bundle.id,
            model=manifest.model_id or "",
            answered_at=int(time.time() * 1000),
            **fields,
        )

    def _layout(self, snapshot: Snapshot) -> Layout:
        if self._settings.layout == "pinned":
            return self._bundle.layout
        return snapshot.live_layout() or self._bundle.layout

    def _read_history(self, one: Asked, snapshot: Snapshot, layout: Layout) -> None:
        """The items of the history become a part of the prompt, and what the answer may not name."""
        query = one.query
        known = snapshot.find([item.encode() for item in query.history]) if query.history else []
        one.skipped = tuple(item for item, stored in zip(query.history, known, strict=True) if stored is None)
        if one.part is not None:
            one.skipped = ()  # the client knows what no shard has
        live = [stored for stored in known if stored is not None]
        excluded = {stored.number for stored in live} if excludes_history(query) else set()
        if query.exclude is not msgspec.UNSET and query.exclude:
            named = snapshot.find([item.encode() for item in query.exclude])
            excluded |= {stored.number for stored in named if stored is not None}
        one.excluded = np.array(sorted(excluded), np.uint32)
        if one.part is not None and one.part.step != "history":
            live = given_history(one.part, live)
        one.history = tuple(live[max(0, len(live) - self._history_read) :])
        if self._prompts is None:
            return
        codes, titles = [stored.codes for stored in one.history], [stored.title for stored in one.history]
        if self._encoder is not None and one.embedding is not None:
            (own,) = self._encoder.encode_queries(one.embedding[None].astype(np.float32)).tolist()
            codes.append(tuple(own))
            titles.append("")
        # The model reads what it writes: under marginal decoding that is its own layout.
        written = self._bundle.layout if self._settings.layout == "marginal" else layout
        history = written.sid_tokens(codes) if codes else ()
        one.prompt = self._prompts.build(query.text, history, query.user, titles)
        one.reads_something = len(one.prompt) > len(self._prompts.build("", (), None))

    def _vector(self, one: Asked, mixer: Mixer) -> DenseQuery | None:
        if one.part is None or one.embedding is not None:
            return mixer.query(one.embedding, one.history)
        return mixer.query_of_history(*given_vectors(one.part))

    def _has_answer(self, one: Asked, own: Answered, found: Found | None) -> bool:
        """Whether there is what was asked for: items, or in the early rounds over shards something to go on with."""
        if one.refused is not None or one.part is None:
            return bool(own.items)
        return not one.is_searched or one.vector is not None or bool(found is not None and found.sids)

    def _eligible(self, wanted: Filter | None) -> Numbers | None:
        return None if wanted is None else np.flatnonzero(self._catalogue.mask(wanted)).astype(np.uint32)

    def _why_nothing(self, one: Asked, found: Found | None, trie: SnapshotTrie, snapshot: Snapshot) -> AnswerError:
        if one.refused is not None:
            return one.refused
        if snapshot.item_count == 0:
            return AnswerError(kind="NothingFound", message="the index holds no items yet: publish some")
        if len(trie.first_tokens()) == 0:
            reason = why_nothing(
                one.filter, self._catalogue.columns, live=snapshot.item_count, excluded=len(one.excluded)
            )
            return AnswerError(kind=NOTHING_ELIGIBLE, message=reason)
        if found is None:
            return AnswerError(kind=NOTHING_TO_GO_ON, message=self._nothing_to_go_on())
        return AnswerError(
            kind="NotFiniteScores",
            message="the language model's scores for this query are NaN or infinite: train the model again with "
            "`sidstream train` and start the retriever anew",
        )

    def _nothing_to_go_on(self) -> str:
        if self._mixer is None:
            return (
                "the bundle has no language model, and its dense leg is off or has no part in it: train the bundle with "
                "`sidstream train`"
            )
        text = "a text, " if self._embeddings is not None and self._embeddings.reads_text else ""
        return (
            "the bundle has no language model yet, so that items are found by their vectors alone, and this query has none: "
            f"ask with {text}an embedding or a history of items that have a vector, or train the bundle with `sidstream train`"
        )

    def _answered(
        self,
        asked: Sequence[Asked],
        found: Sequence[Found | None],
        tries: Sequence[SnapshotTrie],
    ) -> list[Answered]:
        """The items of each answer: of the model alone for a query without a vector, else of the mixture."""
        answered: list[Answered] = [Answered() for _ in asked]
        to_mix: dict[Filter | None, list[tuple[int, ToMix]]] = {}
        for place, (one, each, trie) in enumerate(zip(asked, found, tries, strict=True)):
            if not one.is_answered:
                continue
            if one.vector is None:
                if each is not None:
                    answered[place] = self._by_model(each, one, trie)
                continue
            ranked = None
            if each is not None and each.sids:
                ranked = by_own_probability(each.sids, trie, candidates_for(one.query.limit))
            mixed = ToMix(one.vector, ranked, one.query.limit, one.excluded, given_sums(one.query.part))
            to_mix.setdefault(one.filter, []).append((place, mixed))
        for wanted, group in to_mix.items():
            assert self._mixer is not None
            eligible = self._eligible(wanted)
            for (place, mixed), items in zip(
                group, self._mixer.mix([mixed for _, mixed in group], eligible), strict=True
            ):
                trie, slate = tries[place], Slate(items)
                if asked[place].query.slate:
                    slate = self._slate_of_mixture(asked[place], found[place], trie, mixed, eligible)
                stored = read_items(slate.chosen, mixed.ranked, trie.items)
                note = self._why_dense_alone(found[place]) if mixed.ranked is None else ""
                answered[place] = Answered(
                    tuple(
                        _answer_item(item, trie.layout, each.score, each)
                        for item, each in zip(stored, slate.chosen, strict=True)
                    ),
                    ("dense",) if mixed.ranked is None else ("model", "dense"),
                    _joined(note, slate.note(mixed.limit)),
                    tuple(slate.chosen),
                    slate.held_back,
                    order_of(stored, [each.score for each in slate.chosen], found[place], trie.layout),
                )
        return answered

    def _why_model_alone(self, one: Asked) -> str:
        if self._mixer is None:
            return ""
        if one.query.history:
            return "the model alone: no live item of the history has a vector"
        return "the model alone: the query has a text, and the bundle has no tower that embeds texts; send an embedding"

    def _why_dense_alone(self, found: Found | None) -> str:
        if self._model is None:
            return "nearest vectors alone: the bundle has no language model yet"
        if found is None:
            return "nearest vectors alone: the model knows nothing of what the query says"
        return "nearest vectors alone: the model's scores for this query are NaN or infinite"

    def _by_model(self, found: Found, one: Asked, trie: SnapshotTrie) -> Answered:
        """The answer of the model alone."""
        limit, sids = one.query.limit, found.sids
        if not one.query.slate:
            slate = Slate(self._ranked(sids, one, trie, limit))
        else:
            slate = fill(
                limit,
                lambda count: self._ranked(sids, one, trie, count),
                lambda ranked: [item for item, _ in ranked],
                self._groups(one, trie),
                most_candidates=self._settings.maximum_slate_candidates,
            )
        items = tuple(_answer_item(item, trie.layout, score) for item, score in slate.chosen)
        note = _joined(self._why_model_alone(one), slate.note(limit))
        order = order_of([item for item, _ in slate.chosen], [score for _, score in slate.chosen], found, trie.layout)
        return Answered(items, ("model",), note, held_back=slate.held_back, order=order)

    def _slate_of_mixture(
        self, one: Asked, found: Found | None, trie: SnapshotTrie, first: ToMix, eligible: Numbers | None
    ) -> Slate[MixedItem]:
        def ranked(count: int) -> list[MixedItem]:
            known = first.ranked
            if known is not None and found is not None and count > first.limit:
                known = by_own_probability(found.sids, trie, candidates_for(count))
            assert self._mixer is not None
            return self._mixer.mix([ToMix(first.query, known, count, first.excluded)], eligible)[0]

        return fill(
            one.query.limit,
            ranked,
            lambda mixed: trie.items(np.array([item.number for item in mixed], np.uint32)),
            self._groups(one, trie),
            most_candidates=self._settings.maximum_slate_candidates,
        )

    def _groups(self, one: Asked, trie: SnapshotTrie) -> SlateGroups:
        return SlateGroups(one.query.slate or (), self._filterable, trie.layout, trie.attributes)

    def _ranked(
        self, sids: Sequence[ScoredSid], one: Asked, trie: SnapshotTrie, limit: int
    ) -> list[tuple[StoredItem, float]]:
        """The best items and their scores, best first: by their own probability, or SID by SID in the ranker's order."""
        if self._ranker is None:
            return [(item, score) for item, _, score in by_own_probability(sids, trie, limit)]
        ranked: list[tuple[StoredItem, float]] = []
        for start in range(0, len(sids), _SIDS_READ_AT_ONCE):
            chunk = sids[start : start + _SIDS_READ_AT_ONCE]
            for sid, found in zip(chunk, trie.items_of([sid.tokens for sid in chunk]), strict=True):
                best = self._ranker.rank(trie.items(found.items), RankingContext(sid, one.history))
                ranked += [(item, sid.score) for item in best[: limit - len(ranked)]]
                if len(ranked) == limit:
                    return ranked
        return ranked


def _joined(*notes: str) -> str:
    return "; ".join(note for note in notes if note)


def _answer_item(item: StoredItem, layout: Layout, score: float, mixed: MixedItem | None = None) -> AnswerItem:
    return AnswerItem(
        item_id=item.id.decode(),
        title=_shortened(item.title),
        sid=layout.sid_text(item.codes),
        score=round(score, 6),
        found_by=msgspec.UNSET if mixed is None else mixed.found_by,
        new=True if mixed is not None and mixed.new else msgspec.UNSET,
    )


def _shortened(title: str) -> str:
    return title if len(title) <= _TITLE_CHARACTERS else title[: _TITLE_CHARACTERS - 1] + "…"
