"""The dense part of a bundle: added to one that is there, read from one that has it.

What must hold: its files are there before the manifest names them, and the old ones go last: a reader that opens the bundle
meanwhile sees the old part or the new one, whole.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from models.bundles.bundle import DENSE_PREFIX, Bundle, remove_dense_files
from models.bundles.manifest import record_file, write_manifest
from models.dense.mixture import MixtureWeights
from models.dense.part import Asked, DenseRecord, load_space, save_space, space_facts
from models.dense.space import DenseSpace, fit_space, id_hashes
from models.dense.vectors import quantise
from models.errors import SidstreamError


def add_dense_part(
    bundle: Bundle,
    space: DenseSpace,
    *,
    weights: Mapping[Asked, MixtureWeights] | None = None,
    figures: Mapping[str, Any] | None = None,
    query_tower: Path | None = None,
) -> Bundle:
    """Writes the part into the bundle and replaces the manifest. ``query_tower``: the ONNX graph that embeds a query's text; it
    is copied. A bundle that has a part already loses it.
    """
    manifest = bundle.manifest
    if space.dimension != manifest.dimension:
        raise SidstreamError(
            f"the dense part is of embeddings of {space.dimension} dimensions, the bundle {bundle.directory} of "
            f"{manifest.dimension}: fit both on the same catalogue"
        )
    root = bundle.directory
    written: dict[str, str] = {}  # suffix → name in the bundle
    for suffix in (".safetensors", ".onnx"):
        staged = root / f".{DENSE_PREFIX}{secrets.token_hex(4)}{suffix}"
        if suffix == ".safetensors":
            save_space(space, staged)
        elif query_tower is not None:
            shutil.copyfile(query_tower, staged)
        else:
            continue
        staged.chmod(0o644)  # safetensors writes files for the owner alone; the retriever may be another user
        name = f"{DENSE_PREFIX}{record_file(root, staged.name).sha256[:16]}{suffix}"
        os.replace(staged, root / name)
        written[suffix] = name
    record = DenseRecord(
        **space_facts(space, written[".safetensors"]),
        weights=dict(weights or {}),
        figures=dict(figures or {}),
        query_tower=written.get(".onnx"),
    )
    files = {name: file for name, file in manifest.files.items() if not name.startswith(DENSE_PREFIX)}
    files |= {name: record_file(root, name) for name in written.values()}
    write_manifest(root, msgspec.structs.replace(manifest, files=files, dense=record))
    remove_dense_files(root, keep=written.values())
    return Bundle.open(root)


def fit_dense_part(
    bundle: Bundle,
    embeddings: npt.NDArray[np.floating],
    ids: Sequence[str],
    histories: Sequence[Sequence[int]] = (),
    *,
    query_tower: Path | None = None,
) -> Bundle:
    """A dense part for a bundle before anything was trained: it answers by nearest vectors alone.

    ``embeddings`` (N, D) of the items ``ids``, both empty if nothing is known of them; ``histories``: of rows.
    """
    hashes = id_hashes(item.encode() for item in ids)
    space, _ = fit_space(quantise(embeddings[: len(ids)]).unit(), hashes, histories, keep_pairs=True)
    return add_dense_part(bundle, space, query_tower=query_tower)


def dense_space_of(bundle: Bundle) -> DenseSpace | None:
    """The space of the bundle's dense part; None for a bundle of an older sidstream, which has none."""
    record = bundle.manifest.dense
    return None if record is None else load_space(bundle.path(record.file), record)
