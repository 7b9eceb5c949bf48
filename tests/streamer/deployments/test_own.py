"""What an assigner or indexer works for, and the rest between its batches, which follows the record ``serving``."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from models.bundles.bundle import Bundle
from streamer.deployments.follow import following
from streamer.deployments.log import change_serving, read_serving
from streamer.deployments.own import OwnPipeline, await_own
from streamer.events.serving import Deployed, Pipeline, Serving
from streamer.kafka.admin import ClusterAwayError
from streamer.kafka.read_to_end import LogReadError
from streamer.process.health import Health
from streamer.settings import Settings
from support.processes import wait_until

FIRST, SECOND = "f" * 16, "5" * 16  # codebooks
SERVING = Serving(
    bundle="1" * 16,
    deployed=(
        Deployed(bundle="1" * 16, codebook=FIRST, since=1),
        Deployed(bundle="2" * 16, codebook=SECOND, since=1),
    ),
    pipelines=(
        Pipeline(codebook=FIRST, bundle="1" * 16, since=1),
        Pipeline(codebook=SECOND, bundle="2" * 16, since=1, suffix="-second"),
    ),
)


@contextmanager
def interval_of(settings: Settings, directory: Path, codebook: str) -> Iterator[Callable[[], float]]:
    """As an assigner or indexer of that codebook has it."""
    bundle = Bundle.open(directory)
    layout = dataclasses.replace(bundle.layout, codebook_id=codebook)
    named = Bundle(directory, msgspec.structs.replace(bundle.manifest, layout=layout.to_dict()), bundle.id)
    with following(settings, "test", threading.Event(), Health()) as serving:
        assert serving is not None
        own = OwnPipeline(settings, named, serving)
        yield lambda: own.batch_interval_ms(5.0)


def test_pipeline_that_is_promoted_hurries_at_once_and_the_one_before_it_takes_its_time(
    pipeline_settings: Settings, tiny_bundle: Path
) -> None:
    beside = pipeline_settings.generations.beside_batch_interval_ms
    assert beside > 5.0
    first, second = (interval_of(pipeline_settings, tiny_bundle, codebook) for codebook in (FIRST, SECOND))
    with first as of_first, second as of_second:
        assert (of_first(), of_second()) == (5.0, 5.0), "nothing was deployed: it is the one that answers"
        change_serving(pipeline_settings, lambda _: SERVING, cause="a deployment")
        wait_until(lambda: of_second() == beside, what="the candidate's interval")
        assert of_first() == 5.0
        change_serving(
            pipeline_settings,
            lambda now: msgspec.structs.replace(now, bundle="2" * 16, previous="1" * 16),
            cause="a promotion",
        )
        wait_until(lambda: (of_first(), of_second()) == (beside, 5.0), what="the intervals after the promotion")


def test_process_without_a_topic_of_deployments_works_for_the_bundle_of_its_settings(
    broker_settings: Settings, tiny_bundle: Path
) -> None:
    settings = broker_settings.model_copy(update={"bundle": tiny_bundle})
    with await_own(settings, "test", threading.Event(), Health()) as own:
        assert own is not None
        assert (own.settings, own.is_beside(), own.batch_interval_ms(5.0)) == (settings, False, 5.0)


@pytest.mark.parametrize("error", [ClusterAwayError, LogReadError])
def test_record_that_cannot_be_read_for_now_is_read_once_the_cluster_answers(
    pipeline_settings: Settings, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    settings = pipeline_settings.model_copy(update={"bundle": tiny_bundle})
    asked: list[str | None] = []
    health = Health()

    def away_at_first(settings: Settings) -> Serving | None:
        asked.append(health.reason)
        if len(asked) == 1:
            raise error("the broker is away")
        return read_serving(settings)

    monkeypatch.setattr("streamer.deployments.follow.read_serving", away_at_first)
    with await_own(settings, "test", threading.Event(), health) as own:
        assert own is not None
        assert own.settings == settings
    assert len(asked) == 2
    assert "the broker is away" in str(asked[1])


def test_process_that_is_told_to_stop_while_the_cluster_is_away_has_nothing_to_work_for(
    broker_settings: Settings, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = threading.Event()

    def away(_settings: Settings) -> Serving | None:
        stop.set()
        raise ClusterAwayError("the broker is away")

    monkeypatch.setattr("streamer.deployments.follow.read_serving", away)
    settings = broker_settings.model_copy(update={"bundle": tiny_bundle})
    with await_own(settings, "test", stop, Health()) as own:
        assert own is None
