"""Queries of the event loop on a real broker, with answers written by the test instead of a retriever."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import pytest
from confluent_kafka import Producer
from msgspec import UNSET

from gateway.kafka.questions import Answered, Questions
from gateway.problems import Problem
from streamer.events.records import ANSWER, QUERY, Answer, AnswerError, AnswerItem, Query
from streamer.kafka.clients import producer_configuration
from streamer.process.health import Health
from streamer.settings import Settings
from streamer.shards.parts import AnsweredPart, AskedPart
from support.patience import PATIENCE_SECONDS
from support.processes import committed_records

Asking = Callable[[], Awaitable[tuple[str, Answered | None]]]


def with_gateway(settings: Settings, **values: object) -> Settings:
    return settings.model_copy(update={"gateway": settings.gateway.model_copy(update=values)})


@asynccontextmanager
async def questions(settings: Settings) -> AsyncIterator[Questions]:
    made = Questions(settings, Health())
    made.start()
    try:
        yield made
    finally:
        made.close()


def answer(settings: Settings, *answers: Answer) -> None:
    producer = Producer(producer_configuration(settings.kafka))
    for one in answers:
        producer.produce(settings.topics.results, key=one.query_id.encode(), value=ANSWER.encode(one))
    assert producer.flush(PATIENCE_SECONDS) == 0


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():
            await asyncio.sleep(0.01)


def asked_ids(settings: Settings) -> list[str]:
    return [record.key().decode() for record in committed_records(settings, settings.topics.queries)]


def test_late_answer_is_fetched_by_whoever_asked_and_kept_within_bounds(pipeline_settings: Settings) -> None:
    settings = with_gateway(pipeline_settings, answers_kept=2)

    async def story() -> None:
        async with questions(settings) as asking:
            ids = []
            for _ in range(3):
                query_id, answered = await asking.ask(Query(text="kettle"), "ada", 0.0)
                assert answered is None
                assert asking.fetch(query_id, "ada") is None, "it may still come"
                with pytest.raises(Problem, match="no late answer"):
                    asking.fetch(query_id, "eve")
                ids.append(query_id)
            for number, query_id in enumerate(ids):
                answer(settings, Answer(query_id=query_id))
                await until(lambda still=2 - number: asking.waiting == still)  # type: ignore[misc]
            assert asking.kept == 2
            with pytest.raises(Problem, match="no late answer") as forgotten:
                asking.fetch(ids[0], "ada")
            assert forgotten.value.status == 404
            for query_id in ids[1:]:
                found = asking.fetch(query_id, "ada")
                assert found is not None
                assert ANSWER.decode(found.value).query_id == query_id
                with pytest.raises(Problem, match="no late answer"):
                    asking.fetch(query_id, "eve")

    asyncio.run(story())


def test_event_loop_turns_while_answers_are_awaited_and_an_error_comes_through(pipeline_settings: Settings) -> None:
    async def story() -> None:
        async with questions(pipeline_settings) as asking:
            asked = asyncio.create_task(asking.ask(Query(text="kettle"), "ada", PATIENCE_SECONDS))
            turns = 0
            answering: threading.Thread | None = None
            while not asked.done():
                await asyncio.sleep(0.001)
                turns += 1
                if turns == 50:

                    def reply() -> None:
                        [query_id] = asked_ids(pipeline_settings)
                        error = AnswerError(kind="NothingFound", message="the index is empty")
                        answer(pipeline_settings, Answer(query_id=query_id, error=error))

                    answering = threading.Thread(target=reply)
                    answering.start()
            query_id, answered = await asked
            assert answered is not None
            assert answered.error is not None
            assert (answered.error.kind, ANSWER.decode(answered.value).query_id) == ("NothingFound", query_id)
            assert answering is not None
            answering.join()

    asyncio.run(story())


def test_query_beyond_what_may_wait_is_told_to_come_again_and_the_end_tells_those_that_wait(
    pipeline_settings: Settings,
) -> None:
    settings = with_gateway(pipeline_settings, maximum_waiting=1)

    async def story() -> None:
        async with questions(settings) as asking:
            waits = asyncio.create_task(asking.ask(Query(text="kettle"), "ada", PATIENCE_SECONDS))
            await until(lambda: asking.waiting == 1)
            with pytest.raises(Problem, match="ask again") as busy:
                await asking.ask(Query(text="lamp"), "eve", PATIENCE_SECONDS)
            assert (busy.value.status, busy.value.headers["Retry-After"]) == (429, "1")
            asking.end_by(0.0)
            query_id, answered = await waits
            assert answered is None
            assert asking.fetch(query_id, "ada") is None

    asyncio.run(story())


def test_shard_that_answers_whoever_asks_a_whole_index_is_said_to_be_one(pipeline_settings: Settings) -> None:
    async def story() -> None:
        async with questions(pipeline_settings) as asking:
            asked = asyncio.create_task(asking.ask(Query(text="kettle"), "ada", PATIENCE_SECONDS))
            ids: Sequence[str] = ()
            while not ids:
                ids = await asyncio.to_thread(asked_ids, pipeline_settings)
            said = AnsweredPart(partitions="0-1", partition_count=4)
            await asyncio.to_thread(answer, pipeline_settings, Answer(query_id=ids[0], part=said))
            with pytest.raises(Problem, match=r"retriever\.shards") as fault:
                await asked
            assert fault.value.status == 502

    asyncio.run(story())


def over_shards(settings: Settings) -> Settings:
    return settings.model_copy(update={"retriever": settings.retriever.model_copy(update={"shards": 2})})


def part(query_id: str, partitions: str, asked: AskedPart, *items: AnswerItem) -> Answer:
    """What a shard says, of a search that has found nothing but these."""
    said = AnsweredPart(
        partitions=partitions,
        partition_count=4,
        step=asked.step,
        round=asked.round,
        sids=(),
        order=tuple((item.score, 0, 0) for item in items),
    )
    return Answer(query_id=query_id, items=items, part=said, bundle="b", layout=1)


async def rounds(settings: Settings, count: int) -> list[tuple[str, AskedPart]]:
    """The id and the part of each query that was sent, once there are so many."""
    sent: list[tuple[str, AskedPart]] = []
    while len(sent) < count:
        records = await asyncio.to_thread(committed_records, settings, settings.topics.queries)
        sent = sorted(
            ((record.key().decode(), QUERY.decode(record.value()).part) for record in records),
            key=lambda one: one[1].round,
        )
    return sent


def item(name: str, score: float) -> AnswerItem:
    return AnswerItem(item_id=name, title=name, sid="<a_1>", score=score)


def test_parts_of_all_shards_are_one_answer(pipeline_settings: Settings) -> None:
    settings = over_shards(pipeline_settings)

    async def story() -> None:
        async with questions(settings) as asking:
            asked = asyncio.create_task(asking.ask(Query(text="kettle"), "ada", PATIENCE_SECONDS))
            for count in (1, 2):
                query_id, step = (await rounds(settings, count))[-1]
                parts = [
                    part(query_id, "0-1", step, item("one", -1.0)),
                    part(query_id, "2-3", step, item("two", -0.5)),
                ]
                await asyncio.to_thread(answer, settings, *parts)
            _, answered = await asked
            assert answered is not None
            whole = ANSWER.decode(answered.value)
            assert [one.item_id for one in whole.items] == ["two", "one"]
            assert (whole.missing_partitions, whole.part) == (UNSET, UNSET)

    asyncio.run(story())


def test_shard_that_says_nothing_is_gone_on_without_in_time_and_named(pipeline_settings: Settings) -> None:
    settings = over_shards(pipeline_settings)

    async def story() -> None:
        async with questions(settings) as asking:
            asked = asyncio.create_task(asking.ask(Query(text="kettle", timeout_ms=1_000), "ada", PATIENCE_SECONDS))
            for count in (1, 2):
                query_id, step = (await rounds(settings, count))[-1]
                await asyncio.to_thread(answer, settings, part(query_id, "0-1", step, item("one", -1.0)))
            _, answered = await asked
            assert answered is not None
            whole = ANSWER.decode(answered.value)
            assert whole.missing_partitions == (2, 3)
            assert "a partial answer" in whole.note

    asyncio.run(story())
