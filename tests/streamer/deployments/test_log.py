"""The record ``serving`` on a real broker: one change at a time, from the newest, all of it or nothing."""

from __future__ import annotations

import threading

import msgspec
import pytest
from confluent_kafka import Producer

from streamer.deployments.follow import ServingFollower
from streamer.deployments.log import ServingRecordError, change_serving, read_serving
from streamer.deployments.pipelines import DeploymentError
from streamer.events.serving import SERVING_KEY, Deployed, Pipeline, Serving
from streamer.kafka.clients import producer_configuration
from streamer.settings import Settings
from support.processes import wait_until

FIRST, SECOND = "1" * 16, "2" * 16
SERVING = Serving(
    bundle=FIRST,
    deployed=(Deployed(bundle=FIRST, codebook="c", since=1), Deployed(bundle=SECOND, codebook="c", since=1)),
    pipelines=(Pipeline(codebook="c", bundle=FIRST, since=1),),
)


def test_nothing_is_deployed_before_the_first_change(pipeline_settings: Settings) -> None:
    assert read_serving(pipeline_settings) is None


def test_change_is_made_from_the_newest_record_and_numbered(pipeline_settings: Settings) -> None:
    first = change_serving(pipeline_settings, lambda _: SERVING, cause="a test")
    assert (first.number, first.cause, read_serving(pipeline_settings)) == (0, "a test", first)

    def canary(before: Serving | None) -> Serving:
        assert before == first
        return msgspec.structs.replace(before, canary=SECOND, share=0.25)

    second = change_serving(pipeline_settings, canary, cause="a canary")
    assert (second.number, second.canary, second.share) == (1, SECOND, 0.25)
    assert second.since >= first.since > 0


def test_change_of_nothing_writes_nothing(pipeline_settings: Settings) -> None:
    first = change_serving(pipeline_settings, lambda _: SERVING, cause="a test")

    def same(before: Serving | None) -> Serving:
        assert before is not None
        return before

    assert change_serving(pipeline_settings, same, cause="again") == first


def test_record_that_names_what_is_not_deployed_is_refused(pipeline_settings: Settings) -> None:
    with pytest.raises(DeploymentError, match="deploy it first"):
        change_serving(pipeline_settings, lambda _: msgspec.structs.replace(SERVING, canary="3" * 16), cause="a test")
    assert read_serving(pipeline_settings) is None


def test_slower_of_two_changes_at_once_is_refused_and_not_lost_unseen(pipeline_settings: Settings) -> None:
    def overtaken(before: Serving | None) -> Serving:
        change_serving(pipeline_settings, lambda _: SERVING, cause="the faster one")
        return msgspec.structs.replace(SERVING, bundle=SECOND)

    with pytest.raises(DeploymentError, match="somebody else"):
        change_serving(pipeline_settings, overtaken, cause="the slower one")
    now = read_serving(pipeline_settings)
    assert now is not None
    assert now.cause == "the faster one"


def test_record_of_a_newer_sidstream_is_refused_with_its_place(pipeline_settings: Settings) -> None:
    producer = Producer(producer_configuration(pipeline_settings.kafka))
    producer.produce(pipeline_settings.topics.serving, key=SERVING_KEY, value=b'{"bundle":"x","record_version":2}')
    producer.flush()
    with pytest.raises(ServingRecordError, match="offset 0"):
        read_serving(pipeline_settings)


def test_follower_has_the_newest_record_and_tells_once_that_it_changed(pipeline_settings: Settings) -> None:
    with ServingFollower(pipeline_settings, "test") as follower:
        assert (follower.current, follower.changed()) == (None, False)
        change_serving(pipeline_settings, lambda _: SERVING, cause="a test")
        wait_until(follower.changed, what="the follower has the change")
        assert follower.current is not None
        assert follower.current.bundle == FIRST
        assert not follower.changed()
    with ServingFollower(pipeline_settings, "test") as again:
        assert again.current == follower.current
    assert "serving" not in {thread.name for thread in threading.enumerate()}
