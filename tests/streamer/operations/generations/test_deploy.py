"""Deploying, promoting and retiring, killed anywhere and run again; and what each of them refuses. No process runs but these."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from models.bundles.bundle import Bundle
from models.bundles.manifest import BundleError
from models.bundles.store import BundleStore
from store.writing.failpoints import FAILPOINT_VARIABLE, Failpoint
from store.writing.writer import IndexWriter
from streamer.client.publisher import ItemPublisher
from streamer.deployments.log import read_serving
from streamer.deployments.pipelines import DeploymentError, codes_topic_of, settings_of
from streamer.events.serving import Serving
from streamer.kafka.admin import describe
from streamer.operations.generations.changes import promote, rollback
from streamer.operations.generations.deploy import DeployOptions, deploy, give_share
from streamer.operations.generations.retire import retire
from streamer.operations.generations.room import Need, require_room
from streamer.settings import Settings
from support.processes import SidstreamProcess

NOW = DeployOptions(wait=False)


def empty_index(settings: Settings, serving: Serving, bundle: Bundle) -> Path:
    """An index of the bundle's pipeline, as its indexer makes one."""
    pipeline = serving.pipeline_of(bundle.id)
    assert pipeline is not None
    own = settings_of(settings, pipeline)
    layout = bundle.layout
    with IndexWriter.open(own.index, codebook_id=layout.codebook_id, layers=layout.layers, size=layout.size) as writer:
        writer.put_layout(layout, {})
    return own.index


def recorded(settings: Settings) -> Serving:
    found = read_serving(settings)
    assert found is not None
    return found


def test_every_command_is_killed_at_every_failpoint_and_run_again(
    settings: Settings, other_bundle: Path, tmp_path: Path
) -> None:
    first, second = Bundle.open(settings.bundle), Bundle.open(other_bundle)

    def killed(command: str, *points: Failpoint) -> None:
        for point in points:
            process = SidstreamProcess(settings, command, tmp_path, name="command").start({FAILPOINT_VARIABLE: point})
            assert process.wait() == -9, (command, point, process.log())

    def done(command: str, name: str = "command") -> str:
        process = SidstreamProcess(settings, command, tmp_path, name=name).start()
        assert process.wait() == 0, process.log()
        return process.log()

    written = (Failpoint.SERVING_SENT, Failpoint.SERVING_COMMITTED)
    removal = (Failpoint.GROUP_DELETED, Failpoint.CODES_TOPIC_DELETED)
    command = f"deploy {other_bundle} --no-wait"
    killed(command, Failpoint.BUNDLE_STORED, Failpoint.SERVING_SENT)  # while what answers is written down
    assert read_serving(settings) is None
    killed(command, Failpoint.SERVING_COMMITTED)
    assert (recorded(settings).bundle, recorded(settings).adopted) == (first.id, True)
    killed(command, Failpoint.BUNDLE_STORED, *removal, Failpoint.CODES_TOPIC_CREATED, *written)
    done(command)
    serving = recorded(settings)
    assert [one.bundle for one in serving.deployed] == [first.id, second.id]
    assert [one.codebook for one in serving.pipelines] == [first.layout.codebook_id, second.layout.codebook_id]
    assert (serving.bundle, serving.adopted) == (first.id, False)
    topic = codes_topic_of(settings, serving.pipelines[1])
    assert len(describe(settings.kafka, [topic])) == 1

    index = empty_index(settings, serving, second)
    killed(f"promote {second.id[:6]} --force", *written)
    done(f"promote {second.id[:6]} --force")
    assert (recorded(settings).bundle, recorded(settings).previous) == (second.id, first.id)
    table = done("deployments", "table")
    assert all(word in table for word in (first.id, second.id, "serving", "previous", "100.0%", "Last change"))
    found = json.loads(done("deployments --json", "json"))
    assert [(one["bundle"], one["role"], one["items"]) for one in found["generations"]] == [
        (first.id, "previous", None),
        (second.id, "serving", 0),
    ]
    killed("rollback", *written)
    done("rollback")
    assert recorded(settings).bundle == first.id, "the rollback that was killed was not undone by the next one"

    command = f"retire {second.id}"
    killed(command, *written, *removal, Failpoint.INDEX_DELETED)
    assert second.id in BundleStore(settings.bundles)
    done(command)
    assert second.id not in BundleStore(settings.bundles)
    assert not index.exists()
    assert describe(settings.kafka, [topic]) == []
    assert [one.bundle for one in recorded(settings).deployed] == [first.id]


def test_two_operators_at_once_lose_nothing_of_each_other(
    settings: Settings, other_bundle: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    deploy(settings, str(settings.bundle), NOW)
    refused: list[tuple[Path, str]] = []

    def run(bundle: Path) -> None:
        try:
            deploy(settings, str(bundle), NOW)
        except DeploymentError as error:
            refused.append((bundle, str(error)))

    threads = [threading.Thread(target=run, args=(bundle,)) for bundle in (other_bundle, tiny_bundle)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all("somebody else" in reason for _, reason in refused)
    for bundle, _ in refused:
        deploy(settings, str(bundle), NOW)
    serving = recorded(settings)
    opened = [Bundle.open(bundle) for bundle in (settings.bundle, other_bundle, tiny_bundle)]
    assert {one.bundle for one in serving.deployed} == {one.id for one in opened}
    assert {one.codebook for one in serving.pipelines} == {one.layout.codebook_id for one in opened}
    assert len(serving.pipelines) == 2


class Deployed(NamedTuple):
    settings: Settings
    first: Bundle
    second: Bundle
    serving: Serving


@pytest.fixture
def deployed(settings: Settings, other_bundle: Path) -> Deployed:
    serving = deploy(settings, str(other_bundle), NOW)
    return Deployed(settings, Bundle.open(settings.bundle), Bundle.open(other_bundle), serving)


def test_bundle_that_is_not_ready_is_refused_and_told_what_is_missing(
    deployed: Deployed, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, _, second, serving = deployed
    monkeypatch.setattr("streamer.operations.generations.readiness._READY_SECONDS", 0.1)
    with pytest.raises(DeploymentError, match="there is no index"):
        promote(settings, second.id, force=True)
    empty_index(settings, serving, second)
    with ItemPublisher(settings) as publisher:
        publisher.update("item-0", np.ones(8, dtype=np.float32))
    with pytest.raises(
        DeploymentError, match=r"not caught up .*its assigner and indexer does not run.*sidstream assigner"
    ):
        promote(settings, second.id)
    deploy(settings, str(tiny_bundle), NOW)
    with pytest.raises(DeploymentError, match="no language model"):
        promote(settings, Bundle.open(tiny_bundle).id, force=True)
    with pytest.raises(DeploymentError, match="no canary"):
        promote(settings)
    with pytest.raises(DeploymentError, match="nothing answered before"):
        rollback(settings)
    with pytest.raises(BundleError, match="neither"):
        promote(settings, "ffff")


def test_what_answers_or_may_be_gone_back_to_is_not_retired(deployed: Deployed) -> None:
    settings, first, second, serving = deployed
    empty_index(settings, serving, second)
    with pytest.raises(DeploymentError, match="answers"):
        retire(settings, first.id, force=True)
    give_share(settings, second.id, 0.5)
    with pytest.raises(DeploymentError, match="canary"):
        retire(settings, second.id, force=True)
    promote(settings, force=True)
    with pytest.raises(DeploymentError, match="--force"):
        retire(settings, first.id)
    assert {one.bundle for one in recorded(settings).deployed} == {first.id, second.id}


def test_model_of_the_same_codebook_needs_no_second_pipeline_and_outlives_the_bundle_before(
    settings: Settings, tiny_bundle: Path, tmp_path: Path
) -> None:
    first = Bundle.open(settings.bundle)
    serving = deploy(settings, str(tiny_bundle), NOW)
    second = Bundle.open(tiny_bundle)
    assert [(one.codebook, one.suffix) for one in serving.pipelines] == [(first.layout.codebook_id, "")]
    assert [one.bundle for one in retire(settings, second.id).deployed] == [first.id]
    assert len(describe(settings.kafka, [settings.topics.item_codes])) == 1, "the codebook still has a bundle"


def test_evaluation_that_is_worse_or_of_other_bundles_is_refused(deployed: Deployed, tmp_path: Path) -> None:
    settings, first, second, serving = deployed
    empty_index(settings, serving, second)
    models = [bundle.manifest.model_id for bundle in (first, second)]

    def evaluated(interval: list[float], model: str | None = models[1], other: str | None = models[0]) -> Path:
        against = {"name": "against", "differences": {"all": {"recall@10": interval}}, "settings": f"model {other}"}
        path = tmp_path / "evaluation.json"
        path.write_text(json.dumps({"systems": [against], "main": 10, "about": {"model": model}}))
        return path

    def asked(path: Path, *, force: bool = True) -> list[str]:
        told: list[str] = []
        promote(settings, second.id, evaluation=path, force=force, tell=told.append)
        return told

    with pytest.raises(DeploymentError, match="evaluation of the model"):
        asked(evaluated([0.1, 0.0, 0.2], model="another"))
    with pytest.raises(DeploymentError, match="compares with"):
        asked(evaluated([0.1, 0.0, 0.2], other="another"))
    with pytest.raises(DeploymentError, match="is no evaluation"):
        asked(tmp_path / "missing.json")
    from streamer.operations.generations.readiness import compared

    with pytest.raises(DeploymentError, match="worse beyond chance"):
        compared(evaluated([-0.2, -0.3, -0.1]), second.manifest, first.manifest, force=False)
    assert any("worse, and forced" in line for line in asked(evaluated([-0.2, -0.3, -0.1])))


def test_disk_that_is_not_there_is_said_beforehand_and_nothing_is_changed(
    settings: Settings, other_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.disk_usage

    def full(path: Any) -> Any:
        return real(path)._replace(free=100)

    monkeypatch.setattr(shutil, "disk_usage", full)
    with pytest.raises(DeploymentError, match=r"needs about .* 0\.0 MB are free: make room"):
        deploy(settings, str(other_bundle), DeployOptions(wait=False, force=True))
    assert read_serving(settings) is None
    assert not settings.bundles.exists()


def test_memory_that_is_short_may_be_forced_and_a_disk_may_not() -> None:
    memory, disk = (Need(what="it", where=where, needed=2, free=1) for where in ("memory", "disk"))
    require_room([memory], force=True)
    for need, force in ((memory, False), (disk, True)):
        with pytest.raises(DeploymentError, match="make room"):
            require_room([need], force=force)
