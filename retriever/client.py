"""Ask a question and wait for its answer, over the queries and results topics.

Anyone with a Kafka client can do the same: send a JSON query under a key of your own, read the record with that key.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Literal, Self

import msgspec
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, Producer, TopicPartition

from models.errors import SidstreamError
from retriever.merging import Question, ShardsError
from streamer.events.cloudevents import cloud_event_headers
from streamer.events.intake import EventError, checked_time
from streamer.events.records import ANSWER, QUERY, Answer, Query
from streamer.filters.slate import SlateRule
from streamer.kafka.admin import require
from streamer.kafka.clients import consumer_configuration, producer_configuration
from streamer.kafka.errors import error_text, told
from streamer.kafka.gather import drain, produce
from streamer.settings import Settings
from streamer.shards.parts import AnsweredPart

_CONNECT_SECONDS: Final = 10.0
# An answer that takes longer may lie in a partition that results got since we connected: looked for so often.
_LOOK_SECONDS: Final = 1.0
# Of a query over shards: what is kept of its time for each round that follows, and the rest before it is asked anew, as shards do
# not exchange a bundle in the same moment.
_ROUND_SECONDS: Final = 2.0
_ANEW_SECONDS: Final = 0.2
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
        self._consumer: Consumer | None = None
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
        consumer, producer = self._connect()
        ids = [uuid.uuid4().hex for _ in queries]
        if self._settings.retriever.shards > 1:
            return self._ask_shards(ids, queries, timeout_seconds)
        for query_id, query in zip(ids, queries, strict=True):
            self._send(producer, query_id, query, timeout_seconds)
        producer.flush(timeout_seconds)
        waiting = {query_id.encode() for query_id in ids}
        answers: dict[str, Answer] = {}
        asked_at = time.monotonic()
        deadline, look_at = asked_at + timeout_seconds, asked_at + _LOOK_SECONDS
        while waiting:
            if time.monotonic() > look_at:
                self._read_added_partitions(consumer)
                look_at = time.monotonic() + _LOOK_SECONDS
            if time.monotonic() > deadline:
                break
            for record in drain(consumer, 500, 0.1):
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

    def _send(self, producer: Producer, query_id: str, query: Query, seconds: float) -> None:
        """Sends a query that no retriever shall work on after so many seconds, or those that it says itself."""
        if query.timeout_ms is None:
            query = msgspec.structs.replace(query, timeout_ms=max(1, int(seconds * 1000)))
        produce(
            producer,
            self._settings.topics.queries,
            key=query_id.encode(),
            value=QUERY.encode(query),
            headers=cloud_event_headers("query", identity=query_id, subject=query_id, at=int(time.time() * 1000)),
        )

    def _ask_shards(self, ids: Sequence[str], queries: Sequence[Query], timeout_seconds: float) -> list[Answer | None]:
        """Each query in its rounds over all shards. Of a shard that is late a round waits for as long as the rounds after it may
        still be answered in time; then it goes on without, and the answer says so.
        """
        consumer, producer = self._connect()
        questions = {
            query_id.encode(): Question(query_id, query, self._settings.retriever.shards)
            for query_id, query in zip(ids, queries, strict=True)
        }
        deadline = time.monotonic() + timeout_seconds
        reserve = min(timeout_seconds / 4, _ROUND_SECONDS)
        due = dict.fromkeys(questions, 0.0)  # key → when its record is to be sent; none while it is waited for
        open_ = dict(questions)
        look_at = time.monotonic() + _LOOK_SECONDS
        while open_ and (now := time.monotonic()) < deadline:
            for key in [key for key, at in due.items() if at <= now]:
                del due[key]
                self._send(producer, key.decode(), open_[key].record(), deadline - now)
            if now > look_at:
                self._read_added_partitions(consumer)
                look_at = now + _LOOK_SECONDS
            try:
                for record in drain(consumer, 500, _POLL_SECONDS):
                    if (asked := open_.get(record.key())) is not None:
                        asked.take(ANSWER.decode(record.value()))
                now = time.monotonic()
                for key, asked in list(open_.items()):
                    late = asked.has_any and now > deadline - reserve * (asked.rounds_left + 0.5)
                    if key in due or not (asked.has_all or late):
                        continue
                    anew = asked.begun_anew
                    if not asked.go_on():
                        del open_[key]
                        continue
                    due[key] = now + (_ANEW_SECONDS if asked.begun_anew > anew else 0.0)
            except ShardsError as error:
                raise ClientError(str(error)) from error
        return [None if key in open_ else asked.answer() for key, asked in questions.items()]

    def _connect(self) -> tuple[Consumer, Producer]:
        if self._consumer is None or self._producer is None:
            topics = self._settings.topics
            require(self._settings.kafka, [topics.queries, topics.results])
            consumer = Consumer(
                consumer_configuration(
                    self._settings.kafka, group=self._settings.in_cluster("sidstream-client"), fetch_wait_max_ms=50
                )
            )
            try:
                # Only what comes after this moment; an answer must not slip in before the first fetch.
                partitions = (
                    consumer.list_topics(topics.results, timeout=_CONNECT_SECONDS).topics[topics.results].partitions
                )
                ends = [
                    TopicPartition(
                        topics.results,
                        partition,
                        told(
                            consumer.get_watermark_offsets(
                                TopicPartition(topics.results, partition), timeout=_CONNECT_SECONDS
                            )[1]
                        ),
                    )
                    for partition in partitions
                ]
            except KafkaException as error:
                consumer.close()
                raise ClientError(
                    f"cannot read {topics.results} on {self._settings.kafka.bootstrap_servers}: {error_text(error)}"
                ) from error
            consumer.assign(ends)
            self._consumer = consumer
            # Without idempotence the first query leaves half a second earlier; a repeated one is answered again, and ignored.
            self._producer = Producer(
                producer_configuration(self._settings.kafka, linger_ms=0, enable_idempotence=False, acks="all")
            )
        return self._consumer, self._producer

    def _read_added_partitions(self, consumer: Consumer) -> None:
        """Partitions that results got since: from their beginning, as nothing of before we connected can lie there."""
        topic = self._settings.topics.results
        known = {assigned.partition for assigned in consumer.assignment()}
        try:
            partitions = consumer.list_topics(topic, timeout=_LOOK_SECONDS).topics[topic].partitions
        except KafkaException:
            return  # away; asked again
        added = [TopicPartition(topic, number, OFFSET_BEGINNING) for number in partitions if number not in known]
        if added:
            consumer.incremental_assign(added)

    def close(self) -> None:
        """Let go of the connections; asking again connects anew."""
        if self._consumer is not None:
            self._consumer.close()
        self._consumer = self._producer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
