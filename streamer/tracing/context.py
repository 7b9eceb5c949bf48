"""W3C Trace Context in the headers of records and requests: read, and passed on as it came.

What must hold: a header that is not as the specification says is as good as none, and never a fault of its record; without any,
a batch costs one look at each record.

Source: W3C Trace Context, § 3.2 (``traceparent``) and § 3.3 (``tracestate``); the same two names are used in Kafka's headers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final, NamedTuple

from confluent_kafka import Message

from streamer.events.headers import UnreadableHeadersError, all_headers, headers_of

Headers = list[tuple[str, bytes]]
PARENT: Final = "traceparent"
STATE: Final = "tracestate"
# A later version may say more after the flags; what it says is passed on unread.
_PARENT: Final = re.compile(
    rb"[ \t]*((?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-[\x21-\x7e]*)?)[ \t]*"
)
_PARENT_BYTES: Final = 512
_STATE: Final = re.compile(rb"[\t\x20-\x7e]*")
_STATE_BYTES: Final = 512  # of all members; what is beyond is cut off, the longest members first, then the last ones
_STATE_MEMBERS: Final = 32
_LONG_MEMBER_BYTES: Final = 128


class TraceContext(NamedTuple):
    """Which operation of which trace something comes from; the bytes of both headers, ``tracestate`` empty without one."""

    traceparent: bytes
    tracestate: bytes = b""

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits."""
        return self.traceparent[3:35].decode()

    @property
    def span_id(self) -> str:
        """16 hexadecimal digits, of the operation that it was made in."""
        return self.traceparent[36:52].decode()

    @property
    def flags(self) -> int:
        return int(self.traceparent[53:55], 16)

    @property
    def sampled(self) -> bool:
        """Whether its trace is recorded by whoever made it."""
        return bool(self.flags & 1)

    @property
    def headers(self) -> Headers:
        """Of a record that is made in this context."""
        parent = [(PARENT, self.traceparent)]
        return [*parent, (STATE, self.tracestate)] if self.tracestate else parent


_CURRENT: Final[ContextVar[TraceContext | None]] = ContextVar("trace_context", default=None)


def current_context() -> TraceContext | None:
    """What this thread, or this task of an event loop, works in."""
    return _CURRENT.get()


@contextmanager
def working_in(context: TraceContext | None) -> Iterator[None]:
    """Log lines have its trace id, and records that are sent have its headers, to the end of the block."""
    token = _CURRENT.set(context)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def trace_context(headers: Iterable[tuple[str, bytes | None]]) -> TraceContext | None:
    """The context in the headers of a record or a request, whatever the case of their names; None without a valid one."""
    parent: bytes | None = None
    states: list[bytes] = []
    for name, content in headers:
        if len(name) not in (len(PARENT), len(STATE)):
            continue
        match name.lower():
            case "traceparent":
                if parent is not None:
                    return None  # which of them?
                parent = content or b""
            case "tracestate":
                states.append(content or b"")
    if parent is None or len(parent) > _PARENT_BYTES:
        return None
    found = _PARENT.fullmatch(parent)
    if found is None or (parent.lstrip().startswith(b"00") and found[2] is not None):
        return None
    return TraceContext(found[1], _state(b",".join(states)) if states else b"")


def context_of(record: Message) -> TraceContext | None:
    """The context of a record."""
    try:
        headers = headers_of(record)
    except UnreadableHeadersError:
        return None
    return trace_context(headers) if headers else None


def contexts_of(records: Sequence[Message]) -> list[TraceContext | None] | None:
    """The context of each record; None instead of a list if none has one."""
    found = all_headers(records)
    if found.count(None) == len(records):
        return None
    contexts = [None if headers is None else context_of(record) for record, headers in zip(records, found, strict=True)]
    return None if contexts.count(None) == len(contexts) else contexts


def _state(state: bytes) -> bytes:
    """What is passed on of a ``tracestate``: nothing of one that is no header's content."""
    if not _STATE.fullmatch(state):
        return b""
    members = [member for one in state.split(b",") if (member := one.strip(b" \t"))]
    if len(members) > _STATE_MEMBERS or not all(b"=" in member for member in members):
        return b""
    if _length(members) > _STATE_BYTES:
        members = [member for member in members if len(member) <= _LONG_MEMBER_BYTES]
    while _length(members) > _STATE_BYTES:
        members.pop()
    return b",".join(members)


def _length(members: Sequence[bytes]) -> int:
    return sum(map(len, members)) + max(0, len(members) - 1)
