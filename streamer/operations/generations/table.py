"""What is deployed now, one row a bundle: what it does, and how far its pipeline is. Reads; changes nothing."""

from __future__ import annotations

import msgspec

from models.bundles.store import BundleStore
from models.errors import SidstreamError
from streamer.deployments.pipelines import settings_of
from streamer.deployments.served import find_serving
from streamer.events.serving import Serving
from streamer.operations.status import status_of
from streamer.settings import Settings


class Generation(msgspec.Struct, frozen=True, kw_only=True):
    """A deployed bundle. ``share`` of the users, 0 to 1; ``items`` and ``lag`` of its pipeline on this machine: records that the
    assigner and the indexer have still to read, None where that is not known; ``fault``: why not; ``since``: when it was
    deployed, milliseconds since the epoch; ``model``: id of its language model.
    """

    bundle: str
    codebook: str
    role: str
    share: float
    items: int | None
    lag: int | None
    since: int
    model: str | None
    fault: str | None = None


class Deployments(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that ``sidstream deployments`` shows. ``number``, ``since``, ``cause``: of the last change."""

    generations: tuple[Generation, ...]
    number: int | None = None
    since: int | None = None
    cause: str | None = None
    adopted: bool = False


def read_deployments(settings: Settings) -> Deployments:
    """Ask the broker, and the indexes and bundles of this machine."""
    serving = find_serving(settings)
    if serving is None:
        return Deployments(generations=())
    progress = {one.codebook: _progress(settings, serving, one.bundle) for one in serving.deployed}
    generations = []
    for one in serving.deployed:
        items, lag, fault = progress[one.codebook]
        role, share = role_of(serving, one.bundle)
        model, missing = _model(settings, one.bundle)
        generations.append(
            Generation(
                bundle=one.bundle,
                codebook=one.codebook,
                role=role,
                share=share,
                items=items,
                lag=lag,
                since=one.since,
                model=model,
                fault=fault or missing,
            )
        )
    return Deployments(
        generations=tuple(generations),
        number=serving.number,
        since=serving.since,
        cause=serving.cause,
        adopted=serving.adopted,
    )


def role_of(serving: Serving, bundle: str) -> tuple[str, float]:
    """What a deployed bundle does, in a word, and its share of the users."""
    canary = serving.share if serving.canary is not None else 0.0
    if bundle == serving.bundle:
        return "serving", 1 - canary
    if bundle == serving.canary:
        return "canary", canary
    return ("previous" if bundle == serving.previous else "standby"), 0.0


def _progress(settings: Settings, serving: Serving, bundle: str) -> tuple[int | None, int | None, str | None]:
    pipeline = serving.pipeline_of(bundle)
    if pipeline is None:
        return None, None, "its codebook has no pipeline"
    try:
        found = status_of(settings_of(settings, pipeline, bundle=settings.bundle))
    except SidstreamError as error:
        return None, None, str(error)
    lags = [lag.records for lag in found.lags if lag.process in ("assigner", "indexer")]
    known = [records for records in lags if records is not None]
    return found.items, sum(known) if len(known) == len(lags) else None, found.index_fault


def _model(settings: Settings, bundle: str) -> tuple[str | None, str | None]:
    store = BundleStore(settings.bundles)
    if bundle not in store:
        return None, f"the bundle is not in {settings.bundles} of this machine"
    try:
        return store.open(bundle).manifest.model_id, None
    except SidstreamError as error:
        return None, str(error)
