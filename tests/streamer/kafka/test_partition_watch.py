"""The watch over topics on the real broker: partitions that are added, a topic that is deleted and made anew."""

from __future__ import annotations

from confluent_kafka.admin import AdminClient, NewPartitions

from streamer.events.topics import TopicSpec
from streamer.kafka.admin import create
from streamer.kafka.partition_watch import PartitionWatch, TopicChange, TopicState, topic_states
from streamer.settings import Settings
from streamer.settings.kafka import KafkaSettings
from support.processes import wait_until


def changes_of(watch: PartitionWatch, wanted: int) -> list[TopicChange]:
    seen: list[TopicChange] = []

    def looked() -> bool:
        seen.extend(watch.look())
        return len(seen) >= wanted

    wait_until(looked, what=f"{wanted} changes", every=0.05)
    return seen


def test_added_partitions_are_told_once_and_those_that_were_there_are_not(broker_settings: Settings) -> None:
    kafka, topic = broker_settings.kafka, broker_settings.topics.item_codes
    create(kafka, [TopicSpec(topic, 2, 1)])
    watch = PartitionWatch(kafka, [topic], every_seconds=0.2)
    wait_until(lambda: watch.look() == [] and topic in watch.states, what="a first answer")
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})
    admin.create_partitions([NewPartitions(topic, 5)])[topic].result()
    [change] = changes_of(watch, 1)
    assert (change.topic, list(change.new_partitions)) == (topic, [2, 3, 4])
    assert not change.made_anew
    assert not change.deleted
    wait_until(lambda: watch.states[topic].partitions == 5, what="the new state")
    assert watch.look() == []


def test_topic_deleted_and_made_anew_is_told_by_its_id(broker_settings: Settings) -> None:
    kafka, topic = broker_settings.kafka, broker_settings.topics.item_codes
    create(kafka, [TopicSpec(topic, 2, 1)])
    before = topic_states(kafka, [topic, "no-such-topic"])
    assert before.keys() == {topic}
    watch = PartitionWatch(kafka, [topic], known=before, every_seconds=0.2)
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})
    admin.delete_topics([topic])[topic].result()
    [gone] = changes_of(watch, 1)
    assert gone.deleted
    assert not gone.made_anew
    create(kafka, [TopicSpec(topic, 2, 1)])
    [anew] = changes_of(watch, 1)
    assert anew.made_anew
    assert anew.before == before[topic]
    assert list(anew.new_partitions) == []


def test_broker_that_is_away_is_no_change() -> None:
    known = {"item-codes": TopicState("an id", 4)}
    watch = PartitionWatch(KafkaSettings(bootstrap_servers="127.0.0.1:1"), ["item-codes"], known=known, every_seconds=0)
    assert watch.look() == []
    assert watch.look() == []
    assert watch.states == known
