"""Counts replace, differences roll: what a token remembers."""

from __future__ import annotations

import random

import numpy as np
import pytest

from streamer.events.records import TOKEN_COUNT, TokenCount, token_count
from streamer.monitor.token_state import (
    LiveCensus,
    ShardCount,
    TokenState,
    WindowShape,
    apply_count,
    decode_state,
    divided_anew,
    encode_state,
    growth_in,
)

SHAPE = WindowShape(bucket_ms=1_000, buckets=5)
START = 1_700_000_000_000


def count(n: int, as_of: int) -> TokenCount:
    return TokenCount(codebook="c", layer=2, token=7, n=n, as_of=as_of)


def follow(events: list[tuple[int, int, int]]) -> TokenState:
    """States after (n, as_of, seconds since START), each seen a second after it was dated, or after the latest of them."""
    state, now = None, START
    for n, as_of, second in events:
        now = max(now, START + second * 1_000 + 1_000)
        state = apply_count(state, count(n, as_of), START + second * 1_000, SHAPE, now=now) or state
    assert state is not None
    return state


def test_newer_count_replaces_and_its_difference_enters_the_window() -> None:
    state = follow([(10, 1, 0), (25, 2, 1), (20, 3, 2)])
    assert (state.n, state.as_of) == (20, 3)
    assert state.window == ((START, 10), (START + 1_000, 15), (START + 2_000, -5))


def test_same_message_again_changes_nothing() -> None:
    state = follow([(10, 1, 0)])
    assert apply_count(state, count(10, 1), START + 3_000, SHAPE, now=START + 3_000) is None


def test_older_as_of_is_ignored_even_when_it_comes_late() -> None:
    state = follow([(10, 5, 0)])
    assert apply_count(state, count(99, 4), START + 1_000, SHAPE, now=START + 1_000) is None


def test_redelivery_from_any_earlier_point_gives_the_same_state() -> None:
    dice = random.Random(3)
    events = [(dice.randrange(100), number, number // 3) for number in range(40)]
    replayed = [event for begin in (0, 12, 31) for event in events[begin : begin + 25]] + events
    assert follow(replayed) == follow(events)


def test_window_forgets_what_is_older_than_its_span() -> None:
    state = follow([(10, 1, 0), (12, 2, 4), (15, 3, 7)])
    assert state.window == ((START + 4_000, 2), (START + 7_000, 3))
    assert growth_in(state.window, START + 7_000, SHAPE) == 5
    assert growth_in(state.window, START + 9_000, SHAPE) == 3
    assert growth_in(state.window, START + 60_000, SHAPE) == 0


def test_changes_that_cancel_out_leave_no_bucket() -> None:
    assert follow([(5, 1, 0), (0, 2, 0)]).window == ()


def test_state_survives_its_encoding() -> None:
    state = follow([(10, 1, 0), (25, 2, 1)])
    assert decode_state(encode_state(state)) == state


@pytest.mark.parametrize("seed", range(3))
def test_live_census_shows_the_states_that_were_put(seed: int) -> None:
    dice = random.Random(seed)
    live, states = LiveCensus(3, 8, SHAPE), {}
    for number in range(300):
        layer, token, now = dice.randrange(3), dice.randrange(8), START + number * 37
        record = TokenCount(codebook="c", layer=layer + 1, token=token, n=dice.randrange(50), as_of=number)
        states[layer, token] = apply_count(states.get((layer, token)), record, now, SHAPE, now=now)
        live.put(layer, token, states[layer, token])
    expected = np.zeros((3, 8), dtype=np.int64)
    for place, state in states.items():
        expected[place] = state.n
    assert (live.counts == expected).all()
    for now in (START + 300 * 37, START + 300 * 37 + 3_000, START + 10**6):
        growth = [growth_in(states[1, token].window, now, SHAPE) if (1, token) in states else 0 for token in range(8)]
        assert live.growth(now).tolist() == growth


def test_late_event_enters_its_own_bucket() -> None:
    assert follow([(10, 1, 3), (14, 2, 1)]).window == ((START + 1_000, 4), (START + 3_000, 10))


HOUR = 3_600_000


def test_count_dated_in_the_future_is_of_now_and_later_growth_is_seen() -> None:
    now = START + 10_400
    state = apply_count(None, count(10, 1), now + HOUR, SHAPE, now=now)
    assert state is not None
    assert state.window == ((START + 10_000, 10),)
    state = apply_count(state, count(60, 2), now + 1_000, SHAPE, now=now + 1_000)
    assert state is not None
    assert growth_in(state.window, now + 1_000, SHAPE) == 60
    assert growth_in(state.window, now + HOUR, SHAPE) == 0, "and it grows once, not again in an hour"


@pytest.mark.parametrize("at", [None, -1])
def test_count_without_a_time_is_of_now(at: int | None) -> None:
    state = apply_count(None, count(10, 1), at, SHAPE, now=START + 400)
    assert state is not None
    assert state.window == ((START, 10),)


def test_buckets_of_the_future_that_an_earlier_version_wrote_are_neither_counted_nor_kept() -> None:
    written = decode_state(b'{"n":500,"as_of":3,"window":[[%d,20],[%d,480]]}' % (START, START + HOUR))
    live = LiveCensus(3, 8, SHAPE)
    live.put(1, 7, written)
    assert growth_in(written.window, START + 1_000, SHAPE) == live.growth(START + 1_000)[7] == 20
    state = apply_count(written, count(530, 4), START + 2_000, SHAPE, now=START + 2_000)
    assert state is not None
    assert state.window == ((START, 20), (START + 2_000, 30))
    live.put(1, 7, state)
    assert live.growth(START + HOUR)[7] == 0


def test_clock_that_was_set_back_keeps_the_growth_of_now() -> None:
    state = follow([(10, 1, 100)])
    later = apply_count(state, count(40, 2), START + 50_000, SHAPE, now=START + 50_000)
    assert later is not None
    assert later.window == ((START + 50_000, 30),)


def shards(*events: tuple[str, int, int]) -> TokenState:
    """States after (partitions, n, as_of), a second apart."""
    state = None
    for second, (partitions, n, as_of) in enumerate(events):
        now = START + second * 1_000
        record = TOKEN_COUNT.decode(TOKEN_COUNT.encode(token_count("c", 2, 7, n, as_of, partitions=partitions)))
        state = apply_count(state, record, now, SHAPE, now=now) or state
    assert state is not None
    return state


def test_counts_of_shards_add_up_and_each_replaces_its_own_alone() -> None:
    state = shards(("0-1", 10, 900), ("2-3", 7, 3), ("0-1", 12, 901), ("2-3", 6, 4), ("0-1", 99, 900))
    assert state.n == 18
    assert state.shards == {"0-1": ShardCount(12, 901), "2-3": ShardCount(6, 4)}
    assert [change for _, change in state.window] == [10, 7, 2, -1]


def test_redelivery_of_shards_counts_from_any_earlier_point_gives_the_same_state() -> None:
    dice = random.Random(4)
    events = [(dice.choice(["0", "1-2", "3"]), dice.randrange(100), number) for number in range(60)]
    state = shards(*events)
    replayed = shards(*events, *events[20:])
    assert (replayed.n, replayed.shards) == (state.n, state.shards)


def test_counts_of_a_catalogue_that_is_divided_anew_take_the_place_of_those_before() -> None:
    of_all = shards(("", 100, 50))
    assert (of_all.n, of_all.shards) == (100, {})
    half = token_count("c", 2, 7, 60, 3, partitions="0-1")
    assert divided_anew(of_all, half) == [""]
    divided = shards(("", 100, 50), ("0-1", 60, 3), ("2-3", 40, 2))
    assert (divided.n, divided_anew(divided, half)) == (100, [])
    assert shards(("", 100, 50), ("0-1", 60, 3), ("2-3", 40, 2), ("0", 25, 1), ("1", 35, 1)).n == 100


def test_one_index_again_takes_the_place_of_all_shards() -> None:
    state = shards(("0-1", 60, 3), ("2-3", 40, 2), ("", 101, 1))
    assert (state.n, state.as_of, state.shards) == (101, 1, {})


def test_state_of_shards_is_written_and_read_back_and_one_of_before_is_read() -> None:
    state = shards(("0-1", 60, 3), ("2-3", 40, 2))
    assert decode_state(encode_state(state)) == state
    assert decode_state(b'{"n":5,"as_of":3,"window":[]}') == TokenState(5, 3)
