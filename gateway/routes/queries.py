"""``POST /query`` and ``GET /answers/{id}``."""

from __future__ import annotations

import time
from typing import Annotated, Any, Final

import msgspec
from litestar import Response, get, post
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import HeaderParameter, PathParameter

from gateway.kafka.questions import Answered
from gateway.problems import MEDIA_TYPE, Problem, ProblemDetails, problem_of
from gateway.routes.requests import JSON_TYPES, AnyRequest, body_of, gateway_of, require_type, seconds_to_wait
from streamer.events.records import Answer
from streamer.process.health import Part

AFTER_HEADER: Final = "Sidstream-After"
_AGAIN_SECONDS: Final = 1.0


class Pending(msgspec.Struct, frozen=True, kw_only=True):
    """A query that has no answer yet, and may still get one."""

    query_id: str


def problems(**statuses: str) -> dict[int, ResponseSpec]:
    """What a route may answer instead: ``s404="why"``."""
    return {
        int(status[1:]): ResponseSpec(ProblemDetails, description=why, media_type=MEDIA_TYPE, generate_examples=False)
        for status, why in statuses.items()
    }


@post(
    "/query",
    status_code=200,
    summary="Ask a query and wait for its answer",
    description="The body is the record of `queries`. An answer that comes too late is kept: 504 has the query's id, and "
    "`GET /answers/{id}` the answer. `Prefer: wait=SECONDS` waits less long.",
    responses=problems(
        s400="the query cannot be answered: what is wrong with it, and what to do",
        s401="no client has this key",
        s403="the client may not ask",
        s409="writes of the token were refused",
        s413="the query is too large",
        s415="another media type than JSON or MessagePack",
        s429="too many requests, or too many queries wait: `Retry-After` says when to come again",
        s503="the broker does not answer",
        s504="no answer in time: `query_id` is what to fetch it by",
    ),
)
async def ask(
    request: AnyRequest,
    after: Annotated[
        str | None,
        HeaderParameter(
            name=AFTER_HEADER, description="Tokens of writes, with commas between them: asked once they are indexed."
        ),
    ] = None,
    prefer: Annotated[str | None, HeaderParameter(name="Prefer", description="`wait=SECONDS` (RFC 7240).")] = None,
) -> Response[Answer]:
    gateway = gateway_of(request)
    client = gateway.access.admit(request, "ask")
    require_type(request, JSON_TYPES)
    query = gateway.intake.query(await body_of(request))
    require_broker(request)
    deadline = time.monotonic() + seconds_to_wait(request, gateway.settings.gateway.wait_seconds)
    with gateway.access.waiting(client):
        if after is not None:
            await gateway.indexed.wait_for(gateway.tokens.read(after), max(0.0, deadline - time.monotonic()))
        query_id, answered = await gateway.questions.ask(query, client.name, max(0.0, deadline - time.monotonic()))
    if answered is None:
        raise Problem(
            504,
            "NotAnsweredYet",
            f"no answer yet: fetch it later with GET /answers/{query_id}, or look at `sidstream status` whether a retriever runs",
            query_id=query_id,
            again_seconds=_AGAIN_SECONDS,
        )
    return _response(answered, query_id)


@get(
    "/answers/{query_id:str}",
    summary="Fetch the answer of a query that came too late for its request",
    description="202 while there is none yet. Kept by the gateway that took the query, for a while and not without bound.",
    responses={
        202: ResponseSpec(
            Pending, description="no answer yet: `Retry-After` says when to come again", generate_examples=False
        ),
        **problems(
            s401="no client has this key",
            s404="no such query of this client, or its answer is not kept any more",
        ),
    },
)
async def answer(
    request: AnyRequest, query_id: Annotated[str, PathParameter(description="of the problem that the query got")]
) -> Response[Answer]:
    gateway = gateway_of(request)
    client = gateway.access.admit(request, "ask")
    answered = gateway.questions.fetch(query_id, client.name)
    if answered is None:
        again = {"Retry-After": str(round(_AGAIN_SECONDS))}
        pending: Any = msgspec.json.encode(Pending(query_id=query_id))
        return Response(pending, status_code=202, media_type="application/json", headers=again)
    return _response(answered, query_id)


def require_broker(request: AnyRequest) -> None:
    """Raises ``Problem`` (503) while no broker answers: nothing would come back."""
    health = gateway_of(request).health
    if not health.is_well(Part.BROKER):
        raise Problem(503, "BrokerAway", f"{health.reason}: send it again", again_seconds=_AGAIN_SECONDS)


def _response(answered: Answered, query_id: str) -> Response[Any]:
    problem = problem_of(answered.error, query_id)
    if problem is not None:
        raise problem
    return Response(answered.value, media_type="application/json")
