"""Spans out of the process, over OTLP: in a thread of their own, and never at the cost of what they tell of.

What must hold: nothing waits for the collector. What it does not take, and what does not fit the queue while it is away, is
dropped, counted, and told once. At the end a process sends what is left within a bound.
"""

from __future__ import annotations

import logging
import secrets
import socket
import threading
from collections.abc import Sequence
from typing import Any, Final

import structlog
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import Decision, ParentBased, Sampler, SamplingResult, TraceIdRatioBased
from opentelemetry.trace import Link, SpanKind
from opentelemetry.trace.span import TraceState
from opentelemetry.util.types import Attributes

from streamer.tracing.metrics import SPANS, SPANS_DROPPED
from streamer.tracing.variables import ENDPOINTS, variable

log = structlog.get_logger(__name__)
_QUEUE: Final = 8_192
_AT_ONCE: Final = 512
_DELAY_MS: Final = 1_000
_TIMEOUT_SECONDS: Final = 5.0  # of one request, repeated ones included
_PATH: Final = "/v1/traces"


class LinkedOrRatio(Sampler):
    """Of spans without a parent: those that have a link to a recorded trace, and of the rest a share of ``ratio``."""

    def __init__(self, ratio: float) -> None:
        self._ratio = TraceIdRatioBased(ratio)

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        if any(link.context.trace_flags.sampled for link in links or ()):
            return SamplingResult(Decision.RECORD_AND_SAMPLE, attributes, trace_state)
        return self._ratio.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)

    def get_description(self) -> str:
        return f"LinkedOr{{{self._ratio.get_description()}}}"


class RandomIds(IdGenerator):
    """The SDK's are those of ``random``: whoever seeds that, as training does, gets the same traces again."""

    def generate_trace_id(self) -> int:
        return secrets.randbits(128) or 1

    def generate_span_id(self) -> int:
        return secrets.randbits(64) or 1


class CountingExporter(SpanExporter):
    """Counts what the collector takes and what it does not; says once that it is away, and once that it is there again."""

    def __init__(self, exporter: SpanExporter, endpoint: str) -> None:
        self._exporter = exporter
        self._endpoint = endpoint
        self._away = False
        self.handed = 0
        """Spans that were tried, whatever came of it."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.handed += len(spans)
        try:
            result = self._exporter.export(spans)
        except Exception as fault:
            log.debug("spans_not_exported", reason=str(fault))
            result = SpanExportResult.FAILURE
        if result is SpanExportResult.SUCCESS:
            SPANS.inc(len(spans))
            if self._away:
                self._away = False
                log.info("spans_exported_again", endpoint=self._endpoint)
            return result
        SPANS_DROPPED.labels("not_taken").inc(len(spans))
        if not self._away:
            self._away = True
            log.warning(
                "spans_dropped",
                endpoint=self._endpoint,
                spans=len(spans),
                next="the collector does not take them: see that it runs; sidstream_spans_dropped counts on, and nothing waits",
            )
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)


class _CountingProcessor(BatchSpanProcessor):
    """The SDK's, which drops the oldest span in silence when its queue is full."""

    def __init__(self, exporter: CountingExporter, size: int, **more: Any) -> None:
        super().__init__(exporter, max_queue_size=size, **more)
        self._counted, self._size = exporter, size
        self._lock = threading.Lock()
        self._ended = self._dropped = 0

    def on_end(self, span: ReadableSpan) -> None:
        if span.context is not None and span.context.trace_flags.sampled:
            with self._lock:
                self._ended += 1
                if self._ended - self._dropped - self._counted.handed > self._size:
                    self._dropped += 1
                    SPANS_DROPPED.labels("queue_full").inc()
        super().on_end(span)


class Export:
    """``provider``: of a process' spans, until ``close``; ``endpoint``: where they go."""

    def __init__(self, *, endpoint: str, ratio: float | None, process: str, instance: str, version: str) -> None:
        """``endpoint``: without the path, empty for that of the ``OTEL_…`` variables; ``ratio``: None for theirs."""
        address = None if not endpoint else endpoint if endpoint.endswith(_PATH) else endpoint.rstrip("/") + _PATH
        seconds = (
            None if variable("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT") else _TIMEOUT_SECONDS
        )
        self._exporter = OTLPSpanExporter(endpoint=address, timeout=seconds)
        for name in ("opentelemetry.exporter", "opentelemetry.sdk"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # a line for each attempt; CountingExporter says it once
        self.endpoint = address or variable(*ENDPOINTS)
        more = {} if variable("OTEL_BSP_SCHEDULE_DELAY") else {"schedule_delay_millis": _DELAY_MS}
        self.provider = TracerProvider(
            sampler=ParentBased(LinkedOrRatio(ratio_of_variables() if ratio is None else ratio)),
            resource=_resource(process, instance, version),
            id_generator=RandomIds(),
            shutdown_on_exit=False,
        )
        size = _queue_size()
        exporter = CountingExporter(self._exporter, self.endpoint)
        self.provider.add_span_processor(
            _CountingProcessor(exporter, size, max_export_batch_size=min(size, _AT_ONCE), **more)
        )

    def close(self, seconds: float) -> None:
        """Sends what is left, for so many seconds at the most."""
        ending = threading.Thread(target=self.provider.shutdown, name="last spans", daemon=True)
        ending.start()
        ending.join(seconds)
        if ending.is_alive():
            self._exporter.shutdown()  # type: ignore[no-untyped-call]  # no more attempts
            log.warning("spans_left", seconds=seconds, next="the collector did not take the last spans in time")


def _resource(process: str, instance: str, version: str) -> Resource:
    """``OTEL_SERVICE_NAME`` and ``OTEL_RESOURCE_ATTRIBUTES`` go over what is said here."""
    own = {
        "service.name": f"sidstream-{process}",
        "service.namespace": "sidstream",
        "service.version": version,
        "service.instance.id": instance or socket.gethostname(),
    }
    given = Resource.create()
    named = bool(variable("OTEL_SERVICE_NAME")) or "service.name=" in variable("OTEL_RESOURCE_ATTRIBUTES")
    over = {name: value for name, value in given.attributes.items() if name != "service.name" or named}
    return Resource({**own, **over})


def ratio_of_variables() -> float:
    """``OTEL_TRACES_SAMPLER`` and its argument; who has begun a trace always decides on it."""
    name, argument = variable("OTEL_TRACES_SAMPLER"), variable("OTEL_TRACES_SAMPLER_ARG")
    if name.endswith("always_off"):
        return 0.0
    if argument and (not name or name.endswith("traceidratio")):
        try:
            return min(1.0, max(0.0, float(argument)))
        except ValueError:
            advice = "OTEL_TRACES_SAMPLER_ARG is no share of 1: all traces that begin here are recorded"
            log.warning("sampler_argument_unused", value=ascii(argument[:40]), next=advice)
    return 1.0


def _queue_size() -> int:
    """Spans that wait for the collector at the most."""
    given = variable("OTEL_BSP_MAX_QUEUE_SIZE")
    return int(given) if given.isdecimal() and int(given) > 0 else _QUEUE
