"""Consumer groups asked from outside, on the real broker."""

from __future__ import annotations

from contextlib import closing

from confluent_kafka import Consumer, TopicPartition

from streamer.kafka.clients import consumer_configuration
from streamer.kafka.groups import Committed, GroupReader, GroupStartingError
from streamer.settings import Settings


def test_group_that_never_was_has_no_offsets_and_no_members(pipeline_settings: Settings) -> None:
    settings = pipeline_settings
    for number in range(20):  # each has a coordinator of its own, which may have to start for it
        with GroupReader(settings.kafka, f"{settings.topics.prefix}{number}") as group:
            for _ in range(100):
                try:
                    assert group.committed(settings.topics.item_updates, range(4)) == {}
                    assert group.members() == 0
                    break
                except GroupStartingError:
                    continue


def test_offsets_are_told_with_what_was_written_beside_them_and_members_without_joining(
    pipeline_settings: Settings,
) -> None:
    settings, topic = pipeline_settings, pipeline_settings.topics.item_updates
    name = f"{settings.topics.prefix}group"
    with closing(Consumer(consumer_configuration(settings.kafka, group=name))) as member:
        member.commit(offsets=[TopicPartition(topic, 2, 17, metadata="note")], asynchronous=False)
        member.subscribe([topic])
        while not member.assignment():
            member.poll(0.1)
        with GroupReader(settings.kafka, name) as group:
            assert group.committed(topic, range(4)) == {2: Committed(17, "note")}
            assert group.members() == 1
            member.poll(0.5)
            assert len(member.assignment()) == 4, "whoever asks has not joined"
