"""The answer of ``POST /items``: lines in, lines out, at the same time.

What must hold: every line is answered, in their order, and one that the broker has not confirmed is never said to be accepted.
Whoever sends all before reading anything is served too: reading never waits for the answers to be taken, and what waits in memory
has a bound, as the lines of a request have.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec
from litestar.types import Receive, Scope, Send
from msgspec import UNSET, UnsetType

from gateway.clients.keys import ClientRecord
from gateway.gateway import Gateway
from gateway.kafka.writes import Place
from gateway.metrics import LINES
from gateway.problems import Problem, ProblemDetails, refused
from models.data_files import plain_id
from streamer.events.records import UNDECODABLE

_FULL_SECONDS: Final = 0.005  # between two looks whether there is room for another write
_CHUNK_BYTES: Final = 32 * 1024
_AROUND_UPDATE: Final = 1_024  # bytes of a line around the update


class LineOutcome(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of a line, counted from 1; ``until``: the last of several that have one outcome."""

    line: int
    until: int | None = None
    id: str | None = None
    status: str
    error: ProblemDetails | None = None


class LinesOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """The last line of the answer. ``token``: of all that were accepted, None if nothing was."""

    lines: int
    accepted: int
    refused: int
    token: str | None


class _Head(msgspec.Struct):
    """What a line says beside the update."""

    id: Any = None
    item_id: Any = None
    delete: bool | UnsetType = UNSET


_HEAD: Final = msgspec.json.Decoder(_Head)


class _Sent:
    """A line on its way; ``problem`` instead where it was refused. ``is_update``: of ``item-updates``."""

    __slots__ = ("futures", "id", "line", "model", "problem", "until")

    def __init__(self, line: int) -> None:
        self.line = line
        self.until: int | None = None
        self.id: str | None = None
        self.problem: Problem | None = None
        self.futures: list[asyncio.Future[Place]] = []  # of the update, and of the attributes' deletion
        self.model: str | UnsetType | None = UNSET


class Lines:
    """An ASGI application for one request."""

    def __init__(self, gateway: Gateway, client: ClientRecord) -> None:
        self._gateway = gateway
        self._client = client
        topics = gateway.settings.topics
        self._updates, self._attributes = topics.item_updates, topics.item_attributes
        writes = gateway.writes
        # Before the first of them is sent.
        self._letters = (
            writes.letters[topics.item_updates_dead_letters],
            writes.letters[topics.item_attributes_dead_letters],
        )
        self._longest = gateway.settings.assigner.maximum_event_bytes + _AROUND_UPDATE
        self._most = gateway.settings.gateway.maximum_lines
        self._waiting: deque[_Sent] = deque()
        self._news = asyncio.Event()
        self._read_to_end = False
        self._lines = self._accepted = self._refused = 0
        self._places: tuple[list[Place], list[Place]] = ([], [])
        self._models: set[str | None] = set()

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        with self._gateway.access.waiting(self._client):
            reading = asyncio.create_task(self._read(receive))
            try:
                await self._answer(send)
                await reading
            finally:
                reading.cancel()

    async def _read(self, receive: Receive) -> None:
        try:
            async for line in _lines(receive, self._longest):
                await self._take(line)
        finally:
            self._read_to_end = True
            self._news.set()

    async def _take(self, line: bytes | None) -> None:
        """``line``: None is one that is too long to be held."""
        self._lines += 1
        if line is not None and not line.strip():
            return  # an empty line is none of the items', but it is counted, so that numbers are those of the file
        sent = _Sent(self._lines)
        if self._lines > self._most:
            last = self._waiting[-1] if self._waiting else None
            if last is not None and last.until is not None:
                last.until = self._lines
                return
            sent.until = self._lines
            sent.problem = Problem(
                413,
                "TooManyLines",
                f"a request may have {self._most:,} lines (gateway.maximum_lines): send these and what follows in another one",
            )
        else:
            try:
                if line is None:
                    raise refused(
                        "EventTooLarge",
                        f"the line has more than {self._longest:,} bytes; see assigner.maximum_event_bytes",
                    )
                await self._send(sent, line)
            except Problem as problem:
                sent.problem = problem
        self._waiting.append(sent)
        self._news.set()

    async def _send(self, sent: _Sent, line: bytes) -> None:
        gateway = self._gateway
        head = _head(line)
        item_id = plain_id(head.id if head.id is not None else head.item_id)
        if not isinstance(item_id, str):
            raise refused("EmptyId", 'the line has no id: give the item\'s id as "id", a text')
        sent.id = item_id
        key = gateway.intake.item_id(item_id.encode("utf-8", "surrogatepass"))
        while gateway.writes.full:  # the body is read no further meanwhile
            await asyncio.sleep(_FULL_SECONDS)
        if head.delete is True:
            sent.futures = [
                gateway.writes.send(self._updates, key, None),
                gateway.writes.send(self._attributes, key, None),
            ]
            return
        if head.delete is False:
            raise refused("InvalidEvent", "delete is false: leave it out, or say true to delete the item")
        sent.model = gateway.intake.update(key, line)
        sent.futures = [gateway.writes.send(self._updates, key, line)]

    async def _answer(self, send: Send) -> None:
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"content-type", b"application/x-ndjson"), (b"x-accel-buffering", b"no")],
            }
        )
        while True:
            chunk = bytearray()
            while self._waiting and len(chunk) < _CHUNK_BYTES:
                sent = self._waiting[0]
                if sent.until is not None and not self._read_to_end:
                    break  # it grows yet
                if any(not future.done() for future in sent.futures):
                    if chunk:
                        break
                    await asyncio.wait(sent.futures)
                self._waiting.popleft()
                chunk += msgspec.json.encode(self._outcome(sent)) + b"\n"
            if chunk:
                await send({"type": "http.response.body", "body": bytes(chunk), "more_body": True})
            elif self._read_to_end and not self._waiting:
                break
            else:
                self._news.clear()
                if not (self._read_to_end or (self._waiting and self._waiting[0].until is None)):
                    await self._news.wait()
        token = None
        if self._places[0] or self._places[1]:
            token = self._gateway.tokens.of(*self._places, self._letters, sorted(self._models, key=str))
        last = LinesOutcome(lines=self._lines, accepted=self._accepted, refused=self._refused, token=token)
        await send({"type": "http.response.body", "body": msgspec.json.encode(last) + b"\n", "more_body": False})

    def _outcome(self, sent: _Sent) -> LineOutcome:
        problem = sent.problem
        places: list[Place] = []
        for future in sent.futures:
            fault = future.exception()
            if isinstance(fault, Problem):
                problem = fault
            elif fault is not None:
                raise fault
            else:
                places.append(future.result())
        count = 1 if sent.until is None else sent.until - sent.line + 1
        if problem is not None:
            self._refused += count
            LINES.labels("refused").inc(count)
            return LineOutcome(line=sent.line, until=sent.until, id=sent.id, status="refused", error=problem.details)
        self._accepted += 1
        LINES.labels("accepted").inc()
        self._places[0].append(places[0])
        self._places[1].extend(places[1:])
        if sent.model is not UNSET:
            self._models.add(sent.model)
        return LineOutcome(line=sent.line, id=sent.id, status="accepted")


async def _lines(receive: Receive, longest: int) -> AsyncIterator[bytes | None]:
    """The lines of a body; None for one that is longer than ``longest``. The last one need not end. Of a body that breaks off
    the last piece is no line."""
    rest = bytearray()
    skipping = False
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        *whole, tail = bytes(message.get("body", b"")).split(b"\n")  # type: ignore[call-overload]
        for piece in whole:
            rest += piece
            yield None if skipping or len(rest) > longest else bytes(rest)
            rest.clear()
            skipping = False
        rest += tail
        if len(rest) > longest:
            rest.clear()
            skipping = True
        if not message.get("more_body", False):
            if rest or skipping:
                yield None if skipping else bytes(rest)
            return
        await asyncio.sleep(0)  # others have their turn


def _head(line: bytes) -> _Head:
    try:
        return _HEAD.decode(line)
    except UNDECODABLE as error:
        raise refused("UndecodableEvent", f"the line is no JSON object of an item: {error}") from None
