"""The transform of the retriever's loop: records of ``queries`` → answers, each by the bundle that its user has.

What must hold: whatever a batch asks, it has one answer a record, and a dead letter for what cannot be used; all queries that one
bundle answers are answered from one snapshot of its index, under one layout. Every answer names its bundle, errors too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import repeat
from typing import Final

import msgspec
from confluent_kafka import Message

from models.attributes import AttributeType
from models.catalogue import MAXIMUM_ID_BYTES
from retriever.answering.admission import Admission, BundleLimits, QueryRefused
from retriever.answering.asked import Asked
from retriever.answering.metrics import ANSWERED, count_query
from retriever.serving.answering import Answering, CurrentAnswering
from streamer.events.cloudevents import cloud_event_headers
from streamer.events.dead_letter import Rejection, dead_letter
from streamer.events.formats.reading import NO_FORMATS, Formats
from streamer.events.intake import EventError
from streamer.events.outgoing import Outgoing
from streamer.events.records import ANSWER, Answer, AnswerError
from streamer.process.metrics import LAYOUT_GENERATION, bounded_class, count_dead_letter
from streamer.settings.retriever import RetrieverSettings
from streamer.shards.partitions import EVERY
from streamer.tracing.batches import PassedOn, Traces
from streamer.tracing.context import Headers

PROCESS: Final = "retriever"
_ANSWER_MAXIMUM_BYTES: Final = 1_500_000  # the topic's limit less room for key, headers and the batch around them


class AnswerBatch:
    """A batch of ``queries`` records → answers, and dead letters with an error answer each."""

    def __init__(
        self,
        current: CurrentAnswering,
        *,
        settings: RetrieverSettings,
        results_topic: str,
        dead_letter_topic: str,
        filterable: Mapping[str, AttributeType] | None = None,
        partitions: str = EVERY,
        formats: Formats = NO_FORMATS,
        traces: Traces | None = None,
    ) -> None:
        """``filterable``: the declared attributes and their types, by which queries may filter; ``partitions``: those that the
        index holds, of a shard; ``formats``: see ``Admission``; ``traces``: of the loop's batches.
        """
        self._current = current
        self._answering = current.now  # of the batch in hand
        self._settings = settings
        self._traces: Traces = PassedOn() if traces is None else traces
        self._admission = Admission(
            settings, limits_of=self._limits_of, filterable=filterable, partitions=partitions, formats=formats
        )
        self._results_topic = results_topic
        self._dead_letter_topic = dead_letter_topic

    def next_batch(self, records: list[Message]) -> int:
        """How many of the waiting records go into one transaction: one model call's worth, and the late ones between."""
        with self._current.held() as self._answering:
            return self._admission.next_batch(records)

    def __call__(self, records: list[Message]) -> list[Outgoing]:
        with self._current.held() as self._answering:
            return self._answers(self._answering, records)

    def _answers(self, answering: Answering, records: list[Message]) -> list[Outgoing]:
        outgoing: list[Outgoing] = []
        asked: dict[str, list[tuple[Asked, Headers | None]]] = {bundle.id: [] for bundle in answering.bundles}
        traced: Iterable[Headers | None] = self._traces.onward(records) or repeat(None)
        for record, headers in zip(records, traced, strict=False):
            try:
                checked, waited_ms = self._admission.admit(record)
                bundle = answering.of(checked.who)
                asked[bundle.id].append((Asked(checked.query_id, checked.query, waited_ms, checked.filter), headers))
            except QueryRefused as refusal:
                fault = AnswerError(kind=refusal.kind, message=str(refusal))
                waited = {"waited": round(refusal.waited_ms, 2)}
                answerer = answering.of(refusal.who).answerer
                refused = answerer.answer(record.key().decode(), milliseconds=waited, error=fault)
                outgoing.append(self._outgoing(refused, headers))
                self._traces.refused(record, refusal.kind)
            except EventError as error:
                count_dead_letter(PROCESS, error.kind)
                self._traces.refused(record, error.kind)
                outgoing.append(
                    dead_letter(self._dead_letter_topic, record, Rejection(PROCESS, error.kind, str(error)))
                )
                # Cut: an id that is too long would stand in the answer four times.
                query_id = (record.key() or b"")[:MAXIMUM_ID_BYTES].decode("utf-8", "replace")
                fault = AnswerError(kind=error.kind, message=str(error))
                answerer = answering.of(self._admission.who(record) or query_id).answerer
                outgoing.append(self._outgoing(answerer.answer(query_id, error=fault), headers))
        size = self._settings.batch_size
        for bundle in reversed(answering.bundles):  # main last: the layout that is shown is its own
            own = asked[bundle.id]
            for start in range(0, len(own), size):
                batch = own[start : start + size]
                answers = bundle.answerer.answers([one for one, _ in batch])
                outgoing += [
                    self._outgoing(answer, headers) for answer, (_, headers) in zip(answers, batch, strict=True)
                ]
                LAYOUT_GENERATION.labels(PROCESS).set(answers[-1].layout or 0)
        return outgoing

    def _limits_of(self, who: str) -> BundleLimits:
        return self._answering.limits_of(who)

    def _outgoing(self, answer: Answer, traced: Headers | None) -> Outgoing:
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
        outcome = ANSWERED if answer.error is None else bounded_class(answer.error.kind)
        count_query(outcome, answer.bundle or "")
        if traced is not None:
            headers += traced
        return Outgoing(self._results_topic, answer.query_id.encode(), value, -1, headers)
