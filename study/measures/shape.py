"""The shape of a set of codes: what figures 1 to 4 and 6 of the paper show, as small records.

What must hold: a record holds all that the pictures need, and no array as long as the catalogue; metrics are those of
``models.sids.census``, dead codes counted.
"""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from models.codebooks.codebook import Codebook
from models.sids.census import count_tokens, distinct_paths, measure_layer, path_sparsity

_POINTS: Final = 64  # of a rank curve
_GROUPS: Final = 8  # of tokens in the flows between two layers
_QUANTILES: Final = (0.05, 0.25, 0.5, 0.75, 0.95)


class LayerShape(msgspec.Struct, frozen=True, kw_only=True):
    """One layer. ``entropy`` in [0, 1] (1: even); ``gini`` in [0, 1 - 1/M] (0: even); ``standard_deviation`` in items,
    ``relative_standard_deviation`` divided by the mean; ``largest_share``: of the items, the most crowded token's;
    ``top_10_share``: the ten most crowded tokens'; ``dead``: tokens without items; ``ranks``: at most 64 tokens by rank,
    from 0 to 1, and their shares of the items, times M (1: even).
    """

    entropy: float
    gini: float
    standard_deviation: float
    relative_standard_deviation: float
    largest_share: float
    top_10_share: float
    dead: int
    ranks: list[tuple[float, float]]


class Flow(msgspec.Struct, frozen=True, kw_only=True):
    """Between two consecutive layers, tokens of each ranked by their items and cut into groups of equally many tokens:
    ``shares`` [from][to] of the items. ``into_largest``: share of the left layer's live tokens that lead into the right
    layer's most crowded token; ``out_of_largest``: share of the right layer's tokens that the left layer's most crowded
    token leads to.
    """

    shares: list[list[float]]
    into_largest: float
    out_of_largest: float


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """A codebook's codes of N items. ``residual_norms``: for 0 to L layers taken off, the 5, 25, 50, 75 and 95 %
    quantiles of the norm, of an RQ-VAE in its latent space; ``squared_error``: mean squared distance of an embedding to
    its reconstruction (an RQ-VAE's decoded); ``distinct``: different code rows; ``largest``: items
    of the most crowded row; ``sparsity``: share of the M^L paths that are used.
    """

    items: int
    layers: list[LayerShape]
    flows: list[Flow]
    residual_norms: list[list[float]]
    squared_error: float
    distinct: int
    largest: int
    sparsity: float


def measure_shape(codebook: Codebook, embeddings: npt.NDArray[np.float32]) -> Shape:
    """The shape of the codes of embeddings float32 (N, D)."""
    codes = codebook.encode(embeddings)
    counts = count_tokens(codes, codebook.size)
    norms = codebook.residual_norms(embeddings)
    _, rows = np.unique(codes, axis=0, return_counts=True)
    return Shape(
        items=len(codes),
        layers=[_layer(row) for row in counts],
        flows=[_flow(codes[:, layer : layer + 2], counts[layer : layer + 2]) for layer in range(codebook.layers - 1)],
        residual_norms=[[round(float(value), 5) for value in np.quantile(column, _QUANTILES)] for column in norms.T],
        squared_error=round(float(((embeddings - codebook.reconstruct(codes)) ** 2).sum(axis=1).mean()), 5),
        distinct=int(distinct_paths(codes)),
        largest=int(rows.max()),
        sparsity=float(path_sparsity(codes, codebook.size)),
    )


def _layer(counts: npt.NDArray[np.int64]) -> LayerShape:
    metrics = measure_layer(counts)
    shares = np.sort(counts)[::-1] / counts.sum()
    places = np.unique(np.linspace(0, len(shares) - 1, _POINTS).round().astype(int))
    return LayerShape(
        entropy=round(float(metrics.entropy), 4),
        gini=round(float(metrics.gini), 4),
        standard_deviation=round(float(metrics.standard_deviation), 2),
        relative_standard_deviation=round(float(metrics.relative_standard_deviation), 4),
        largest_share=round(float(shares[0]), 5),
        top_10_share=round(float(shares[:10].sum()), 5),
        dead=int(metrics.dead_codes),
        ranks=[
            (round(place / (len(shares) - 1), 4), round(float(shares[place]) * len(shares), 4))
            for place in places.tolist()
        ],
    )


def _flow(codes: npt.NDArray[np.uint16], counts: npt.NDArray[np.int64]) -> Flow:
    size = counts.shape[1]
    group = np.empty((2, size), dtype=np.int64)
    for side in (0, 1):
        group[side, np.argsort(-counts[side], kind="stable")] = np.arange(size) * _GROUPS // size
    pairs = np.bincount(group[0, codes[:, 0]] * _GROUPS + group[1, codes[:, 1]], minlength=_GROUPS**2)
    left, right = codes[:, 0], codes[:, 1]
    into = np.unique(left[right == counts[1].argmax()])
    out = np.unique(right[left == counts[0].argmax()])
    return Flow(
        shares=(pairs.reshape(_GROUPS, _GROUPS) / len(codes)).round(5).tolist(),
        into_largest=round(len(into) / max(1, int((counts[0] > 0).sum())), 4),
        out_of_largest=round(len(out) / size, 4),
    )
