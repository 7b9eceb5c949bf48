"""Whether the logs are still those that the index was read from: asked at the start and every few seconds, never waited for.

Offsets mean nothing in another log. So the index remembers the id that Kafka gave each topic, and nothing is written after
it was noticed that a topic was made anew, ends below what was read, or begins beyond it. Nor is anything written to an index
that was read from a topic which the settings do not name: nobody would ever delete what it has of that one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from typing import Any, Final

from confluent_kafka import IsolationLevel, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from store.writing.writer import IndexWriter
from streamer.events.topics import Partition
from streamer.indexer.codes import IndexerError
from streamer.kafka.clients import client_configuration
from streamer.kafka.errors import told
from streamer.kafka.partition_watch import PartitionWatch, topic_states
from streamer.settings import Settings

_ENDS_SECONDS: Final = 10.0
_REQUEST_SECONDS: Final = 10.0


class LogMismatchError(IndexerError):
    """A topic is not the log that the index was read from; nothing was written since it was noticed."""


def watched_topics(settings: Settings) -> list[str]:
    """The logs that an index is made from, the updates' among them: its items are in the codes."""
    topics = settings.topics
    return [topics.item_codes, topics.item_attributes, topics.layouts, topics.item_updates]


def others_topics(settings: Settings, remembered: Iterable[str]) -> list[str]:
    """Those of an index's topics that are not read under these settings: it is another pipeline's, or was. A topic that the index
    does not know yet is none: an older sidstream read fewer."""
    return sorted(set(remembered) - set(watched_topics(settings)))


def require_own_logs(settings: Settings, remembered: Iterable[str]) -> None:
    """Return if the settings name each topic that the index was read from.

    Raises:
        LogMismatchError: names both and says what to do.
    """
    known = set(remembered)
    if not (others := others_topics(settings, known)):
        return
    topics = settings.topics
    fresh = [topic for topic in watched_topics(settings) if topic not in known]
    advice = (
        "Set topics.prefix and the topics' names to what they were, name another `index` for these topics, or delete "
        f"{settings.index} (it is a cache) and start again"
    )
    if topics.item_codes not in fresh and topics.item_updates in fresh:
        advice += (
            f"; {topics.item_codes} has the items of the updates of before, too: to be rid of them, make it anew while the "
            "assigner is stopped"
        )
    raise LogMismatchError(
        f"the index {settings.index} is of {', '.join(others)}, and the settings name "
        f"{', '.join(fresh or watched_topics(settings))}: what it has of topics that are read no more would stay in it, and no "
        f"update would ever delete it. {advice}"
    )


def require_same_logs(settings: Settings, remembered: Mapping[str, str], now: Mapping[str, str], what: str) -> None:
    """Return if no topic has another id than the index remembers. ``what``: the index, for a person.

    Raises:
        LogMismatchError: names the topic and says what to do.
    """
    for topic, topic_id in remembered.items():
        if now.get(topic, topic_id) != topic_id:
            raise LogMismatchError(made_anew(settings, topic, what))


def made_anew(settings: Settings, topic: str, what: str) -> str:
    """What to tell a person of a topic that has another id than before."""
    topics = settings.topics
    if topic == topics.item_updates:
        return (
            f"{topic} was made anew since {what} was read: its items are of the log before, and no update will ever delete "
            f"them. Stop the assigner, make {topics.item_codes} anew too, delete {settings.index} (it is a cache) and start "
            f"again; to keep these items, delete {settings.index} alone"
        )
    if topic == topics.item_attributes:
        return (
            f"{topic} was made anew since {what} was read from it: what the log before said of items is in no log any more. "
            f"Delete {settings.index} (it is a cache) and start again, and send the attributes again"
        )
    return (
        f"{topic} was made anew since {what} was read from it: offsets of the log before mean nothing in this one. Delete "
        f"{settings.index} (it is a cache) and start again. Make {topics.token_counts} and the monitor's changelog anew too, "
        "or the monitor waits for counts newer than those it knows"
    )


def require_reachable(settings: Settings, place: Partition, position: int, low: int, high: int) -> None:
    """Return if a log still has what comes after ``position``.

    Raises:
        LogMismatchError: it ends before, or begins after.
    """
    topic, partition = place
    if position > high:
        raise LogMismatchError(
            f"the index stands at offset {position} of {topic}/{partition}, which ends at {high}: "
            + made_anew(settings, topic, "the index")
        )
    if position < low:
        raise LogMismatchError(
            f"the index stands at offset {position} of {topic}/{partition}, which begins at {low}: the records between are "
            "gone, updates and deletions among them, and only another topic policy or somebody's delete-records removes them "
            f"(`sidstream topics describe` shows cleanup.policy). Correct it, delete {settings.index} (it is a cache) and start "
            "again; items that were in those records alone must be sent again"
        )


class LogWatch:
    """Looks after the logs of an index while it is written; for one thread."""

    def __init__(self, settings: Settings, writer: IndexWriter, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Compares with what the index remembers, and remembers what it does not know yet.

        Raises:
            LogMismatchError: a topic was made anew, or the index is of topics that the settings do not name.
            ClusterAwayError: the cluster does not answer.
            TopicStateError: it refuses.
        """
        self._settings = settings
        with writer.snapshot() as snapshot:
            remembered = snapshot.log_ids
            read = {topic for topic, _ in snapshot.position}  # an older sidstream noted no ids
        require_own_logs(settings, read | remembered.keys())
        states = topic_states(settings.kafka, watched_topics(settings))
        now = {topic: state.topic_id for topic, state in states.items()}
        require_same_logs(settings, remembered, now, "the index")
        if now.keys() - remembered.keys():
            writer.remember_log_ids(now)
        self._watch = PartitionWatch(settings.kafka, watched_topics(settings), known=states)
        self._admin = AdminClient({**client_configuration(settings.kafka), "error_cb": lambda _error: None})
        self._clock = clock
        self._asked_at = clock()
        self._asked_positions: Mapping[Partition, int] = {}
        self._lows: dict[TopicPartition, Future[Any]] = {}
        self._highs: dict[TopicPartition, Future[Any]] = {}

    def look(self, positions: Mapping[Partition, int]) -> list[Partition]:
        """Partitions that were added since the last look; call it at every turn.

        Raises:
            LogMismatchError: a log is not the one that was read.
        """
        added = []
        for change in self._watch.look():
            if change.made_anew:
                raise LogMismatchError(made_anew(self._settings, change.topic, "the index"))
            if change.deleted:
                raise LogMismatchError(
                    f"{change.topic} was deleted while the index was read from it. If that was a mistake, make the topics "
                    f"anew (`sidstream topics create`); in any case delete {self._settings.index} (it is a cache) before "
                    "you start again"
                )
            if change.topic != self._settings.topics.item_updates:
                added += [(change.topic, partition) for partition in change.new_partitions]
        self._look_at_ends(positions)
        return added

    def _look_at_ends(self, positions: Mapping[Partition, int]) -> None:
        asked = [*self._lows.values(), *self._highs.values()]
        if asked and all(answer.done() for answer in asked):
            lows, highs, self._lows, self._highs = self._lows, self._highs, {}, {}
            for partition, answer in lows.items():
                place = (partition.topic, partition.partition)
                try:
                    low, high = told(answer.result().offset), told(highs[partition].result().offset)
                except KafkaException:
                    continue  # away, or between two leaders: the next look
                # Since it was asked more may have been written and read: an end counts against the position of then.
                require_reachable(self._settings, place, self._asked_positions[place], 0, high)
                require_reachable(self._settings, place, positions[place], low, positions[place])
        elif not asked and self._clock() - self._asked_at >= _ENDS_SECONDS:
            self._asked_at = self._clock()
            self._asked_positions = dict(positions)
            places = [TopicPartition(*place) for place in positions]
            options = {"isolation_level": IsolationLevel.READ_UNCOMMITTED, "request_timeout": _REQUEST_SECONDS}
            self._lows = self._admin.list_offsets(dict.fromkeys(places, OffsetSpec.earliest()), **options)
            self._highs = self._admin.list_offsets(dict.fromkeys(places, OffsetSpec.latest()), **options)
