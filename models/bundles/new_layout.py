"""A bundle under another layout of its codebook: what a model is to be trained for when the head tokens have changed."""

from __future__ import annotations

import shutil

import msgspec

from models.bundles.bundle import MODEL_PREFIX, Bundle
from models.bundles.manifest import BundleError, write_manifest
from models.sids.layout import Layout


def with_layout(bundle: Bundle, layout: Layout) -> Bundle:
    """Writes the layout into the bundle's manifest and takes the language model out, which writes SIDs of the old one.

    Raises ``BundleError`` for a layout of another codebook. Only for a bundle that nothing serves: it is changed in place.
    """
    manifest = bundle.manifest
    if (layout.codebook_id, layout.layers, layout.size) != (manifest.codebook_id, manifest.layers, manifest.size):
        raise BundleError(
            f"layout {layout.generation} is of the codebook {layout.codebook_id}, the bundle {bundle.directory} has "
            f"{manifest.codebook_id}: SIDs of one mean nothing in the other"
        )
    files = {name: record for name, record in manifest.files.items() if not name.startswith(MODEL_PREFIX)}
    write_manifest(
        bundle.directory,
        msgspec.structs.replace(manifest, layout=layout.to_dict(), files=files, language_model=None),
    )
    if manifest.language_model is not None:
        shutil.rmtree(bundle.directory / manifest.language_model.directory)
    return Bundle.open(bundle.directory)
