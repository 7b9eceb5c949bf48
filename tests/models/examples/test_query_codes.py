"""Codes of queries in training data: where they stand, what they leave alone, and that training's prompt is serving's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from models.errors import SidstreamError
from models.examples.query_codes import QueryCodes
from models.examples.records import TrainingData, TrainingExample, TrainingHistory
from models.language.prompts import PromptSettings

IDS = ["a", "b", "c"]
CODES = np.arange(9, dtype=np.uint16).reshape(3, 3)


class Lengths:
    """A text's embedding is its length, and its codes are that; ``asked``: what was embedded."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        self.asked += texts
        return np.array([[len(text)] for text in texts], dtype=np.float32)


def encode(embeddings: np.ndarray) -> np.ndarray:
    return np.repeat(embeddings, 3, axis=1).astype(np.uint16)


def codes_of(named: QueryCodes, history: Sequence[str]) -> list[list[int]]:
    return [named.codes[named.item_ids.index(item)].tolist() for item in history]


def test_codes_of_a_text_are_the_newest_item_of_its_history_and_equal_texts_are_embedded_once() -> None:
    lengths = Lengths()
    named = QueryCodes(IDS, CODES, encode, lengths, 5)
    data = named.write_into(
        TrainingData(
            examples=(
                TrainingExample(query="shoes", history=("b",), item="a"),
                TrainingExample(history=("c",), item="b"),
                TrainingExample(query="shoes", item="c", user="ada"),
                TrainingExample(query=" ", item="c"),
            )
        )
    )
    histories = [codes_of(named, example.history) for example in data.examples]
    assert histories == [[[3, 4, 5], [5, 5, 5]], [[6, 7, 8]], [[5, 5, 5]], []]
    assert [(example.query, example.item, example.user) for example in data.examples] == [
        ("shoes", "a", None),
        ("", "b", None),
        ("shoes", "c", "ada"),
        (" ", "c", None),
    ]
    later = named.write_into(TrainingData(examples=(TrainingExample(query="hat", item="a"), data.examples[1])))
    assert codes_of(named, later.examples[0].history) == [[3, 3, 3]]
    assert lengths.asked == ["shoes", "hat"]
    assert named.item_ids[:3] == IDS
    assert len(named.item_ids) == len(named.codes) == 5


def test_what_a_history_asks_for_by_text_becomes_an_example_and_the_rest_stays_a_history() -> None:
    named = QueryCodes(IDS, CODES, encode, Lengths(), 2)
    mixed = TrainingHistory(("a", "b", "c", "a"), "ada", (None, "", "red", ""))
    by_text = TrainingHistory(("a", "b"), "bob", (None, "hat"))
    plain = TrainingHistory(("c", "a"))
    data = named.write_into(TrainingData(histories=(mixed, by_text, plain)))
    assert data.histories == (TrainingHistory(mixed.items, "ada", (None, "", None, "")), plain)
    assert [(one.user, one.query, one.item, codes_of(named, one.history)) for one in data.examples] == [
        ("ada", "red", "c", [[0, 1, 2], [3, 4, 5], [3, 3, 3]]),
        ("bob", "hat", "b", [[0, 1, 2], [3, 3, 3]]),
    ]
    assert data.targets == 5


def test_data_without_a_text_stay_as_they_are_and_nothing_is_embedded() -> None:
    lengths = Lengths()
    data = TrainingData((TrainingHistory(("a", "b")),), (TrainingExample(history=("c",), item="b"),))
    named = QueryCodes(IDS, CODES, encode, lengths, 5)
    assert named.write_into(data) == data
    assert lengths.asked == []


@pytest.mark.parametrize("embeds", [True, False])
def test_query_that_brings_an_embedding_is_not_embedded_and_without_towers_others_get_no_codes(embeds: bool) -> None:
    lengths = Lengths()
    own = np.array([70], dtype="<f4").tobytes()
    named = QueryCodes(IDS, CODES, encode, lengths if embeds else None, 5)
    data = named.write_into(
        TrainingData(
            examples=(
                TrainingExample(query="hat", item="a", embedding=own),
                TrainingExample(query="hat", item="b"),
                TrainingExample(history=("a",), item="c", embedding=own),
            )
        )
    )
    histories = [codes_of(named, example.history) for example in data.examples]
    assert histories == [[[70, 70, 70]], [[3, 3, 3]] if embeds else [], [[0, 1, 2], [70, 70, 70]]]
    assert (lengths.asked, len(named)) == (["hat"], 2) if embeds else ([], 1)


def test_prompt_without_a_place_for_history_has_none_for_codes_of_a_query() -> None:
    with pytest.raises(SidstreamError, match="let max_history be 1 or more"):
        PromptSettings(max_history=0, query_codes=True)
