"""The dense leg of the retriever: a query's vector, the candidates of both legs, the mixture, and which leg found an item.

What must hold: an answer is that of ``models.dense.mixture`` over the items that are eligible, model and vectors of one and the
same snapshot; an item without a vector is left to the model, a query without a vector too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from models.dense.mixture import NEAREST, MixtureWeights, gather, log_dense, mixed
from models.dense.pairs import log_shares
from models.dense.part import Asked, DenseRecord
from models.dense.space import id_hashes
from models.dense.vectors import QuantisedVectors
from retriever.dense.item_vectors import ItemVectors, Similarities

FoundBy = Literal["model", "dense", "both"]


@dataclass(frozen=True, eq=False)
class DenseQuery:
    """``asked``: what the vector comes from; ``vector``: float32 (W,) of length 1; ``history``: the item numbers (H,), oldest
    first, that something may have been taken together with, none for a query that its embedding speaks for; ``known``: instead of
    them the items (H,) as training knew them, -1 for a new one, where other shards hold some of them.
    """

    asked: Asked
    vector: npt.NDArray[np.float32]
    history: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    known: npt.NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Sums:
    """Over the eligible items: ``log_near``, log Σ exp(λ cos), -inf for none; ``together``: Σ of what was taken together."""

    log_near: float
    together: float


@dataclass(frozen=True)
class MixedItem:
    """One item of an answer: its number, natural log-probability, the leg that found it, the cosine of its vector to the
    query's (None without one), whether training did not know it (of an item with a vector), and the two natural log-probabilities
    that are mixed: of the model and of the dense leg, None where that leg has none.
    """

    number: int
    score: float
    found_by: FoundBy
    cosine: float | None
    new: bool
    log_model: float | None = None
    log_dense: float | None = None


@dataclass(frozen=True, eq=False)
class ModelCandidates:
    """What the search found for one query: ``numbers`` (F,) distinct item numbers, ``scores`` float64 (F,) log P_model;
    ``answers``: whether the model can answer it at all: where it cannot, vectors speak for old items as they do for new ones.
    """

    numbers: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float64]
    answers: bool = True

    @classmethod
    def none(cls) -> ModelCandidates:
        """Of a query that the model cannot answer."""
        return cls(np.empty(0, dtype=np.int64), np.empty(0), answers=False)


class DenseLeg:
    """The mixture over the items of ``vectors``; ``boost_of_new``: β of the settings, None for the bundle's own."""

    def __init__(self, record: DenseRecord, vectors: ItemVectors, *, boost_of_new: float | None = None) -> None:
        self.vectors = vectors
        self._record = record
        self._boost_of_new = boost_of_new

    def weights_of(self, query: DenseQuery, *, model_answers: bool) -> MixtureWeights:
        """The weights with which a query is answered, by both legs or by the vectors alone."""
        weights = self._record.weights_of(query.asked)
        if not model_answers:
            weights = weights.dense_alone()
        if self._boost_of_new is not None:
            weights = msgspec.structs.replace(weights, boost_of_new=self._boost_of_new)
        return weights

    def query(self, embedding: npt.NDArray[np.floating] | None, history: npt.NDArray[np.integer]) -> DenseQuery | None:
        """The vector of a query: of its embedding (D,) if it has one, else of the items of its history (numbers, oldest first)
        that have vectors; None if there is neither.
        """
        space = self.vectors.space
        if embedding is not None:
            vector = space.query(embedding)
            return DenseQuery("embedding", vector) if vector.any() else None
        rows = self._rows(history)
        if len(rows) == 0:
            return None
        vector = space.taste(self.vectors.vectors[rows])
        return DenseQuery("history", vector, self.vectors.numbers[rows].astype(np.int64)) if vector.any() else None

    def query_of_history(self, ids: Sequence[bytes], values: Sequence[bytes]) -> DenseQuery | None:
        """As ``query``, of a history's items that have vectors, oldest first, whichever shard holds them: ``values`` as they are
        stored.
        """
        space = self.vectors.space
        if not ids:
            return None
        hashes = id_hashes(ids)
        vector = space.taste(space.items(QuantisedVectors.decode(values, space.dimension).unit(), hashes))
        return DenseQuery("history", vector, known=space.known.rows(hashes)) if vector.any() else None

    def sums(
        self, query: DenseQuery, *, excluded: npt.NDArray[np.integer], eligible: npt.NDArray[np.uint32] | None = None
    ) -> Sums:
        """What ``answer`` divides by, of this table alone."""
        rows, scores = self._together(query)
        (held,) = self.vectors.held_against(query.vector[None, :], [rows], [self._rows(excluded)], eligible)
        sharpness = self._record.weights_of(query.asked).sharpness
        return Sums(held.log_sum(sharpness), float(scores[held.cosines[rows] > -np.inf].sum()))

    def answer(
        self,
        queries: Sequence[DenseQuery],
        found: Sequence[ModelCandidates],
        *,
        limits: Sequence[int],
        excluded: Sequence[npt.NDArray[np.integer]],
        eligible: npt.NDArray[np.uint32] | None = None,
        sums: Sequence[Sums | None] | None = None,
    ) -> list[list[MixedItem]]:
        """The ``limits`` best items of each query, best first, equal ones by item number.

        ``found``: what the model found, of eligible items; ``excluded``: item numbers that must not be answered; ``eligible``:
        the item numbers that a filter of all these queries lets through, None for all. The sum over the catalogue is over the
        items that are eligible and not excluded: the answer is that of a catalogue of these alone. ``sums``: one a query, of the
        tables of all shards, None where this table has every item.
        """
        if not queries:
            return []
        together = [self._together(query) for query in queries]
        similarities = self.vectors.held_against(
            np.stack([query.vector for query in queries]),
            [np.union1d(self._rows(own.numbers), rows) for own, (rows, _) in zip(found, together, strict=True)],
            [self._rows(numbers) for numbers in excluded],
            eligible,
        )
        return [
            self._all(query, own, held, limit, without, beside, of_all)[:limit]
            for query, own, held, limit, without, beside, of_all in zip(
                queries, found, similarities, limits, excluded, together, sums or [None] * len(queries), strict=True
            )
        ]

    def scores(
        self,
        query: DenseQuery,
        given: ModelCandidates,
        *,
        excluded: npt.NDArray[np.integer],
        eligible: npt.NDArray[np.uint32] | None = None,
    ) -> dict[int, MixedItem]:
        """What the mixture says of given eligible items (log P_model -inf: none), by number; without those of probability 0."""
        together = self._together(query)
        needed = np.union1d(self._rows(given.numbers), together[0])
        (held,) = self.vectors.held_against(query.vector[None, :], [needed], [self._rows(excluded)], eligible)
        wanted = set(given.numbers.tolist())
        every = self._all(query, given, held, 0, excluded, together)
        return {item.number: item for item in every if item.number in wanted}

    def _together(self, query: DenseQuery) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Rows that were taken together with a query's history, and how much each weighs; eligible or not."""
        together = self.vectors.together
        if together is not None and query.known is not None:
            return together.neighbours_of_known(query.known)
        if together is None or len(query.history) == 0:
            return np.empty(0, dtype=np.int64), np.empty(0)
        return together.neighbours(self._rows(query.history))

    def _rows(self, numbers: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
        """Rows of those item numbers that have one."""
        rows = self.vectors.rows(numbers)
        return rows[rows >= 0]

    def _all(
        self,
        query: DenseQuery,
        found: ModelCandidates,
        held: Similarities,
        limit: int,
        excluded: npt.NDArray[np.integer],
        together: tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]],
        of_all: Sums | None = None,
    ) -> list[MixedItem]:
        """All candidates, best first, ``limit`` or more of them if there are so many."""
        weights = self.weights_of(query, model_answers=found.answers)
        table = self.vectors
        allowed = ~np.isin(found.numbers, excluded)
        numbers, scores = found.numbers[allowed], found.scores[allowed]
        rows = table.rows(numbers)
        log_normaliser = held.log_sum(weights.sharpness)
        if of_all is not None:
            log_normaliser = max(log_normaliser, of_all.log_near)
        candidates = gather(
            rows[rows >= 0],
            scores[rows >= 0],
            held.cosines,
            table.new,
            nearest_of_all=max(limit, NEAREST),
            # The exact cosine of each of these rows was asked for: what has none is not eligible.
            together=log_shares(
                *together, held.cosines[together[0]] > -np.inf, 0.0 if of_all is None else of_all.together
            ),
            weights=weights,
            log_normaliser=log_normaliser,
        )
        values = mixed(candidates, log_normaliser, weights)
        dense = log_dense(candidates, log_normaliser, weights)
        items = [
            MixedItem(
                number,
                value,
                _found_by(model > -np.inf, near),
                cosine,
                new,
                model if model > -np.inf else None,
                of_dense,
            )
            for number, value, model, near, cosine, new, of_dense in zip(
                table.numbers[candidates.rows].tolist(),
                values.tolist(),
                candidates.model.tolist(),
                candidates.near.tolist(),
                candidates.cosine.tolist(),
                candidates.new.tolist(),
                dense.tolist(),
                strict=True,
            )
            if value > -np.inf
        ]
        # Items without a vector: what the model says of them counts as that of an old item.
        with np.errstate(divide="ignore"):  # without a model the share is 1, and the model has said nothing
            left_to_model = np.log1p(-weights.share) + scores[rows < 0]
        items += [
            MixedItem(number, value, "model", None, False, model)
            for number, value, model in zip(
                numbers[rows < 0].tolist(), left_to_model.tolist(), scores[rows < 0].tolist(), strict=True
            )
            if value > -np.inf
        ]
        items.sort(key=lambda item: (-item.score, item.number))
        return items


def _found_by(model: bool, near: bool) -> FoundBy:
    return "both" if model and near else "model" if model else "dense"
