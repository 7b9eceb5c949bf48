"""The trace context of records that a producer sends: that of what it does just now, or that of a new trace."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from streamer.tracing.context import Headers, TraceContext, current_context
from streamer.tracing.started import is_tracing


def working_context() -> TraceContext | None:
    """What is worked in: ours, or, in an application that uses OpenTelemetry itself, that of its current span."""
    context = current_context()
    if context is None and "opentelemetry.trace" in sys.modules:
        from streamer.tracing.spans import application_context

        return application_context()
    return context


def headers_of_new(topic: str, key: bytes) -> Headers | None:
    """Of a record that is about to be sent; None without a trace."""
    context = working_context()
    if context is None and is_tracing():
        from streamer.tracing.spans import created

        context = created(topic, key)
    return None if context is None else context.headers


def tell_unanswered(count: int) -> None:
    """Within ``asking``: for so many questions no answer came in time."""
    if count and (is_tracing() or "opentelemetry.trace" in sys.modules):
        from streamer.tracing import spans

        spans.unanswered(count)


@contextmanager
def asking(topic: str, count: int) -> Iterator[Headers]:
    """Around ``count`` questions and their answers; the headers of the records that ask them, none without a trace."""
    if is_tracing() or "opentelemetry.trace" in sys.modules:
        from streamer.tracing import spans

        with spans.asking(topic, count) as context:
            yield [] if context is None else context.headers
        return
    context = current_context()
    yield [] if context is None else context.headers
