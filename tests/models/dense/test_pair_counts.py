"""Pairs of items in histories, against counting them one by one."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest

from models.dense.pair_counts import PairCounts, Pairs

RANDOM = np.random.default_rng(3)
SEQUENCES = [RANDOM.integers(9, size=RANDOM.integers(0, 7)).tolist() for _ in range(40)]


def by_hand(decay: float) -> dict[tuple[int, int], float]:
    found: dict[tuple[int, int], float] = defaultdict(float)
    for sequence in SEQUENCES:
        for first, one in enumerate(sequence):
            for second in range(first + 1, len(sequence)):
                if one != sequence[second]:
                    found[one, sequence[second]] += (second - first) ** -decay
    return found


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_counts_are_those_of_all_pairs_of_places(decay: float) -> None:
    counts = PairCounts.count(Pairs.of_sequences(SEQUENCES), 9, decay=decay)
    expected = by_hand(decay)
    assert len(counts.items) == len({pair for one, other in expected for pair in ((one, other), (other, one))})
    for item in range(9):
        part = slice(counts.starts[item], counts.starts[item + 1])
        assert counts.items[part].tolist() == sorted(set(counts.items[part].tolist()))
        for other, after, before in zip(counts.items[part], counts.after[part], counts.before[part], strict=True):
            assert after == pytest.approx(expected.get((item, int(other)), 0))
            assert before == pytest.approx(expected.get((int(other), item), 0))


def test_examples_of_each_prefix_give_the_pairs_of_the_whole_history() -> None:
    examples = [(one[:place], one[place]) for one in SEQUENCES for place in range(1, len(one))]
    whole = PairCounts.count(Pairs.of_sequences(SEQUENCES), 9, decay=0.5)
    parts = PairCounts.count(Pairs.of_examples(*zip(*examples, strict=True)), 9, decay=0.5)
    np.testing.assert_array_equal(whole.items, parts.items)
    np.testing.assert_allclose(whole.after, parts.after)


def test_nothing_counts_as_nothing() -> None:
    for sequences in ([], [[]], [[4]], [[4, 4]]):
        counts = PairCounts.count(Pairs.of_sequences(sequences), 9, decay=0.5)
        assert counts.starts.tolist() == [0] * 10
        which, place = counts.neighbours(np.array([4, 5]))
        assert which.tolist() == place.tolist() == []
