"""A bundle with a language model and a dense part that knows some of the items."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.bundles.bundle import Bundle
from models.bundles.dense_part import add_dense_part, dense_space_of, fit_dense_part
from models.dense.mixture import MixtureWeights

WEIGHTS = MixtureWeights(sharpness=12.0, share=0.5)


def dense_bundle(
    model_bundle: Path,
    path: Path,
    embeddings: NDArray[np.float32],
    known: Sequence[str],
    histories: Sequence[Sequence[int]] = (),
    weights: MixtureWeights = WEIGHTS,
) -> Bundle:
    """A copy at `path`, its dense part fitted to the known items, whose embeddings are the first rows.

    Args:
        model_bundle: a bundle with a model; it stays as it is.
        path: where the copy goes; it must not be there yet.
        embeddings: float32 (≥ len(known), dimension).
        known: the known items' ids.
        histories: of rows, from which it is learnt what was taken together.
        weights: of queries of either kind.
    """
    opened = Bundle.open(shutil.copytree(model_bundle, path), need_model=True)
    fitted = fit_dense_part(opened, embeddings[: len(known)], list(known), histories)
    space = dense_space_of(fitted)
    assert space is not None
    return add_dense_part(fitted, space, weights={"embedding": weights, "history": weights})
