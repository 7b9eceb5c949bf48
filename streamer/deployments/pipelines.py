"""The settings of a pipeline: what the processes of one codebook call their topic, group and places."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from models.bundles.bundle import Bundle
from models.bundles.manifest import MANIFEST_FILE
from models.bundles.store import BundleStore
from models.errors import SidstreamError
from streamer.events.serving import Pipeline, Serving
from streamer.settings import Settings

_SUFFIX_DIGITS: Final = 8


class DeploymentError(SidstreamError):
    """What is asked for does not go with what is deployed; the message says what to do."""


def suffix_of(codebook: str) -> str:
    """What ends the names of a codebook's topic, group and index, unless it is the first one."""
    return f"-{codebook[:_SUFFIX_DIGITS]}"


def index_of(settings: Settings, pipeline: Pipeline) -> Path:
    """The directory of the pipeline's index on this machine."""
    return settings.indexes / pipeline.codebook if pipeline.suffix else settings.index


def codes_topic_of(settings: Settings, pipeline: Pipeline) -> str:
    """The topic of the pipeline's codes."""
    return _ended(settings.topics.item_codes, pipeline.suffix)


def group_of(settings: Settings, pipeline: Pipeline) -> str:
    """The consumer group of the pipeline's assigners."""
    return settings.in_cluster(_ended(settings.assigner.group, pipeline.suffix))


def _ended(name: str, suffix: str) -> str:
    """Once, also where the settings are the pipeline's already."""
    return name if name.endswith(suffix) else name + suffix


def settings_of(settings: Settings, pipeline: Pipeline, *, bundle: Path | None = None) -> Settings:
    """The settings as the pipeline's processes see them: bundle of the store, codes topic, group and index of their own.

    ``settings``: as they were loaded, or of this pipeline; ``bundle``: another directory with a bundle of the codebook. Raises
    ``BundleError`` if this machine does not have the pipeline's bundle.
    """
    topics = settings.topics.model_copy(update={"item_codes": codes_topic_of(settings, pipeline)})
    assigner = settings.assigner.model_copy(update={"group": _ended(settings.assigner.group, pipeline.suffix)})
    return settings.model_copy(
        update={
            "bundle": bundle or bundle_path(settings, pipeline.bundle),
            "index": index_of(settings, pipeline),
            "pipeline": pipeline.codebook,
            "topics": topics,
            "assigner": assigner,
        }
    )


def bundle_path(settings: Settings, bundle_id: str) -> Path:
    """Where this machine has a bundle: in its store, or as the settings' own. Raises ``BundleError`` if it has it nowhere."""
    store = BundleStore(settings.bundles)
    if bundle_id not in store and (settings.bundle / MANIFEST_FILE).is_file():
        own = Bundle.open(settings.bundle)
        if own.id == bundle_id:
            return settings.bundle
    return store.open(bundle_id).directory


def pipeline_named(serving: Serving | None, codebook: str) -> Pipeline:
    """The pipeline of a codebook. Raises ``DeploymentError`` with those that there are."""
    there = () if serving is None else serving.pipelines
    for pipeline in there:
        if pipeline.codebook == codebook:
            return pipeline
    names = ", ".join(pipeline.codebook for pipeline in there) or "none"
    raise DeploymentError(
        f"there is no pipeline of the codebook {codebook} (there are: {names}): it was retired, or never deployed. "
        "`sidstream deployments` tells; end this process, or deploy a bundle with that codebook"
    )
