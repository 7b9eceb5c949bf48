"""Whose trace a producer's records are of."""

from __future__ import annotations

import time

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from streamer.settings import load_settings
from streamer.tracing.context import TraceContext, trace_context, working_in
from streamer.tracing.sending import asking, headers_of_new, tell_unanswered, working_context
from streamer.tracing.spans import MOST_BEGUN_A_SECOND, _Begun
from streamer.tracing.start import tracing_started
from streamer.tracing.started import set_provider
from support.processes import free_port

OURS = TraceContext(b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", b"shop=7")


def test_without_a_trace_a_record_has_no_headers_of_one() -> None:
    assert headers_of_new("item-updates", b"sku") is None
    with asking("queries", 1) as headers:
        assert headers == []


def test_record_is_of_the_trace_that_is_worked_in_also_without_an_endpoint() -> None:
    with working_in(OURS):
        assert headers_of_new("item-updates", b"sku") == OURS.headers
        with asking("queries", 1) as headers:
            assert headers is not None
            assert trace_context(headers) == OURS


def test_application_that_uses_opentelemetry_itself_has_its_current_span_in_the_headers() -> None:
    span = TracerProvider().get_tracer("shop").start_span("checkout")
    with trace.use_span(span):
        found = working_context()
        assert found is not None
        assert int(found.trace_id, 16) == span.get_span_context().trace_id
        assert int(found.span_id, 16) == span.get_span_context().span_id
        assert headers_of_new("item-updates", b"sku") == found.headers
        with asking("queries", 1) as headers, working_in(OURS):
            asked = trace_context(headers)
            assert asked is not None
            assert asked.trace_id == found.trace_id
            assert headers_of_new("item-updates", b"sku") == OURS.headers, "ours is the inner one"


def test_question_without_an_answer_is_a_span_that_failed() -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    set_provider(provider)
    try:
        for missing in (0, 2):
            with asking("queries", 3):
                tell_unanswered(missing)
    finally:
        set_provider(None)
    asked = [span for span in exporter.get_finished_spans() if span.name == "ask"]
    assert [span.status.status_code for span in asked] == [StatusCode.UNSET, StatusCode.ERROR]
    assert (asked[1].attributes or {})["sidstream.unanswered_count"] == 2


def test_whole_catalogue_begins_no_more_traces_than_somebody_looks_at() -> None:
    settings = load_settings(tracing={"endpoint": f"http://127.0.0.1:{free_port()}"}, shutdown_seconds=0.1)
    since = time.monotonic()
    with tracing_started(settings, "shop"):
        begun = sum(headers_of_new("item-updates", b"%d" % number) is not None for number in range(3_000))
    assert 1 <= begun <= MOST_BEGUN_A_SECOND * (int(time.monotonic() - since) + 2)
    assert begun < 3_000


def test_item_that_begins_a_trace_says_so_by_the_ratio() -> None:
    _Begun.count = 0  # others have begun some in this second
    for ratio, begun in ((1.0, True), (0.0, False)):
        settings = load_settings(
            tracing={"endpoint": f"http://127.0.0.1:{free_port()}", "ratio": ratio}, shutdown_seconds=0.1
        )
        with tracing_started(settings, "shop"):
            first, second = (headers_of_new("item-updates", key) for key in (b"a", b"b"))
        assert (first is not None) == begun, "a trace that nobody records costs the topic nothing"
        assert first != second or not begun
