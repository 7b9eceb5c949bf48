"""How evenly items use the tokens of a layer: the paper's measures (§ 3.1, fig. 3), exact on a census row.

A census row counts the live items of every token of one layer; dead codes (tokens without items) count as tokens.
Shannon's entropy is divided by log M. No items at all: entropy, Gini coefficient, standard deviation and head share are
0, which says "nothing is crowded", so an empty catalogue raises no alarm by its Gini coefficient; ask ``items`` whether
there is anything to measure.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from models.errors import SidstreamError


class CensusError(SidstreamError):
    """Counts or codes that nothing can be measured on."""


@dataclass(frozen=True)
class LayerCensus:
    """The measures of one layer. items: live items; tokens: M; dead_codes: tokens without items."""

    items: int
    tokens: int
    dead_codes: int
    entropy: float
    gini: float
    standard_deviation: float
    relative_standard_deviation: float
    head_share: float


def entropy(counts: ArrayLike) -> float:
    """Shannon's entropy of the distribution of items over tokens divided by log M, 0 to 1. counts: integers (M,).

    Uniform → 1; all items on one token → 0; no items, or M = 1 → 0.
    """
    numbers = _checked(counts)
    total = int(numbers.sum())
    if total == 0 or len(numbers) == 1:
        return 0.0
    shares = numbers[numbers > 0] / total
    # Rounding must not leave the interval, nor one token with every item give -0.0.
    return min(1.0, abs(float((shares * np.log(shares)).sum()) / math.log(len(numbers))))


def gini(counts: ArrayLike) -> float:
    """The Gini coefficient, 0 to 1 − 1/M. counts: integers (M,).

    Uniform → 0; all items on one token → 1 − 1/M; no items → 0. Half the mean absolute difference of two tokens'
    counts divided by the mean count, computed from the sorted counts x₁ ≤ … ≤ x_M as Σ (2i − M − 1) xᵢ / (M Σ x),
    whose numerator is an integer and therefore exact.
    """
    numbers = np.sort(_checked(counts))
    total = int(numbers.sum())
    if total == 0:
        return 0.0
    size = len(numbers)
    weights = 2 * np.arange(1, size + 1, dtype=np.int64) - size - 1
    return int((weights * numbers).sum()) / (size * total)


def standard_deviation(counts: ArrayLike) -> float:
    """The standard deviation of the items per token, over all M tokens (population, not sample). counts: integers (M,).

    Uniform → 0; all n items on one token → n √(M − 1) / M; grows with the catalogue.
    """
    return float(_checked(counts).std())


def relative_standard_deviation(counts: ArrayLike) -> float:
    """The standard deviation divided by the mean count: comparable between catalogue sizes. counts: integers (M,).

    Uniform → 0; all items on one token → √(M − 1); no items → 0.
    """
    numbers = _checked(counts)
    return float(numbers.std() / numbers.mean()) if numbers.any() else 0.0


def head_share(counts: ArrayLike, head_tokens: Collection[int]) -> float:
    """The share of items on head tokens, 0 to 1; 0 without items. counts: integers (M,); head_tokens: token numbers."""
    numbers = _checked(counts)
    tokens = sorted({int(token) for token in head_tokens})
    if tokens and (tokens[0] < 0 or tokens[-1] >= len(numbers)):
        raise CensusError(f"head tokens must lie in [0, {len(numbers)}), but run from {tokens[0]} to {tokens[-1]}")
    total = int(numbers.sum())
    return int(numbers[tokens].sum()) / total if total else 0.0


def dead_codes(counts: ArrayLike) -> int:
    """How many tokens no item holds. counts: integers (M,)."""
    return int((_checked(counts) == 0).sum())


def measure_layer(counts: ArrayLike, head_tokens: Collection[int] = ()) -> LayerCensus:
    """All measures of one census row (M,)."""
    numbers = _checked(counts)
    return LayerCensus(
        items=int(numbers.sum()),
        tokens=len(numbers),
        dead_codes=dead_codes(numbers),
        entropy=entropy(numbers),
        gini=gini(numbers),
        standard_deviation=standard_deviation(numbers),
        relative_standard_deviation=relative_standard_deviation(numbers),
        head_share=head_share(numbers, head_tokens),
    )


def count_tokens(codes: ArrayLike, size: int) -> NDArray[np.int64]:
    """Codes (N, L) → census int64 (L, M): how many items hold each token of each layer."""
    rows = _checked_codes(codes, size)
    layers = rows.shape[1]
    numbers = rows.astype(np.int64) + np.arange(layers, dtype=np.int64) * size
    return np.bincount(numbers.ravel(), minlength=layers * size).reshape(layers, size).astype(np.int64)


def distinct_paths(codes: ArrayLike) -> int:
    """How many different code paths (c1, …, cL) the items take. codes: integers (N, L)."""
    rows = np.asarray(codes)
    return len(np.unique(rows, axis=0)) if len(rows) else 0


def path_sparsity(codes: ArrayLike, size: int) -> float:
    """The share of the M^L possible paths that items take (paper § 3.1), 0 to 1. codes: integers (N, L); no items → 0.

    Small means sparse; multiply by 100 for the paper's percentages.
    """
    rows = _checked_codes(codes, size)
    possible: int = size ** int(rows.shape[1])
    return distinct_paths(rows) / possible


def _checked(counts: ArrayLike) -> NDArray[np.int64]:
    numbers: NDArray[Any] = np.asarray(counts)
    if numbers.ndim != 1 or numbers.size == 0 or not np.issubdtype(numbers.dtype, np.integer):
        raise CensusError(
            f"counts must be one row of integers, one per token, not {numbers.dtype} of shape {numbers.shape}"
        )
    if (numbers < 0).any():
        raise CensusError(f"counts must not be negative, but token {int(np.argmin(numbers))} has {numbers.min()}")
    return numbers.astype(np.int64)


def _checked_codes(codes: ArrayLike, size: int) -> NDArray[Any]:
    rows: NDArray[Any] = np.asarray(codes)
    if rows.ndim != 2 or rows.shape[1] == 0 or not np.issubdtype(rows.dtype, np.integer):
        raise CensusError(f"codes must be integers (N, L), not {rows.dtype} of shape {rows.shape}")
    if rows.size and not (int(rows.min()) >= 0 and int(rows.max()) < size):
        raise CensusError(f"codes must lie in [0, {size}), but run from {rows.min()} to {rows.max()}")
    return rows
