"""Several codebooks: the mean of their probabilities decides, and what is in the history is in no list."""

from __future__ import annotations

import numpy as np

from study.data.datasets import TestCase
from study.measures.together import recall_together


def found(**shares: float) -> tuple[np.ndarray, np.ndarray]:
    rows = [int(name[1:]) for name in shares]
    return np.array(rows, dtype=np.int64), np.log(list(shares.values()))


def test_item_that_both_find_comes_before_one_that_a_single_one_finds_first() -> None:
    case = TestCase(case=0, relevant=(3,), history=(5,))
    one = [found(i1=0.4, i3=0.3, i5=0.2)]
    other = [found(i2=0.5, i3=0.3, i5=0.2)]
    recalls = recall_together([one, other], [case])["recalls"]
    assert recalls["codebook 1"]["1"] == recalls["codebook 2"]["1"] == 0
    assert recalls["together"]["1"] == 1


def test_history_takes_no_place_and_what_nobody_found_is_never_right() -> None:
    case = TestCase(case=0, relevant=(3, 9), history=(5,))
    recalls = recall_together([[found(i5=0.9, i3=0.1)]], [case])["recalls"]
    assert recalls["together"]["1"] == 0.5
    assert recalls["together"]["50"] == 0.5
