"""Layouts: codes become SIDs and come back, whatever the head tokens; what is no SID is refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.sids.head_tokens import (
    HeadSelectionError,
    all_tokens,
    no_tokens,
    top_k,
    top_p,
    with_hysteresis,
    with_share_hysteresis,
)
from models.sids.layout import PADDING, Layout, LayoutError

SIZE = 8


@st.composite
def layouts_with_codes(draw: st.DrawFn) -> tuple[Layout, np.ndarray]:
    """A layout of 3 or 4 layers with head tokens chosen by any of the paper's methods, and codes it reads."""
    layers = draw(st.sampled_from([3, 4]))
    row = st.lists(st.integers(0, SIZE - 1), min_size=layers, max_size=layers)
    codes = np.asarray(draw(st.lists(row, max_size=20)), dtype=np.uint16).reshape(-1, layers)
    counts = np.bincount(codes[:, 1], minlength=SIZE)
    head = draw(
        st.sampled_from([no_tokens(), all_tokens(SIZE), top_k(counts, 2), top_k(counts, SIZE), top_p(counts, 0.5)])
        | st.sets(st.integers(0, SIZE - 1)).map(lambda tokens: tuple(sorted(tokens)))
    )
    return Layout(3, "0123456789abcdef", layers, SIZE, head), codes


@given(layouts_with_codes())
def test_codes_come_back_from_their_sid_except_left_out_layer_2_tokens(case: tuple[Layout, np.ndarray]) -> None:
    layout, codes = case
    tokens = layout.sid_tokens(codes)
    assert tokens.dtype == np.int32
    assert tokens.shape == codes.shape
    expected = codes.astype(np.int32)
    expected[layout.is_head[codes[:, 1]], 1] = -1
    assert np.array_equal(layout.codes_of_array(tokens), expected)
    for row, row_tokens in zip(codes.tolist(), tokens.tolist(), strict=True):
        left_out = row[1] in layout.head_tokens
        as_read = (row[0], None if left_out else row[1], *row[2:])
        assert layout.codes_of(row_tokens) == as_read
        assert layout.codes_of(layout.sid_of(row)) == as_read
        assert len(layout.sid_of(row)) == layout.layers - left_out


@given(layouts_with_codes())
def test_sids_keep_the_order_of_layers_and_are_padded_only_at_the_end(case: tuple[Layout, np.ndarray]) -> None:
    layout, codes = case
    for row, tokens in zip(codes.tolist(), layout.sid_tokens(codes).tolist(), strict=True):
        sid = layout.sid_of(row)
        assert tokens == [*sid, *[PADDING] * (layout.layers - len(sid))]
        layer_indices = [token // SIZE for token in sid]
        kept = [index for index in range(layout.layers) if index != 1 or row[1] not in layout.head_tokens]
        assert layer_indices == kept
        assert [token % SIZE for token in sid] == [row[index] for index in kept]
        assert layout.sid_text(row) == "".join(f"<{'abcd'[index]}_{row[index]}>" for index in kept)


@given(layouts_with_codes())
def test_layout_comes_back_from_its_plain_values(case: tuple[Layout, np.ndarray]) -> None:
    layout, _ = case
    assert Layout.from_dict(layout.to_dict()) == layout
    assert np.flatnonzero(layout.is_head).tolist() == list(layout.head_tokens)


def test_text_form_is_the_one_of_the_contract() -> None:
    layout = Layout(1, "c", 3, 256, (7,))
    assert layout.sid_text([12, 8, 9]) == "<a_12><b_8><c_9>"
    assert layout.sid_text([12, 7, 9]) == "<a_12><c_9>"
    assert layout.sid_tokens_text([12, 512 + 9, -1]) == "<a_12><c_9>"


def test_all_layer_2_tokens_as_head_tokens_leave_every_sid_short_with_four_layers() -> None:
    layout = Layout(0, "c", 4, 4, all_tokens(4))
    assert layout.sid_tokens([[0, 1, 2, 3], [3, 3, 3, 3]]).tolist() == [[0, 10, 15, -1], [3, 11, 15, -1]]


def test_is_head_is_computed_once_and_cannot_be_changed() -> None:
    layout = Layout(0, "c", 3, 4, (1,))
    assert layout.is_head is layout.is_head
    with pytest.raises(ValueError):
        layout.is_head[0] = True


def test_largest_codes_do_not_overflow() -> None:
    layout = Layout(0, "c", 3, 65_536)
    assert layout.sid_tokens(np.full((1, 3), 65_535, np.uint16)).tolist() == [[65_535, 131_071, 196_607]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": 2}, "layers must be 3 to 26, not 2"),
        ({"layers": 27}, "layers must be 3 to 26, not 27"),
        ({"size": 0}, "size must be 1 to 65536 codewords per layer, not 0"),
        ({"size": 65_537}, "not 65537"),
        ({"generation": -1}, "generation must be at least 0, not -1"),
        ({"generation": 2**64}, "generation must be at most 9223372036854775807"),
        ({"codebook_id": ""}, "codebook_id is empty"),
        ({"head_tokens": (1, 4)}, "head token 4 is not one of the 4"),
        ({"head_tokens": (-1,)}, "head token -1"),
        ({"head_tokens": (2, 1)}, "ascending without repeats"),
        ({"head_tokens": (1, 1)}, "ascending without repeats"),
        ({"head_tokens": [1]}, "must be a tuple, not a list"),
    ],
)
def test_layout_with_an_impossible_field_is_refused_with_field_and_value(change: dict[str, Any], message: str) -> None:
    fields: dict[str, Any] = {"generation": 0, "codebook_id": "c", "layers": 3, "size": 4, "head_tokens": ()}
    with pytest.raises(LayoutError, match=message):
        Layout(**{**fields, **change})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "'generation' is missing"),
        ({"generation": "x", "codebook_id": "c", "layers": 3, "size": 4, "head_tokens": []}, "wrong type"),
        ({"generation": 0, "codebook_id": "c", "layers": 3, "size": 4, "head_tokens": None}, "wrong type"),
    ],
)
def test_malformed_plain_values_are_refused_with_the_field(values: dict[str, Any], message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        Layout.from_dict(values)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ([[0, 1]], r"\(N, 3\)"),
        ([0, 1, 2], r"\(N, 3\)"),
        ([[0.0, 1.0, 2.0]], "float64"),
        ([[0, 0, 0], [0, 4, 0]], r"codes \[0, 4, 0\] do not fit"),
        ([[-1, 0, 0]], r"codes \[-1, 0, 0\] do not fit"),
    ],
)
def test_codes_that_do_not_fit_are_refused(codes: Any, message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        Layout(0, "c", 3, 4).sid_tokens(codes)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([0], "2 or 3 tokens, not 1"),
        ([0, 4, 8, 8], "2 or 3 tokens, not 4"),
        ([0, 5, 8], "its layer-2 token is a head token"),
        ([0, 8, 4], "range"),
        ([0, 0, 8], "range"),
        ([-1, 4, 8], "range"),
        ([0, 12], "range"),
        ([0, 4], "range"),
        ([0, 65_536 + 4, 8], "range"),
    ],
)
def test_what_is_no_sid_of_the_layout_is_refused(tokens: list[int], message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        Layout(0, "c", 3, 4, (1,)).codes_of(tokens)


def test_short_sid_is_refused_where_no_token_is_left_out() -> None:
    with pytest.raises(LayoutError, match="no head tokens"):
        Layout(2, "c", 3, 4).codes_of([0, 8])


counts_strategy = st.lists(st.integers(0, 30), min_size=1, max_size=12)


@given(counts_strategy, st.integers(0, 14))
def test_top_k_takes_the_most_crowded_tokens_ties_by_number(counts: list[int], k: int) -> None:
    ranked = sorted((token for token in range(len(counts)) if counts[token]), key=lambda token: (-counts[token], token))
    assert top_k(counts, k) == tuple(sorted(ranked[:k]))


@given(counts_strategy, st.floats(0, 1))
def test_top_p_is_the_smallest_set_that_holds_the_share(counts: list[int], p: float) -> None:
    tokens = top_p(counts, p)
    held, total = sum(counts[token] for token in tokens), sum(counts)
    if total:
        assert held / total >= p
        if tokens:
            assert (held - min(counts[token] for token in tokens)) / total < p
    assert tokens == top_k(counts, len(tokens))


def test_top_p_is_exact_where_rounding_would_take_one_token_too_many() -> None:
    assert top_p([28, 27, 26, 19], 0.28) == (0,)
    assert top_p([3, 0, 1], 1.0) == (0, 2)
    assert top_p([3, 0, 1], 0.0) == ()
    assert top_p([0, 0, 0], 1.0) == ()


def test_token_without_items_is_no_head_token_of_top_k() -> None:
    assert top_k([0, 5, 0], 2) == (1,)


@given(
    st.lists(st.lists(st.integers(0, 9), min_size=6, max_size=6), min_size=1, max_size=8),
    st.integers(0, 4),
    st.integers(0, 3),
)
def test_hysteresis_over_a_history_of_counts_follows_its_two_ranks(
    history: list[list[int]], enter_rank: int, margin: int
) -> None:
    current: tuple[int, ...] = ()
    for counts in history:
        after = with_hysteresis(counts, current, enter_rank, enter_rank + margin)
        ranked = sorted(range(6), key=lambda token: (-counts[token], token))
        if any(counts):
            expected = {token for token in ranked[:enter_rank] if counts[token]}
            expected |= set(ranked[: enter_rank + margin]) & set(current)
            assert after == tuple(sorted(expected))
        else:
            assert after == current
        assert with_hysteresis(counts, after, enter_rank, enter_rank + margin) == after  # settled at once
        current = after


def test_two_tokens_that_swap_ranks_do_not_flap() -> None:
    current = with_hysteresis([9, 8, 1, 0], (), 1, 2)
    assert current == (0,)
    current = with_hysteresis([9, 10, 1, 0], current, 1, 2)
    assert current == (0, 1)
    for counts in ([9, 8, 1, 0], [8, 9, 1, 0], [9, 8, 1, 0]):
        assert with_hysteresis(counts, current, 1, 2) == current
    assert with_hysteresis([1, 8, 9, 0], current, 1, 2) == (1, 2)


def test_share_hysteresis_keeps_a_token_until_the_wider_share() -> None:
    assert with_share_hysteresis([50, 30, 20], (), 0.5, 0.8) == (0,)
    assert with_share_hysteresis([30, 50, 20], (0,), 0.5, 0.8) == (0, 1)
    assert with_share_hysteresis([20, 50, 30], (0, 1), 0.5, 0.8) == (1,)
    assert with_share_hysteresis([0, 0, 0], (0, 1), 0.5, 0.8) == (0, 1)


@pytest.mark.parametrize(
    ("choose", "message"),
    [
        (lambda: top_k([1], -1), "k must be at least 0, not -1"),
        (lambda: top_p([1], 1.5), "between 0 and 1, not 1.5"),
        (lambda: top_p([1], float("nan")), "not nan"),
        (lambda: top_k([0.5], 1), "float64"),
        (lambda: top_k([], 1), "one row of integers"),
        (lambda: top_k([1, -2], 1), "token 1 has -2"),
        (lambda: all_tokens(0), "size must be at least 1"),
        (lambda: with_hysteresis([1], (), 3, 2), "enter_rank is 3 and exit_rank 2"),
        (lambda: with_hysteresis([1], (1,), 1, 2), r"lie in \[0, 1\)"),
        (lambda: with_share_hysteresis([1], (), 0.9, 0.8), "0.9 > 0.8"),
    ],
)
def test_impossible_head_selection_is_refused_with_the_value(choose: Any, message: str) -> None:
    with pytest.raises(HeadSelectionError, match=message):
        choose()
