"""Following the record ``serving``: a thread that always has the newest committed one, for processes that change with it.

What must hold: nobody waits for the broker here; while it is away, what was read last counts.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Final, Self

import structlog
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

from streamer.deployments.log import ServingRecordError, decoded, read_serving
from streamer.events.serving import Serving
from streamer.kafka.admin import ClusterAwayError, MissingTopicsError, await_answer
from streamer.kafka.clients import consumer_configuration
from streamer.kafka.errors import ConsumerBrokenError, FatalKafkaError
from streamer.kafka.gather import drain
from streamer.kafka.read_to_end import LogReadError
from streamer.process.health import Health
from streamer.settings import Settings

log = structlog.get_logger(__name__)
_WAIT_SECONDS: Final = 0.1
_FETCH_WAIT_MS: Final = 5_000  # a change comes at once all the same; the broker need not be asked ten times a second
_RETRY_SECONDS: Final = 1.0


def await_follower(settings: Settings, purpose: str, stop: threading.Event, health: Health) -> ServingFollower | None:
    """A follower that has read the record once; a cluster that is away is waited for. None when ``stop`` was set first.

    Raises:
        MissingTopicsError: there is no topic ``serving``.
        ServingRecordError: it holds what this sidstream does not read.
    """
    found: list[ServingFollower] = []

    def ask() -> None:
        try:
            found.append(ServingFollower(settings, purpose))
        except LogReadError as error:
            raise ClusterAwayError(str(error)) from error

    return found[0] if await_answer(ask, stop, health) else None


@contextmanager
def following(
    settings: Settings, purpose: str, stop: threading.Event, health: Health
) -> Iterator[Callable[[], Serving | None] | None]:
    """The record that counts, to be asked for at any time; None when ``stop`` was set first. Where the topic is not there, which
    an installation from before there were deployments lacks, nothing was deployed. Waits and raises as ``await_follower``.
    """
    follower, is_there = None, True
    try:
        follower = await_follower(settings, purpose, stop, health)
    except MissingTopicsError:
        is_there = False
    if not is_there:
        yield lambda: None
    elif follower is None:
        yield None
    else:
        with follower as followed:
            yield lambda: followed.current


class ServingFollower:
    """A context manager; ``current`` is the record that counts, None before anything was deployed."""

    def __init__(self, settings: Settings, purpose: str) -> None:
        """Reads the topic to its end once. ``purpose``: names the client. Raises as ``read_serving``."""
        self._settings = settings
        self._purpose = purpose
        self.current: Serving | None = read_serving(settings)
        self._changed = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="serving", daemon=True)

    def changed(self) -> bool:
        """Whether ``current`` is another one than when this was asked last."""
        was = self._changed.is_set()
        self._changed.clear()
        return was

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._follow()
            except (ConsumerBrokenError, FatalKafkaError, ServingRecordError) as reason:
                log.warning(
                    "serving_not_followed", reason=str(reason), next="what was read last counts; it is read again"
                )
                self._stop.wait(_RETRY_SECONDS)

    def _follow(self) -> None:
        settings = self._settings
        group = settings.in_cluster(
            f"sidstream-{self._purpose}-serving"
        )  # asked for by the client; never used for offsets
        consumer = Consumer(consumer_configuration(settings.kafka, group=group, fetch_wait_max_ms=_FETCH_WAIT_MS))
        try:
            consumer.assign([TopicPartition(settings.topics.serving, 0, OFFSET_BEGINNING)])
            newest = None
            while not self._stop.is_set():
                for record in drain(consumer, 100, _WAIT_SECONDS):
                    newest = decoded(record, newest)
                    # Read again from the beginning, older records come by that count no more.
                    if newest is not None and (self.current is None or newest.number > self.current.number):
                        self.current = newest
                        self._changed.set()
                        log.info(
                            "serving_changed",
                            bundle=newest.bundle,
                            canary=newest.canary,
                            share=newest.share if newest.canary else None,
                            cause=newest.cause,
                        )
        finally:
            consumer.close()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
