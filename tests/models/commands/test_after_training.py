"""What the mixture is fitted on: each history once, however the training data tell it."""

from __future__ import annotations

from models.commands.after_training import rows_of_histories
from models.examples.records import TrainingData, TrainingExample, TrainingHistory

IDS = [f"a{row}" for row in range(6)]


def test_history_that_examples_tell_as_it_grows_counts_once_with_embeddings_or_without() -> None:
    for embedding in (None, b"0123"):
        growing = tuple(
            TrainingExample(user="u", history=tuple(IDS[:place]), item=IDS[place], embedding=embedding)
            for place in range(1, 6)
        )
        assert rows_of_histories(TrainingData(examples=growing), IDS) == [[0, 1, 2, 3, 4, 5]]


def test_histories_of_others_and_examples_without_one_are_left_as_they_are() -> None:
    data = TrainingData(
        histories=(TrainingHistory(("a1", "gone", "a2")),),
        examples=(
            TrainingExample(user="v", history=("a3",), item="a4"),
            TrainingExample(user="w", history=("a5",), item="a0"),
            TrainingExample(query="a word", item="a2"),
        ),
    )
    assert sorted(rows_of_histories(data, IDS)) == [[1, 2], [3, 4], [5, 0]]
