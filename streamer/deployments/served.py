"""Which pipeline a process or a command works on: the one that it was told, or the one that answers.

What must hold: where nothing was ever deployed, the settings count as they are, and nobody needs the record ``serving``.
"""

from __future__ import annotations

from models.bundles.bundle import Bundle
from models.bundles.manifest import BundleError
from models.bundles.store import BundleStore
from streamer.deployments.log import read_serving
from streamer.deployments.pipelines import pipeline_named, settings_of
from streamer.events.serving import Pipeline, Serving
from streamer.kafka.admin import ClusterAwayError, MissingTopicsError
from streamer.kafka.read_to_end import LogReadError
from streamer.settings import Settings


def find_serving(settings: Settings) -> Serving | None:
    """The record that counts now; None before anything was deployed, also where the topic is not there yet.

    Raises:
        ClusterAwayError: the cluster does not answer.
        ServingRecordError: it holds what this sidstream does not read.
    """
    try:
        return read_serving(settings)
    except MissingTopicsError:
        return None
    except LogReadError as error:
        raise ClusterAwayError(str(error)) from error


def own_settings(settings: Settings, serving: Serving | None) -> Settings:
    """What an assigner or indexer works with: the pipeline that ``settings.pipeline`` names, else that of the settings' bundle.

    Raises:
        DeploymentError: the record has no such pipeline.
        BundleError: the bundle is not on this machine.
    """
    if serving is None and not settings.pipeline:
        return settings
    codebook = settings.pipeline or Bundle.open(settings.bundle).layout.codebook_id
    pipeline = pipeline_named(serving, codebook)
    try:
        return settings_of(settings, pipeline)
    except BundleError:
        # Any bundle of the codebook has the same encoder: the one of the settings may have been trained since.
        own = Bundle.open(settings.bundle)
        if own.layout.codebook_id != codebook:
            raise
        return settings_of(settings, pipeline, bundle=own.directory)


def served_settings(settings: Settings) -> Settings:
    """What a command on call works with: the pipeline that ``settings.pipeline`` names, else the one that answers.

    Its bundle need not be on this machine. Raises as ``find_serving`` and ``pipeline_named``.
    """
    serving = find_serving(settings)
    if serving is None:
        return own_settings(settings, serving)
    pipeline = pipeline_named(serving, settings.pipeline) if settings.pipeline else serving_pipeline(serving)
    try:
        return settings_of(settings, pipeline)
    except BundleError:  # not here: whoever opens it says so
        return settings_of(settings, pipeline, bundle=BundleStore(settings.bundles).path(pipeline.bundle))


def served_on_this_machine(settings: Settings) -> Settings:
    """``served_settings`` without a broker, where this machine has one index alone; for commands that need none."""
    if not settings.pipeline and not any(settings.indexes.glob("*/data.mdb")):
        return settings
    return served_settings(settings)


def serving_pipeline(serving: Serving) -> Pipeline:
    """Of the bundle that answers."""
    return pipeline_named(serving, serving.codebook_of(serving.bundle) or "")
