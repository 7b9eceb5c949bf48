"""λ, γ, α and β of the mixture, chosen on validation cases; what it finds there beside either leg alone.

What must hold: nothing is chosen by what it was fitted on: the targets of the cases are in no training example, and the items of
the slice that is held back stand in no history of the space. They play the arrivals: the model's search may find them, and its
word does not count.

The recall of all cases alone would give new items away: they are few among the targets, a share that the slice made up, and in
the shop it grows with the days since training. So α and β serve old and new items as evenly as they can (greatest recall of the
group that is found less), as long as the recall of all is not more than ``PRICE`` below the best that any α and β reach. Equal
ones go to the greater recall of all, then to the greater mean reciprocal rank.

Where the cases have histories that anything was taken together with, three legs answer, and a recall on a thousand cases cannot
tell two weights at once (docs/evaluation.md has the figures). There γ and α are of greatest likelihood over the targets that are
old, as λ is, and β alone is left to the rule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from models.dense.mixture import (
    BOOSTS,
    SHARES,
    SHARES_TOGETHER,
    Candidates,
    MixtureWeights,
    fit_sharpness,
    gather,
    log_sum,
    mixed,
    rank_of,
)
from models.dense.pairs import NOTHING, LogShares

CUTOFF: Final = 10
PRICE: Final = 0.05  # of the best recall of all, that may be paid so that new items are found as old ones are
_MOST_COSINES: Final = 40_000_000  # kept at a time for λ: 160 MB


@dataclass(frozen=True, eq=False)
class ValidationCase:
    """``query``: float32 (W,) in the dense space; ``target``: the row to be found; ``found`` int64 (F,) and ``model`` float64
    (F,): rows that the search found, and their log-probabilities; ``excluded``: rows that must not be answered; ``together``:
    what was taken together with its history, of rows that may be answered.
    """

    query: npt.NDArray[np.float32]
    target: int
    found: npt.NDArray[np.int64]
    model: npt.NDArray[np.float64]
    excluded: tuple[int, ...] = ()
    together: LogShares = NOTHING


class Recalls(msgspec.Struct, frozen=True, kw_only=True):
    """Share of the cases whose target is among the first ten: of all, of those with an old target, with a new one; None where
    there is no such case.
    """

    all: float
    old: float | None
    new: float | None

    @property
    def worst(self) -> float:
        """Of the group that is found less."""
        return min(self.all if share is None else share for share in (self.old, self.new))

    def rounded(self) -> Recalls:
        """For a record."""
        return Recalls(
            all=round(self.all, 4),
            old=None if self.old is None else round(self.old, 4),
            new=None if self.new is None else round(self.new, 4),
        )


class Chosen(msgspec.Struct, frozen=True, kw_only=True):
    """What was chosen, on how many cases, and recall@10 there of the mixture and of either leg alone; ``best_of_all``: of the
    mixture whose recall of all is greatest.
    """

    weights: MixtureWeights
    cases: int
    new_cases: int
    mixture: Recalls
    model_alone: Recalls
    dense_alone: Recalls
    best_of_all: Recalls | None = None


def choose_weights(
    cases: Sequence[ValidationCase],
    vectors: npt.NDArray[np.float32],
    new: npt.NDArray[np.bool_],
    *,
    share_of_new_targets: float | None = None,
    boosts: Sequence[float] | None = BOOSTS,
    progress: Callable[[int, int], None] | None = None,
) -> Chosen:
    """``vectors``: float32 (N, W) of length 1 of all items; ``new``: bool (N,), the slice that plays the arrivals;
    ``share_of_new_targets``: what the recall of all counts new targets for, None for their share of the cases; ``boosts``: grid
    of β, None for the rule that treats new items as old ones.

    λ, and where anything was taken together γ and α, are of greatest likelihood over the targets that are old: no label of a new
    item is needed.
    """
    if not cases:
        raise ValueError("no validation case: λ and α have nothing to be chosen by")
    is_new = new[np.array([case.target for case in cases])]
    sharpness = _sharpness(cases, vectors, new)
    whole = float(is_new.mean()) if share_of_new_targets is None else share_of_new_targets
    told = _Gathered.of(cases, vectors, new, sharpness, progress)
    likeliest = told.likeliest(~is_new, sharpness)
    together, shares = (0.0, SHARES) if likeliest is None else (likeliest.together, (likeliest.share,))
    alone = MixtureWeights(sharpness=sharpness, share=0.0, share_of_new=0.0, together=together)
    grid = [
        MixtureWeights(sharpness=sharpness, share=share, share_of_new=share, together=together)
        if boosts is None
        else MixtureWeights(sharpness=sharpness, share=share, boost_of_new=boost, together=together)
        for share in shares
        for boost in boosts or (0.0,)
    ]
    tried = [*grid, alone, alone.dense_alone()]
    places = told.ranks(tried)
    recalls = [_recalls(row, is_new, whole) for row in places]
    best = max(range(len(grid)), key=lambda at: (recalls[at].all, _mean_reciprocal(places[at])))
    chosen = max(
        (at for at in range(len(grid)) if recalls[at].all >= (1 - PRICE) * recalls[best].all),
        key=lambda at: (recalls[at].worst, recalls[at].all, _mean_reciprocal(places[at])),
    )
    return Chosen(
        weights=tried[chosen],
        cases=len(cases),
        new_cases=int(is_new.sum()),
        mixture=recalls[chosen].rounded(),
        model_alone=recalls[-2].rounded(),
        dense_alone=recalls[-1].rounded(),
        best_of_all=recalls[best].rounded(),
    )


def ranks_by(
    cases: Sequence[ValidationCase],
    vectors: npt.NDArray[np.float32],
    new: npt.NDArray[np.bool_],
    weights: MixtureWeights,
) -> npt.NDArray[np.int64]:
    """The place (cases,) of each case's target by the mixture of these weights; arguments as in ``choose_weights``."""
    ranks: npt.NDArray[np.int64] = _Gathered.of(cases, vectors, new, weights.sharpness).ranks([weights])[0]
    return ranks


@dataclass(frozen=True, eq=False)
class _Gathered:
    """The candidates of each case, the sum over the catalogue, and the target."""

    candidates: list[Candidates]
    log_normalisers: list[float]
    targets: list[int]

    @classmethod
    def of(
        cls,
        cases: Sequence[ValidationCase],
        vectors: npt.NDArray[np.float32],
        new: npt.NDArray[np.bool_],
        sharpness: float,
        progress: Callable[[int, int], None] | None = None,
    ) -> _Gathered:
        found, normalisers = [], []
        for number, case in enumerate(cases):
            cosines = (vectors @ case.query).astype(np.float64)
            cosines[list(case.excluded)] = -np.inf
            found.append(gather(case.found, case.model, cosines, new, excluded=case.excluded, together=case.together))
            normalisers.append(log_sum(cosines, sharpness))
            if progress is not None:
                progress(number + 1, len(cases))
        return cls(found, normalisers, [case.target for case in cases])

    def likeliest(self, counted: npt.NDArray[np.bool_], sharpness: float) -> MixtureWeights | None:
        """γ and α of greatest likelihood over the cases ``counted``, bool (cases,), all with an old target, as far as that is a
        candidate: how unlikely the others are changes no answer, and would decide. Of equal ones the smaller; None where nothing
        was taken together, or no case tells.
        """
        if all(candidates.together is None for candidates in self.candidates):
            return None
        said = []
        for case in np.flatnonzero(counted).tolist():
            candidates, log_normaliser = self.candidates[case], self.log_normalisers[case]
            at = np.flatnonzero(candidates.rows == self.targets[case])
            if len(at):
                # Each from its own sum over the catalogue, so that one call mixes them all.
                cosine = candidates.cosine[at[0]] - log_normaliser / sharpness
                # Without anything taken together γ is nothing to the case: both halves are the same.
                together = sharpness * cosine if candidates.together is None else candidates.together[at[0]]
                said.append((self.targets[case], candidates.model[at[0]], cosine, together))
        if not said:
            return None
        rows, model, cosines, shares = np.array(said).T
        old = np.zeros(len(said), dtype=bool)
        targets = Candidates(rows.astype(np.int64), model, cosines, old, ~old, shares)
        tried = (
            MixtureWeights(sharpness=sharpness, share=share, together=together)
            for together in SHARES_TOGETHER
            for share in SHARES
        )
        return max(tried, key=lambda weights: float(mixed(targets, 0.0, weights).mean()))

    def ranks(self, tried: Sequence[MixtureWeights]) -> npt.NDArray[np.int64]:
        """The place of each case's target by each of ``tried``, (T, cases)."""
        places = np.empty((len(tried), len(self.targets)), dtype=np.int64)
        told = zip(self.targets, self.candidates, self.log_normalisers, strict=True)
        for number, (target, candidates, log_normaliser) in enumerate(told):
            places[:, number] = _ranks(target, candidates, log_normaliser, tried)
        return places


def _ranks(
    target: int, candidates: Candidates, log_normaliser: float, tried: Sequence[MixtureWeights]
) -> npt.NDArray[np.int64]:
    """The target's place by each of ``tried``, (T,)."""
    lifted = candidates.new & (candidates.cosine > -np.inf)
    before: tuple[float, float, float] | None = None
    values = np.empty(0)
    ranks = np.empty(len(tried), dtype=np.int64)
    for number, weights in enumerate(tried):
        shares = (weights.share, weights.share_of_new, weights.together)
        if shares != before:  # β comes last in the grid, and is added to what is there
            values = mixed(candidates, log_normaliser, msgspec.structs.replace(weights, boost_of_new=0.0))
            before = shares
        ranks[number] = rank_of(target, candidates, values + weights.boost_of_new * lifted)
    return ranks


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


def _recalls(places: npt.NDArray[np.int64], is_new: npt.NDArray[np.bool_], whole: float) -> Recalls:
    """``whole``: the weight of new targets in the recall of all."""
    found = places <= CUTOFF
    old = float(found[~is_new].mean()) if not is_new.all() else None
    new = float(found[is_new].mean()) if is_new.any() else None
    if old is None or new is None:
        return Recalls(all=float(found.mean()), old=old, new=new)
    return Recalls(all=(1 - whole) * old + whole * new, old=old, new=new)


def _mean_reciprocal(places: npt.NDArray[np.int64]) -> float:
    return float((1 / places).mean())
