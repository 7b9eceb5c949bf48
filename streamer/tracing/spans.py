"""Spans by OpenTelemetry's semantic conventions for messaging; imported where tracing is on alone.

A batch is a trace of its own: one span from the moment that its records were gathered to the commit of what came of them, with a
link to the context of each record whose trace is recorded. Such a record also has a span in its own trace, with a link back: it
says how old the record was when it was done, and the records that are made of it are its children. No batch has more than 128 of
either, so that whoever traces everything gets a bounded number of them; contexts beyond are passed on as they came.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Final

from confluent_kafka import Message
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.trace.span import TraceState

from streamer.events.headers import all_headers
from streamer.tracing.context import Headers, TraceContext, context_of, current_context, working_in
from streamer.tracing.started import own_provider

MOST_TRACED: Final = 128  # OpenTelemetry's own limit of a span's links
# Of a catalogue of a million items nobody looks at a million traces; their headers would stay in its topics.
MOST_BEGUN_A_SECOND: Final = 100
# A record that is read again long after (an index that is built anew) has nothing to tell to a trace of then.
_OLD_MS: Final = 3_600_000
_NAME: Final = "sidstream"
_CONVENTIONS: Final = "https://opentelemetry.io/schemas/1.40.0"
AGE: Final = "sidstream.record.age_ms"
TRACED_COUNT: Final = "sidstream.batch.traced_count"


def tracer() -> trace.Tracer:
    """Of all our spans: of this process' own provider, or else of the application's."""
    return trace.get_tracer(_NAME, tracer_provider=own_provider(), schema_url=_CONVENTIONS)


def context_of_span(span: Span) -> TraceContext:
    """What goes into the headers of what is made in a span."""
    found = span.get_span_context()
    parent = f"00-{found.trace_id:032x}-{found.span_id:016x}-{int(found.trace_flags):02x}"
    return TraceContext(parent.encode(), found.trace_state.to_header().encode())


def remote(context: TraceContext) -> SpanContext:
    """A context out of headers, for links."""
    state = TraceState.from_header([context.tracestate.decode()]) if context.tracestate else None
    return SpanContext(int(context.trace_id, 16), int(context.span_id, 16), True, TraceFlags(context.flags & 3), state)


def parent_of(context: TraceContext | None) -> Context:
    """A context out of headers, for a parent; without one, of a new trace."""
    return Context() if context is None else trace.set_span_in_context(NonRecordingSpan(remote(context)), Context())


class _BatchSpans:
    """One batch: its span, and those of its records."""

    def __init__(self, span: Span, records: Sequence[tuple[Message, Span]]) -> None:
        self._span = span
        self._records = records
        self._context = context_of_span(span) if span.get_span_context().is_valid else None
        self.traced = records[0][0] if records else None

    def current(self) -> AbstractContextManager[None]:
        return working_in(self._context)

    def end(self) -> None:
        now = time.time_ns()
        for record, span in self._records:
            kind, milliseconds = record.timestamp()
            if kind:
                span.set_attribute(AGE, max(0, now // 1_000_000 - milliseconds))
            span.end(now)
        self._span.end(now)

    def fail(self, fault: BaseException) -> None:
        now = time.time_ns()
        for span in (*(span for _, span in self._records), self._span):
            _failed(span, type(fault).__name__, str(fault))
            span.end(now)


class SpansOfBatches:
    """Makes the spans of a loop's batches, see ``Traces``."""

    def __init__(
        self,
        operation: str,
        topic: str,
        *,
        group: str,
        attributes: Mapping[str, str] | None = None,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        """``clock``: nanoseconds since the epoch."""
        self._clock = clock
        self._tracer = tracer()
        self._batch_name, self._record_name = f"process {topic}", f"{operation} {topic}"
        common = {
            "messaging.system": "kafka",
            "messaging.destination.name": topic,
            "messaging.operation.type": "process",
            "messaging.consumer.group.name": group,
            **(attributes or {}),
        }
        self._of_batch = {**common, "messaging.operation.name": "process"}
        self._of_record = {**common, "messaging.operation.name": operation}
        # Of the batch in hand; spans by the identity of their records.
        self._has_headers = False
        self._spans: dict[int, Span] = {}

    def begin(self, records: Sequence[Message]) -> _BatchSpans:
        now = self._clock()
        headers = all_headers(records)
        self._has_headers = headers.count(None) < len(records)
        chosen = _recorded(records, headers, now // 1_000_000 - _OLD_MS) if self._has_headers else []
        batch = self._tracer.start_span(
            self._batch_name,
            Context(),
            SpanKind.CONSUMER,
            {**self._of_batch, "messaging.batch.message_count": len(records), TRACED_COUNT: len(chosen)},
            [Link(remote(context)) for _, context in chosen],
            now,
        )
        links = [Link(batch.get_span_context())]
        spans = [(record, self._span_of(record, context, links, now)) for record, context in chosen]
        self._spans = {id(record): span for record, span in spans}
        return _BatchSpans(batch, spans)

    def _span_of(self, record: Message, context: TraceContext, links: Sequence[Link], now: int) -> Span:
        attributes: dict[str, str | int | bool] = {
            **self._of_record,
            "messaging.destination.partition.id": str(record.partition()),
            "messaging.kafka.offset": record.offset(),
        }
        if (key := record.key()) is not None:
            attributes["messaging.kafka.message.key"] = key.decode("utf-8", "replace")
        if record.value() is None:
            attributes["messaging.kafka.message.tombstone"] = True
        return self._tracer.start_span(self._record_name, parent_of(context), SpanKind.CONSUMER, attributes, links, now)

    def onward(self, records: Sequence[Message]) -> list[Headers | None] | None:
        return [self._onward_of(record) for record in records] if self._has_headers else None

    def _onward_of(self, record: Message) -> Headers | None:
        if (span := self._spans.get(id(record))) is not None:
            return context_of_span(span).headers
        context = context_of(record)
        return None if context is None else context.headers

    def refused(self, record: Message, kind: str) -> None:
        if (span := self._spans.get(id(record))) is not None:
            _failed(span, kind, "")


def _recorded(
    records: Sequence[Message], headers: Sequence[object | None], since_ms: int
) -> list[tuple[Message, TraceContext]]:
    """The records whose trace is recorded, the first ones; ``headers``: None of those that have none."""
    found: list[tuple[Message, TraceContext]] = []
    for record, one in zip(records, headers, strict=True):
        if one is None or (context := context_of(record)) is None:
            continue
        if context.sampled and record.timestamp()[1] > since_ms:
            found.append((record, context))
            if len(found) == MOST_TRACED:
                break
    return found


class _Begun:
    """Traces that began within the same second, for all threads: that one too many begins does no harm."""

    second = 0
    count = 0


def created(topic: str, key: bytes) -> TraceContext | None:
    """A trace begins with a record that is handed to the client; None if it is not recorded, or one too many of this second."""
    if (second := int(time.monotonic())) != _Begun.second:
        _Begun.second, _Begun.count = second, 0
    if _Begun.count >= MOST_BEGUN_A_SECOND:
        return None
    attributes = {
        "messaging.system": "kafka",
        "messaging.destination.name": topic,
        "messaging.operation.type": "create",
        "messaging.operation.name": "create",
        "messaging.kafka.message.key": key.decode("utf-8", "replace"),
    }
    span = tracer().start_span(f"create {topic}", Context(), SpanKind.PRODUCER, attributes)
    span.end()
    if not span.get_span_context().trace_flags.sampled:
        return None
    _Begun.count += 1
    return context_of_span(span)


@contextmanager
def asking(topic: str, count: int) -> Iterator[TraceContext | None]:
    """Around questions and their answers, in the trace of whoever asks; the context is that of the records that are sent."""
    attributes: dict[str, str | int] = {
        "messaging.system": "kafka",
        "messaging.destination.name": topic,
        "messaging.operation.type": "send",
        "messaging.operation.name": "send",
        "messaging.batch.message_count": count,
    }
    ours = current_context()
    with tracer().start_as_current_span("ask", None if ours is None else parent_of(ours)) as whole:
        with tracer().start_as_current_span(f"send {topic}", kind=SpanKind.PRODUCER, attributes=attributes) as sent:
            found = sent.get_span_context()
            context = context_of_span(sent) if found.is_valid else None
        with working_in(context_of_span(whole) if found.is_valid else None):
            yield context


def unanswered(count: int) -> None:
    """Of the questions of ``asking`` so many have no answer."""
    span = trace.get_current_span()
    span.set_attribute("sidstream.unanswered_count", count)
    _failed(span, "timeout", f"{count} of the queries were not answered in time")


@contextmanager
def serving(method: str, parent: TraceContext | None, attributes: Mapping[str, str | int]) -> Iterator[Span]:
    """Around a request over HTTP, whose records are made in its span."""
    span = tracer().start_span(
        method, parent_of(parent), SpanKind.SERVER, {"http.request.method": method, **attributes}
    )
    with working_in(context_of_span(span)):
        try:
            yield span
        finally:
            span.end()


def answered(span: Span, method: str, route: str | None, status: int) -> None:
    """What came of a request."""
    if route is not None:
        span.update_name(f"{method} {route}")
        span.set_attribute("http.route", route)
    span.set_attribute("http.response.status_code", status)
    if status >= 500:
        _failed(span, str(status), "")


def application_context() -> TraceContext | None:
    """That of the span that is current in an application which uses OpenTelemetry itself."""
    span = trace.get_current_span()
    return context_of_span(span) if span.get_span_context().is_valid else None


def _failed(span: Span, kind: str, description: str) -> None:
    span.set_attribute("error.type", kind)
    span.set_status(Status(StatusCode.ERROR, description or None))
