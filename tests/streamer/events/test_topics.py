"""The table of what must hold of each topic: what is refused, with which command, and what may differ."""

from __future__ import annotations

import pytest

from streamer.events.topics import FoundTopic, TopicFault, topic_faults, topic_specs
from streamer.settings import load_settings

SPECS = {spec.name: spec for spec in topic_specs(load_settings())}
KAFKA_DEFAULTS = {
    "cleanup.policy": "delete",
    "delete.retention.ms": "86400000",
    "retention.ms": "604800000",
    "max.message.bytes": "1048588",
    "message.timestamp.type": "CreateTime",
    "message.timestamp.before.max.ms": str(2**63 - 1),
    "min.insync.replicas": "1",
    "unclean.leader.election.enable": "false",
    "segment.bytes": "1073741824",
}


def found(name: str, replication: int = 1, partitions: int | None = None, **config: str) -> FoundTopic:
    spec = SPECS[name]
    properties = {key.replace("_", "."): value for key, value in config.items()}
    return FoundTopic(partitions or spec.partitions, replication, KAFKA_DEFAULTS | dict(spec.config) | properties)


def faults(**topics: FoundTopic) -> list[TopicFault]:
    by_name = {name.replace("_", "-").replace("-dlq", ".dlq"): topic for name, topic in topics.items()}
    return topic_faults(SPECS.values(), by_name, "kafka-1:9092")


def test_topics_as_created_have_no_fault() -> None:
    assert topic_faults(SPECS.values(), {name: found(name) for name in SPECS}, "kafka-1:9092") == []


def test_topics_that_grow_are_those_of_the_settings_number() -> None:
    specs = topic_specs(load_settings(topics={"partitions": 7}))
    assert {spec.name for spec in specs if spec.grows} == {spec.name for spec in specs if spec.partitions == 7}


@pytest.mark.parametrize(
    ("name", "config", "command"),
    [
        ("item-updates", {"cleanup_policy": "delete"}, "cleanup.policy=compact"),
        ("item-codes", {"cleanup_policy": "compact,delete"}, "cleanup.policy=compact"),
        ("layouts", {"cleanup_policy": "delete"}, "cleanup.policy=compact"),
        ("item-updates.dlq", {"cleanup_policy": "compact"}, "cleanup.policy=delete"),
        ("item-updates", {"delete_retention_ms": "86400000"}, "delete.retention.ms=604800000"),
        ("item-codes", {"delete_retention_ms": "604799999"}, "delete.retention.ms=604800000"),
        ("item-codes", {"message_timestamp_type": "LogAppendTime"}, "message.timestamp.type=CreateTime"),
        ("item-attributes", {"message_timestamp_type": "LogAppendTime"}, "message.timestamp.type=CreateTime"),
        ("item-attributes", {"cleanup_policy": "delete"}, "cleanup.policy=compact"),
        (
            "item-codes",
            {"message_timestamp_before_max_ms": "3600000"},
            "message.timestamp.before.max.ms=9223372036854775807",
        ),
        ("queries", {"message_timestamp_type": "CreateTime"}, "message.timestamp.type=LogAppendTime"),
        ("queries", {"max_message_bytes": "100000"}, "max.message.bytes=2097152"),
        ("queries.dlq", {"max_message_bytes": "2097152"}, "max.message.bytes=2228224"),
        ("results", {"retention_ms": "60000"}, "retention.ms=86400000"),
        ("queries.dlq", {"retention_ms": "3600000"}, "retention.ms=1209600000"),
        ("item-codes", {"replication": 3}, "min.insync.replicas=2"),
        ("item-codes", {"min_insync_replicas": "2"}, "min.insync.replicas=1"),
        ("item-codes", {"replication": 3, "min_insync_replicas": "4"}, "min.insync.replicas=2"),
        (
            "results",
            {"replication": 2, "unclean_leader_election_enable": "true"},
            "unclean.leader.election.enable=false",
        ),
    ],
)
def test_property_that_loses_or_falsifies_something_is_refused_with_the_command_that_mends_it(
    name: str, config: dict[str, str], command: str
) -> None:
    [fault] = topic_faults(SPECS.values(), {name: found(name, **config)}, "kafka-1:9092")  # type: ignore[arg-type]
    assert fault.topic == name
    assert fault.command == (
        f"kafka-configs --bootstrap-server kafka-1:9092 --alter --entity-type topics --entity-name {name} --add-config {command}"
    )
    assert fault.what.startswith(f"{name} has {command.partition('=')[0]}=")


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("item-codes", {"delete_retention_ms": "9999999999"}),
        ("results", {"retention_ms": "-1"}),
        ("results", {"retention_ms": "7200000"}),
        ("queries", {"max_message_bytes": "10485760"}),
        ("item-updates", {"message_timestamp_type": "LogAppendTime"}),
        ("drift", {"compression_type": "zstd", "segment_bytes": "1048576"}),
        ("item-codes", {"replication": 3, "min_insync_replicas": "2"}),
        ("item-codes", {"replication": 2, "min_insync_replicas": "2"}),
        ("results", {"unclean_leader_election_enable": "true"}),  # one replica elects nobody
    ],
)
def test_property_that_is_more_generous_or_harmless_passes(name: str, config: dict[str, str]) -> None:
    assert topic_faults(SPECS.values(), {name: found(name, **config)}, "kafka-1:9092") == []  # type: ignore[arg-type]


def test_all_faults_of_a_topic_are_mended_by_one_command_and_every_topic_has_its_own() -> None:
    first, second = faults(
        item_updates=found("item-updates", cleanup_policy="delete", delete_retention_ms="1000"),
        queries=found("queries", message_timestamp_type="CreateTime"),
    )
    assert first.command.endswith(
        "--entity-name item-updates --add-config cleanup.policy=compact,delete.retention.ms=604800000"
    )
    assert second.command.endswith("--entity-name queries --add-config message.timestamp.type=LogAppendTime")


def test_codes_with_fewer_partitions_than_updates_are_refused_and_with_more_they_pass() -> None:
    [fault] = faults(item_updates=found("item-updates", partitions=6), item_codes=found("item-codes", partitions=4))
    assert "item-codes has 4 partitions and item-updates has 6" in fault.what
    assert fault.command == "kafka-topics --bootstrap-server kafka-1:9092 --alter --topic item-codes --partitions 6"
    assert faults(item_updates=found("item-updates", partitions=6), item_codes=found("item-codes", partitions=9)) == []


def test_topic_whose_records_are_one_sequence_is_refused_with_two_partitions() -> None:
    [fault] = faults(token_counts=found("token-counts", partitions=2))
    assert "token-counts has 2 partitions instead of 1" in fault.what
    assert faults(alerts=found("alerts", partitions=2)) == []


def test_properties_that_we_may_not_read_or_that_kafka_does_not_have_are_no_fault() -> None:
    assert faults(queries=FoundTopic(4, 1, None)) == []
    old = {key: value for key, value in KAFKA_DEFAULTS.items() if "before" not in key}
    assert faults(item_codes=FoundTopic(4, 1, old | dict(SPECS["item-codes"].config))) == []


def test_three_replicas_are_created_with_two_in_sync() -> None:
    specs = topic_specs(load_settings(topics={"replication_factor": 3}))
    assert {spec.config["min.insync.replicas"] for spec in specs} == {"2"}
    assert all("min.insync.replicas" not in spec.config for spec in SPECS.values())
