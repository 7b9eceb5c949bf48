"""Whose trace a producer's records are of."""

from __future__ import annotations

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from streamer.settings import load_settings
from streamer.tracing.context import TraceContext, trace_context, working_in
from streamer.tracing.sending import asking, headers_of_new, working_context
from streamer.tracing.start import tracing_started
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


def test_item_that_begins_a_trace_says_so_by_the_ratio() -> None:
    for ratio, begun in ((1.0, True), (0.0, False)):
        settings = load_settings(
            tracing={"endpoint": f"http://127.0.0.1:{free_port()}", "ratio": ratio}, shutdown_seconds=0.1
        )
        with tracing_started(settings, "shop"):
            first, second = (headers_of_new("item-updates", key) for key in (b"a", b"b"))
        assert (first is not None) == begun, "a trace that nobody records costs the topic nothing"
        assert first != second or not begun
