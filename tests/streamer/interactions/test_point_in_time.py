"""Examples hold what could be known at their moment: nothing of the future, whatever the order in which it is heard of."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from streamer.events.interactions import CLOCKS_APART_MS, KINDS, CheckedInteraction
from streamer.interactions.point_in_time import (
    AskedQuery,
    JoinedInteraction,
    Left,
    MomentExample,
    NewestInteractions,
    Window,
    best_query,
    examples_of_user,
)

WHOLE = Window(since=0, until=10**9, kinds=KINDS, history_kinds=KINDS)


def said(
    item: str, at: int, kind: Any = "click", *, query: AskedQuery | None = None, text: str = ""
) -> JoinedInteraction:
    return JoinedInteraction(CheckedInteraction("ada", item, kind, at, query.query_id if query else "", text), query)


def made(*interactions: JoinedInteraction, window: Window = WHOLE) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(one.item, one.query, one.history) for one in examples_of_user(interactions, window, Left())]


def test_each_item_after_the_first_is_led_to_by_those_before_it() -> None:
    assert made(said("c", 3), said("a", 1), said("b", 2)) == [("b", "", ("a",)), ("c", "", ("a", "b"))]


def test_items_of_one_moment_are_not_before_one_another() -> None:
    assert made(said("a", 1), said("b", 2), said("c", 2)) == [("b", "", ("a",)), ("c", "", ("a",))]


def test_text_makes_an_example_of_what_nothing_came_before() -> None:
    assert made(said("a", 1, text="red shoes")) == [("a", "red shoes", ())]
    left = Left()
    assert list(examples_of_user([said("a", 1)], WHOLE, left)) == []
    assert left == Left(nothing=1)


def test_query_gives_its_text_and_the_history_that_was_asked_with_it() -> None:
    query = AskedQuery("q", 4, "ada", "kettle", ("x", "y"))
    assert made(said("a", 1), said("b", 5, query=query))[-1] == ("b", "kettle", ("x", "y"))
    assert made(said("a", 1), said("b", 5, query=query, text="own"))[-1] == ("b", "own", ("x", "y"))


def test_history_of_a_query_that_came_later_by_the_clock_is_not_used() -> None:
    query = AskedQuery("q", 6, "ada", "kettle", ("x", "y"))
    assert made(said("a", 1), said("b", 5, query=query))[-1] == ("b", "kettle", ("a",))


def test_what_is_viewed_put_into_a_cart_and_bought_is_one_step_and_one_example() -> None:
    steps = [said("a", 1), said("b", 2, "view"), said("b", 3, "cart"), said("b", 4, "purchase"), said("c", 5)]
    left = Left()
    found = list(examples_of_user(steps, WHOLE, left))
    assert [(one.item, one.history) for one in found] == [("b", ("a",)), ("c", ("a", "b"))]
    assert left.repeated == 2


def test_kinds_choose_targets_and_histories() -> None:
    steps = [said("a", 1, "view"), said("b", 2, "view"), said("b", 3, "purchase"), said("c", 4, "purchase")]
    purchases = Window(0, 10, ("purchase",), ("purchase",))
    assert made(*steps, window=purchases) == [("c", "", ("b",))]
    after_views = Window(0, 10, ("purchase",), ("view",))
    assert made(*steps, window=after_views) == [("b", "", ("a",)), ("c", "", ("a", "b"))]


def test_window_bounds_examples_and_not_histories() -> None:
    steps = [said(item, at) for at, item in enumerate("abcd")]
    assert made(*steps, window=Window(2, 3, KINDS, KINDS)) == [("c", "", ("a", "b"))]
    assert made(*steps, window=Window(2, 9, KINDS, KINDS, most=1)) == [("c", "", ("b",)), ("d", "", ("c",))]


def test_interaction_that_was_sent_twice_counts_once() -> None:
    left = Left()
    found = list(examples_of_user([said("a", 1), said("b", 2), said("a", 1), said("b", 2)], WHOLE, left))
    assert [(one.item, one.history) for one in found] == [("b", ("a",))]
    assert left.twice == 2


def test_query_of_another_user_or_of_later_is_not_joined() -> None:
    click = CheckedInteraction("ada", "a", "click", 1_000_000, "q")
    mine, theirs = AskedQuery("q", 999_000, "ada", "mine", ()), AskedQuery("q", 999_500, "bob", "theirs", ())
    nobody, late = (
        AskedQuery("q", 998_000, "", "nobody's", ()),
        AskedQuery("q", 1_000_001 + CLOCKS_APART_MS, "ada", "", ()),
    )
    assert best_query(click, [late, theirs, nobody, mine]) == mine
    assert best_query(click, [late, theirs]) is None


def test_newest_interactions_of_a_user_are_kept_whatever_the_order_and_the_repetitions() -> None:
    every = [said(f"i{at}", at) for at in range(50)]
    for seed in range(5):
        arriving = every * 3
        random.Random(seed).shuffle(arriving)
        newest = NewestInteractions(most=7)
        for one in arriving:
            newest.add(one)
        assert newest.kept == every[-7:]
        assert newest.cut
    few = NewestInteractions(most=7)
    for one in every[:3] * 4:
        few.add(one)
    assert (sorted(few.kept, key=lambda one: one.said.at), few.cut) == (every[:3], False)


# An item's name is its moment, so that an item of the future shows.
MOMENTS = st.integers(0, 40)


@st.composite
def lives(draw: st.DrawFn) -> list[JoinedInteraction]:
    """What one user did: late, repeated, several at one moment, with queries of before and of after, by clocks that differ."""
    found = []
    for at in draw(st.lists(MOMENTS, min_size=1, max_size=25)):
        query = None
        if draw(st.booleans()):
            asked = draw(st.integers(0, 60))
            before = draw(st.lists(st.integers(0, max(0, asked - 1)), max_size=4)) if asked else []
            query = AskedQuery(
                f"q{asked}",
                asked,
                draw(st.sampled_from(["", "ada"])),
                draw(st.text(max_size=2)),
                tuple(map(str, before)),
            )
        text = draw(st.sampled_from(["", "shoes"]))
        found.append(said(str(at), at, draw(st.sampled_from(KINDS)), query=query, text=text))
    return found


WINDOWS = st.builds(
    Window,
    since=st.integers(0, 20),
    until=st.integers(10, 45),
    kinds=st.lists(st.sampled_from(KINDS), min_size=1, unique=True),
    history_kinds=st.lists(st.sampled_from(KINDS), min_size=1, unique=True),
    most=st.integers(0, 5),
)


def examples(life: list[JoinedInteraction], window: Window) -> list[MomentExample]:
    return list(examples_of_user(life, window, Left()))


@settings(max_examples=300)
@given(lives(), WINDOWS, st.randoms(use_true_random=False))
def test_nothing_of_the_future_is_in_an_example_in_whatever_order_it_arrives_and_however_often(
    life: list[JoinedInteraction], window: Window, chance: random.Random
) -> None:
    found = examples(life, window)
    for one in found:
        assert window.since <= one.time < window.until
        assert len(one.history) <= window.most
        assert all(int(item) < one.time for item in one.history), "an item of that moment or later"
        assert one.item not in one.history
    assert [one.time for one in found] == sorted(one.time for one in found)

    arrived = life + chance.sample(life, chance.randint(0, len(life)))
    chance.shuffle(arrived)
    assert examples(arrived, window) == found


@settings(max_examples=200)
@given(lives(), WINDOWS, MOMENTS)
def test_examples_of_before_a_moment_are_the_same_whatever_happens_from_then_on(
    life: list[JoinedInteraction], window: Window, moment: int
) -> None:
    known = [one for one in life if one.said.at < moment]
    assert examples(known, window) == [one for one in examples(life, window) if one.time < moment]
