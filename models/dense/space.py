"""The space in which the dense leg compares items with queries: an item's embedding, beside it its co-occurrence vector.

What must hold: all vectors have length 1, so that an inner product is a cosine; a known item gets the co-occurrence vector
that training counted, any other item the one that its embedding speaks for; new is whatever training did not know.

Known items are told by 64-bit hashes of their ids, eight bytes an item: an id stays the same where offsets and item numbers
do not (a rebuilt topic, another host's index), and an item that is published again does not become new by it. Two of ten
million ids share a hash with a probability of one in 370 thousand.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from models.dense.arrivals import Regression, fit_regression, unit
from models.dense.co_occurrence import CoOccurrence, co_occurrence_vectors
from models.dense.pairs import ItemPairs, RowsTogether, count_pairs, renumbered
from models.dense.vectors import QuantisedVectors, quantise

CO_OCCURRENCE_WEIGHT: Final = 1.0  # of the co-occurrence vector beside an embedding of length 1 (docs/new-items.md)
_HASH: Final = np.dtype("<u8")
_NO_LENGTH: Final = 1e-6


def id_hashes(ids: Iterable[bytes]) -> npt.NDArray[np.uint64]:
    """uint64 (N,): the first eight bytes of BLAKE2b of each item id."""
    joined = b"".join(hashlib.blake2b(item_id, digest_size=8).digest() for item_id in ids)
    return np.frombuffer(joined, dtype=_HASH).astype(np.uint64)


@dataclass(frozen=True, eq=False)
class KnownItems:
    """What training knew: ``hashes`` uint64 (K,) ascending, each once."""

    hashes: npt.NDArray[np.uint64]

    @classmethod
    def of(cls, hashes: npt.NDArray[np.uint64]) -> KnownItems:
        """Of hashes in any order."""
        return cls(np.unique(hashes))

    def rows(self, hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        """Row of each hash (N,), -1 for one that is not known."""
        if len(self.hashes) == 0:
            return np.full(len(hashes), -1, dtype=np.int64)
        at = np.minimum(np.searchsorted(self.hashes, hashes), len(self.hashes) - 1)
        return np.where(self.hashes[at] == hashes, at, -1)


@dataclass(frozen=True, eq=False)
class Together:
    """The co-occurrence part: ``vectors`` (K, C) of the known items in the order of their hashes, zeros for one that stands in
    no history; ``regression``, which speaks for all others; ``pairs`` of the known items, None if they were not kept.
    """

    vectors: QuantisedVectors
    regression: Regression
    pairs: ItemPairs | None = None

    @property
    def width(self) -> int:
        """C."""
        return int(self.regression.matrix.shape[1])


@dataclass(frozen=True, eq=False)
class DenseSpace:
    """``dimension``: D of the embeddings; ``together``: None for embeddings alone."""

    dimension: int
    known: KnownItems
    together: Together | None = None

    @property
    def width(self) -> int:
        """Numbers a vector has: D, or D + C."""
        return self.dimension + (0 if self.together is None else self.together.width)

    @property
    def pairs(self) -> ItemPairs | None:
        """What was taken together in the histories of training, by known item in the order of their hashes."""
        return None if self.together is None else self.together.pairs

    def rows_together(self, hashes: npt.NDArray[np.uint64]) -> RowsTogether | None:
        """What was taken together, by the rows of a table of items with these id hashes (N,); None if that was not kept."""
        return RowsTogether.of_rows(self.pairs, self.known.rows(hashes), len(self.known.hashes))

    def is_new(self, hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        """Which of the ids with these hashes (N,) training did not know."""
        new: npt.NDArray[np.bool_] = self.known.rows(hashes) < 0
        return new

    def items(self, embeddings: npt.NDArray[np.floating], hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.float32]:
        """Vectors float32 (N, ``width``) of length 1 of embeddings (N, D) and the hashes of their ids; zeros for zeros."""
        own = unit(embeddings)
        if self.together is None:
            return own
        return unit(np.concatenate((own, np.float32(CO_OCCURRENCE_WEIGHT) * self.beside(own, hashes)), axis=1))

    def beside(self, own: npt.NDArray[np.float32], hashes: npt.NDArray[np.uint64] | None) -> npt.NDArray[np.float32]:
        """Co-occurrence vectors float32 (N, C) of length 1 of embeddings ``own`` (N, D) of length 1 and id hashes (N,), None for
        what is no item: what training counted, else what the embedding speaks for; zeros for an embedding of zeros.
        """
        assert self.together is not None
        rows = np.full(len(own), -1, dtype=np.int64) if hashes is None else self.known.rows(hashes)
        beside = np.zeros((len(own), self.together.width), dtype=np.float32)
        beside[rows >= 0] = QuantisedVectors(
            self.together.vectors.steps[rows[rows >= 0]], self.together.vectors.scales[rows[rows >= 0]]
        ).unit()
        uncounted = ~beside.any(axis=1)
        beside[uncounted] = self.together.regression.predict(own[uncounted])
        beside[~own.any(axis=1)] = 0
        return beside

    def query(self, embedding: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """The vector (``width``,) of a query's own embedding (D,): nothing beside it, because nobody bought a query."""
        found = np.zeros(self.width, dtype=np.float32)
        found[: self.dimension] = unit(np.asarray(embedding)[None])[0]
        return found

    def taste(self, history: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """The vector (``width``,) of a history's item vectors (H, ``width``), oldest first: the last one counts 1, the one
        before it 1/2, then 1/3, …
        """
        weights = 1 / np.arange(len(history), 0, -1, dtype=np.float64)
        mean: npt.NDArray[np.float64] = weights @ np.asarray(history, dtype=np.float64)
        return unit(mean[None]).reshape(-1)


def fit_space(
    embeddings: npt.NDArray[np.floating],
    hashes: npt.NDArray[np.uint64],
    histories: Sequence[Sequence[int]],
    *,
    known: npt.NDArray[np.bool_] | None = None,
    seed: int = 0,
    keep_pairs: bool = False,
) -> tuple[DenseSpace, Regression | None]:
    """The space of a catalogue of embeddings (N, D) and id hashes (N,). ``histories``: rows, oldest first; without a pair of
    items in one of them the space has embeddings alone. ``known``: bool (N,), the items that a model was trained on (all).
    ``keep_pairs``: keep what was taken together, for the mixture.
    """
    known = np.ones(len(hashes), dtype=bool) if known is None else known
    dimension = embeddings.shape[1]
    order = np.argsort(hashes[known], kind="stable")
    own = KnownItems.of(hashes[known])
    if len(own.hashes) < int(known.sum()):
        raise ValueError("two items of the catalogue have one hash: their ids must differ")
    of_known = [[item for item in history if known[item]] for history in histories]
    pairs = CoOccurrence.count(of_known, len(hashes))
    if len(pairs.items) == 0:
        return DenseSpace(dimension, own), None
    vectors = co_occurrence_vectors(pairs, seed=seed)
    regression = fit_regression(unit(embeddings), vectors, seed=seed)
    kept = None
    if keep_pairs:
        number_of = np.full(len(hashes), -1, dtype=np.int64)
        number_of[np.flatnonzero(known)[order]] = np.arange(len(order))
        counted = renumbered(count_pairs(of_known, len(hashes)), number_of, len(order))
        kept = counted if len(counted.items) else None  # an item that is taken again and again has no neighbour by that
    together = Together(quantise(vectors[known][order]), regression, kept)
    return DenseSpace(dimension, own, together), regression
