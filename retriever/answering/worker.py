"""The retriever: queries in, answers out; one answer a query, results and offsets in one transaction.

All queries of a batch are answered from one snapshot of the index, under one layout: the model's own (pinned) or the
live one, which a model trained with layer-2 dropout writes itself and any other is summed over (marginal). Whatever an
answer names was a live item in that snapshot.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import structlog
from confluent_kafka import Message

from models.attributes import AttributeType
from models.bundles.bundle import Bundle
from models.catalogue import MAXIMUM_ID_BYTES
from models.language.prompts import PromptBuilder
from retriever.answering.admission import Admission, QueryRefused
from retriever.answering.answers import Answerer
from retriever.answering.asked import Asked
from retriever.answering.metrics import ANSWERED, QUERIES, QUERY_SECONDS
from store.reading.reader import IndexReader
from streamer.events.cloudevents import cloud_event_headers
from streamer.events.dead_letter import Rejection, dead_letter
from streamer.events.intake import EventError
from streamer.events.outgoing import Outgoing
from streamer.events.records import ANSWER, Answer, AnswerError
from streamer.exactly_once.loop import LoopSettings, TransactionalLoop
from streamer.kafka.admin import await_topics
from streamer.process.health import Health, Part
from streamer.process.metrics import LAYOUT_GENERATION, bounded_class, count_dead_letter
from streamer.process.run import run_process
from streamer.settings import RetrieverSettings, Settings

log = structlog.get_logger(__name__)

PROCESS: Final = "retriever"
_INDEX_WAIT_SECONDS: Final = 1.0
_ANSWER_MAXIMUM_BYTES: Final = 1_500_000  # the topic's limit less room for key, headers and the batch around them


class AnswerBatch:
    """The retriever's transform: a batch of ``queries`` records → answers, and dead letters with an error answer each."""

    def __init__(
        self,
        *,
        bundle: Bundle,
        model: Any | None,
        prompts: PromptBuilder | None,
        reader: IndexReader,
        settings: RetrieverSettings,
        results_topic: str,
        dead_letter_topic: str,
        filterable: Mapping[str, AttributeType] | None = None,
    ) -> None:
        """``filterable``: the declared attributes and their types, by which queries may filter."""
        self._answerer = Answerer(
            bundle=bundle,
            model=model,
            prompts=prompts,
            reader=reader,
            settings=settings,
            filterable=filterable or {},
        )
        self._settings = settings
        self._admission = Admission(
            settings, dimension=bundle.manifest.dimension, filterable=filterable, layers=bundle.layout.layers
        )
        self._results_topic = results_topic
        self._dead_letter_topic = dead_letter_topic

    def next_batch(self, records: list[Message]) -> int:
        """How many of the waiting records go into one transaction: one model call's worth, and the late ones between."""
        return self._admission.next_batch(records)

    def __call__(self, records: list[Message]) -> list[Outgoing]:
        outgoing: list[Outgoing] = []
        asked: list[Asked] = []
        for record in records:
            try:
                checked, waited_ms = self._admission.admit(record)
                asked.append(Asked(checked.query_id, checked.query, waited_ms, checked.filter))
            except QueryRefused as refusal:
                fault = AnswerError(kind=refusal.kind, message=str(refusal))
                waited = {"waited": round(refusal.waited_ms, 2)}
                outgoing.append(
                    self._outgoing(self._answerer.answer(record.key().decode(), milliseconds=waited, error=fault))
                )
            except EventError as error:
                count_dead_letter(PROCESS, error.kind)
                outgoing.append(
                    dead_letter(self._dead_letter_topic, record, Rejection(PROCESS, error.kind, str(error)))
                )
                # Cut: an id that is too long would stand in the answer four times.
                query_id = (record.key() or b"")[:MAXIMUM_ID_BYTES].decode("utf-8", "replace")
                outgoing.append(
                    self._outgoing(
                        self._answerer.answer(query_id, error=AnswerError(kind=error.kind, message=str(error)))
                    )
                )
        size = self._settings.batch_size
        for start in range(0, len(asked), size):
            answers = self._answerer.answers(asked[start : start + size])
            outgoing += [self._outgoing(answer) for answer in answers]
            LAYOUT_GENERATION.labels(PROCESS).set(answers[-1].layout or 0)
        return outgoing

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


def open_bundle(settings: Settings) -> Bundle:
    """The settings' bundle, verified. It needs a language model, unless it can answer by vectors alone."""
    bundle = Bundle.open(settings.bundle)
    if bundle.manifest.language_model is not None or bundle.manifest.dense is None or not settings.retriever.dense:
        return Bundle.open(settings.bundle, need_model=True)
    return bundle


def load_model(bundle: Bundle, settings: Settings) -> tuple[Any | None, PromptBuilder | None]:
    """The bundle's language model and its prompts, on the device and threads of the settings; None and None without one."""
    import torch

    from models.bundles.model_of_bundle import load_language_model
    from models.language.devices import device_named, dtype_named

    own = settings.retriever
    torch.set_num_threads(own.threads)
    if bundle.manifest.language_model is None:
        return None, None
    device, dtype = device_named(own.device), dtype_named(own.dtype)
    model, prompts = load_language_model(bundle, device=device, dtype=dtype)
    log.info(
        "model_loaded",
        model=bundle.manifest.model_id,
        base=None if (base := bundle.manifest.language_model.base) is None else f"{base.given} ({base.id})",
        device=str(device),
        dtype="int8" if dtype is torch.int8 else str(model.dtype),
    )
    return model, prompts


def run_retriever(settings: Settings) -> None:
    """Run the process until it is told to stop."""

    def work(stop: threading.Event, health: Health) -> None:
        topics, own = settings.topics, settings.retriever
        bundle = open_bundle(settings)
        if not await_topics(settings, [topics.queries, topics.queries_dead_letters, topics.results], stop, health):
            return
        model, prompts = load_model(bundle, settings)
        if model is None:
            log.warning(
                "no_language_model",
                bundle=str(settings.bundle),
                advice="items are found by their vectors alone; run `sidstream train` on the bundle and start the retriever anew",
            )
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
                filterable=settings.attributes.filterable,
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
            log.info("waiting_for_index", path=str(settings.index), reason=str(error))
            stop.wait(_INDEX_WAIT_SECONDS)
    return None
