"""The retriever: queries in, answers out; one answer a query, results and offsets in one transaction.

All queries of a batch are answered from one snapshot of the index, under one layout: the model's own (pinned) or the
live one, which a model trained with layer-2 dropout writes itself and any other is summed over (marginal). Whatever an
answer names was a live item in that snapshot.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import structlog
from confluent_kafka import Message

from models.bundles.bundle import Bundle
from models.catalogue import MAXIMUM_ID_BYTES
from models.codebooks.codebook import Codebook
from models.errors import SidstreamError
from models.language.prompts import PromptBuilder
from models.sids.layout import Layout
from retriever.answering.admission import Admission, QueryRefused
from retriever.answering.metrics import ANSWERED, DECODE_SECONDS, QUERIES, QUERY_SECONDS
from retriever.answering.ranking import (
    HistorySimilarity,
    LeftOutToken,
    Ranker,
    RankingContext,
    WeightAndRecency,
    by_own_probability,
    reconstructions,
)
from retriever.search.beam_search import ScoredSid, beam_search
from retriever.search.marginal_search import marginal_beam_search
from store.reading.reader import IndexReader, Snapshot
from store.records.encoding import StoredItem
from store.topology.trie_view import TrieView
from streamer.events.cloudevents import cloud_event_headers
from streamer.events.dead_letter import Rejection, dead_letter
from streamer.events.intake import EventError
from streamer.events.outgoing import Outgoing
from streamer.events.records import ANSWER, Answer, AnswerError, AnswerItem, Query
from streamer.exactly_once.loop import LoopSettings, TransactionalLoop
from streamer.kafka.admin import await_topics
from streamer.process.health import Health, Part
from streamer.process.metrics import LAYOUT_GENERATION, bounded_class, count_dead_letter
from streamer.process.run import run_process
from streamer.settings import RetrieverSettings, Settings

log = structlog.get_logger(__name__)

PROCESS: Final = "retriever"
_INDEX_WAIT_SECONDS: Final = 1.0
# A title may be a quarter of a megabyte; a hundred of them would make an answer that no topic takes.
_TITLE_CHARACTERS: Final = 1_000
_ANSWER_MAXIMUM_BYTES: Final = 1_500_000  # the topic's limit less room for key, headers and the batch around them


class RetrieverError(SidstreamError):
    """Bundle, index and settings do not fit together."""


@dataclass(slots=True)
class _Asked:
    """A query on its way to its answer."""

    query_id: str
    query: Query
    waited_ms: float
    prompt: list[int] = field(default_factory=list)
    history: tuple[StoredItem, ...] = ()
    skipped: tuple[str, ...] = ()


class AnswerBatch:
    """The retriever's transform: a batch of ``queries`` records → answers, and dead letters with an error answer each."""

    def __init__(
        self,
        *,
        bundle: Bundle,
        model: Any,
        prompts: PromptBuilder,
        reader: IndexReader,
        settings: RetrieverSettings,
        results_topic: str,
        dead_letter_topic: str,
    ) -> None:
        if settings.layout == "live" and bundle.manifest.layer2_dropout == 0:
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
        self._admission = Admission(settings, dimension=bundle.manifest.dimension)
        self._results_topic = results_topic
        self._dead_letter_topic = dead_letter_topic
        # Told at the start, not by the first query.
        with reader.snapshot() as snapshot:
            TrieView(snapshot, bundle.layout)
        self._ranker = _ranker(settings, bundle)

    def next_batch(self, records: list[Message]) -> int:
        """How many of the waiting records go into one transaction: one model call's worth, and the late ones between."""
        return self._admission.next_batch(records)

    def __call__(self, records: list[Message]) -> list[Outgoing]:
        outgoing: list[Outgoing] = []
        asked: list[_Asked] = []
        for record in records:
            try:
                asked.append(_Asked(*self._admission.admit(record)))
            except QueryRefused as refusal:
                fault = AnswerError(kind=refusal.kind, message=str(refusal))
                waited = {"waited": round(refusal.waited_ms, 2)}
                outgoing.append(self._outgoing(self._answer(record.key().decode(), milliseconds=waited, error=fault)))
            except EventError as error:
                count_dead_letter(PROCESS, error.kind)
                outgoing.append(
                    dead_letter(self._dead_letter_topic, record, Rejection(PROCESS, error.kind, str(error)))
                )
                # Cut: an id that is too long would stand in the answer four times.
                query_id = (record.key() or b"")[:MAXIMUM_ID_BYTES].decode("utf-8", "replace")
                outgoing.append(
                    self._outgoing(self._answer(query_id, error=AnswerError(kind=error.kind, message=str(error))))
                )
        size = self._settings.batch_size
        for start in range(0, len(asked), size):
            outgoing += [self._outgoing(answer) for answer in self._answers(asked[start : start + size])]
        return outgoing

    def _answers(self, asked: Sequence[_Asked]) -> list[Answer]:
        started = time.perf_counter()
        with self._reader.snapshot() as snapshot:
            layout = self._layout(snapshot)
            trie = TrieView(snapshot, layout)
            for one in asked:
                self._build_prompt(one, snapshot, layout)
            prepared = time.perf_counter()
            found = self._search(asked, trie)
            decoded = time.perf_counter()
            position = {f"{topic}/{partition}": offset for (topic, partition), offset in snapshot.position.items()}
            index_is_empty = len(trie.first_tokens()) == 0
            items = [self._items(sids, one, snapshot, layout) for one, sids in zip(asked, found, strict=True)]
        ended = time.perf_counter()
        DECODE_SECONDS.observe(decoded - prepared)
        LAYOUT_GENERATION.labels(PROCESS).set(layout.generation)
        spent = {
            "prepare": round((prepared - started) * 1000, 2),
            "decode": round((decoded - prepared) * 1000, 2),
            "rank": round((ended - decoded) * 1000, 2),
            "queries_in_batch": len(asked),
        }
        return [
            self._answer(
                one.query_id,
                items=answer_items,
                layout=layout.generation,
                position=position,
                skipped_history=one.skipped,
                milliseconds={"waited": round(one.waited_ms, 2), **spent},
                error=None if answer_items else _nothing_found(index_is_empty=index_is_empty, sids=len(sids)),
            )
            for one, answer_items, sids in zip(asked, items, found, strict=True)
        ]

    def _layout(self, snapshot: Snapshot) -> Layout:
        if self._settings.layout == "pinned":
            return self._bundle.layout
        return snapshot.live_layout() or self._bundle.layout

    def _search(self, asked: Sequence[_Asked], trie: TrieView) -> list[list[ScoredSid]]:
        """SIDs of each query, best first. Queries with as many beams are searched together, so that an answer does not
        depend on what else was asked.
        """
        found: list[list[ScoredSid]] = [[] for _ in asked]
        beams = [self._beams(one.query.limit) for one in asked]
        for count in sorted(set(beams)):
            places = [place for place, own in enumerate(beams) if own == count]
            searched = self._search_with([asked[place].prompt for place in places], trie, count)
            for place, sids in zip(places, searched, strict=True):
                found[place] = sids
        if (failed := sum(not sids for sids in found)) and len(trie.first_tokens()):
            log.error("scores_not_finite", queries=failed, model=self._bundle.manifest.model_id)
        return found

    def _beams(self, limit: int) -> int:
        """``retriever.beams``, doubled until ``limit`` items can be found: as many SIDs as beams are found, if so many are
        live, and a SID has one item at least. Doubled, so that queries of many limits share few searches.
        """
        beams = self._settings.beams
        while beams < limit:
            beams *= 2
        return max(self._settings.beams, min(beams, self._settings.maximum_limit))

    def _search_with(self, prompts: list[list[int]], trie: TrieView, beams: int) -> list[list[ScoredSid]]:
        model, vocabulary = self._model, self._prompts.vocabulary
        if self._settings.layout == "marginal":
            pinned = self._bundle.layout
            return marginal_beam_search(
                model, vocabulary, prompts, trie, layout=trie.layout, pinned=pinned, beams=beams
            )
        return beam_search(model, vocabulary, prompts, trie, beams=beams)

    def _build_prompt(self, one: _Asked, snapshot: Snapshot, layout: Layout) -> None:
        known = snapshot.find([item.encode() for item in one.query.history]) if one.query.history else []
        one.skipped = tuple(item for item, stored in zip(one.query.history, known, strict=True) if stored is None)
        live = [stored for stored in known if stored is not None]
        # The newest ones, which are those that the model reads: a long history must not slow the ranking of every SID.
        one.history = tuple(live[max(0, len(live) - self._prompts.settings.max_history) :])
        codes = [stored.codes for stored in one.history]
        # The model reads what it writes: under marginal decoding that is its own layout.
        written = self._bundle.layout if self._settings.layout == "marginal" else layout
        history = written.sid_tokens(codes) if codes else ()
        one.prompt = self._prompts.build(one.query.text, history, one.query.user)

    def _items(
        self, sids: Sequence[ScoredSid], one: _Asked, snapshot: Snapshot, layout: Layout
    ) -> tuple[AnswerItem, ...]:
        """The items of the answer, best first: by their own probability, or SID by SID in the ranker's order."""
        if self._ranker is None:
            return tuple(
                _answer_item(item, layout, score)
                for item, _, score in by_own_probability(sids, snapshot.items, one.query.limit)
            )
        answer: list[AnswerItem] = []
        for sid in sids:
            for item in self._ranker.rank(snapshot.items(sid.items), RankingContext(sid, one.history)):
                answer.append(_answer_item(item, layout, sid.score))
                if len(answer) == one.query.limit:
                    return tuple(answer)
        return tuple(answer)

    def _answer(self, query_id: str, **fields: Any) -> Answer:
        manifest = self._bundle.manifest
        return Answer(
            query_id=query_id,
            layout_mode=self._settings.layout,
            codebook=manifest.codebook_id,
            model=manifest.model_id or "",
            answered_at=int(time.time() * 1000),
            **fields,
        )

    def _outgoing(self, answer: Answer) -> Outgoing:
        headers = cloud_event_headers(
            "answer", identity=answer.query_id, subject=answer.query_id, at=answer.answered_at
        )
        value = ANSWER.encode(answer)
        if len(value) > _ANSWER_MAXIMUM_BYTES:
            fault = AnswerError(
                kind="AnswerTooLarge",
                message=f"the answer would have {len(value):,} bytes: ask with a smaller limit or a shorter history",
            )
            answer = msgspec.structs.replace(answer, items=(), skipped_history=(), error=fault)
            value = ANSWER.encode(answer)
        QUERIES.labels(ANSWERED if answer.error is None else bounded_class(answer.error.kind)).inc()
        return Outgoing(self._results_topic, answer.query_id.encode(), value, -1, headers)


def _answer_item(item: StoredItem, layout: Layout, score: float) -> AnswerItem:
    return AnswerItem(
        item_id=item.id.decode(),
        title=_shortened(item.title),
        sid=layout.sid_text(item.codes),
        score=round(score, 6),
    )


def _ranker(settings: RetrieverSettings, bundle: Bundle) -> Ranker | None:
    """The ranker inside a SID; None: all items by their own probability."""
    if settings.ranking == "own_probability":
        return None
    if settings.ranking == "history_similarity":
        # What a model thinks of tokens that it has never seen is noise.
        seen = bundle.manifest.layer2_dropout > 0 or not bundle.layout.head_tokens
        otherwise: Ranker = LeftOutToken() if seen else WeightAndRecency()
        return HistorySimilarity(reconstructions(Codebook.load(bundle.codebook_path)), otherwise)
    return LeftOutToken() if settings.ranking == "left_out_token" else WeightAndRecency()


def _shortened(title: str) -> str:
    return title if len(title) <= _TITLE_CHARACTERS else title[: _TITLE_CHARACTERS - 1] + "…"


def _nothing_found(*, index_is_empty: bool, sids: int) -> AnswerError:
    if index_is_empty:
        return AnswerError(kind="NothingFound", message="the index holds no items yet: publish some")
    if sids == 0:
        return AnswerError(
            kind="NotFiniteScores",
            message="the language model's scores for this query are NaN or infinite: train the model again with "
            "`sidstream train` and start the retriever anew",
        )
    return AnswerError(kind="NothingFound", message="no live item was found")


def run_retriever(settings: Settings) -> None:
    """Run the process until it is told to stop."""

    def work(stop: threading.Event, health: Health) -> None:
        import torch

        from models.bundles.model_of_bundle import load_language_model

        topics, own = settings.topics, settings.retriever
        torch.set_num_threads(own.threads)
        bundle = Bundle.open(settings.bundle, need_model=True)
        if not await_topics(settings, [topics.queries, topics.queries_dead_letters, topics.results], stop, health):
            return
        model, prompts = load_language_model(bundle)
        reader = _wait_for_index(settings, stop, health)
        if reader is None:
            return
        with reader:
            transform = AnswerBatch(
                bundle=bundle,
                model=model,
                prompts=prompts,
                reader=reader,
                settings=own,
                results_topic=topics.results,
                dead_letter_topic=topics.queries_dead_letters,
            )
            loop = LoopSettings(
                process=PROCESS,
                source=topics.queries,
                group=settings.in_cluster(own.group),
                instance=own.instance,
                batch_size=own.batch_size,
                minimum_batch_interval_ms=0,
                event_seconds=QUERY_SECONDS,
                gather_size=own.gather_size,
            )
            TransactionalLoop(loop, settings.kafka, transform, health, transform.next_batch).run(stop)

    run_process(PROCESS, settings, work)


def _wait_for_index(settings: Settings, stop: threading.Event, health: Health) -> IndexReader | None:
    """The index, once the indexer of this host has made it; ``None`` if we are told to stop first."""
    from store.errors import IndexMissingError

    health.set_ready(Part.START)  # an indexer may come much later; that is no reason to start this process anew
    while not stop.is_set():
        try:
            reader = IndexReader(settings.index)
            health.set_ready(Part.INDEX)
            return reader
        except IndexMissingError as error:
            health.progress()
            health.set_unready(Part.INDEX, str(error))
            log.info("waiting_for_index", path=str(settings.index))
            stop.wait(_INDEX_WAIT_SECONDS)
    return None
