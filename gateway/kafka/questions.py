"""Queries out and their answers back, for the event loop: a thread polls, and hands what has come over to the loop.

What must hold: the event loop never waits for Kafka; each query that was taken is answered, or known as late until its time has
passed; what nobody fetches is let go.
"""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, NamedTuple

import msgspec
import structlog
from confluent_kafka import Producer
from msgspec import UNSET, UnsetType

from gateway.problems import Problem, refused, too_busy
from retriever.asking import Results, query_producer, query_record
from retriever.merging import PacedQuestion, Question, ShardsError
from streamer.events.records import ANSWER, AnswerError, Query
from streamer.kafka.reachability import BrokerProbe
from streamer.process.health import Health, Part
from streamer.settings import Settings
from streamer.tracing.context import Headers
from streamer.tracing.sending import headers_of_new

log = structlog.get_logger(__name__)
_POLL_SECONDS: Final = 0.05
_PROGRESS_SECONDS: Final = 1.0
_PACE_SECONDS: Final = 0.02  # between two looks at the rounds of queries over shards
_MARGIN_SECONDS: Final = 5.0  # after a query's deadline: what says that it passed may still come


class _Outcome(msgspec.Struct):
    """What the gateway looks at in an answer; the rest goes on as it came."""

    error: AnswerError | None = None
    part: msgspec.Raw | UnsetType = UNSET


_OUTCOME: Final = msgspec.json.Decoder(_Outcome)


class Answered(NamedTuple):
    """An answer as JSON, and its error."""

    value: bytes
    error: AnswerError | None


class Kept(NamedTuple):
    """A late answer, and whose it is; ``until``: seconds of the monotonic clock."""

    client: str
    answered: Answered
    until: float


@dataclass(slots=True)
class _Open:
    """A query without an answer. ``future``: of the request that waits for it, None once that has gone; ``traced``: headers of
    the request's trace.
    """

    client: str
    future: asyncio.Future[Answered] | None
    until: float
    rounds: PacedQuestion | None
    traced: Headers


class Questions:
    """Made before the event loop, ``start``ed in it. All state belongs to the loop; the thread only looks which ids are asked."""

    def __init__(self, settings: Settings, health: Health) -> None:
        """Raises ``AskingError`` if the results cannot be read."""
        self._settings = settings
        self._own = settings.gateway
        self._health = health
        self._results = Results(settings, health)
        self._producer: Producer = query_producer(settings, health)
        self._probe = BrokerProbe([self._results.consumer, self._producer], settings.kafka, health)
        self._open: dict[bytes, _Open] = {}
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._kept_bytes = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._read, name="answers", daemon=True)
        self._pacing: asyncio.Task[None] | None = None
        self._last_moment = float("inf")  # when requests are answered without their answers: the process ends
        self.fault: BaseException | None = None

    def start(self) -> None:
        """In the event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        if self._settings.retriever.shards > 1:
            self._pacing = self._loop.create_task(self._pace())

    async def ask(self, query: Query, client: str, seconds: float) -> tuple[str, Answered | None]:
        """The query's id and its answer, None if that has not come within ``seconds``.

        Raises:
            Problem: too many queries wait, or shards contradict the settings.
        """
        most = self._own.maximum_waiting
        if len(self._open) >= most:
            raise too_busy(
                f"{most:,} queries wait for answers: the retrievers are behind; ask again, or run more of them"
            )
        query_id, now = uuid.uuid4().hex, time.monotonic()
        longest = self._settings.retriever.maximum_wait_seconds
        if query.timeout_ms is not None:
            longest = min(longest, query.timeout_ms / 1000)
        shards = self._settings.retriever.shards
        rounds = PacedQuestion(Question(query_id, query, shards), now, longest) if shards > 1 else None
        future: asyncio.Future[Answered] = self._loop.create_future()
        traced = headers_of_new(self._settings.topics.queries, query_id.encode()) or []
        asked = _Open(client, future, now + longest + _MARGIN_SECONDS, rounds, traced)
        self._open[query_id.encode()] = asked
        try:
            self._send(query_id, query if rounds is None else rounds.due(now) or query, longest, traced)
        except BaseException:
            del self._open[query_id.encode()]
            raise
        seconds = min(seconds, max(0.0, self._last_moment - now))
        try:
            return query_id, await asyncio.wait_for(future, seconds)
        except TimeoutError:
            return query_id, None
        finally:
            asked.future = None

    def _send(self, query_id: str, query: Query, seconds: float, traced: Headers) -> None:
        try:
            self._producer.produce(self._settings.topics.queries, **query_record(query_id, query, seconds, traced))
        except BufferError:
            raise too_busy("as many queries are on their way to the broker as are held: ask again") from None

    def fetch(self, query_id: str, client: str) -> Answered | None:
        """The late answer of a query of this client; None if it has not come yet.

        Raises:
            Problem: 404: no such query, or it was forgotten.
        """
        kept = self._kept.get(query_id)
        if kept is not None and kept.client == client:
            return kept.answered
        asked = self._open.get(query_id.encode("utf-8", "replace"))
        if asked is not None and asked.client == client and kept is None:
            return None
        raise Problem(
            404,
            "UnknownQuery",
            f"no late answer has the id {query_id[:80]!r}: this gateway keeps those of its own queries for "
            f"{self._own.answers_kept_seconds:g} s, and of a query that was answered in time none. Ask again",
            query_id=query_id[:80],
        )

    @property
    def waiting(self) -> int:
        """Queries without an answer."""
        return len(self._open)

    @property
    def kept(self) -> int:
        """Late answers that nobody has fetched, or somebody may fetch again."""
        return len(self._kept)

    def end_by(self, moment: float) -> None:
        """Whoever still waits at this moment of the monotonic clock is told that the answer is late."""
        self._last_moment = moment
        self._loop.call_later(max(0.0, moment - time.monotonic()), self._tell_all)

    def _tell_all(self) -> None:
        for asked in self._open.values():
            if asked.future is not None and not asked.future.done():
                asked.future.set_exception(TimeoutError())

    def look(self) -> None:
        """Once a second, in the loop: lets go of what has had its time."""
        now = time.monotonic()
        for key in [key for key, asked in self._open.items() if asked.until < now and asked.future is None]:
            del self._open[key]
        while self._kept and next(iter(self._kept.values())).until < now:
            self._drop_oldest()

    def _take(self, found: list[tuple[bytes, bytes]]) -> None:
        """In the loop: what the thread has read of queries that are asked."""
        for key, value in found:
            asked = self._open.get(key)
            if asked is None:
                continue
            try:
                if asked.rounds is not None:
                    asked.rounds.take(ANSWER.decode(value))
                    self._go_on(key, asked, time.monotonic())
                    continue
                outcome = _OUTCOME.decode(value)
                if outcome.part is not UNSET and outcome.error is None:
                    raise ShardsError(
                        "the answer comes from a shard, which holds a part of the index: set retriever.shards to the number "
                        "of shards, to ask all"
                    )
            except (ShardsError, msgspec.DecodeError) as error:
                self._fail(key, asked, error)
                continue
            self._answer(key, asked, Answered(value, outcome.error))

    def _go_on(self, key: bytes, asked: _Open, now: float) -> None:
        """Another round of a query over shards, or its answer."""
        rounds = asked.rounds
        assert rounds is not None
        try:
            record = rounds.due(now)
            if record is not None:
                self._send(key.decode(), record, max(0.1, asked.until - _MARGIN_SECONDS - now), asked.traced)
            elif rounds.answered:
                answer = rounds.answer()
                self._answer(key, asked, Answered(ANSWER.encode(answer), answer.error))
        except (ShardsError, Problem) as error:
            self._fail(key, asked, error)

    async def _pace(self) -> None:
        """A shard that is late is gone on without in time."""
        while True:
            await asyncio.sleep(_PACE_SECONDS)
            now = time.monotonic()
            for key, asked in list(self._open.items()):
                if asked.rounds is not None:
                    self._go_on(key, asked, now)

    def _answer(self, key: bytes, asked: _Open, answered: Answered) -> None:
        del self._open[key]
        if asked.future is not None and not asked.future.done():
            asked.future.set_result(answered)
            return
        if not self._own.answers_kept:
            return
        self._kept[key.decode()] = Kept(asked.client, answered, time.monotonic() + self._own.answers_kept_seconds)
        self._kept_bytes += len(answered.value)
        while len(self._kept) > self._own.answers_kept or self._kept_bytes > self._own.answers_kept_bytes:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        _, kept = self._kept.popitem(last=False)
        self._kept_bytes -= len(kept.answered.value)

    def _fail(self, key: bytes, asked: _Open, error: Exception) -> None:
        del self._open[key]
        if asked.future is not None and not asked.future.done():
            asked.future.set_exception(
                error if isinstance(error, Problem) else refused("NoShard", str(error), query_id=key.decode())
            )
        else:
            log.warning("answer_not_used", query_id=key.decode("utf-8", "replace"), reason=str(error))

    def _read(self) -> None:
        """The thread: polls both clients, and says that it turns."""
        try:
            self._health.set_ready(Part.INPUT)
            progress_at = 0.0
            while not self._ended.is_set():
                if self._open:
                    self._results.look_for_partitions()
                records = self._results.read(_POLL_SECONDS)
                self._producer.poll(0)
                found = [(key, record.value()) for record in records if (key := record.key()) in self._open]
                if found:
                    self._loop.call_soon_threadsafe(self._take, found)
                    self._probe.answered()
                self._probe.look()
                if (now := time.monotonic()) >= progress_at:
                    progress_at = now + _PROGRESS_SECONDS
                    self._loop.call_soon_threadsafe(self._health.progress)
        except BaseException as fault:
            self.fault = fault
            self._health.set_unready(Part.BROKER, str(fault))
        finally:
            self._results.close()

    def close(self) -> None:
        """In the loop, once no request waits any more."""
        if self._pacing is not None:
            self._pacing.cancel()
        self._ended.set()
        self._thread.join()
