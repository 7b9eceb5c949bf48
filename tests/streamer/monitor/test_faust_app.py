"""What streamer.monitor.faust_app changes in Faust, against Faust's own code and without a broker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from faust.types.tuples import TP

from streamer.monitor.faust_app import MonitorApp, new_app
from streamer.settings import load_settings

COUNTS = TP("token-counts", 0)


def with_app(tmp_path: Path, scenario: Callable[[MonitorApp, TP], Any]) -> None:
    """Run ``scenario(app, changelog)`` with an app that has one table, is assigned two partitions and reads none."""

    async def run() -> None:
        app = new_app(load_settings(), tmp_path)
        table = app.Table("counts", partitions=1, key_type=bytes, value_type=bytes)
        changelog = TP(table.changelog_topic.get_topic_name(), 0)
        app.consumer._set_active_tps({COUNTS, changelog})
        app.consumer.pause_partitions({COUNTS, changelog})
        await scenario(app, changelog)

    asyncio.run(run())


class Fetcher:
    async def maybe_start(self) -> None:
        pass


def test_after_recovery_nothing_is_fetched_before_the_position_is_sought_and_the_queues_are_emptied(
    tmp_path: Path,
) -> None:
    """Faust resumes, seeks and empties the queues, in this order: what is fetched meanwhile would be lost."""
    told: list[tuple[str, bool]] = []

    async def scenario(app: MonitorApp, changelog: TP) -> None:
        consumer, recovery = app.consumer, app.tables.recovery
        app.__dict__["_fetcher"] = Fetcher()  # Faust's cached property
        resume = app.flow_control.resume

        async def seek_to_committed() -> dict[TP, int | None]:
            told.append(("sought", COUNTS in consumer._active_partitions))
            return {COUNTS: None}

        def resume_queues() -> None:
            told.append(("emptied", COUNTS in consumer._active_partitions))
            resume()

        consumer._thread.seek_to_committed = seek_to_committed
        consumer._thread.assignment = lambda: {COUNTS, changelog}
        app.flow_control.resume = resume_queues
        app.assignor.assigned_standbys = set
        await recovery.on_recovery_completed(app.consumer_generation_id)
        told.append(("done", COUNTS in consumer._active_partitions))
        assert changelog not in consumer._active_partitions

    with_app(tmp_path, scenario)
    assert told == [("sought", False), ("emptied", False), ("done", True)]


def test_a_recovery_that_is_cut_short_resumes_nothing_of_the_one_before(tmp_path: Path) -> None:
    async def scenario(app: MonitorApp, changelog: TP) -> None:
        consumer = app.consumer
        consumer.resume_partitions({COUNTS})
        consumer.pause_partitions({COUNTS, changelog})  # a new assignment, before the flow was resumed
        consumer.resume_partitions({changelog})
        consumer.resume_flow()
        assert consumer._active_partitions == {changelog}

    with_app(tmp_path, scenario)


def test_a_fetch_while_every_partition_is_paused_takes_nothing(tmp_path: Path) -> None:
    """aiokafka reads a set that is false as "all partitions", and Faust drops what it did not ask for."""
    from aiokafka.consumer.fetcher import Fetcher as AiokafkaFetcher

    class Subscriptions:
        reassignment_in_progress = False

        def is_assigned(self, _tp: TP) -> bool:
            return True

    class Buffer(AiokafkaFetcher):  # type: ignore[misc]
        def __init__(self) -> None:
            self._subscriptions = Subscriptions()
            self._records = {COUNTS: None}  # touching it would raise

    async def scenario(app: MonitorApp, changelog: TP) -> None:
        consumer = app.consumer
        assert not list(consumer._active_partitions)
        assert await Buffer().fetched_records(consumer._active_partitions) == {}

    with_app(tmp_path, scenario)
