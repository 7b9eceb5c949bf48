"""What people and other programs look at: the page, its figures, health and metrics."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import msgspec
from litestar import Response, get
from litestar.openapi.datastructures import ResponseSpec

from gateway.kafka.figures import Figures
from gateway.routes.queries import problems
from gateway.routes.requests import AnyRequest, gateway_of
from streamer.process.health_server import exposition
from streamer.process.http_headers import page_headers

_PAGE = files("gateway").joinpath("page.html").read_text(encoding="utf-8")
_PAGE_HEADERS = page_headers(_PAGE)


class Verdict(msgspec.Struct, frozen=True):
    """``reason``: why it is not ready, in sentences."""

    ready: bool
    reason: str | None


@get("/", include_in_schema=False)
async def page() -> Response[str]:
    return Response(_PAGE, media_type="text/html", headers=_PAGE_HEADERS)


@get(
    "/healthz",
    summary="Whether the gateway is ready",
    description="Needs no key.",
    responses={503: ResponseSpec(Verdict, description="it is not, and why", generate_examples=False)},
)
async def healthz(request: AnyRequest) -> Response[Verdict]:
    reason = gateway_of(request).health.reason
    return Response(
        msgspec.json.encode(Verdict(reason is None, reason)),  # type: ignore[arg-type]
        status_code=200 if reason is None else 503,
        media_type="application/json",
    )


@get(
    "/metrics",
    summary="Metrics in Prometheus' format, or in that of OpenMetrics for whoever accepts it",
    responses=problems(s401="no client has this key"),
    media_type="text/plain",
)
async def metrics(request: AnyRequest) -> Response[str]:
    gateway_of(request).access.admit(request, "ask")
    kind, text = exposition(request.headers.get("accept", ""))
    content: Any = text
    return Response(content, headers={"Content-Type": kind})


@get(
    "/figures",
    summary="The dashboard's figures: drift, alerts that fire, layout; and what queries may filter on",
    responses=problems(s401="no client has this key"),
)
async def figures(request: AnyRequest) -> Response[Figures]:
    gateway = gateway_of(request)
    gateway.access.admit(request, "ask")
    content: Any = msgspec.json.encode(gateway.figures.current)
    return Response(content, media_type="application/json")
