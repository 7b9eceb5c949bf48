"""The dense leg where queries are answered: each query's vector, and the mixture of what both legs find.

What must hold: vectors, topology and items are of one snapshot; whatever is answered is eligible. A query that one leg has
nothing to go on for is answered by the other, and its answer says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import numpy.typing as npt
import structlog

from models.bundles.bundle import Bundle
from models.bundles.dense_part import dense_space_of
from models.dense.mixture import NEAREST, MixtureWeights
from models.dense.part import DenseRecord
from models.dense.space import DenseSpace
from retriever.answering.ranking import RankedItem
from retriever.dense.current_vectors import CurrentVectors
from retriever.dense.leg import DenseLeg, DenseQuery, MixedItem, ModelCandidates, Sums
from store.reading.snapshot import Snapshot
from store.records.encoding import StoredItem
from streamer.settings.retriever import RetrieverSettings

log = structlog.get_logger(__name__)

Numbers = npt.NDArray[np.uint32]
_NOTHING: Final = ModelCandidates.none()


@dataclass(frozen=True, eq=False)
class ToMix:
    """One query: its vector, what the model found (None: the model was not asked), how many items it wants, and which it does
    not want; ``sums``: of the items of all shards, None where this index has all.
    """

    query: DenseQuery
    ranked: Sequence[RankedItem] | None
    limit: int
    excluded: Numbers
    sums: Sums | None = None


def candidates_for(limit: int) -> int:
    """How many of the model's items the mixture looks at: an item beyond has less of its probability than each of these."""
    return max(limit, NEAREST)


class Mixer:
    """The dense leg of a bundle over an index. For one thread."""

    def __init__(
        self,
        record: DenseRecord,
        space: DenseSpace,
        *,
        boost_of_new: float | None = None,
    ) -> None:
        self._record = record
        self._current = CurrentVectors(space)
        self._boost_of_new = boost_of_new
        self._leg: DenseLeg | None = None

    @classmethod
    def of_settings(cls, settings: RetrieverSettings, bundle: Bundle, *, has_model: bool) -> Self | None:
        """Where the settings have it, the items are ranked by probabilities, and the bundle has what it needs."""
        if not settings.dense or (has_model and settings.ranking != "own_probability"):
            return None
        return cls.of(bundle, boost_of_new=settings.boost_of_new)

    @classmethod
    def of(cls, bundle: Bundle, *, boost_of_new: float | None = None) -> Self | None:
        """The mixer of a bundle with a dense part; None for one without, which an older sidstream has made."""
        record, space = bundle.manifest.dense, dense_space_of(bundle)
        if record is None or space is None:
            return None
        return cls(record, space, boost_of_new=boost_of_new)

    def roll_to(self, snapshot: Snapshot) -> None:
        """Brings the vectors to a snapshot."""
        table = self._current.at(snapshot)
        if self._leg is None or self._leg.vectors is not table:
            self._leg = DenseLeg(self._record, table, boost_of_new=self._boost_of_new)

    def query(self, embedding: npt.NDArray[np.floating] | None, history: Sequence[StoredItem]) -> DenseQuery | None:
        """A query's vector: of its embedding (D,), else of its history's live items; None if there is neither."""
        assert self._leg is not None
        return self._leg.query(embedding, np.array([item.number for item in history], dtype=np.int64))

    def query_of_history(self, ids: Sequence[bytes], values: Sequence[bytes]) -> DenseQuery | None:
        """The vector of a history by its items' ids and stored vectors, oldest first, whichever shard holds them."""
        assert self._leg is not None
        return self._leg.query_of_history(ids, values)

    def sums(self, query: DenseQuery, excluded: Numbers, eligible: Numbers | None) -> Sums:
        """What the mixture of a query divides by, of this index alone."""
        assert self._leg is not None
        return self._leg.sums(query, excluded=excluded, eligible=eligible)

    def weights(self, query: DenseQuery, *, model_answers: bool) -> MixtureWeights:
        """With which a query is answered, by both legs or by the vectors alone."""
        assert self._leg is not None
        return self._leg.weights_of(query, model_answers=model_answers)

    def scores(
        self,
        query: DenseQuery,
        log_model: Mapping[int, float],
        excluded: Numbers,
        eligible: Numbers | None,
        *,
        model_answers: bool,
    ) -> dict[int, MixedItem]:
        """What the mixture says of eligible items, by number, given what the model says of them (-inf: nothing)."""
        assert self._leg is not None
        given = ModelCandidates(
            np.array(list(log_model), dtype=np.int64),
            np.array(list(log_model.values()), dtype=np.float64),
            answers=model_answers,
        )
        return self._leg.scores(query, given, excluded=excluded, eligible=eligible)

    def mix(self, queries: Sequence[ToMix], eligible: Numbers | None) -> list[list[MixedItem]]:
        """The best items of each query, best first; ``eligible``: item numbers that all of these queries' filter lets through."""
        assert self._leg is not None
        found = [
            _NOTHING
            if one.ranked is None
            else ModelCandidates(
                np.array([ranked.item.number for ranked in one.ranked], dtype=np.int64),
                np.array([ranked.score for ranked in one.ranked], dtype=np.float64),
            )
            for one in queries
        ]
        return self._leg.answer(
            [one.query for one in queries],
            found,
            limits=[one.limit for one in queries],
            excluded=[one.excluded for one in queries],
            eligible=eligible,
            sums=[one.sums for one in queries],
        )


def read_items(
    mixed: Sequence[MixedItem], ranked: Sequence[RankedItem] | None, read: Callable[[Numbers], list[StoredItem]]
) -> list[StoredItem]:
    """The items of an answer, in its order; ``read`` is asked for those alone that the model's leg has not read already."""
    known = {one.item.number: one.item for one in ranked or ()}
    missing = [item.number for item in mixed if item.number not in known]
    if missing:
        known |= {item.number: item for item in read(np.array(missing, np.uint32))}
    return [known[item.number] for item in mixed]
