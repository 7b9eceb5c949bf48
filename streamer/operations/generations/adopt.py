"""What answers today, written down: the first record ``serving`` names what the settings have always meant.

What must hold: nothing that runs notices; the bundle is in the store before the record names it. Run again, it changes nothing.
"""

from __future__ import annotations

import time
from pathlib import Path

from models.bundles.bundle import Bundle
from models.bundles.store import BundleStore
from store.errors import IndexMissingError, IndexNotUpgradedError
from store.reading.reader import IndexReader
from store.writing.failpoints import Failpoint, reach
from streamer.deployments.log import change_serving
from streamer.deployments.pipelines import DeploymentError
from streamer.deployments.served import find_serving
from streamer.events.serving import Deployed, Pipeline, Serving
from streamer.settings import Settings


def adopt(settings: Settings, *, again: bool = False) -> Serving:
    """The record that counts, written first if nothing was ever deployed.

    ``again``: also where nothing but adopting has happened since and the settings' bundle was trained, as ``sidstream up`` does
    at its start. A bundle with another codebook is never adopted in the place of one that has items: it is for ``deploy``.

    Raises:
        DeploymentError: the index is of another codebook than the settings' bundle.
        BundleError: the settings' bundle is none.
    """
    before = find_serving(settings)
    if before is not None and not (again and before.adopted):
        return before
    own = Bundle.open(settings.bundle)
    codebook = own.layout.codebook_id
    if before is not None and (own.id == before.bundle or codebook != before.codebook_of(before.bundle)):
        return before
    _require_own_index(settings.index, codebook, settings.bundle)
    store = BundleStore(settings.bundles)
    store.add(own.directory)
    reach(Failpoint.BUNDLE_STORED)
    now = int(time.time() * 1000)

    def change(found: Serving | None) -> Serving:
        if found != before and found is not None:
            return found  # somebody was faster
        return Serving(
            bundle=own.id,
            deployed=(Deployed(bundle=own.id, codebook=codebook, since=now),),
            pipelines=(
                Pipeline(codebook=codebook, bundle=own.id, since=now if found is None else found.pipelines[0].since),
            ),
            adopted=True,
        )

    serving = change_serving(settings, change, cause=f"adopted: {settings.bundle} answers as before")
    if before is not None and all(one.bundle != before.bundle for one in serving.deployed):
        store.remove(before.bundle)  # nobody can go back to it: it was trained further in its place
    return serving


def _require_own_index(index: Path, codebook: str, bundle: Path) -> None:
    try:
        with IndexReader(index) as reader, reader.snapshot() as snapshot:
            found = snapshot.codebook_id
    except (IndexMissingError, IndexNotUpgradedError):
        return
    if found != codebook:
        raise DeploymentError(
            f"the index {index} is of the codebook {found}, and the bundle {bundle} has another one, {codebook}: what answers "
            "now cannot be told. Name the bundle of that index (`--bundle DIR` before the command), and deploy the other one"
        )
