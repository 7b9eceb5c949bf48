"""Topics on the real broker: made once in the right shape, never altered, and missed loudly."""

from __future__ import annotations

import re
import threading

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    ResourceType,
)

from streamer.events.topics import TopicSpec, topic_specs
from streamer.kafka.admin import (
    ClusterAwayError,
    MissingTopicsError,
    TopicError,
    TopicMismatchError,
    await_topics,
    create,
    describe,
    require,
    require_usable,
)
from streamer.process.health import Health
from streamer.settings import Settings, load_settings
from streamer.settings.kafka import KafkaSettings
from support.processes import wait_until


def test_queries_are_dated_by_the_broker() -> None:
    """A client with a wrong clock is neither late nor never late."""
    [queries] = [spec for spec in topic_specs(load_settings()) if spec.name == "queries"]
    assert queries.config["message.timestamp.type"] == "LogAppendTime"


def test_specs_follow_names_partitions_and_replication_of_the_settings() -> None:
    settings = load_settings(topics={"prefix": "shop-", "partitions": 7, "replication_factor": 3})
    specs = {spec.name: spec for spec in topic_specs(settings)}
    assert {spec.replication for spec in specs.values()} == {3}
    seven = (
        "shop-item-updates",
        "shop-item-codes",
        "shop-item-attributes",
        "shop-queries",
        "shop-results",
        "shop-interactions",
    )
    assert {name: spec.partitions for name, spec in specs.items()} == {
        name: 7 if name in seven else 1 for name in specs
    }
    compacted = {name for name, spec in specs.items() if spec.cleanup_policy == "compact"}
    assert compacted == {
        "shop-item-updates",
        "shop-item-codes",
        "shop-item-attributes",
        "shop-token-counts",
        "shop-layouts",
        "shop-alerts",
        "shop-serving",
        "shop-sidstream-monitor-token_counts-changelog",
    }


def test_dead_letters_take_larger_records_than_the_topics_whose_events_they_hold() -> None:
    sizes = {spec.name: int(spec.config["max.message.bytes"]) for spec in topic_specs(load_settings())}
    assert sizes["item-updates.dlq"] > sizes["item-updates"]
    assert sizes["item-attributes.dlq"] > sizes["item-attributes"]
    assert sizes["queries.dlq"] > sizes["queries"]


def test_segments_of_the_monitors_changelog_are_small_and_hold_any_batch() -> None:
    """A take-over reads the changelog from its start, and an open segment is never compacted."""
    changelog = next(spec for spec in topic_specs(load_settings()) if spec.name.endswith("-changelog"))
    assert int(changelog.config["max.message.bytes"]) < int(changelog.config["segment.bytes"]) < 10_000_000


def test_creating_twice_changes_nothing_the_second_time(broker_settings: Settings) -> None:
    specs = topic_specs(broker_settings)
    first = create(broker_settings.kafka, specs)
    second = create(broker_settings.kafka, specs)
    names = tuple(spec.name for spec in specs)
    assert (first.created, first.existing) == (names, ())
    assert (second.created, second.existing) == ((), names)


def test_describe_tells_shape_and_offsets_of_what_exists(pipeline_settings: Settings) -> None:
    name = pipeline_settings.topics.queries
    producer = Producer({"bootstrap.servers": pipeline_settings.kafka.bootstrap_servers})
    for number in range(5):
        producer.produce(name, value=b"query", partition=number % 2)
    producer.flush()
    described = describe(pipeline_settings.kafka, [pipeline_settings.topics.layouts, "no-such-topic", name])
    assert [topic.name for topic in described] == [pipeline_settings.topics.layouts, name]
    layouts, queries = described
    assert (layouts.partitions, layouts.replication, layouts.cleanup_policy, layouts.records) == (1, 1, "compact", 0)
    assert (queries.partitions, queries.cleanup_policy, queries.records) == (4, "delete", 5)
    assert queries.offsets == ((0, 3), (0, 2), (0, 0), (0, 0))


def test_existing_topic_of_another_shape_is_refused_and_nothing_is_created(broker_settings: Settings) -> None:
    kafka, topics = broker_settings.kafka, broker_settings.topics
    create(kafka, [TopicSpec(topics.item_codes, 2, 1), TopicSpec(topics.queries, 4, 1, {"cleanup.policy": "compact"})])
    with pytest.raises(TopicMismatchError, match=f"{topics.item_codes} has 2 partitions instead of 4") as refusal:
        create(kafka, topic_specs(broker_settings))
    assert "nothing was changed" in str(refusal.value)
    others = [spec for spec in topic_specs(broker_settings) if spec.name != topics.item_codes]
    with pytest.raises(TopicMismatchError, match=r"cleanup.policy=compact instead of delete") as refusal:
        create(kafka, others)
    assert "nothing was changed" in str(refusal.value)
    assert [topic.partitions for topic in describe(kafka, [topics.item_codes, topics.item_updates])] == [2]


def test_requiring_topics_names_every_missing_one_and_what_to_do(broker_settings: Settings) -> None:
    kafka, topics = broker_settings.kafka, broker_settings.topics
    with pytest.raises(MissingTopicsError) as refusal:
        require(kafka, [topics.item_updates, topics.item_codes])
    message = str(refusal.value)
    assert topics.item_updates in message
    assert topics.item_codes in message
    assert "sidstream topics create" in message


def test_requiring_existing_topics_passes(pipeline_settings: Settings) -> None:
    require(pipeline_settings.kafka, [spec.name for spec in topic_specs(pipeline_settings)])


def test_replication_that_the_cluster_cannot_give_is_an_error_with_its_reason(broker_settings: Settings) -> None:
    with pytest.raises(TopicError, match="cannot be created"):
        create(broker_settings.kafka, [TopicSpec(broker_settings.topics.drift, 1, 3)])


def test_broker_that_does_not_answer_is_an_error_that_says_what_to_check() -> None:
    with pytest.raises(ClusterAwayError, match=r"sidstream broker"):
        require(KafkaSettings(bootstrap_servers="127.0.0.1:1"), ["item-updates"], [0.2, 0.2])


def _alter(settings: Settings, topic: str, **config: str) -> None:
    entries = [
        ConfigEntry(name.replace("_", "."), value, incremental_operation=AlterConfigOpType.SET)
        for name, value in config.items()
    ]
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries)
    admin = AdminClient({"bootstrap.servers": settings.kafka.bootstrap_servers})
    admin.incremental_alter_configs([resource])[resource].result()
    wanted = {name.replace("_", "."): value for name, value in config.items()}

    def seen() -> bool:
        [answer] = admin.describe_configs([ConfigResource(ResourceType.TOPIC, topic)]).values()
        entries = answer.result(timeout=20)
        return {name: entries[name].value for name in wanted} == wanted

    wait_until(seen, what=f"{wanted} of {topic}")


def test_topics_that_are_not_as_they_must_be_are_refused_until_the_printed_commands_have_run(
    pipeline_settings: Settings,
) -> None:
    settings, topics = pipeline_settings, pipeline_settings.topics
    names = [topics.item_updates, topics.item_codes, topics.queries]
    _alter(settings, topics.item_updates, cleanup_policy="delete", delete_retention_ms="86400000")
    _alter(settings, topics.queries, message_timestamp_type="CreateTime")
    for refused in (
        lambda: require_usable(settings, names),
        lambda: create(settings.kafka, topic_specs(settings)),
        lambda: await_topics(settings, names, threading.Event(), Health()),
    ):
        with pytest.raises(TopicMismatchError) as refusal:
            refused()
        commands = re.findall(r"--entity-name (\S+) --add-config (\S+)", str(refusal.value))
        assert commands == [
            (topics.item_updates, "cleanup.policy=compact,delete.retention.ms=604800000"),
            (topics.queries, "message.timestamp.type=LogAppendTime"),
        ]
    for name, values in commands:
        _alter(settings, name, **dict(value.split("=") for value in values.split(",")))
    assert await_topics(settings, names, threading.Event(), Health())


def test_topics_that_have_grown_beyond_the_settings_are_accepted(pipeline_settings: Settings) -> None:
    settings, topics = pipeline_settings, pipeline_settings.topics
    admin = AdminClient({"bootstrap.servers": settings.kafka.bootstrap_servers})
    admin.create_partitions([NewPartitions(topics.item_codes, 6)])[topics.item_codes].result()
    assert topics.item_codes in create(settings.kafka, topic_specs(settings)).existing
    admin.create_partitions([NewPartitions(topics.item_updates, 8)])[topics.item_updates].result()
    wait_until(lambda: describe(settings.kafka, [topics.item_updates])[0].partitions == 8, what="eight partitions")
    with pytest.raises(TopicMismatchError, match=rf"--alter --topic {topics.item_codes} --partitions 8"):
        require_usable(settings, [topics.item_updates, topics.item_codes])
