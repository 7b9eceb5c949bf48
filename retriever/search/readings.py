"""Readings: the token paths of the model's layout that a prefix of SIDs of another layout may stand for, and what the
model says after them.

What must hold: a path is run by the model as it would be alone; paths with a common beginning share its tokens, and
the layer-1 tokens are run once for all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from models.sids.layout import PADDING
from models.sids.vocabulary import SidVocabulary
from retriever.search.forward_passes import ForwardPasses
from retriever.search.search_parts import Normaliser, feed, log_probabilities, places_of, ranges

# Of all queries together: bounds the memory of one pass, whatever a single hypothesis needs.
_TOKENS_AT_ONCE: Final = 1024


@dataclass(frozen=True)
class Readings:
    """S paths of the pinned layout. ``first``: which of the layer-1 hypotheses they begin with; ``tokens``: (S, L - 2)
    SID token numbers after it, -1 padded at the end; ``score``: natural log-probability of the whole path.
    """

    first: npt.NDArray[np.intp]
    tokens: npt.NDArray[np.int32]
    score: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Hypotheses:
    """H prefixes of SIDs, each of its query. ``tokens``: (H, d) SID token numbers with the layers aligned: where a SID leaves
    out its layer-2 token stands a mark, greater than all layer-2 tokens. ``score``: an upper bound, as a natural logarithm, of
    the probability that all SIDs with this prefix have in sum. ``begin``: (H + 1,), where the readings of each prefix start.
    All prefixes without the layer-2 token have the same readings, in the same order.
    """

    query: npt.NDArray[np.intp]
    tokens: npt.NDArray[np.int32]
    score: npt.NDArray[np.float64]
    begin: npt.NDArray[np.intp]
    readings: Readings

    @property
    def order(self) -> npt.NDArray[np.intp]:
        """Their places ascending by query and tokens."""
        return np.lexsort((*self.tokens.T[::-1], self.query))

    @property
    def counts(self) -> npt.NDArray[np.intp]:
        """Number of readings of each."""
        return self.begin[1:] - self.begin[:-1]

    def take(self, which: npt.NDArray[np.intp]) -> Hypotheses:
        """These (numbers) alone, in this order."""
        _, rows = ranges(self.begin[which], self.begin[which + 1])
        of = self.readings
        return Hypotheses(
            self.query[which],
            self.tokens[which],
            self.score[which],
            bounds_of(self.counts[which]),
            Readings(of.first[rows], of.tokens[rows], of.score[rows]),
        )

    def with_others(self, others: Hypotheses) -> Hypotheses:
        """These and others, at the end."""
        one, other = self.readings, others.readings
        return Hypotheses(
            np.concatenate((self.query, others.query)),
            np.concatenate((self.tokens, others.tokens)),
            np.concatenate((self.score, others.score)),
            np.concatenate((self.begin, self.begin[-1] + others.begin[1:])),
            Readings(
                np.concatenate((one.first, other.first)),
                np.concatenate((one.tokens, other.tokens)),
                np.concatenate((one.score, other.score)),
            ),
        )


class ModelPaths:
    """What the model says after a path: runs readings from the layer-1 tokens on, which are run once."""

    def __init__(
        self,
        passes: ForwardPasses,
        vocabulary: SidVocabulary,
        normaliser: Normaliser,
        queries: int,
        query: npt.NDArray[np.intp],
        first_tokens: npt.NDArray[np.int32],
    ) -> None:
        self._passes, self._vocabulary, self._normaliser = passes, vocabulary, normaliser
        self.query = query
        self._place = places_of(query, queries)
        zeros = np.zeros(len(query), dtype=np.intp)
        state, _ = feed(passes, vocabulary, queries, query, self._place, first_tokens, zeros)
        after = log_probabilities(passes, vocabulary, state, 1, 3, normaliser)[query, self._place]
        self.layer2, self.layer3 = after[:, : vocabulary.size], after[:, vocabulary.size :]
        self._mark = passes.mark()

    def following(self, readings: Readings, layer_index: int) -> npt.NDArray[np.float32]:
        """Log-probabilities (S, M) of the tokens of a layer after each reading, which ends with the layer before (or,
        layer 2 left out, with layer 1 before layer 3).
        """
        result = np.empty((len(readings.first), self._vocabulary.size), dtype=np.float32)
        lengths = (readings.tokens >= 0).sum(axis=1)
        result[lengths == 0] = self.layer3[readings.first[lengths == 0]]
        longer = np.flatnonzero(lengths > 0)
        for begin in range(0, len(longer), _TOKENS_AT_ONCE):
            rows = longer[begin : begin + _TOKENS_AT_ONCE]
            result[rows] = self._run(readings.first[rows], readings.tokens[rows], lengths[rows], layer_index)
        return result

    def _run(
        self,
        first: npt.NDArray[np.intp],
        tokens: npt.NDArray[np.int32],
        lengths: npt.NDArray[np.intp],
        layer_index: int,
    ) -> npt.NDArray[np.float32]:
        queries, row = np.unique(self.query[first], return_inverse=True)
        self._passes.rewind(self._mark, queries)
        result = np.empty((len(first), self._vocabulary.size), dtype=np.float32)
        place = self._place[first]
        for depth in range(int(lengths.max())):
            going_on = np.flatnonzero(lengths > depth)
            # Paths with a common beginning share its tokens.
            steps, node = np.unique(
                np.stack((row[going_on], place[going_on], tokens[going_on, depth])), axis=1, return_inverse=True
            )
            column = places_of(steps[0], len(queries))
            state, _ = feed(self._passes, self._vocabulary, len(queries), steps[0], column, steps[2], steps[1])
            place = np.zeros(len(first), dtype=np.intp)
            place[going_on] = column[node.ravel()]
            ends = going_on[lengths[going_on] == depth + 1]
            if len(ends):
                result[ends] = log_probabilities(
                    self._passes, self._vocabulary, state, layer_index, layer_index + 1, self._normaliser
                )[row[ends], place[ends]]
        return result


def bounds_of(counts: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """Where consecutive runs of these lengths begin, and where the last ends."""
    return np.concatenate((np.zeros(1, dtype=np.intp), np.cumsum(counts)))


def appended(tokens: npt.NDArray[np.int32], token: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Rows (S, n) padded with -1 at their end, with one token more each."""
    longer = tokens.copy()
    longer[np.arange(len(tokens)), (tokens != PADDING).sum(axis=1)] = token
    return longer
