"""Faust, made to keep our promises: committed records only, no offset committed before its changelog is written, our topics.

Faust carries the counts: its consumer group makes one monitor active and the others standbys, its table keeps each token's newest
count with the changelog that a successor recovers from, its agent and timer call ours, and its web server serves the dashboard.
It carries nothing else. Not the items: it handles some 3,000 events a second, and the assigner and the indexer, which use
confluent-kafka, handle ten times that and more. Not what is published: the journal is a Kafka transaction of confluent-kafka. No
windows: Faust keeps their bookkeeping in memory alone, so ours lie inside the table's values. No topics: they are created by us,
with their policies. And no decoding: an exception in an agent acknowledges the event and drops it.

Everything that reaches into Faust's or aiokafka's internals is here and in ``login``; both are pinned to the patch release.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import faust
import mode
from aiokafka.errors import KafkaError
from faust.exceptions import FaustError
from faust.tables.table import Table
from faust.transport.drivers import aiokafka as driver
from faust.web.drivers.aiohttp import Web
from yarl import URL

from store.writing.failpoints import Failpoint, reach
from streamer.monitor.login import credentials
from streamer.process.http_headers import HEADERS
from streamer.settings import Settings

# Faust hard-codes 1,500 ms: the time that a new record may lie unread while nothing else arrives.
FETCH_WAIT_MS: Final = 100
# A killed monitor's partition is given to its successor after this time; the broker's own lower limit is 6 s.
SESSION_TIMEOUT_SECONDS: Final = 6.0
# Otherwise every change of the table is a request of its own.
PRODUCER_LINGER_SECONDS: Final = 0.01
_RARELY_SECONDS: Final = 30.0


# Faust's services name their loggers after the module of their class, which for these is this one.
logging.getLogger(__name__).setLevel(logging.WARNING)
# A look that takes over, or that waits for a broker, outlasts the timer's interval; that is no news.
logging.getLogger("mode.timers").setLevel(logging.ERROR)


class _Rarely(logging.Filter):
    """Lets each kind of line pass once in a while: aiokafka tells of a broker that is away some fifty times a second."""

    def __init__(self) -> None:
        super().__init__()
        self._passed: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        now, kind = time.monotonic(), str(record.msg)
        if now - self._passed.get(kind, -_RARELY_SECONDS) < _RARELY_SECONDS:
            return False
        self._passed[kind] = now
        return True


for _name in ("", ".conn", ".cluster", ".consumer.fetcher", ".consumer.group_coordinator", ".producer.sender"):
    logging.getLogger(f"aiokafka{_name}").addFilter(_Rarely())

# A broker that has just started may tell of no topics yet. Faust then assigns nothing, and such a monitor takes itself for a
# standby until the metadata are asked for again: in aiokafka after five minutes.
_METADATA_AGE_MS: Final = 5_000
# What a broker that goes away can end an app with; a new app will do.
PASSING_ERRORS: Final = (KafkaError, FaustError, OSError, asyncio.TimeoutError)


class _ConsumerThread(driver.AIOKafkaConsumerThread):  # type: ignore[misc]
    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        # Faust reads uncommitted records unless it runs its own exactly-once mode, and offers no setting for either.
        consumer._isolation_level = "read_committed"
        consumer._fetch_max_wait_ms = FETCH_WAIT_MS
        return consumer


class _Partitions(set[Any]):
    """The partitions to read from, changed in place; true even when there are none.

    aiokafka takes a set that is false for "all partitions": a fetch that was under way while the changelog was paused
    took the counts out of its buffer, and Faust threw them away as paused ones.
    """

    def __bool__(self) -> bool:
        return True


class _Consumer(driver.Consumer):  # type: ignore[misc]
    """Commits after the changelog, and resumes partitions only together with the flow.

    When a table is recovered Faust resumes the counts, then seeks to the committed offsets, and at last starts the flow,
    which empties the agent's queue. Counts fetched in between were lost, for good where nothing was committed yet to
    seek back to: whoever waited for them waited for ever.
    """

    def _reset_state(self) -> None:
        super()._reset_state()
        self._active_partitions = _Partitions()
        self._resumed_with_flow: set[Any] = set()

    def pause_partitions(self, tps: Iterable[Any]) -> None:
        paused = set(tps)
        self._resumed_with_flow -= paused
        super().pause_partitions(paused)

    def resume_partitions(self, tps: Iterable[Any]) -> None:
        self._resumed_with_flow |= set(tps)

    def resume_flow(self) -> None:
        super().resume_partitions(self._resumed_with_flow)
        self._resumed_with_flow = set()
        super().resume_flow()

    def _new_consumer_thread(self) -> _ConsumerThread:
        return _ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    async def _commit_offsets(self, offsets: Any, start_new_transaction: bool = True) -> bool:
        # Faust sends a table's change in the background and commits by the clock: killed in between, a count would be
        # lost from the table although its event is committed. Events up to ``offsets`` are processed, so are their sends.
        try:
            await asyncio.gather(
                *[table.changelog_written() for table in self.app.tables.values() if isinstance(table, DurableTable)]
            )
        except Exception as error:
            await self.crash(error)
            return False
        reach(Failpoint.CHANGELOG_WRITTEN)
        committed = bool(await super()._commit_offsets(offsets, start_new_transaction=start_new_transaction))
        reach(Failpoint.COUNTS_COMMITTED)
        return committed


class _Transport(driver.Transport):  # type: ignore[misc]
    Consumer = _Consumer


class DurableTable(Table):  # type: ignore[misc]
    """A table that knows which of its changes the broker has not acknowledged yet."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._unwritten: set[Any] = set()

    def send_changelog(self, *arguments: Any, **named: Any) -> Any:
        sent = super().send_changelog(*arguments, **named)
        self._unwritten.add(sent)
        sent.add_done_callback(self._written)
        return sent

    def _written(self, sent: Any) -> None:
        # A failed one stays, so that no later commit passes it by.
        if not sent.cancelled() and sent.exception() is None:
            self._unwritten.discard(sent)

    async def changelog_written(self) -> None:
        """Return once every change made until now is acknowledged; raises what a failed one raised."""
        if self._unwritten:
            await asyncio.gather(*self._unwritten)


class _DashboardWeb(Web):  # type: ignore[misc]
    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.web_app.on_response_prepare.append(_add_headers)

    def _enabled_blueprints(self) -> list[Any]:
        return []  # Faust's own pages show table data


async def _add_headers(_request: Any, response: Any) -> None:
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)


class MonitorApp(faust.App):  # type: ignore[misc]
    """A Faust app on our transport, without Faust's own web pages."""

    def _new_transport(self) -> _Transport:
        return _Transport(self.conf.broker_consumer, self)

    def _new_web(self) -> _DashboardWeb:
        return _DashboardWeb(self)


def new_app(settings: Settings, data_directory: Path) -> MonitorApp:
    """An app that is not connected yet. ``data_directory``: Faust makes empty folders in it."""
    monitor, kafka = settings.monitor, settings.kafka
    servers = kafka.bootstrap_servers.split(",")
    return MonitorApp(
        settings.monitor_app_id,
        env={},  # Faust would take DEBUG, WEB_PORT and the like from the environment
        autodiscover=False,
        broker=[URL(f"kafka://{server.strip()}") for server in servers],
        broker_credentials=credentials(kafka),
        broker_session_timeout=SESSION_TIMEOUT_SECONDS,
        broker_heartbeat_interval=2.0,
        broker_commit_interval=1.0,
        consumer_auto_offset_reset="earliest",
        consumer_metadata_max_age_ms=_METADATA_AGE_MS,
        datadir=data_directory,
        store="memory://",
        table_standby_replicas=1,
        topic_allow_declare=False,
        topic_disable_leader=True,
        topic_partitions=1,
        producer_linger=PRODUCER_LINGER_SECONDS,
        processing_guarantee="at_least_once",
        agent_supervisor=mode.CrashingSupervisor,
        stream_wait_empty=False,
        loghandlers=[],
        logging_config=None,
        worker_redirect_stdouts=False,
        Table=DurableTable,
        web_enabled=monitor.web_port > 0,
        web_bind=monitor.web_host,
        web_host=monitor.web_host,
        web_port=monitor.web_port or 6066,
    )


def raw_schema() -> Any:
    """Keys and values as bytes: decoding is ours, where a fault can be counted instead of thrown."""
    return faust.Schema(key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw")
