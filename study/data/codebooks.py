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
from models.dense.co_occurrence import CoOccurrence
from study.data.choices import CodebookChoice
from study.data.datasets import Dataset, planted_codebook

RQ_VAE_EPOCHS: Final = 30
_CO_OCCURRENCE_DIMENSION: Final = 64


@dataclass(frozen=True, eq=False)
class FittedCodebook:
    """``vectors``: float32 (N, D) that were quantised; ``codes``: uint16 (N, L)."""

    codebook: Codebook
    vectors: npt.NDArray[np.float32]
    codes: npt.NDArray[np.uint16]


def fitted(choice: CodebookChoice, data: Dataset, scratch: Path) -> FittedCodebook:
    """Fits, or reads what was fitted before. Items that arrive after training are encoded, not fitted on."""
    vectors = item_vectors(choice, data)
    path = scratch / f"codebook-{choice.key}{'-arrivals' if data.arrived.any() else ''}.safetensors"
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
    """What is quantised: the text embedding, beside it (weighted) the co-occurrence vector if the choice says so."""
    if choice.co_occurrence == 0:
        return data.embeddings
    vectors = co_occurrence_vectors(data, _CO_OCCURRENCE_DIMENSION)
    return np.ascontiguousarray(
        np.concatenate((data.embeddings, np.float32(choice.co_occurrence) * vectors), axis=1), dtype=np.float32
    )


def co_occurrence_vectors(data: Dataset, dimension: int, *, seed: int = 0) -> npt.NDArray[np.float32]:
    """Unit vectors (N, dimension) of the training histories: the leading eigenvectors of the items' positive pointwise
    mutual information (Levy and Goldberg 2014: what word2vec factorises). Zero for an item without neighbours.
    """
    import torch

    items = len(data.embeddings)
    pairs = CoOccurrence.count(data.histories, items)
    row = np.repeat(np.arange(items), np.diff(pairs.starts))
    degree = np.bincount(row, weights=pairs.counts, minlength=items)
    information = np.log(pairs.counts * pairs.counts.sum() / (degree[row] * degree[pairs.items]))
    values = torch.from_numpy(np.maximum(information, 0).astype(np.float32))
    matrix = torch.sparse_coo_tensor(
        torch.from_numpy(np.stack((row, pairs.items))), values, (items, items), check_invariants=False
    ).coalesce()
    generator = torch.Generator().manual_seed(seed)
    basis = torch.randn(items, min(items, dimension + 32), generator=generator)
    for _ in range(6):  # randomised subspace iteration (Halko et al. 2011)
        basis, _ = torch.linalg.qr(torch.sparse.mm(matrix, basis))
    projected = basis.T @ torch.sparse.mm(matrix, basis)
    eigenvalues, vectors = torch.linalg.eigh((projected + projected.T) / 2)
    leading = torch.argsort(eigenvalues, descending=True)[:dimension]
    found = (basis @ vectors[:, leading] * eigenvalues[leading].clamp(min=0).sqrt()).numpy()
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    return np.where(lengths > 1e-6, found / np.maximum(lengths, 1e-6), 0).astype(np.float32)
