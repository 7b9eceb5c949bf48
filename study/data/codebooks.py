"""The study's codebooks: fitted once a choice, kept in the scratch directory.

What must hold: codes are those of the product (``Codebook.encode``); co-occurrence vectors are of the training histories
alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from models.codebooks.codebook import Codebook, fit_residual_kmeans
from models.dense.codebook_input import fit_codebook_input
from models.errors import SidstreamError
from study.data.choices import CodebookChoice
from study.data.datasets import TOWERS, Dataset, planted_codebook
from study.data.synthetic import skewed_embeddings, uniform_embeddings

RQ_VAE_EPOCHS: Final = 30


@dataclass(frozen=True, eq=False)
class FittedCodebook:
    """``vectors``: float32 (N, D) that were quantised; ``codes``: uint16 (N, L)."""

    codebook: Codebook
    vectors: npt.NDArray[np.float32]
    codes: npt.NDArray[np.uint16]


def fitted(choice: CodebookChoice, data: Dataset, scratch: Path) -> FittedCodebook:
    """Fits, or reads what was fitted before. Items that arrive after training are encoded, not fitted on."""
    vectors = item_vectors(choice, data)
    path = scratch / f"codebook-{choice.key}{f'-{data.held_back}' if data.held_back else ''}.safetensors"
    if path.is_file():
        codebook = Codebook.load(path)
    else:
        codebook = _fit(choice, vectors[~data.arrived])
        path.parent.mkdir(parents=True, exist_ok=True)
        codebook.save(path)
    return FittedCodebook(codebook, vectors, codebook.encode(vectors))


def _fit(choice: CodebookChoice, vectors: npt.NDArray[np.float32]) -> Codebook:
    if choice.method == "planted":
        return planted_codebook(choice.dataset)
    if choice.method == "rq-vae":
        from models.codebooks.rq_vae import RqVaeSettings, fit_rq_vae

        settings = RqVaeSettings(epochs=RQ_VAE_EPOCHS)
        return fit_rq_vae(vectors, layers=choice.layers, size=choice.size, seed=choice.seed, settings=settings)
    return fit_residual_kmeans(
        vectors,
        layers=choice.layers,
        size=choice.size,
        seed=choice.seed,
        shared_start=choice.start == "shared",
    )


def item_vectors(choice: CodebookChoice, data: Dataset) -> npt.NDArray[np.float32]:
    """What is quantised: the text embedding, beside it (weighted) the co-occurrence vector if the choice says so; or embeddings
    that are made.
    """
    if choice.embeddings == "uniform":
        return uniform_embeddings(len(data.embeddings), seed=choice.seed)
    if choice.embeddings == "skewed":
        return skewed_embeddings(len(data.embeddings), seed=choice.seed)
    if (choice.embeddings if choice.embeddings in TOWERS else "given") != data.space:
        raise SidstreamError(
            f"the codebook {choice.key} is of {choice.embeddings} embeddings, the data are not: this is a fault"
        )
    if choice.co_occurrence == 0:
        return data.embeddings
    ids = [str(row) for row in range(len(data.embeddings))]
    _, vectors = fit_codebook_input(data.embeddings, ids, data.histories, choice.co_occurrence)
    return vectors


def of_length_1(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Vectors (N, D), each scaled to length 1; those of nothing stay."""
    found: npt.NDArray[np.float32] = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    return found
