"""The topics and what must hold of each: names, partitions and policies from the settings. No client is asked here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from streamer.settings import Settings

# The table of the monitor's Faust app; it has a changelog topic that we create, as Faust may not.
MONITOR_TABLE: Final = "token_counts"
_DAY_MS: Final = 24 * 60 * 60 * 1000
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
class TopicSpec:
    """The shape of one topic; ``config`` holds Kafka's topic properties, ``cleanup.policy`` among them."""

    name: str
    partitions: int
    replication: int
    config: Mapping[str, str] = field(default_factory=dict)

    @property
    def cleanup_policy(self) -> str:
        return self.config.get("cleanup.policy", "delete")


def monitor_changelog(settings: Settings) -> str:
    """The name that Faust gives to the changelog of the monitor's table."""
    return f"{settings.monitor_app_id}-{MONITOR_TABLE}-changelog"


def topic_specs(settings: Settings) -> tuple[TopicSpec, ...]:
    """Every topic of sidstream in the order of the data's way.

    ``item-codes`` has the partitions of ``item-updates``: an item's codes go to the partition that its update came from.
    Tombstones stay for a week, so that an indexer that was away for less than that sees every deletion.
    """
    topics, many = settings.topics, settings.topics.partitions
    replication = topics.replication_factor

    def compacted(name: str, partitions: int, **config: str) -> TopicSpec:
        return _spec(name, partitions, replication, "compact", _EVENT_BATCH_BYTES, config)

    def deleted(name: str, partitions: int, days: int, **config: str) -> TopicSpec:
        retention = {"retention_ms": str(days * _DAY_MS)}
        return _spec(name, partitions, replication, "delete", _EVENT_BATCH_BYTES, retention | config)

    def dead_letters(name: str) -> TopicSpec:
        # One partition: they are few, and read by a person. Room for the headers around the largest event.
        retention = {"retention_ms": str(DEAD_LETTER_RETENTION_MS)}
        return _spec(name, 1, replication, "delete", MAXIMUM_BATCH_BYTES, retention)

    def notes(name: str) -> TopicSpec:
        # A note outlives its letter: a segment goes when its newest record is too old, so a letter may stay three weeks.
        retention = {"retention_ms": str(2 * DEAD_LETTER_RETENTION_MS)}
        return _spec(name, 1, replication, "compact,delete", _EVENT_BATCH_BYTES, retention)

    week = str(TOMBSTONE_RETENTION_MS)
    changelog = monitor_changelog(settings)
    return (
        compacted(topics.item_updates, many, delete_retention_ms=week),
        dead_letters(topics.item_updates_dead_letters),
        compacted(topics.item_codes, many, delete_retention_ms=week),
        compacted(topics.token_counts, 1),
        compacted(topics.layouts, 1),
        deleted(topics.drift, 1, days=7),
        compacted(topics.alerts, 1),
        # The broker's clock dates a query: a client's would make it late, or never late.
        deleted(topics.queries, many, days=1, message_timestamp_type="LogAppendTime"),
        dead_letters(topics.queries_dead_letters),
        notes(topics.replayed_dead_letters),
        deleted(topics.results, many, days=1),
        compacted(changelog, 1, segment_bytes=str(_CHANGELOG_SEGMENT_BYTES)),
    )


def _spec(
    name: str, partitions: int, replication: int, policy: str, batch_bytes: int, more: Mapping[str, str]
) -> TopicSpec:
    config = {"cleanup.policy": policy, "max.message.bytes": str(batch_bytes)}
    return TopicSpec(name, partitions, replication, config | {key.replace("_", "."): more[key] for key in more})
