"""The mixture of the language model and the dense leg: what is the probability that item i answers query q?

    P_near(i | q)    = exp(λ cos(q, i)) / Σ over the catalogue
    P_dense(i | q)   = (1 - γ) P_near(i | q) + γ P_together(i | q)    old items;    P_near(i | q)    new ones
    old items        (1 - α) P_model(i | q) + α P_dense(i | q)
    new items        (1 - α') P_model(i | q) + α' e^β P_dense(i | q)

P_together is of what was taken together with the query's history (``models.dense.pairs``); γ is 0 where nothing was.

P_model(i | q) is the probability of the item's SID times the item's share of it, 0 for what the search did not find. New is
an item that the model was not trained on: its SID means nothing to the model, and so α' is 1. What the model says of an old item
is sharper than what the vectors say of a new one, so that new items stand behind at β = 0: β lifts them. An item without a vector
has P_dense 0, and the share of an old item, new or not.

What must hold: all in float64 and tested against brute force over the catalogue; λ maximises the likelihood of validation
targets (it is concave: there is one such λ); α, β and γ are chosen by their recall (``models.dense.choosing``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from models.dense.pairs import NOTHING, LogShares

NEAREST: Final = 100  # candidates of the dense leg among all items
NEAREST_NEW: Final = 50  # and among the new ones, so that a crowded neighbourhood does not hide them
SHARES: Final = tuple(step / 20 for step in range(20))  # grid of α; not 1, which would lose items without a vector
SHARES_TOGETHER: Final = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # grid of γ
BOOSTS: Final = tuple(step / 10 for step in range(16))  # grid of β
LEAST_SHARPNESS: Final = 1e-3
MOST_SHARPNESS: Final = 1e3
_NEWTON_STEPS: Final = 60
_CONVERGED: Final = 1e-10


class MixtureWeights(msgspec.Struct, frozen=True, kw_only=True):
    """``sharpness``: λ; ``share``: α of old items; ``share_of_new``: α' of new ones; ``boost_of_new``: β; ``together``: γ."""

    sharpness: float
    share: float
    share_of_new: float = 1.0
    boost_of_new: float = 0.0
    together: float = 0.0

    def dense_alone(self) -> MixtureWeights:
        """The weights of a query of which the model says nothing: old and new items by their vectors, alike."""
        return msgspec.structs.replace(self, share=1.0, share_of_new=1.0, boost_of_new=0.0)


@dataclass(frozen=True, eq=False)
class Candidates:
    """What is known of C candidates of one query.

    ``rows``: int64 (C,), ascending; ``model``: float64 (C,) log P_model, -inf where the search did not find the item;
    ``cosine``: float64 (C,), of its vector to the query's, -inf where it has no vector; ``new``: bool (C,); ``near``: bool
    (C,), whether the dense leg found it; ``together``: float64 (C,) log P_together, -inf for what was not taken together with
    the history, None where nothing was.
    """

    rows: npt.NDArray[np.int64]
    model: npt.NDArray[np.float64]
    cosine: npt.NDArray[np.float64]
    new: npt.NDArray[np.bool_]
    near: npt.NDArray[np.bool_]
    together: npt.NDArray[np.float64] | None = None


def log_dense(candidates: Candidates, log_normaliser: float, weights: MixtureWeights) -> npt.NDArray[np.float64]:
    """Natural log P_dense of each candidate, (C,). ``log_normaliser``: ``log_sum`` over the catalogue, -inf if no item has a
    vector.
    """
    if np.isneginf(log_normaliser):
        near = np.full(len(candidates.rows), -np.inf)
    else:
        near = weights.sharpness * candidates.cosine - log_normaliser
    if candidates.together is None or weights.together == 0:
        return near
    with np.errstate(divide="ignore"):
        both = np.logaddexp(np.log1p(-weights.together) + near, np.log(weights.together) + candidates.together)
    dense: npt.NDArray[np.float64] = np.where(candidates.new, near, both)
    return dense


def mixed(candidates: Candidates, log_normaliser: float, weights: MixtureWeights) -> npt.NDArray[np.float64]:
    """Natural log-probability of each candidate, (C,). ``log_normaliser``: ``log_sum`` over the catalogue, -inf if no item has
    a vector.
    """
    dense = log_dense(candidates, log_normaliser, weights)
    new = candidates.new & (candidates.cosine > -np.inf)
    share = np.where(new, weights.share_of_new, weights.share)
    with np.errstate(divide="ignore"):
        found: npt.NDArray[np.float64] = np.logaddexp(
            np.log1p(-share) + candidates.model, np.log(share) + dense + np.where(new, weights.boost_of_new, 0.0)
        )
    return found


def log_sum(cosines: npt.NDArray[np.floating], sharpness: float) -> float:
    """log Σ exp(λ cos) over cosines (N,), in float64; -inf for none. An item without a vector has cosine -inf."""
    if len(cosines) == 0:
        return -np.inf
    scaled = sharpness * np.asarray(cosines, dtype=np.float64)
    top = scaled.max()
    if np.isneginf(top):
        return -np.inf
    return float(top + np.log(np.exp(scaled - top).sum()))


def nearest(
    cosines: npt.NDArray[np.floating], most: int, among: npt.NDArray[np.bool_] | None = None
) -> npt.NDArray[np.int64]:
    """The ``most`` rows of greatest cosine (N,), only those ``among`` and none of -inf, ascending by row; of equal ones the
    smaller row.
    """
    rows = np.flatnonzero(np.asarray(cosines) > -np.inf if among is None else (np.asarray(cosines) > -np.inf) & among)
    if most < 1:
        return rows[:0]
    if len(rows) > most:
        values = np.asarray(cosines)[rows]
        least = np.partition(values, len(rows) - most)[len(rows) - most]
        surely = rows[values > least]
        level = rows[values == least][: most - len(surely)]
        rows = np.sort(np.concatenate((surely, level)))
    return rows


def gather(
    found: npt.NDArray[np.integer],
    log_probabilities: npt.NDArray[np.float64],
    cosines: npt.NDArray[np.floating],
    new: npt.NDArray[np.bool_],
    *,
    excluded: npt.NDArray[np.integer] | Sequence[int] = (),
    nearest_of_all: int = NEAREST,
    together: LogShares = NOTHING,
    weights: MixtureWeights | None = None,
    log_normaliser: float = 0.0,
) -> Candidates:
    """The candidates of one query: what the search found, with log P_model; the nearest of all items and of the new ones; and
    as many of those that were taken together with its history.

    ``found``: (F,) distinct rows; ``cosines`` (N,) and ``new`` (N,) of the catalogue, -inf for an item without a vector;
    ``excluded``: rows that must not be answered; ``together``: of rows that may be. With ``weights`` and ``log_normaliser`` those
    of greatest P_dense are taken of them, so that nothing of it is lost; without, where weights are still to be chosen, those of
    greatest P_together.
    """
    allowed = np.asarray(cosines, dtype=np.float64).copy()
    allowed[np.asarray(excluded, dtype=np.int64)] = -np.inf
    of_together, log_shares = together
    likely = log_shares
    if weights is not None and len(of_together):
        all_of_them = np.ones(len(of_together), dtype=bool)
        beside = Candidates(of_together, log_shares, allowed[of_together], ~all_of_them, all_of_them, log_shares)
        likely = log_dense(beside, log_normaliser, weights)
    often = of_together[nearest(likely, nearest_of_all)]
    # Of old items the vectors have a share, of new ones all: as many of these, lest one that comes before is left out.
    most_new = NEAREST_NEW if weights is None else max(NEAREST_NEW, nearest_of_all)
    near = np.concatenate((nearest(allowed, nearest_of_all), nearest(allowed, most_new, new), often))
    kept = ~np.isin(found, np.asarray(excluded, dtype=np.int64))
    found, log_probabilities = np.asarray(found, dtype=np.int64)[kept], log_probabilities[kept]
    rows = np.union1d(found, near)
    model = np.full(len(rows), -np.inf)
    model[np.searchsorted(rows, found)] = log_probabilities
    shares = None
    if len(of_together):
        shares = np.full(len(rows), -np.inf)
        _, at, place = np.intersect1d(rows, of_together, assume_unique=True, return_indices=True)
        shares[at] = log_shares[place]
    return Candidates(rows, model, np.asarray(cosines, dtype=np.float64)[rows], new[rows], np.isin(rows, near), shares)


def fit_sharpness(cosines: npt.NDArray[np.floating], targets: npt.NDArray[np.integer]) -> float:
    """λ of greatest likelihood Σ log P_dense(target | q): cosines (Q, N) of each validation query to the catalogue, one target
    (Q,) each. Newton's method on the concave log-likelihood, halved where it would leave the bounds; between
    ``LEAST_SHARPNESS`` (the targets are no nearer than others) and ``MOST_SHARPNESS`` (each target is the nearest item).
    """
    rows = np.asarray(cosines)
    if len(rows) == 0:
        return LEAST_SHARPNESS
    wanted = float(np.mean(rows[np.arange(len(rows)), targets], dtype=np.float64))

    def slope(sharpness: float) -> tuple[float, float]:
        """Derivative and curvature of the mean log-likelihood."""
        expected = variance = 0.0
        for row in rows:
            values = row.astype(np.float64)
            weight = np.exp(sharpness * (values - values.max()))
            weight /= weight.sum()
            mean = float(weight @ values)
            expected += mean
            variance += float(weight @ (values - mean) ** 2)
        return wanted - expected / len(rows), -variance / len(rows)

    low, high = LEAST_SHARPNESS, MOST_SHARPNESS
    if slope(low)[0] <= 0:
        return low
    if slope(high)[0] >= 0:
        return high
    guess = 10.0
    for _ in range(_NEWTON_STEPS):
        first, second = slope(guess)
        low, high = (guess, high) if first > 0 else (low, guess)
        step = guess - first / second if second < 0 else np.inf
        # Outside of what is known to hold the maximum: half the way on the logarithmic scale, as λ spans six decades.
        following = step if low < step < high else float(np.sqrt(low * high))
        if abs(following - guess) <= _CONVERGED * guess:
            return following
        guess = following
    return guess


def rank_of(
    target: int, candidates: Candidates, log_probabilities: npt.NDArray[np.float64], never: int = 1_000_000
) -> int:
    """Place of a row, counted from 1, ``never`` if it is no candidate; equal ones stand in the order of their rows."""
    at = int(np.searchsorted(candidates.rows, target))
    if at == len(candidates.rows) or candidates.rows[at] != target or np.isneginf(log_probabilities[at]):
        return never
    own = log_probabilities[at]
    return 1 + int((log_probabilities > own).sum()) + int((log_probabilities[:at] == own).sum())
