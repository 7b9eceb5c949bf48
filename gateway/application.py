"""The ASGI application: the routes, what faults look like, and what every answer has.

What must hold: whatever goes wrong is a problem of RFC 9457, never a traceback or a page of the framework.
"""

from __future__ import annotations

import time
from typing import Any, Final

import structlog
from litestar import Litestar, Response, get
from litestar.connection import Request
from litestar.datastructures import State
from litestar.exceptions import HTTPException
from litestar.types import ASGIApp, HTTPResponseStartEvent, Receive, Send

from gateway.gateway import Gateway
from gateway.metrics import REQUESTS, SECONDS
from gateway.openapi import PATH, encoded
from gateway.problems import MEDIA_TYPE, Problem
from gateway.routes.items import delete_attributes, delete_item, patch_attributes, post_items, put_item
from gateway.routes.pages import figures, healthz, metrics, page
from gateway.routes.paths import decoded_path
from gateway.routes.queries import answer, ask
from gateway.sending import when_it_starts
from gateway.traced import Traced
from streamer.process.http_headers import HEADERS

log = structlog.get_logger(__name__)
_AROUND: Final = 4_096  # bytes of a record around what has a limit of its own
_HEADERS: Final = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
_KNOWN_KINDS: Final = {404: "NoSuchPath", 405: "MethodNotAllowed", 413: "EventTooLarge"}


ROUTES: Final = (
    ask,
    answer,
    put_item,
    delete_item,
    patch_attributes,
    delete_attributes,
    post_items,
    healthz,
    metrics,
    figures,
)


@get(PATH)
async def openapi() -> Response[bytes]:
    """The description of all that there is; needs no key."""
    return Response(encoded(ROUTES), media_type="application/json")


def application(gateway: Gateway) -> ASGIApp:
    """What uvicorn serves; it starts and closes ``gateway``."""
    settings = gateway.settings
    largest = max(
        settings.retriever.maximum_query_bytes,
        settings.assigner.maximum_event_bytes,
        settings.attributes.maximum_bytes + _AROUND,
    )
    app = Litestar(
        [page, openapi, *ROUTES],
        state=State({"gateway": gateway}),
        on_startup=[gateway.start],
        on_shutdown=[gateway.close],
        openapi_config=None,
        exception_handlers={Problem: _problem, HTTPException: _http_fault, Exception: _fault},
        request_max_body_size=largest + 1,
        logging_config=None,
    )
    return _Measured(Traced(app))


class _Measured:
    """Counts and times requests, and gives each answer the headers that all have."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        raw_path = scope.get("raw_path")
        if raw_path:
            scope["path"] = decoded_path(raw_path)
        status, began = "none", time.perf_counter()

        def started(message: HTTPResponseStartEvent) -> None:
            nonlocal status
            status = str(message["status"])
            headers = list(message.get("headers", []))
            given = {name.lower() for name, _ in headers}
            message["headers"] = [*headers, *(one for one in _HEADERS if one[0] not in given)]

        try:
            await self._app(scope, receive, when_it_starts(send, started))
        finally:
            route = scope.get("path_template") or "other"
            REQUESTS.labels(route, scope["method"], status).inc()
            SECONDS.labels(route, scope["method"]).observe(time.perf_counter() - began)


def _problem(_request: Request[Any, Any, Any], problem: Problem) -> Response[bytes]:
    return Response(problem.body, status_code=problem.status, media_type=MEDIA_TYPE, headers=problem.headers)


def _http_fault(request: Request[Any, Any, Any], fault: HTTPException) -> Response[bytes]:
    """What the framework refuses before a route sees it."""
    status = fault.status_code
    kind = _KNOWN_KINDS.get(status, "InvalidRequest" if status < 500 else "InternalError")
    said = f"{fault.detail}: " if fault.detail else ""
    if status in (404, 405):
        said = f"{request.method} {request.url.path[:200]!r} is nothing that the gateway has: "
    return _problem(
        request, Problem(status, kind, f"{said}{PATH} describes what there is", headers=dict(fault.headers or {}))
    )


def _fault(request: Request[Any, Any, Any], fault: Exception) -> Response[bytes]:
    log.error("request_failed", method=request.method, path=request.url.path[:200], exc_info=fault)
    return _problem(
        request,
        Problem(
            500,
            "InternalError",
            "a fault of the gateway; its log says more: send the request again, and report it",
        ),
    )
