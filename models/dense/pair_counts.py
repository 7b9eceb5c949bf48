"""How often one item came before another in a history, and how far before: what the co-occurrence reference counts.

What must hold: a pair of places counts once, from the earlier item to the later one; its weight is its distance (1 for
neighbours) to the power of minus the decay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Pairs:
    """P places in histories: ``first`` came ``distance`` places before ``second``; each (P,)."""

    first: Rows
    second: Rows
    distance: Rows

    @classmethod
    def of_sequences(cls, sequences: Sequence[Sequence[int]]) -> Pairs:
        """All pairs of places within each sequence, oldest item first."""
        flat, lengths = flattened(sequences)
        left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(flat)) - 1  # places after this one
        found: list[tuple[Rows, Rows, Rows]] = []
        at = np.arange(len(flat))
        for distance in range(1, int(lengths.max(initial=0))):
            at = at[left[at] >= distance]  # fewer and fewer: one long history must not make each step look at all
            found.append((flat[at], flat[at + distance], np.full(len(at), distance)))
        return cls._together(found)

    @classmethod
    def of_examples(cls, histories: Sequence[Sequence[int]], targets: Sequence[int]) -> Pairs:
        """From each item of a history to the target alone: histories of several examples may overlap."""
        flat, lengths = flattened(histories)
        distance = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(flat))
        return cls(flat, np.repeat(np.asarray(targets, dtype=np.int64), lengths), distance)

    @classmethod
    def _together(cls, found: Sequence[tuple[Rows, Rows, Rows]]) -> Pairs:
        if not found:
            return cls(*(np.empty(0, dtype=np.int64) for _ in range(3)))
        return cls(*(np.concatenate(column) for column in zip(*found, strict=True)))


@dataclass(frozen=True, eq=False)
class PairCounts:
    """A sparse matrix of N × N as rows of neighbours: those of item i lie in ``[starts[i], starts[i + 1])`` of ``items``.

    ``starts``: (N + 1,); ``items``: (E,) rising within a row; ``after``: (E,) weight with which the neighbour came after item
    i, ``before``: (E,) with which it came before.
    """

    starts: Rows
    items: npt.NDArray[np.int32]
    after: npt.NDArray[np.float32]
    before: npt.NDArray[np.float32]

    @classmethod
    def count(cls, pairs: Pairs, items: int, *, decay: float) -> PairCounts:
        """``items``: N; pairs of an item with itself are left out."""
        others = pairs.first != pairs.second
        first, second = pairs.first[others], pairs.second[others]
        weights = pairs.distance[others].astype(np.float64) ** -decay
        keys = np.concatenate((first * items + second, second * items + first))
        # Sorted and compared: np.unique with its inverse takes several times as long on millions of pairs.
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        begins = np.flatnonzero(np.diff(keys, prepend=-1))
        nothing = np.zeros(len(first))
        after, before = (
            (np.add.reduceat(np.concatenate(halves)[order], begins) if len(begins) else np.empty(0)).astype(np.float32)
            for halves in ((weights, nothing), (nothing, weights))
        )
        distinct = keys[begins]
        starts = np.searchsorted(distinct, np.arange(items + 1) * items)
        return cls(starts, (distinct % items).astype(np.int32), after, before)

    def neighbours(self, items: Rows) -> tuple[Rows, Rows]:
        """Of the items (H,): which of them (0 to H - 1), and the places in ``items`` of its neighbours; both (E',)."""
        begin, counts = self.starts[items], self.starts[items + 1] - self.starts[items]
        which = np.repeat(np.arange(len(items)), counts)
        within = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
        return which, begin[which] + within


def flattened(sequences: Sequence[Sequence[int]]) -> tuple[Rows, Rows]:
    """All items of the sequences one after another, and the lengths of the sequences."""
    lengths = np.fromiter(map(len, sequences), dtype=np.int64, count=len(sequences))
    flat = np.fromiter((item for one in sequences for item in one), dtype=np.int64, count=int(lengths.sum()))
    return flat, lengths
