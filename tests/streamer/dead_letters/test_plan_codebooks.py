"""Letters of several codebooks: an event that two refuse is sent again once, and counts as used if one of them took it."""

from __future__ import annotations

import pytest
from confluent_kafka import Message, Producer

from streamer.dead_letters.plan import Choice
from streamer.dead_letters.replay import Replay, ReplayOutcome
from streamer.deployments.log import change_serving
from streamer.events.dead_letter import Rejection, dead_letter
from streamer.events.serving import Deployed, Pipeline, Serving
from streamer.kafka.clients import producer_configuration
from streamer.settings import Settings
from support.processes import committed_records

BUNDLE = "1" * 16


@pytest.fixture
def settings(pipeline_settings: Settings) -> Settings:
    """Two codebooks are deployed."""
    pipelines = tuple(Pipeline(codebook=name, bundle=BUNDLE, suffix=suffix, since=1) for name, suffix in
                      (("first", ""), ("second", "-second")))  # fmt: skip
    serving = Serving(
        bundle=BUNDLE, deployed=(Deployed(bundle=BUNDLE, codebook="first", since=1),), pipelines=pipelines
    )
    change_serving(pipeline_settings, lambda _: serving, cause="a test")
    return pipeline_settings


def sent(settings: Settings, *values: bytes) -> list[Message]:
    """Updates of one item, in one partition."""
    producer = Producer(producer_configuration(settings.kafka))
    for value in values:
        producer.produce(settings.topics.item_updates, key=b"a", value=value, partition=1)
    producer.flush()
    return committed_records(settings, settings.topics.item_updates)


def refused(settings: Settings, record: Message, *codebooks: str) -> None:
    producer = Producer(producer_configuration(settings.kafka))
    for codebook in codebooks:
        letter = dead_letter(
            settings.topics.item_updates_dead_letters, record, Rejection("assigner", "WrongDimension", "no", codebook)
        )
        producer.produce(letter.topic, key=letter.key, value=letter.value, headers=letter.headers, partition=0)
    producer.flush()


def replay(settings: Settings) -> ReplayOutcome:
    with Replay.open(settings, [settings.topics.item_updates_dead_letters]) as replaying:
        return replaying.send(replaying.plan(Choice()))


def test_event_that_two_codebooks_refuse_is_sent_again_once(settings: Settings) -> None:
    [record] = sent(settings, b"{")
    refused(settings, record, "first", "second")
    outcome = replay(settings)
    assert outcome.sent == 1
    assert ["the same event" in reason for _, reason in outcome.skipped] == [True]
    again = replay(settings)
    assert (again.sent, again.plan.done_before) == (0, 2)
    assert len(committed_records(settings, settings.topics.item_updates)) == 2


def test_older_letter_is_out_of_date_where_one_codebook_took_the_newer_update(settings: Settings) -> None:
    older, newer = sent(settings, b"old", b"new")
    refused(settings, older, "first", "second")
    refused(settings, newer, "second")
    outcome = replay(settings)
    assert outcome.sent == 1, "the newer one, whose codes the second codebook does not have"
    assert any("out of date" in reason for _, reason in outcome.skipped)


def test_letter_of_a_codebook_that_was_retired_is_left(settings: Settings) -> None:
    [record] = sent(settings, b"{")
    refused(settings, record, "gone")
    outcome = replay(settings)
    assert outcome.sent == 0
    assert ["was retired" in reason for _, reason in outcome.skipped] == [True]
