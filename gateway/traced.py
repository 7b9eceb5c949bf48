"""A request and its trace: the context of its headers, or its own span, is that of all records that come of it.

What must hold: headers that are no trace context change nothing. What an untrusted client says of its trace costs a bounded
number of spans (``streamer.tracing.spans``); whoever does not want to hear it takes the headers away before the gateway.
"""

from __future__ import annotations

from typing import Any, Final

from litestar.types import ASGIApp, HTTPResponseStartEvent, Receive, Send

from gateway.sending import when_it_starts
from streamer.tracing.context import PARENT, STATE, current_context, trace_context, working_in
from streamer.tracing.started import is_tracing

_NAMES: Final = {PARENT.encode(): PARENT, STATE.encode(): STATE}
# What is looked at all the time has no spans.
_UNTRACED: Final = frozenset({"/healthz", "/metrics", "/figures"})


class Traced:
    """Around the application. Answers of a request that has a span name it (``traceresponse``, W3C Trace Context, § 4)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        found = [(_NAMES[name], content) for name, content in scope["headers"] if name in _NAMES]
        parent = trace_context(found) if found else None
        if not is_tracing() or scope["path"] in _UNTRACED:
            with working_in(parent):
                await self._app(scope, receive, send)
            return
        from streamer.tracing.spans import answered, serving

        method, status = scope["method"], 500
        said: dict[str, str | int] = {"url.path": scope["path"][:200], "url.scheme": scope["scheme"]}
        with serving(method, parent, said) as span:
            own = current_context()

            def started(message: HTTPResponseStartEvent) -> None:
                nonlocal status
                status = message["status"]
                if own is not None:
                    message["headers"] = [*message.get("headers", []), (b"traceresponse", own.traceparent)]

            try:
                await self._app(scope, receive, when_it_starts(send, started))
            finally:
                answered(span, method, scope.get("path_template"), status)
