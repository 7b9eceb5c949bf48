"""The topics and what must hold of each: names, partitions and policies from the settings. No client is asked here.

``topic_specs`` is the one table: what a new topic is given, and what an existing one is held against at every start
(``topic_faults``). A topic may differ in whatever no ``Requirement`` names, and may be more generous than required.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from streamer.settings import Settings

Partition = tuple[str, int]
"""A topic's name and the number of one of its partitions."""

# The table of the monitor's Faust app; it has a changelog topic that we create, as Faust may not.
MONITOR_TABLE: Final = "token_counts"
_HOUR_MS: Final = 60 * 60 * 1000
_DAY_MS: Final = 24 * _HOUR_MS
# A reader that was away for longer may have missed a deletion: the broker may have compacted its tombstone away.
TOMBSTONE_RETENTION_MS: Final = 7 * _DAY_MS
DEAD_LETTER_RETENTION_MS: Final = 14 * _DAY_MS
_EVENT_BATCH_BYTES: Final = 2 * 1024 * 1024
# The broker compacts closed segments alone, and closes one at 1 GiB: 400,000 changes of 384 counts stayed 400,000 records
# to recover from, minutes of a take-over. With these segments 13,000 stayed. A batch must fit into one.
_CHANGELOG_SEGMENT_BYTES: Final = 2 * _EVENT_BATCH_BYTES


# Events up to 2 MiB, and as dead letters the same with their headers (streamer.kafka.clients.MESSAGE_MAXIMUM_BYTES).
MAXIMUM_BATCH_BYTES: Final = 2 * 1024 * 1024 + 128 * 1024


@dataclass(frozen=True)
class Requirement:
    """What one of Kafka's topic properties must be.

    ``value``: what a new topic is given, and what mends an existing one; ``least``: an existing topic may have this much or
    more (-1 counts as unlimited); without it, exactly the value. ``why``: what goes wrong otherwise, for a person.
    """

    name: str
    value: str
    why: str
    least: int | None = None

    def holds(self, found: str) -> bool:
        if self.least is None:
            return set(found.split(",")) == set(self.value.split(","))
        return int(found) < 0 or int(found) >= self.least

    @property
    def wanted(self) -> str:
        return self.value if self.least is None else f"at least {self.least}"


def _at_least(name: str, value: int, why: str, least: int | None = None) -> Requirement:
    return Requirement(name, str(value), why, value if least is None else least)


_COMPACT: Final = Requirement(
    "cleanup.policy", "compact", "the last record of a key must stay for as long as the topic"
)
_DELETE: Final = Requirement(
    "cleanup.policy", "delete", "a compacted topic takes no record without a key, and keeps others for ever"
)
_NOTES: Final = Requirement(
    "cleanup.policy", "compact,delete", "the last note of a letter must stay until the letter is gone, and then go"
)
_TOMBSTONES: Final = _at_least(
    "delete.retention.ms", TOMBSTONE_RETENTION_MS, "a reader that was away for less than a week must see every deletion"
)
_BROKER_CLOCK: Final = Requirement(
    "message.timestamp.type", "LogAppendTime", "a client's clock would make a query late, or never late"
)
_CLOCK_OF_UPDATE: Final = Requirement(
    "message.timestamp.type", "CreateTime", "codes carry the time of their update: freshness and order are told from it"
)
_CLOCK_OF_ATTRIBUTES: Final = Requirement(
    "message.timestamp.type", "CreateTime", "of two sources of an attribute the later one counts, by its sender's clock"
)
_ANY_AGE: Final = _at_least(
    "message.timestamp.before.max.ms",
    2**63 - 1,
    "codes carry the time of their update, however old, and the broker would refuse them",
    10 * 365 * _DAY_MS,
)


def _retention(*, days: int, least_hours: int) -> Requirement:
    why = f"records would be gone before they are read; {days} days are usual"
    return _at_least("retention.ms", days * _DAY_MS, why, least_hours * _HOUR_MS)


_LETTERS: Final = _retention(days=DEAD_LETTER_RETENTION_MS // _DAY_MS, least_hours=24)
_CLEAN_ELECTION: Final = Requirement(
    "unclean.leader.election.enable", "false", "a replica that lags may become leader, and committed records are lost"
)
_TWO_IN_SYNC: Final = _at_least("min.insync.replicas", 2, "a record that one replica alone has is lost with its disk")
_REPLICAS_FOR_TWO_IN_SYNC: Final = 3


@dataclass(frozen=True)
class TopicSpec:
    """The shape of one topic.

    ``config``: Kafka's topic properties of a new one, ``cleanup.policy`` among them; ``requirements``: what must hold of an
    existing one; ``one_partition``: whether it must have exactly one; ``partitions_of``: the topic that it must have at
    least as many partitions as; ``grows``: it has ``topics.partitions``, and more once that is raised.
    """

    name: str
    partitions: int
    replication: int
    config: Mapping[str, str] = field(default_factory=dict)
    requirements: tuple[Requirement, ...] = ()
    one_partition: bool = False
    partitions_of: str | None = None
    grows: bool = False

    @property
    def cleanup_policy(self) -> str:
        return self.config.get("cleanup.policy", "delete")


def monitor_changelog(settings: Settings) -> str:
    """The name that Faust gives to the changelog of the monitor's table."""
    return f"{settings.monitor_app_id}-{MONITOR_TABLE}-changelog"


@dataclass(frozen=True)
class FoundTopic:
    """A topic as a cluster has it. ``config``: its effective properties; ``None`` when we may not read them."""

    partitions: int
    replication: int
    config: Mapping[str, str] | None


@dataclass(frozen=True)
class TopicFault:
    """One thing that does not hold of a topic: ``what``, for a person, and the ``command`` that mends it."""

    topic: str
    what: str
    command: str


def topic_faults(specs: Iterable[TopicSpec], found: Mapping[str, FoundTopic], servers: str) -> list[TopicFault]:
    """Everything that does not hold of the topics in ``found``; a topic that is not there is no fault here.

    ``servers``: the cluster's bootstrap servers, for the commands.
    """
    faults = []
    for spec in specs:
        topic = found.get(spec.name)
        if topic is None:
            continue
        faults += _partition_faults(spec, topic, found, servers)
        wrong = [one for one in _requirements(spec, topic) if not one.holds(_value(topic, one))]
        if wrong:
            # One command mends all of a topic.
            values = ",".join(f"{one.name}={one.value}" for one in wrong)
            command = (
                f"kafka-configs --bootstrap-server {servers} --alter --entity-type topics "
                f"--entity-name {shlex.quote(spec.name)} --add-config {values}"
            )
            what = "; ".join(f"{one.name}={_value(topic, one)} instead of {one.wanted} ({one.why})" for one in wrong)
            faults.append(TopicFault(spec.name, f"{spec.name} has {what}", command))
    return faults


def _requirements(spec: TopicSpec, topic: FoundTopic) -> list[Requirement]:
    """Those that can be judged: of properties that this version of Kafka has, and that we may read."""
    if topic.config is None or not spec.requirements:
        return []
    wanted = list(spec.requirements)
    if topic.replication > 1:
        wanted.append(_CLEAN_ELECTION)
    if topic.replication >= _REPLICAS_FOR_TWO_IN_SYNC:
        wanted.append(_TWO_IN_SYNC)
    if int(topic.config.get(_TWO_IN_SYNC.name, 1)) > topic.replication:
        most = str(2 if topic.replication >= _REPLICAS_FOR_TWO_IN_SYNC else 1)
        wanted.append(Requirement(_TWO_IN_SYNC.name, most, f"with {topic.replication} replicas every write is refused"))
    return [one for one in wanted if one.name in topic.config]


def _value(topic: FoundTopic, requirement: Requirement) -> str:
    assert topic.config is not None
    return topic.config[requirement.name]


def _partition_faults(
    spec: TopicSpec, topic: FoundTopic, found: Mapping[str, FoundTopic], servers: str
) -> list[TopicFault]:
    if spec.one_partition and topic.partitions != 1:
        return [
            TopicFault(
                spec.name,
                f"{spec.name} has {topic.partitions} partitions instead of 1 (its records are one sequence)",
                f"kafka-topics --bootstrap-server {servers} --delete --topic {shlex.quote(spec.name)}, with every process "
                "stopped, then `sidstream topics create`",
            )
        ]
    source = found.get(spec.partitions_of) if spec.partitions_of is not None else None
    if source is not None and topic.partitions < source.partitions:
        return [
            TopicFault(
                spec.name,
                f"{spec.name} has {topic.partitions} partitions and {spec.partitions_of} has {source.partitions}: codes go to "
                f"the partition that their update came from, so give {spec.name} {source.partitions}",
                f"kafka-topics --bootstrap-server {servers} --alter --topic {shlex.quote(spec.name)} "
                f"--partitions {source.partitions}",
            )
        ]
    return []


def topic_specs(settings: Settings) -> tuple[TopicSpec, ...]:
    """Every topic of sidstream in the order of the data's way.

    ``item-codes`` has the partitions of ``item-updates``: an item's codes go to the partition that its update came from.
    Tombstones stay for a week, so that a reader that was away for less than that sees every deletion.
    """
    topics, many = settings.topics, settings.topics.partitions
    replication = topics.replication_factor
    changelog = monitor_changelog(settings)
    room = _at_least("max.message.bytes", _EVENT_BATCH_BYTES, "a record or a batch of ours would be refused")
    # Room for the headers around the largest event.
    letter_room = _at_least("max.message.bytes", MAXIMUM_BATCH_BYTES, "a dead letter is its event and more headers")
    segments = {"segment.bytes": str(_CHANGELOG_SEGMENT_BYTES)}

    def topic(name: str, partitions: int, *requirements: Requirement, **more: Any) -> TopicSpec:
        return _spec(name, partitions, replication, requirements, **more)

    def spread(name: str, *requirements: Requirement, **more: Any) -> TopicSpec:
        return topic(name, many, *requirements, grows=True, **more)

    return (
        spread(topics.item_updates, _COMPACT, room, _TOMBSTONES),
        # One partition for dead letters: they are few, and read by a person.
        topic(topics.item_updates_dead_letters, 1, _DELETE, letter_room, _LETTERS),
        spread(
            topics.item_codes,
            _COMPACT,
            room,
            _TOMBSTONES,
            _CLOCK_OF_UPDATE,
            _ANY_AGE,
            partitions_of=topics.item_updates,
        ),
        spread(topics.item_attributes, _COMPACT, room, _TOMBSTONES, _CLOCK_OF_ATTRIBUTES),
        topic(topics.item_attributes_dead_letters, 1, _DELETE, letter_room, _LETTERS),
        topic(topics.token_counts, 1, _COMPACT, room, one_partition=True),
        topic(topics.layouts, 1, _COMPACT, room, one_partition=True),
        topic(topics.drift, 1, _DELETE, room, _retention(days=7, least_hours=1)),
        topic(topics.alerts, 1, _COMPACT, room),
        spread(topics.queries, _DELETE, room, _retention(days=1, least_hours=1), _BROKER_CLOCK),
        topic(topics.queries_dead_letters, 1, _DELETE, letter_room, _LETTERS),
        # A note outlives its letter: a segment goes when its newest record is too old, so a letter may stay three weeks.
        topic(topics.replayed_dead_letters, 1, _NOTES, room, _retention(days=28, least_hours=28 * 24)),
        spread(topics.results, _DELETE, room, _retention(days=1, least_hours=1)),
        topic(topics.serving, 1, _COMPACT, room, one_partition=True),
        spread(topics.interactions, _DELETE, room, _retention(days=90, least_hours=24), _BROKER_CLOCK),
        topic(topics.interactions_dead_letters, 1, _DELETE, letter_room, _LETTERS),
        topic(changelog, 1, _COMPACT, room, one_partition=True, config=segments),
    )


def _spec(
    name: str,
    partitions: int,
    replication: int,
    requirements: tuple[Requirement, ...],
    config: Mapping[str, str] | None = None,
    **more: Any,
) -> TopicSpec:
    given = {one.name: one.value for one in requirements if one is not _ANY_AGE}  # Kafka's default, and new in 3.6
    if replication >= _REPLICAS_FOR_TWO_IN_SYNC:
        given[_TWO_IN_SYNC.name] = _TWO_IN_SYNC.value
    return TopicSpec(name, partitions, replication, given | dict(config or {}), requirements, **more)
