"""What text towers learn from: queries where there are any, else the title of what was taken before."""

from __future__ import annotations

from models.examples.records import TrainingData, TrainingExample, TrainingHistory
from models.towers.training_pairs import training_pairs

TITLES = {"a": "red kettle", "b": "teapot", "c": "cup"}


def pairs(data: TrainingData) -> list[tuple[str, str]]:
    return [(pair.query, pair.item) for pair in training_pairs(data, TITLES)]


def test_title_of_an_item_is_to_find_what_was_taken_after_it_and_the_first_item_nothing() -> None:
    assert pairs(TrainingData(histories=(TrainingHistory(("a", "b", "c")), TrainingHistory(("c",))))) == [
        ("red kettle", "b"),
        ("teapot", "c"),
    ]


def test_query_counts_before_the_history_and_an_item_that_is_not_to_be_generated_is_left_out() -> None:
    asked = TrainingHistory(("a", "b", "c"), queries=("kettle", None, " "))
    examples = (
        TrainingExample(query="mug", history=("a",), item="c"),
        TrainingExample(history=("a", "b"), item="c"),
    )
    assert pairs(TrainingData((asked,), examples)) == [
        ("mug", "c"),
        ("teapot", "c"),
        ("kettle", "a"),
        ("teapot", "c"),
    ]


def test_item_that_nothing_speaks_for_has_an_empty_query_and_is_not_lost_in_silence() -> None:
    data = TrainingData((TrainingHistory(("gone", "b")),), (TrainingExample(item="a"),))
    assert pairs(data) == [("", "a"), ("", "b")]
