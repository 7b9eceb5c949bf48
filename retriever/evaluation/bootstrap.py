"""Intervals of figures and of their differences, by the paired bootstrap (Efron and Tibshirani 1993; Sakai 2006 for retrieval).

What must hold: cases are drawn with replacement, the same draws for every system and every figure, so that a difference is that
of two systems on the same cases; the same seed gives the same interval; a figure of a group is the mean over the group's cases
in the draw. Percentile intervals.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

LEVEL: Final = 0.95
RESAMPLES: Final = 1_000
_CELLS_AT_ONCE: Final = 4_000_000  # counts of draws in memory


@dataclass(frozen=True, eq=False)
class Resampled:
    """``point``: (F,) the figures; ``draws``: (B, F) the figures of each draw; NaN where a group has no case in a draw."""

    point: npt.NDArray[np.float64]
    draws: npt.NDArray[np.float64]

    def interval(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Lower and upper end of the interval, each (F,)."""
        return _percentiles(self.draws)

    def difference(self, other: Resampled) -> Difference:
        """Of these figures less another system's, on the same draws."""
        low, high = _percentiles(self.draws - other.draws)
        return Difference(self.point - other.point, low, high)


@dataclass(frozen=True, eq=False)
class Difference:
    """Figures of one system less those of another, each (F,)."""

    point: npt.NDArray[np.float64]
    low: npt.NDArray[np.float64]
    high: npt.NDArray[np.float64]


def resample(
    values: npt.NDArray[np.float64],
    members: npt.NDArray[np.bool_],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Resampled:
    """Figures of ``values`` (F, Q), each the mean over the cases of its row of ``members`` (F, Q), in B draws of Q cases."""
    weighed = np.where(members, values, 0.0)
    # Rows of one group have the same members: counted once each.
    groups, place = np.unique(members, axis=0, return_inverse=True)
    draws = np.empty((resamples, len(values)))
    random = np.random.default_rng(seed)
    cases = values.shape[1]
    step = max(1, _CELLS_AT_ONCE // max(cases, 1))
    transposed, counted = np.ascontiguousarray(weighed.T), groups.T.astype(np.float64)
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        drawn = random.integers(cases, size=(count, cases)) + cases * np.arange(count)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=count * cases).reshape(count, cases).astype(np.float64)
        draws[start : start + count] = _divided(weights @ transposed, (weights @ counted)[:, place.ravel()])
    return Resampled(_divided(weighed.sum(axis=1), members.sum(axis=1).astype(np.float64)), draws)


def _divided(sums: npt.NDArray[np.float64], counts: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    means: npt.NDArray[np.float64] = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
    return means


def _percentiles(draws: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    outside = (1 - LEVEL) / 2
    empty = np.isnan(draws).all(axis=0)
    filled = np.where(empty, 0.0, draws)
    low, high = np.nanquantile(filled, (outside, 1 - outside), axis=0)
    low[empty] = high[empty] = np.nan
    return low, high
