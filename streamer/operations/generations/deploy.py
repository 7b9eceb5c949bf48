"""A bundle beside the one that answers: into the store, a pipeline for its codebook, and at last a share of the queries.

What must hold: whatever it is killed at, it can be run again and goes on from there; nothing that answers is touched before the
record says so. In this order, each step seen to be done before the next:

1. there is room for it; it lies in the bundle store;
2. what answers today is written down, where nothing was ever deployed (``adopt``);
3. its codebook has a topic for the codes, and then a pipeline in the record: who follows that starts the processes;
4. the pipeline has caught up, and the bundle is ready to answer (``readiness``);
5. the record gives it its share.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from models.bundles.bundle import Bundle
from models.bundles.store import BundleStore
from store.writing.failpoints import Failpoint, reach
from streamer.deployments.log import change_serving
from streamer.deployments.pipelines import DeploymentError, codes_topic_of, settings_of, suffix_of
from streamer.deployments.served import find_serving, served_settings
from streamer.events.serving import Deployed, Pipeline, Serving
from streamer.events.topics import topic_specs
from streamer.kafka.admin import create, describe, require
from streamer.operations.generations.adopt import adopt
from streamer.operations.generations.readiness import Progress, await_caught_up, require_answers, require_ready
from streamer.operations.generations.retire import remove_topic_and_group
from streamer.operations.generations.room import Need, needs, require_room
from streamer.settings import Settings


@dataclass(frozen=True)
class DeployOptions:
    """``share`` of the queries (0 to 1), None for none; ``wait`` until its pipeline has caught up, for ``seconds`` at most."""

    share: float | None = None
    wait: bool = True
    seconds: float | None = None
    evaluation: Path | None = None
    force: bool = False


@dataclass(frozen=True)
class Telling:
    """What a person hears meanwhile: sentences, needs, progress."""

    line: Callable[[str], None] = lambda _line: None
    needs: Callable[[tuple[Need, ...]], None] = lambda _needs: None
    progress: Callable[[Progress], None] = lambda _progress: None


def deploy(settings: Settings, name: str, options: DeployOptions, telling: Telling | None = None) -> Serving:
    """Deploy the bundle that ``name`` means (a directory, an id, the beginning of one); the record afterwards.

    Raises:
        BundleError: it is none, or not whole.
        DeploymentError: there is no room, it is not ready, or somebody else changes what is deployed; what to do.
    """
    telling = telling or Telling()
    require(settings.kafka, [settings.topics.serving, settings.topics.item_updates])
    bundle = BundleStore(settings.bundles).find(name)
    if options.share:
        require_answers(bundle, settings)
        if not options.wait and not options.force:
            raise DeploymentError(
                "--share with --no-wait: a share is given once the index has caught up; leave one out"
            )
    if not _is_deployed(find_serving(settings), bundle):
        found = needs(served_settings(settings), bundle, new_codebook=_is_new(find_serving(settings), settings, bundle))
        telling.needs(found)
        require_room(found, force=options.force)
    # What is in place first: the bundle may lie where the settings' own does, and is then what answers already.
    adopt(settings)
    bundle = BundleStore(settings.bundles).add(bundle.directory)
    reach(Failpoint.BUNDLE_STORED)
    serving = _with_pipeline(settings, bundle)
    telling.line(f"the bundle {bundle.id} is deployed, of the codebook {bundle.layout.codebook_id}")
    if options.wait:
        await_caught_up(
            settings_of(settings, _pipeline(serving, bundle.id)), seconds=options.seconds, progress=telling.progress
        )
    if not options.share:
        return serving
    require_ready(
        settings,
        serving,
        bundle.id,
        evaluation=options.evaluation,
        force=options.force,
        tell=telling.line,
    )
    return give_share(settings, bundle.id, options.share)


def give_share(settings: Settings, bundle_id: str, share: float) -> Serving:
    """Make a deployed bundle the canary with a share of the queries, 0 to 1."""

    def change(found: Serving | None) -> Serving:
        if found is None or found.pipeline_of(bundle_id) is None:
            raise DeploymentError(f"the bundle {bundle_id} is not deployed any more: somebody else retired it")
        if found.bundle == bundle_id:
            raise DeploymentError(f"the bundle {bundle_id} answers already, all queries that no canary has")
        if found.canary not in (None, bundle_id):
            raise DeploymentError(
                f"the bundle {found.canary} is a canary already: `sidstream promote` or `sidstream rollback` comes first"
            )
        return msgspec.structs.replace(found, canary=bundle_id, share=share, adopted=False)

    return change_serving(settings, change, cause=f"deploy: {share:.1%} of the queries")


def _with_pipeline(settings: Settings, bundle: Bundle) -> Serving:
    """The record with the bundle among what is deployed, and a pipeline of its codebook."""
    codebook, now = bundle.layout.codebook_id, int(time.time() * 1000)

    def change(found: Serving | None) -> Serving:
        if found is None:
            raise DeploymentError("what answers is not known any more: somebody removed the record; try again")
        if _is_deployed(found, bundle):
            return found
        pipelines = found.pipelines
        if all(one.codebook != codebook for one in pipelines):
            pipeline = Pipeline(codebook=codebook, bundle=bundle.id, suffix=suffix_of(codebook), since=now)
            _make_topic(settings, pipeline, found)
            pipelines = (*pipelines, pipeline)
        deployed = (*found.deployed, Deployed(bundle=bundle.id, codebook=codebook, since=now))
        return msgspec.structs.replace(found, deployed=deployed, pipelines=pipelines, adopted=False)

    return change_serving(settings, change, cause="deploy")


def _make_topic(settings: Settings, pipeline: Pipeline, found: Serving) -> None:
    """An empty topic of codes. What a `retire` that was killed has left of the same codebook goes first: half of it would be
    read as the whole.

    Called where nobody else can change the record at the same time.
    """
    if any(one.suffix == pipeline.suffix for one in found.pipelines):
        raise DeploymentError(
            f"another codebook's names end in {pipeline.suffix!r}, too: `sidstream retire` that one first"
        )
    remove_topic_and_group(settings, pipeline)
    [updates] = describe(settings.kafka, [settings.topics.item_updates])
    [spec] = [spec for spec in topic_specs(settings) if spec.name == settings.topics.item_codes]
    # As many partitions as the updates have now: an item's codes go to the partition of its update.
    name = codes_topic_of(settings, pipeline)
    create(settings.kafka, [replace(spec, name=name, partitions=updates.partitions, partitions_of=None)])
    reach(Failpoint.CODES_TOPIC_CREATED)


def _is_deployed(found: Serving | None, bundle: Bundle) -> bool:
    return found is not None and found.pipeline_of(bundle.id) is not None


def _is_new(found: Serving | None, settings: Settings, bundle: Bundle) -> bool:
    codebook = bundle.layout.codebook_id
    if found is None:
        return Bundle.open(settings.bundle).layout.codebook_id != codebook
    return all(one.codebook != codebook for one in found.pipelines)


def _pipeline(serving: Serving, bundle_id: str) -> Pipeline:
    pipeline = serving.pipeline_of(bundle_id)
    if pipeline is None:
        raise DeploymentError(f"the bundle {bundle_id} is not deployed any more: somebody else retired it")
    return pipeline
