"""What every route reads of a request: whose it is, its body, how long it waits."""

from __future__ import annotations

import re
from typing import Any, Final

from litestar.connection import Request
from litestar.exceptions import HTTPException

from gateway.gateway import Gateway
from gateway.problems import Problem

AnyRequest = Request[Any, Any, Any]
JSON_TYPES: Final = ("application/json", "application/msgpack", "application/x-msgpack")
LINES_TYPES: Final = ("application/x-ndjson", "application/ndjson", "application/jsonl")
_WAIT: Final = re.compile(r"\bwait\s*=\s*\"?(\d{1,6}(?:\.\d{1,6})?)")


def gateway_of(request: AnyRequest) -> Gateway:
    """All that the routes work with."""
    found: Gateway = request.app.state.gateway
    return found


def require_type(request: AnyRequest, allowed: tuple[str, ...]) -> None:
    """Refuses another media type: also what a page of another site may send without being asked about.

    Raises:
        Problem: 415.
    """
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given not in allowed:
        raise Problem(
            415, "UnsupportedMediaType", f"the Content-Type is {given[:80]!r}: send {' or '.join(allowed)}, and say so"
        )


async def body_of(request: AnyRequest) -> bytes:
    """Raises ``Problem`` (413) for one that is longer than anything the gateway takes."""
    try:
        return await request.body()
    except HTTPException as error:
        if error.status_code != 413:
            raise
        raise Problem(
            413,
            "EventTooLarge",
            "the body is larger than anything that is taken here: see assigner.maximum_event_bytes",
        ) from None


def seconds_to_wait(request: AnyRequest, most: float) -> float:
    """``Prefer: wait=N`` (RFC 7240), at most ``most``, which is also meant without it."""
    found = _WAIT.search(request.headers.get("prefer", ""))
    return most if found is None else min(most, float(found[1]))
