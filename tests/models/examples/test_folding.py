"""Examples of one user become one history: nothing is lost, and every target keeps the prompt that it had."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from models.examples.folding import apart, folded
from models.examples.records import TrainingData, TrainingExample, TrainingHistory

Question = tuple[str, str | None, tuple[str, ...], str]


def questions(data: TrainingData, max_history: int) -> Counter[Question]:
    """What is asked: query, user, the history that is read, the item."""
    found: Counter[Question] = Counter()
    for example in data.examples:
        newest = example.history[len(example.history) - min(max_history, len(example.history)) :]
        found[example.query, example.user, newest, example.item] += 1
    for history in data.histories:
        for at, query in enumerate(history.asked()):
            if query is not None:
                newest = history.items[max(0, at - max_history) : at]
                found[query, history.user, newest, history.items[at]] += 1
    return found


items = st.sampled_from("abc")
users = st.sampled_from([None, "ada", "bob"])


@st.composite
def walks(draw: st.DrawFn) -> list[TrainingExample]:
    """Examples of users whose histories grow, are cut, are asked twice, and jump."""
    examples = []
    for _ in range(draw(st.integers(1, 4))):
        user, walk = draw(users), draw(st.lists(items, min_size=2, max_size=9))
        cut = draw(st.integers(1, 6))
        for at in range(1, len(walk)):
            for _ in range(draw(st.sampled_from([0, 1, 1, 1, 2]))):
                query = draw(st.sampled_from(["", "", "kettle"]))
                examples.append(TrainingExample(query, user, tuple(walk[max(0, at - cut) : at]), walk[at]))
    if draw(st.booleans()):
        examples.append(TrainingExample("no history", draw(users), (), draw(items)))
    return draw(st.permutations(examples)) if draw(st.booleans()) else examples


@given(walks(), st.integers(0, 6))
def test_every_example_is_asked_once_with_the_history_that_a_model_reads(
    examples: list[TrainingExample], max_history: int
) -> None:
    data = TrainingData(examples=tuple(examples))
    assert questions(folded(data, max_history), max_history) == questions(data, max_history)


def test_one_example_a_target_becomes_one_history_a_user() -> None:
    walks = {"ada": "abcdefgh", "bob": "hgfa", "eve": "cb"}
    examples = [
        TrainingExample("" if at % 2 else "kettle", user, tuple(walk[max(0, at - 3) : at]), walk[at])
        for user, walk in walks.items()
        for at in range(1, len(walk))
    ]
    found = folded(TrainingData(examples=tuple(examples)), 3)
    assert [("".join(history.items), history.user) for history in found.histories] == [
        ("abcdefgh", "ada"),
        ("hgfa", "bob"),
    ]
    assert found.histories[1].queries == (None, "", "kettle", "")
    assert [example.item for example in found.examples] == ["b"], "one target shares its work with nothing"


def test_items_between_two_examples_are_no_targets_and_a_second_question_for_a_place_is_folded_too() -> None:
    examples = [
        TrainingExample("x", "ada", ("a", "b"), "c"),
        TrainingExample("y", "ada", ("a", "b"), "c"),
        TrainingExample("x", "ada", ("a", "b", "c", "d"), "e"),
        TrainingExample("y", "ada", ("a", "b", "c", "d"), "e"),
    ]
    found = folded(TrainingData(examples=tuple(examples)), 10)
    assert not found.examples
    assert [history.queries for history in found.histories] == [
        (None, None, "x", None, "x"),
        (None, None, "y", None, "y"),
    ]


def test_histories_that_are_given_stay_and_without_two_items_of_history_all_are_examples() -> None:
    data = TrainingData((TrainingHistory(("a", "b", "c"), "ada"),))
    assert folded(data, 5) == data
    apart = folded(data, 1)
    assert not apart.histories
    assert [(example.history, example.item) for example in apart.examples] == [(("a",), "b"), (("b",), "c")]


@given(st.integers(1, 30), st.integers(0, 12))
def test_history_taken_apart_asks_what_it_asked_as_a_whole_however_long_it_is(length: int, max_history: int) -> None:
    history = TrainingHistory(tuple(f"item-{place}" for place in range(length)), "ada")
    data = TrainingData(histories=(history,))
    alone = apart(data, max_history)
    assert not alone.histories
    assert questions(alone, max_history) == questions(data, max_history)
    assert all(len(example.history) <= max_history for example in alone.examples)
