"""What becomes of topics while a process reads or writes them: partitions that are added, a topic that is made anew or deleted.

What must hold: looking never blocks and costs one small request in a few seconds; a change is told once, in the order in which
it was seen; a broker that is away is no change.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final

import structlog
from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient

from models.errors import SidstreamError
from streamer.kafka.admin import ClusterAwayError
from streamer.kafka.clients import client_configuration
from streamer.kafka.errors import Meaning, error_text, meaning
from streamer.settings.kafka import KafkaSettings

log = structlog.get_logger(__name__)

LOOK_SECONDS: Final = 5.0
_REQUEST_SECONDS: Final = 10.0
# A broker that lags behind may not know a new topic yet: deleted is what two looks in a row do not find.
_MISSING_LOOKS: Final = 2
_GONE: Final = frozenset({KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.UNKNOWN_TOPIC_ID})


class TopicStateError(SidstreamError):
    """The cluster does not tell the state of topics."""


@dataclass(frozen=True)
class TopicState:
    """``topic_id``: what Kafka gave the topic when it was made; another one means another log under the same name."""

    topic_id: str
    partitions: int


@dataclass(frozen=True)
class TopicChange:
    """One change of one topic. ``now``: ``None`` when the topic is deleted, and not there again yet."""

    topic: str
    before: TopicState
    now: TopicState | None

    @property
    def deleted(self) -> bool:
        return self.now is None

    @property
    def made_anew(self) -> bool:
        """Whether another log has the topic's name now: offsets of before mean nothing in it."""
        return self.now is not None and self.now.topic_id != self.before.topic_id

    @property
    def new_partitions(self) -> range:
        """The numbers of partitions that were added to the same log; empty when it was made anew or deleted."""
        if self.now is None or self.made_anew:
            return range(0)
        return range(self.before.partitions, self.now.partitions)


class PartitionWatch:
    """Tells what changed of some topics; for one thread.

    Use::

        watch = PartitionWatch(settings.kafka, [topics.item_codes, topics.layouts])
        while not stop.is_set():
            for change in watch.look():     # every turn: asks at most once in LOOK_SECONDS and never waits for the answer
                if change.deleted or change.made_anew: ...      # refuse: the log is not the one that was read
                elif change.new_partitions: ...                 # assign these too

    The first answer is what later ones are compared with, unless ``known`` says what held before: the states that
    ``topic_states`` told at the start, or a ``TopicState`` kept on disk. A deleted topic is told once (``now`` is ``None``);
    when it comes back with another id that is told too, compared with the state before the deletion.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        topics: Iterable[str],
        *,
        known: Mapping[str, TopicState] | None = None,
        every_seconds: float = LOOK_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._admin = AdminClient({**client_configuration(kafka), "error_cb": lambda _error: None})
        self._topics = list(topics)
        self._known: dict[str, TopicState] = dict(known or {})
        self._missing: dict[str, int] = {}
        self._every_seconds = every_seconds
        self._clock = clock
        self._asked_at = float("-inf")
        self._answers: dict[str, Future[Any]] = {}
        self.stale = True
        """Whether no answer came since the start, or since ``refresh``."""

    @property
    def states(self) -> Mapping[str, TopicState]:
        """The last known state of each topic that was seen; empty before the first answer."""
        return self._known

    def refresh(self) -> None:
        """Ask at the next look; until that answer is there the states are ``stale``."""
        self._answers, self._asked_at, self.stale = {}, float("-inf"), True

    def look(self) -> list[TopicChange]:
        """What changed since the last look; call it at every turn."""
        if self._answers and all(answer.done() for answer in self._answers.values()):
            answers, self._answers = self._answers, {}
            self.stale = any(_failed(answer) for answer in answers.values())
            return [change for topic in answers if (change := self._compare(topic, answers[topic])) is not None]
        now = self._clock()
        if not self._answers and now - self._asked_at >= self._every_seconds:
            self._asked_at = now
            self._answers = self._admin.describe_topics(TopicCollection(self._topics), request_timeout=_REQUEST_SECONDS)
        return []

    def _compare(self, topic: str, answer: Future[Any]) -> TopicChange | None:
        before = self._known.get(topic)
        try:
            now = _state(answer.result())
        except KafkaException as error:
            if error.args[0].code() not in _GONE or before is None:
                return None  # away, or not allowed to ask: not a change
            self._missing[topic] = self._missing.get(topic, 0) + 1
            if self._missing[topic] != _MISSING_LOOKS:
                return None
            change = TopicChange(topic, before, None)
        else:
            self._missing.pop(topic, None)
            self._known[topic] = now
            # Brokers hear of new partitions one after the other: fewer than before is an old answer.
            if (
                before is None
                or now == before
                or (now.topic_id == before.topic_id and now.partitions < before.partitions)
            ):
                self._known[topic] = before or now
                return None
            change = TopicChange(topic, before, now)
        log.warning(
            "topic_changed",
            topic=topic,
            partitions=None if change.now is None else change.now.partitions,
            partitions_before=change.before.partitions,
            made_anew=change.made_anew,
            deleted=change.deleted,
        )
        return change


def topic_states(kafka: KafkaSettings, topics: Iterable[str]) -> dict[str, TopicState]:
    """The state of each of ``topics`` that exists now; waits for the answer.

    Raises:
        ClusterAwayError: the cluster does not answer.
        TopicStateError: it refuses.
    """
    admin = AdminClient(client_configuration(kafka))
    states = {}
    answers = admin.describe_topics(TopicCollection(list(topics)), request_timeout=_REQUEST_SECONDS)
    for topic, answer in answers.items():
        try:
            states[topic] = _state(answer.result())
        except KafkaException as error:
            if error.args[0].code() not in _GONE:
                kind = ClusterAwayError if meaning(error.args[0]) is Meaning.PASSING else TopicStateError
                raise kind(
                    f"{kafka.bootstrap_servers} does not tell the state of {topic}: {error_text(error)}. Is the broker "
                    "there, and may this user describe the topic?"
                ) from error
    return states


def _failed(answer: Future[Any]) -> bool:
    error = answer.exception()
    return isinstance(error, KafkaException) and error.args[0].code() not in _GONE


def _state(description: Any) -> TopicState:
    return TopicState(str(description.topic_id), len(description.partitions))
