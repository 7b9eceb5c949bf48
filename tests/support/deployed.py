"""Bundles that differ in their id alone, records that deploy them, and a follower of records that a test sets."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from models.bundles.bundle import Bundle
from models.bundles.manifest import write_manifest
from models.bundles.store import BundleStore
from streamer.deployments.follow import ServingFollower
from streamer.events.serving import Deployed, Pipeline, Serving


class FollowedByHand(ServingFollower):
    """Has what a test says that the broker has."""

    def __init__(self, current: Serving | None = None) -> None:
        self.current = current


def twin(bundle: Path, directory: Path, name: str) -> Bundle:
    """A copy of a bundle with an id of its own: its manifest says something else of the embeddings."""
    shutil.copytree(bundle, directory)
    manifest = msgspec.structs.replace(Bundle.open(directory).manifest, embedding=name)
    write_manifest(directory, manifest)
    return Bundle.open(directory, need_model=manifest.language_model is not None)


def stored_twins(store: Path, bundle: Path, names: Sequence[str], workshop: Path) -> list[Bundle]:
    """Such copies in a bundle store."""
    return [BundleStore(store).add(twin(bundle, workshop / name, name).directory) for name in names]


def serving(*deployed: Bundle, number: int = 0, suffixes: Sequence[str] = (), **fields: Any) -> Serving:
    """A record that deploys bundles; the first one answers. ``suffixes``: of the codebooks' pipelines, in their order."""
    codebooks = list(dict.fromkeys(bundle.manifest.codebook_id for bundle in deployed))
    ends = [*suffixes, *[""] * len(codebooks)]
    first = {bundle.manifest.codebook_id: bundle.id for bundle in reversed(deployed)}
    return Serving(
        **{"bundle": deployed[0].id} | fields,
        deployed=tuple(Deployed(bundle=one.id, codebook=one.manifest.codebook_id, since=1) for one in deployed),
        pipelines=tuple(
            Pipeline(codebook=codebook, bundle=first[codebook], suffix=end, since=1)
            for codebook, end in zip(codebooks, ends, strict=False)
        ),
        number=number,
    )
