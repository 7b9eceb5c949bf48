"""Ask a question and wait for its answer, over the queries and results topics.

Anyone with a Kafka client can do the same: send a JSON query under a key of your own, read the record with that key.
In an application that uses OpenTelemetry a question is part of the trace that is current (docs/tracing.md).
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Literal, Self

import msgspec
from confluent_kafka import Producer

from models.errors import SidstreamError
from retriever.asking import AskingError, Results, query_producer, send_query
from retriever.merging import PacedQuestion, Question, ShardsError
from streamer.events.intake import EventError, checked_time
from streamer.events.records import ANSWER, Answer, Query
from streamer.filters.slate import SlateRule
from streamer.kafka.admin import require
from streamer.settings import Settings
from streamer.shards.parts import AnsweredPart
from streamer.tracing.context import Headers
from streamer.tracing.sending import asking, tell_unanswered

_POLL_SECONDS: Final = 0.02


class ClientError(SidstreamError):
    """No answer came, or the topics cannot be read."""


def raw_filter(filter: Mapping[str, Any]) -> msgspec.Raw:
    """A filter as ``Query`` carries it.

    Raises:
        ClientError: it holds what JSON does not have.
    """
    try:
        return msgspec.Raw(msgspec.json.encode(filter))
    except (TypeError, ValueError, RecursionError) as error:
        raise ClientError(f"the filter cannot be sent as JSON: {error}") from None


def slate_rules(rules: Sequence[SlateRule | Mapping[str, Any]]) -> tuple[SlateRule, ...]:
    """The rules of a slate as ``Query`` carries them.

    Raises:
        ClientError: one has another form than ``SlateRule``.
    """
    try:
        return tuple(rule if isinstance(rule, SlateRule) else msgspec.convert(rule, SlateRule) for rule in rules)
    except msgspec.ValidationError as error:
        raise ClientError(f'a rule of the slate is no {{"per": …, "most": …}}: {error}') from None


class Client:
    """Asks queries; connects at the first one. Not for several threads at once: give each its own.

    >>> with Client(settings) as client:  # doctest: +SKIP
    ...     answer = client.ask("electric kettle", history=["sku-17"])
    ...     print(answer.items[0].title)
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._results: Results | None = None
        self._producer: Producer | None = None

    def ask(
        self,
        text: str = "",
        *,
        history: Sequence[str] = (),
        embedding: Sequence[float] | None = None,
        user: str | None = None,
        limit: int = 10,
        filter: Mapping[str, Any] | None = None,
        exclude: Sequence[str] = (),
        keep_history: bool = False,
        search: Literal["beam", "exact"] | None = None,
        explain: bool = False,
        why_not: Sequence[str] = (),
        slate: Sequence[SlateRule | Mapping[str, Any]] = (),
        timeout_seconds: float = 30.0,
    ) -> Answer:
        """One query's answer; its ``error`` says why there are no items. No retriever works on it after the timeout.

        ``embedding``: of what is asked, in the space of the items' embeddings, if the client has one; ``filter``: what an item's
        attributes must fulfil, as ``{"field": "price", "lte": 30}`` (docs/filters.md); ``exclude``: ids of items that the answer
        may not name; ``keep_history``: it may name items of ``history``; ``search``: exact drops no SID that a beam drops, None
        for what the retriever's settings say. ``explain``: each item has an ``explanation``, and the answer has one
        (docs/explain.md); ``why_not``: ids of items of which the answer says why they are not in it; ``slate``: rules for all of
        its items, as ``{"per": "brand", "most": 2}``.

        Raises:
            ClientError: no answer within ``timeout_seconds``, or a filter or slate that cannot be sent.
        """
        query = Query(
            text=text,
            history=tuple(history),
            embedding=msgspec.UNSET if embedding is None else [float(number) for number in embedding],
            user=user,
            limit=limit,
            filter=msgspec.UNSET if filter is None else raw_filter(filter),
            exclude=tuple(exclude) or msgspec.UNSET,
            exclude_history=False if keep_history else msgspec.UNSET,
            search=search or msgspec.UNSET,
            explain=explain or msgspec.UNSET,
            why_not=tuple(why_not) or msgspec.UNSET,
            slate=slate_rules(slate) or msgspec.UNSET,
        )
        return self.ask_all([query], timeout_seconds=timeout_seconds)[0]

    def ask_all(self, queries: Sequence[Query], *, timeout_seconds: float = 30.0) -> list[Answer]:
        """Answers in the order of the queries, which are all sent at once; a ``timeout_ms`` of their own stays.

        Raises:
            ClientError: a query has an ``asked_at`` that is not in milliseconds, and none is sent; or some answers are
                missing after ``timeout_seconds``.
        """
        found = self.ask_within(queries, timeout_seconds=timeout_seconds)
        answers = [answer for answer in found if answer is not None]
        if missing := len(found) - len(answers):
            raise ClientError(
                f"{missing} of {len(found)} queries were not answered within {timeout_seconds:g} s: is a retriever "
                "running? `sidstream status` tells"
            )
        return answers

    def ask_within(self, queries: Sequence[Query], *, timeout_seconds: float = 30.0) -> list[Answer | None]:
        """As ``ask_all``, with ``None`` for each query that was not answered within ``timeout_seconds``.

        Raises:
            ClientError: a query has an ``asked_at`` that is not in milliseconds, and none is sent.
        """
        for number, query in enumerate(queries, start=1):
            if query.asked_at is not None:
                try:
                    checked_time(query.asked_at, "asked_at", int(time.time() * 1000))
                except EventError as error:
                    raise ClientError(f"query {number} of {len(queries)}: {error}") from None
        self._connect()
        ids = [uuid.uuid4().hex for _ in queries]
        with asking(self._settings.topics.queries, len(queries)) as traced:
            ask = self._ask_shards if self._settings.retriever.shards > 1 else self._ask_one_index
            found = ask(ids, queries, timeout_seconds, traced)
            tell_unanswered(found.count(None))
            return found

    def _ask_one_index(
        self, ids: Sequence[str], queries: Sequence[Query], timeout_seconds: float, traced: Headers
    ) -> list[Answer | None]:
        results, producer = self._connect()
        for query_id, query in zip(ids, queries, strict=True):
            send_query(producer, self._settings.topics.queries, query_id, query, timeout_seconds, traced)
        producer.flush(timeout_seconds)
        waiting = {query_id.encode() for query_id in ids}
        answers: dict[str, Answer] = {}
        deadline = time.monotonic() + timeout_seconds
        results.look_later()
        while waiting:
            results.look_for_partitions()
            if time.monotonic() > deadline:
                break
            for record in results.read(0.1):
                if record.key() in waiting:
                    waiting.discard(record.key())
                    answer: Answer = ANSWER.decode(record.value())
                    if isinstance(answer.part, AnsweredPart):
                        raise ClientError(
                            f"the answer comes from a shard, which holds the partitions {answer.part.partitions} of "
                            f"{answer.part.partition_count} alone: set retriever.shards to the number of shards, to ask all"
                        )
                    answers[answer.query_id] = answer
        return [answers.get(query_id) for query_id in ids]

    def _ask_shards(
        self, ids: Sequence[str], queries: Sequence[Query], timeout_seconds: float, traced: Headers
    ) -> list[Answer | None]:
        """Each query in its rounds over all shards."""
        results, producer = self._connect()
        began = time.monotonic()
        questions = {
            query_id.encode(): PacedQuestion(
                Question(query_id, query, self._settings.retriever.shards), began, timeout_seconds
            )
            for query_id, query in zip(ids, queries, strict=True)
        }
        open_ = dict(questions)
        results.look_later()
        while open_ and (now := time.monotonic()) < began + timeout_seconds:
            results.look_for_partitions()
            try:
                for key, asked in list(open_.items()):
                    if (record := asked.due(now)) is not None:
                        left = began + timeout_seconds - now
                        send_query(producer, self._settings.topics.queries, key.decode(), record, left, traced)
                    elif asked.answered:
                        del open_[key]
                if not open_:
                    break
                for one in results.read(_POLL_SECONDS):
                    if (asked_there := open_.get(one.key())) is not None:
                        asked_there.take(ANSWER.decode(one.value()))
            except ShardsError as error:
                raise ClientError(str(error)) from error
        return [None if key in open_ else asked.answer() for key, asked in questions.items()]

    def _connect(self) -> tuple[Results, Producer]:
        if self._results is None or self._producer is None:
            topics = self._settings.topics
            require(self._settings.kafka, [topics.queries, topics.results])
            try:
                self._results = Results(self._settings)
            except AskingError as error:
                raise ClientError(str(error)) from error
            self._producer = query_producer(self._settings)
        return self._results, self._producer

    def close(self) -> None:
        """Let go of the connections; asking again connects anew."""
        if self._results is not None:
            self._results.close()
        self._results = self._producer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
