"""λ and α of the mixture, chosen on validation cases; what it finds there beside either leg alone.

What must hold: nothing is chosen by what it was fitted on: the targets of the cases are in no training example, and the items of
the slice that is held back stand in no history of the space. They play the arrivals: the model's search may find them, and its
word does not count. Equal recalls go to the greater mean reciprocal rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from models.dense.mixture import (
    SHARES,
    Candidates,
    MixtureWeights,
    fit_sharpness,
    gather,
    log_sum,
    mixed,
    rank_of,
)

CUTOFF: Final = 10
_MOST_COSINES: Final = 40_000_000  # kept at a time for λ: 160 MB


@dataclass(frozen=True, eq=False)
class ValidationCase:
    """``query``: float32 (W,) in the dense space; ``target``: the row to be found; ``found`` int64 (F,) and ``model`` float64
    (F,): rows that the search found, and their log-probabilities; ``excluded``: rows that must not be answered.
    """

    query: npt.NDArray[np.float32]
    target: int
    found: npt.NDArray[np.int64]
    model: npt.NDArray[np.float64]
    excluded: tuple[int, ...] = ()


class Recalls(msgspec.Struct, frozen=True, kw_only=True):
    """Share of the cases whose target is among the first ten: of all, of those with an old target, with a new one; None where
    there is no such case.
    """

    all: float | None
    old: float | None
    new: float | None


class Chosen(msgspec.Struct, frozen=True, kw_only=True):
    """What was chosen, on how many cases, and recall@10 there of the mixture and of either leg alone."""

    weights: MixtureWeights
    cases: int
    new_cases: int
    mixture: Recalls
    model_alone: Recalls
    dense_alone: Recalls


def choose_weights(
    cases: Sequence[ValidationCase],
    vectors: npt.NDArray[np.float32],
    new: npt.NDArray[np.bool_],
    *,
    shares_of_new: Sequence[float] | None = (1.0,),
    progress: Callable[[int, int], None] | None = None,
) -> Chosen:
    """``vectors``: float32 (N, W) of length 1 of all items; ``new``: bool (N,), the slice that plays the arrivals.

    λ is of greatest likelihood over the targets that are old: no label of a new item is needed. α is the one of ``SHARES`` whose
    mixture finds most targets among the first ten; α' too, of ``shares_of_new`` (None: always α, as if nothing were new).
    """
    if not cases:
        raise ValueError("no validation case: λ and α have nothing to be chosen by")
    targets = np.array([case.target for case in cases])
    is_new = new[targets]
    sharpness = _sharpness(cases, vectors, new)
    gathered: list[tuple[int, Candidates, float]] = []
    for number, case in enumerate(cases):
        cosines = (vectors @ case.query).astype(np.float64)
        cosines[list(case.excluded)] = -np.inf
        gathered.append(
            (
                case.target,
                gather(case.found, case.model, cosines, new, excluded=case.excluded),
                log_sum(cosines, sharpness),
            )
        )
        if progress is not None:
            progress(number + 1, len(cases))

    def ranks(weights: MixtureWeights) -> npt.NDArray[np.int64]:
        return np.array(
            [rank_of(target, found, mixed(found, normaliser, weights)) for target, found, normaliser in gathered]
        )

    tried: list[tuple[float, float, MixtureWeights, npt.NDArray[np.int64]]] = []
    for share in SHARES:
        for share_of_new in (share,) if shares_of_new is None else shares_of_new:
            weights = MixtureWeights(sharpness=sharpness, share=share, share_of_new=share_of_new)
            places = ranks(weights)
            tried.append((float((places <= CUTOFF).mean()), float((1 / places).mean()), weights, places))
    _, _, weights, places = max(tried, key=lambda one: one[:2])
    return Chosen(
        weights=weights,
        cases=len(cases),
        new_cases=int(is_new.sum()),
        mixture=_recalls(places, is_new),
        model_alone=_recalls(ranks(MixtureWeights(sharpness=sharpness, share=0.0, share_of_new=0.0)), is_new),
        dense_alone=_recalls(ranks(MixtureWeights(sharpness=sharpness, share=1.0, share_of_new=1.0)), is_new),
    )


def _sharpness(cases: Sequence[ValidationCase], vectors: npt.NDArray[np.float32], new: npt.NDArray[np.bool_]) -> float:
    """λ by the cases whose target is old, over the old items; as many cases as ``_MOST_COSINES`` allow, evenly taken."""
    old_row = np.cumsum(~new) - 1
    old = vectors[~new]
    chosen = [case for case in cases if not new[case.target]]
    most = max(1, _MOST_COSINES // max(1, len(old)))
    chosen = chosen[:: -(-len(chosen) // most)] if len(chosen) > most else chosen
    if not chosen:
        return fit_sharpness(np.empty((0, 1)), np.empty(0, dtype=np.int64))
    cosines = np.stack([case.query for case in chosen]) @ old.T
    return fit_sharpness(cosines, np.array([old_row[case.target] for case in chosen]))


def _recalls(places: npt.NDArray[np.int64], is_new: npt.NDArray[np.bool_]) -> Recalls:
    def share(which: npt.NDArray[np.bool_]) -> float | None:
        return round(float((places[which] <= CUTOFF).mean()), 4) if which.any() else None

    return Recalls(all=share(np.ones(len(places), dtype=bool)), old=share(~is_new), new=share(is_new))
