"""The rest between the batches of a pipeline follows the record ``serving``, on a real broker."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

import msgspec

from streamer.deployments.batch_interval import batch_interval
from streamer.deployments.log import change_serving
from streamer.events.serving import Deployed, Pipeline, Serving
from streamer.process.health import Health
from streamer.settings import Settings
from support.processes import wait_until

SERVING = Serving(
    bundle="1" * 16,
    deployed=(
        Deployed(bundle="1" * 16, codebook="first", since=1),
        Deployed(bundle="2" * 16, codebook="second", since=1),
    ),
    pipelines=(
        Pipeline(codebook="first", bundle="1" * 16, since=1),
        Pipeline(codebook="second", bundle="2" * 16, since=1, suffix="-second"),
    ),
)


def test_pipeline_that_is_promoted_hurries_at_once_and_the_one_before_it_takes_its_time(
    pipeline_settings: Settings,
) -> None:
    beside = pipeline_settings.generations.beside_batch_interval_ms
    assert beside > 5.0
    stop, health = threading.Event(), Health()

    def interval(codebook: str) -> AbstractContextManager[Callable[[], float]]:
        return batch_interval(pipeline_settings, codebook, 5.0, "test", stop, health)

    with interval("first") as first, interval("second") as second:
        assert (first(), second()) == (5.0, 5.0), "nothing was deployed: it is the one that answers"
        change_serving(pipeline_settings, lambda _: SERVING, cause="a deployment")
        wait_until(lambda: second() == beside, what="the candidate's interval")
        assert first() == 5.0
        change_serving(
            pipeline_settings,
            lambda now: msgspec.structs.replace(now, bundle="2" * 16, previous="1" * 16),
            cause="a promotion",
        )
        wait_until(lambda: (first(), second()) == (beside, 5.0), what="the intervals after the promotion")


def test_interval_without_a_topic_of_deployments_is_the_settings_own(broker_settings: Settings) -> None:
    with batch_interval(broker_settings, "first", 5.0, "test", threading.Event(), Health()) as interval:
        assert interval() == 5.0
