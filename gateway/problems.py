"""What cannot be done, as RFC 9457 has it: JSON that names what is wrong and what to do.

``type`` is ``urn:sidstream:problem:`` and the kind; kinds that events have too are those of dead letters and answers.
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

from streamer.events.records import AnswerError

MEDIA_TYPE: Final = "application/problem+json"
TYPE: Final = "urn:sidstream:problem:"
# Of the errors that an answer or an event may have; any other one is a request that does not fit.
_STATUS_OF_KIND: Final = {
    "RateLimited": 429,
    "DeadlinePassed": 504,
    "EventTooLarge": 413,
    "NotFiniteScores": 502,
    "NoShard": 502,
}
# A query that finds nothing is answered: with no items, and why.
_ANSWERS: Final = frozenset({"NothingFound", "NothingEligible"})
_AGAIN_SECONDS: Final = 1.0


class ProblemDetails(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The body of every answer that is none (RFC 9457). ``query_id``: of the query, where there was one."""

    type: str
    title: str
    status: int
    detail: str
    query_id: str | None = None


class Problem(Exception):
    """Ends a request with ``status``; ``detail``: what is wrong, with what, and what to do."""

    def __init__(
        self,
        status: int,
        kind: str,
        detail: str,
        *,
        query_id: str | None = None,
        again_seconds: float | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        """``again_seconds``: when to come again, as ``Retry-After``."""
        super().__init__(detail)
        self.status = status
        self.details = ProblemDetails(
            type=TYPE + kind, title=_title(kind), status=status, detail=detail, query_id=query_id
        )
        self.headers = dict(headers or {})
        if again_seconds is not None:
            self.headers["Retry-After"] = str(max(1, math.ceil(again_seconds)))

    @property
    def body(self) -> bytes:
        return msgspec.json.encode(self.details)


def refused(kind: str, message: str, *, query_id: str | None = None) -> Problem:
    """What an event or an answer says of itself."""
    status = _STATUS_OF_KIND.get(kind, 400)
    again = _AGAIN_SECONDS if status == 429 else None
    return Problem(status, kind, message, query_id=query_id, again_seconds=again)


def problem_of(error: AnswerError | None, query_id: str) -> Problem | None:
    """Why an answer is none; None if it is one, with or without items."""
    return None if error is None or error.kind in _ANSWERS else refused(error.kind, error.message, query_id=query_id)


def too_busy(what: str, again_seconds: float = _AGAIN_SECONDS) -> Problem:
    """Backpressure."""
    return Problem(429, "TooBusy", what, again_seconds=again_seconds)


def _title(kind: str) -> str:
    """Words of a kind: ``UnknownField`` → "unknown field"."""
    return "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in kind).strip()
