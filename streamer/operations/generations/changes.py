"""Which deployed bundle answers: promoted, or rolled back; one record each.

What must hold: run again after a kill, a command does nothing more than it was to do: a second rollback does not undo the first.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from models.bundles.store import BundleStore
from streamer.deployments.log import change_serving
from streamer.deployments.pipelines import DeploymentError
from streamer.deployments.served import find_serving
from streamer.events.serving import Serving
from streamer.operations.generations.readiness import require_ready
from streamer.settings import Settings

_PROMOTE: Final = "promote"
_ROLLBACK: Final = "rollback"
_NOTHING: Final = "nothing was ever deployed here: `sidstream deploy BUNDLE` comes first"


def promote(
    settings: Settings,
    name: str | None = None,
    *,
    evaluation: Path | None = None,
    force: bool = False,
    tell: Callable[[str], None] = lambda _line: None,
) -> Serving:
    """Make the canary, or the deployed bundle that ``name`` means, answer all queries; the record afterwards.

    Raises:
        DeploymentError: there is none, or it is not ready; what to do.
    """
    serving = find_serving(settings)
    if serving is None:
        raise DeploymentError(_NOTHING)
    target = deployed_named(settings, serving, name) if name is not None else serving.canary
    if target is None:
        if serving.cause == _PROMOTE:
            return serving  # done before
        raise DeploymentError(
            "there is no canary: name the bundle, `sidstream promote BUNDLE` (`sidstream deployments`)"
        )
    if target != serving.bundle:
        require_ready(settings, serving, target, evaluation=evaluation, force=force, tell=tell)

    def change(found: Serving | None) -> Serving:
        if found is None or found.pipeline_of(target) is None:
            raise DeploymentError(f"the bundle {target} is not deployed any more: somebody else retired it")
        if found.bundle == target:
            return found
        over = found.canary == target
        return msgspec.structs.replace(
            found,
            bundle=target,
            previous=found.bundle,
            canary=None if over else found.canary,
            share=0.0 if over else found.share,
            adopted=False,
        )

    return change_serving(settings, change, cause=_PROMOTE)


def rollback(settings: Settings) -> Serving:
    """End the canary; without one, go back to the bundle that answered before. The record afterwards.

    What the last rollback did is not done again, so that it can be repeated: further back it is ``promote BUNDLE``.

    Raises:
        DeploymentError: there is nothing to go back to.
    """

    def change(found: Serving | None) -> Serving:
        if found is None:
            raise DeploymentError(_NOTHING)
        if found.canary is not None:
            return msgspec.structs.replace(found, canary=None, share=0.0, adopted=False)
        if found.cause == _ROLLBACK:
            return found
        if found.previous is None:
            raise DeploymentError(
                "there is no canary, and nothing answered before: `sidstream promote BUNDLE` makes a deployed bundle answer"
            )
        return msgspec.structs.replace(found, bundle=found.previous, previous=None, adopted=False)

    return change_serving(settings, change, cause=_ROLLBACK)


def deployed_named(settings: Settings, serving: Serving, name: str) -> str:
    """The deployed bundle that a person means: an id, the beginning of just one, or a directory. Raises ``DeploymentError``."""
    found = [one.bundle for one in serving.deployed if name and one.bundle.startswith(name)]
    if len(found) == 1:
        return found[0]
    if not found:
        bundle_id = BundleStore(settings.bundles).find(name).id
        if serving.pipeline_of(bundle_id) is not None:
            return bundle_id
    there = ", ".join(found or [one.bundle for one in serving.deployed])
    what = "begins several ids" if found else "is not deployed"
    raise DeploymentError(f"{name!r} {what}: {there} {'do' if found else 'are'} (`sidstream deployments`)")
