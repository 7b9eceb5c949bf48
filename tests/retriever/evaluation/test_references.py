"""The references against one-by-one scoring; histories left out, settings chosen on the validation part alone."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest

from retriever.evaluation.cases import EvaluationCase, TrainingData
from retriever.evaluation.references import (
    CO_OCCURRENCE,
    CO_OCCURRENCE_GRID,
    NEIGHBOURS,
    POPULARITY,
    TOGETHER,
    CoOccurrenceSettings,
    ReferenceData,
    co_occurrence_scores,
    neighbour_scores,
    reference_names,
    references,
    said,
)

ITEMS, WIDTH = 30, 12
RANDOM = np.random.default_rng(8)
SEQUENCES = [RANDOM.integers(ITEMS, size=RANDOM.integers(2, 9)).tolist() for _ in range(60)]
TRAINING = TrainingData.of_sequences(SEQUENCES, ITEMS, "histories")
VECTORS = RANDOM.normal(size=(ITEMS, 6)).astype(np.float32)
DATA = ReferenceData(TRAINING, VECTORS)


def case(history: list[int], relevant: int, query_row: int = -1) -> EvaluationCase:
    return EvaluationCase("", None, tuple(history), (relevant,), (1.0,), query_row)


def random_cases(count: int, seed: int) -> list[EvaluationCase]:
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        *history, relevant = random.choice(ITEMS, size=random.integers(1, 7), replace=False).tolist()
        found.append(case(history, relevant))
    return found


@pytest.mark.parametrize("settings", [CoOccurrenceSettings(), CoOccurrenceSettings(0.0, 0.5, 2.0, -0.25)])
def test_co_occurrence_scores_are_those_of_the_pairs_one_by_one(settings: CoOccurrenceSettings) -> None:
    asked = [case([3, 7, 1], 5), case([], 5), case([2], 5)]
    expected = np.zeros((len(asked), ITEMS))
    for number, one in enumerate(asked):
        for rank, item in enumerate(reversed(one.history), start=1):
            for sequence in SEQUENCES:
                for at, found in enumerate(sequence):
                    for place, other in enumerate(sequence):
                        if found == item and other != item:
                            direction = 1.0 if place > at else settings.reverse
                            expected[number, other] += (
                                direction * abs(place - at) ** -settings.decay * rank**-settings.recency
                            )
    expected *= np.maximum(np.bincount(np.concatenate(SEQUENCES), minlength=ITEMS), 0.5) ** settings.popularity
    expected /= np.maximum(expected.max(axis=1, keepdims=True), 1e-300)
    np.testing.assert_allclose(co_occurrence_scores(DATA, asked, settings), expected, rtol=1e-5)


def test_neighbours_are_of_the_query_where_it_has_an_embedding_and_of_the_history_else() -> None:
    unit = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)
    query = RANDOM.normal(size=(2, 6)).astype(np.float32)
    data = ReferenceData(TRAINING, VECTORS, query)
    scores = neighbour_scores(data, unit, [case([4, 9], 1, query_row=1), case([4, 9], 1), case([], 1)], 1.0)
    mean = 0.5 * unit[4] + unit[9]
    np.testing.assert_allclose(scores[0], unit @ query[1] / np.linalg.norm(query[1]), rtol=1e-4)
    np.testing.assert_allclose(scores[1], unit @ mean / np.linalg.norm(mean), rtol=1e-4, atol=1e-6)
    assert not scores[2].any()


def test_lists_are_full_have_no_item_of_the_history_and_no_item_twice() -> None:
    asked = random_cases(300, seed=1)
    found = references(DATA, asked, random_cases(50, seed=2), WIDTH)
    assert [one.name for one in found] == [POPULARITY, CO_OCCURRENCE, NEIGHBOURS, TOGETHER]
    for reference in found:
        assert reference.lists.items.shape == (300, WIDTH)
        for one, items in zip(asked, reference.lists.items.tolist(), strict=True):
            assert len(set(items)) == WIDTH
            assert not set(items) & {*one.history, -1}


def test_equal_scores_go_to_the_more_popular_item() -> None:
    # Nobody has been seen with an empty history: co-occurrence knows nothing, and popularity fills its list.
    asked = [case([], 3), case([1], 3)]
    popularity, co_occurrence, *_ = references(DATA, asked, (), WIDTH)
    assert co_occurrence.lists.items[0].tolist() == popularity.lists.items[0].tolist()
    counts = TRAINING.popularity[popularity.lists.items[0]]
    assert all(one >= other for one, other in pairwise(counts))


def test_a_catalogue_smaller_than_a_list_gives_shorter_lists() -> None:
    asked = [case([0, 1], 2)]
    training = TrainingData.of_sequences([[0, 1, 2], [2, 3]], 5, "histories")
    for reference in references(ReferenceData(training, VECTORS[:5]), asked, (), 50):
        assert sorted(item for item in reference.lists.items[0].tolist() if item >= 0) == [2, 3, 4]


def test_settings_are_chosen_on_the_validation_part_and_told() -> None:
    chain = [[item, (item + 1) % ITEMS] for item in range(ITEMS)]
    data = ReferenceData(TrainingData.of_sequences(chain, ITEMS, "histories"), VECTORS)
    newest = [case([(item + 15) % ITEMS, item], (item + 1) % ITEMS) for item in range(ITEMS)]
    found = {one.name: one for one in references(data, newest, newest, 5)}
    assert found[CO_OCCURRENCE].tuned_on == ITEMS
    hits = found[CO_OCCURRENCE].lists.items[:, 0] == [one.relevant[0] for one in newest]
    assert hits.all(), "what came after the newest item in training is the first"
    untuned = {one.name: one for one in references(data, newest, (), 5)}
    assert untuned[CO_OCCURRENCE].tuned_on == 0
    assert "distance^-0.5" in untuned[CO_OCCURRENCE].settings
    assert "by default: there is no validation part" in untuned[CO_OCCURRENCE].settings


@pytest.mark.parametrize("relevant_each", [1, 2])
def test_no_single_change_of_the_settings_chosen_is_better(relevant_each: int) -> None:
    tuning = []
    for one in random_cases(80, seed=3):
        relevant = (one.relevant[0], (one.relevant[0] + 1) % ITEMS)[:relevant_each]
        if not {*relevant} & {*one.history}:
            tuning.append(EvaluationCase("", None, one.history, relevant, (1.0,) * relevant_each))
    found = next(one for one in references(DATA, tuning, tuning, WIDTH) if one.name == CO_OCCURRENCE)

    def quality(settings: CoOccurrenceSettings) -> float:
        scores = co_occurrence_scores(DATA, tuning, settings).astype(np.float64)
        total = 0.0
        for row, one in enumerate(tuning):
            values = scores[row]
            values[list(one.history)] = -np.inf
            order = np.lexsort((-TRAINING.popularity, -values.round(5))).tolist()
            ranks = [1 + order.index(item) if values[item] > 0 else 10**9 for item in one.relevant]
            ideal = sum(1 / np.log2(place + 2) for place in range(len(ranks)))
            total += sum(1 / np.log2(rank + 1) for rank in ranks if rank <= WIDTH) / ideal
        return total

    [chosen] = [
        settings
        for values in product(*(CO_OCCURRENCE_GRID[name] for name in ("decay", "reverse", "recency", "popularity")))
        if found.settings == said(settings := CoOccurrenceSettings(*values))
    ]
    for name, values in CO_OCCURRENCE_GRID.items():
        for value in values:
            assert quality(replace(chosen, **{name: value})) <= quality(chosen) * 1.001, (
                name,
                value,
            )  # ties break otherwise
    assert quality(chosen) > quality(CoOccurrenceSettings(popularity=-0.5, recency=0.0, reverse=0.0, decay=2.0))


def test_only_references_that_the_data_allow_are_offered() -> None:
    weights = TrainingData.of_weights([1.0] * ITEMS)
    plain, asked = [case([], 1)], [case([], 1, query_row=0)]
    query = VECTORS[:1]
    weighed = TrainingData.of_weights([1.0, 2.0] * (ITEMS // 2))
    assert reference_names(ReferenceData(weights, VECTORS), plain) == ()
    assert reference_names(ReferenceData(weighed, VECTORS), plain) == (POPULARITY,)
    assert reference_names(ReferenceData(weights, VECTORS, query), asked) == (NEIGHBOURS,)
    assert reference_names(ReferenceData(weighed, VECTORS), [case([2], 1)]) == (POPULARITY, NEIGHBOURS)
    assert len(references(ReferenceData(weighed, VECTORS, query), asked, (), 5)) == 2
