"""Token ids: disjoint ranges, a shift between SID token numbers and ids, users hashed alike everywhere."""

from __future__ import annotations

import numpy as np
import pytest

from models.errors import SidstreamError
from models.sids.vocabulary import SidVocabulary

VOCABULARY = SidVocabulary(text_size=100, user_buckets=8, layers=3, size=256)


def test_ranges_are_disjoint_and_cover_every_id() -> None:
    users = range(100, 108)
    controls = [VOCABULARY.padding_id, VOCABULARY.begin_id, VOCABULARY.separator_id]
    layers = [token for layer in range(3) for token in VOCABULARY.layer_range(layer)]
    assert [*range(100), *users, *controls, *layers] == list(range(VOCABULARY.total))


def test_sid_token_numbers_and_ids_differ_by_a_shift_and_absent_stays_absent() -> None:
    numbers = np.array([[0, 256, 767], [5, 700, -1]])
    ids = VOCABULARY.token_ids(numbers)
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(ids, [[111, 367, 878], [116, 811, -1]])
    np.testing.assert_array_equal(VOCABULARY.sid_tokens(ids), numbers)
    np.testing.assert_array_equal(VOCABULARY.sid_tokens(np.array([0, 110, 879])), [-1, -1, -1])


def test_users_are_hashed_alike_in_every_process() -> None:
    assert VOCABULARY.user_id("ada") == 107  # a fixed figure: Python's own hash would differ from process to process
    assert all(100 <= (VOCABULARY.user_id(f"user-{n}") or 0) < 108 for n in range(100))
    assert len({VOCABULARY.user_id(f"user-{n}") for n in range(100)}) == 8


def test_a_vocabulary_without_user_buckets_knows_no_users() -> None:
    assert SidVocabulary(text_size=10, user_buckets=0, layers=3, size=4).user_id("ada") is None


@pytest.mark.parametrize("wrong", [{"layers": 2}, {"size": 0}, {"user_buckets": -1}, {"text_size": -1}])
def test_impossible_figures_are_refused_by_name(wrong: dict[str, int]) -> None:
    with pytest.raises(SidstreamError, match=next(iter(wrong))):
        SidVocabulary(**{"text_size": 10, "user_buckets": 0, "layers": 3, "size": 4, **wrong})


def test_a_layer_that_does_not_exist_is_refused() -> None:
    with pytest.raises(SidstreamError, match="layer index 3"):
        VOCABULARY.layer_range(3)
