"""The mixture over live items: exact under filters and exclusions, and it says which leg found what."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.dense.mixture import MixtureWeights
from models.dense.part import DenseRecord
from models.dense.space import DenseSpace, KnownItems, fit_space, id_hashes
from models.dense.vectors import quantise
from retriever.dense.item_vectors import ItemVectors
from retriever.dense.leg import DenseLeg, DenseQuery, ModelCandidates

ITEMS, DIMENSION, KNOWN = 260, 8, 200
HASHES = id_hashes(f"item {number}".encode() for number in range(ITEMS))
RECORD = DenseRecord(
    version=1,
    file="dense",
    dimension=DIMENSION,
    known=KNOWN,
    weights={"embedding": MixtureWeights(sharpness=12.0, share=0.6)},
)
NOTHING = np.empty(0, dtype=np.uint32)


def leg(numbers: np.ndarray, *, boost: float | None = None) -> DenseLeg:
    """Items 200 and above are new."""
    table = ItemVectors(DenseSpace(DIMENSION, KnownItems.of(HASHES[:KNOWN])))
    rows = np.random.default_rng(0).standard_normal((ITEMS, DIMENSION)).astype(np.float32)
    table.put(numbers, quantise(rows[numbers]), HASHES[numbers])
    return DenseLeg(RECORD, table, boost_of_new=boost)


def asked(seed: int) -> tuple[DenseQuery, ModelCandidates]:
    random = np.random.default_rng(seed)
    vector = random.standard_normal(DIMENSION).astype(np.float32)
    found = random.choice(ITEMS, size=60, replace=False)
    scores = np.log(random.dirichlet(np.full(60, 0.3)) + 1e-9)
    return DenseQuery("embedding", vector / np.linalg.norm(vector)), ModelCandidates(found, scores)


@given(st.integers(0, 1_000), st.sampled_from([1, 3, 20, 120, ITEMS]), st.integers(1, 30))
@settings(max_examples=60, deadline=None)
def test_filtered_answer_is_that_of_a_catalogue_of_the_eligible_items_alone(seed: int, count: int, limit: int) -> None:
    query, found = asked(seed)
    random = np.random.default_rng(seed + 1)
    eligible = np.sort(random.choice(ITEMS, size=count, replace=False)).astype(np.uint32)
    of_model = np.isin(found.numbers, eligible)
    found = ModelCandidates(found.numbers[of_model], found.scores[of_model])
    filtered = leg(np.arange(ITEMS)).answer([query], [found], limits=[limit], excluded=[NOTHING], eligible=eligible)[0]
    alone = leg(eligible).answer([query], [found], limits=[limit], excluded=[NOTHING])[0]
    assert [(item.number, item.found_by, item.new) for item in filtered] == [
        (item.number, item.found_by, item.new) for item in alone
    ]
    assert [item.score for item in filtered] == pytest.approx([item.score for item in alone], abs=1e-4)


@given(st.integers(0, 1_000), st.integers(0, 120))
@settings(max_examples=40, deadline=None)
def test_answer_without_excluded_items_is_that_of_a_catalogue_without_them(seed: int, count: int) -> None:
    query, found = asked(seed)
    without = np.random.default_rng(seed).choice(ITEMS, size=count, replace=False).astype(np.uint32)
    kept = ~np.isin(found.numbers, without)
    rest = leg(np.arange(ITEMS)).answer([query], [found], limits=[10], excluded=[without])[0]
    found = ModelCandidates(found.numbers[kept], found.scores[kept])
    others = np.setdiff1d(np.arange(ITEMS), without)
    alone = leg(others).answer([query], [found], limits=[10], excluded=[NOTHING])[0]
    assert [(item.number, item.found_by) for item in rest] == [(item.number, item.found_by) for item in alone]
    assert [item.score for item in rest] == pytest.approx([item.score for item in alone], abs=1e-4)


def test_answer_says_which_leg_found_an_item_and_which_items_are_new() -> None:
    query, found = asked(3)
    items = leg(np.arange(ITEMS)).answer([query], [found], limits=[100], excluded=[NOTHING])[0]
    legs = {item.number: item.found_by for item in items}
    assert set(legs.values()) == {"model", "dense", "both"}
    for number, by in legs.items():
        assert (by != "dense") == (number in found.numbers.tolist())
    assert all(item.new == (item.number >= KNOWN) for item in items)


def test_word_of_the_model_on_a_new_item_does_not_count_and_the_knob_raises_new_items() -> None:
    query, _ = asked(4)
    sure = ModelCandidates(np.array([KNOWN + 5, 7]), np.log(np.array([0.6, 0.3])))
    plain = leg(np.arange(ITEMS)).answer([query], [sure], limits=[ITEMS], excluded=[NOTHING])[0]
    unsure = leg(np.arange(ITEMS)).answer([query], [ModelCandidates.none()], limits=[ITEMS], excluded=[NOTHING])[0]
    scores = [{item.number: item.score for item in items}[KNOWN + 5] for items in (plain, unsure) if items]
    assert scores[0] == pytest.approx(scores[1])
    places = [item.number for item in plain]
    assert places.index(7) < places.index(KNOWN + 5)
    raised = leg(np.arange(ITEMS), boost=50.0).answer([query], [sure], limits=[20], excluded=[NOTHING])[0]
    assert all(item.new for item in raised)


def test_items_without_a_vector_are_left_to_the_model_also_new_ones() -> None:
    query, _ = asked(5)
    sure = ModelCandidates(np.array([KNOWN + 1, 3]), np.log(np.array([0.5, 0.4])))
    some = leg(np.arange(10, KNOWN)).answer([query], [sure], limits=[ITEMS], excluded=[NOTHING])[0]
    left = {item.number: item for item in some if item.number in sure.numbers}
    assert {(number, item.found_by, item.cosine) for number, item in left.items()} == {
        (KNOWN + 1, "model", None),
        (3, "model", None),
    }
    assert left[KNOWN + 1].score == pytest.approx(np.log(0.4 * 0.5))
    nothing = leg(NOTHING.astype(np.int64)).answer([query], [sure], limits=[5], excluded=[NOTHING])[0]
    assert [item.number for item in nothing] == [KNOWN + 1, 3]


def test_without_a_model_the_nearest_items_answer_alone() -> None:
    query, _ = asked(6)
    alone = leg(np.arange(ITEMS))
    items = alone.answer([query], [ModelCandidates.none()], limits=[10], excluded=[NOTHING])[0]
    nearest = np.argsort(-(alone.vectors.vectors @ query.vector), kind="stable")[:10]
    assert [item.number for item in items] == alone.vectors.numbers[nearest].tolist()
    assert {item.found_by for item in items} == {"dense"}


def test_query_is_its_embedding_else_its_history_else_nothing() -> None:
    own = leg(np.arange(ITEMS))
    embedding = np.ones(DIMENSION)
    by_embedding = own.query(embedding, np.array([3]))
    by_history = own.query(None, np.array([3, 10**6, 7]))
    assert by_embedding is not None
    assert by_embedding.asked == "embedding"
    assert by_history is not None
    assert by_history.asked == "history"
    expected = own.vectors.vectors[7] + own.vectors.vectors[3] / 2
    np.testing.assert_allclose(by_history.vector, expected / np.linalg.norm(expected), atol=1e-6)
    assert own.query(None, np.array([10**6])) is None
    assert own.query(np.zeros(DIMENSION), NOTHING) is None


def leg_with_histories(numbers: np.ndarray) -> tuple[DenseLeg, np.ndarray]:
    """Buyers of the known items take neighbours by number together; the numbers of a history."""
    rows = np.random.default_rng(0).standard_normal((ITEMS, DIMENSION)).astype(np.float32)
    random = np.random.default_rng(1)
    starts = random.integers(0, KNOWN - 5, size=400)
    walks = [(start + random.permutation(5)).tolist() for start in starts.tolist()]
    space, _ = fit_space(rows[:KNOWN], HASHES[:KNOWN], walks, keep_pairs=True)
    table = ItemVectors(space)
    order = np.random.default_rng(2).permutation(numbers)  # rows in no order that means anything
    table.put(order, quantise(rows[order]), HASHES[order])
    weights = {"history": MixtureWeights(sharpness=12.0, share=0.6, together=0.7)}
    record = DenseRecord(version=3, file="dense", dimension=DIMENSION, known=KNOWN, weights=weights)
    return DenseLeg(record, table), np.array([50, 51, 52])


def test_what_was_taken_together_with_the_history_is_found_and_new_items_have_no_part_in_it() -> None:
    mixer, history = leg_with_histories(np.arange(ITEMS))
    query = mixer.query(None, history)
    assert query is not None
    items = mixer.answer([query], [ModelCandidates.none()], limits=[10], excluded=[history.astype(np.uint32)])[0]
    assert {48, 49, 53, 54} <= {item.number for item in items}
    assert {item.found_by for item in items} == {"dense"}
    near = [item for item in items if item.number in (48, 49, 53, 54)]
    assert all(item.log_dense is not None and item.log_dense == pytest.approx(item.score) for item in near)
    by_vectors = mixer.query(mixer.vectors.vectors[0][:DIMENSION], history)
    assert by_vectors is not None
    assert len(by_vectors.history) == 0  # a query's own embedding speaks for it


@given(st.sampled_from([1, 3, 20, 120]), st.integers(0, 100), st.integers(1, 30))
@settings(max_examples=40, deadline=None)
def test_what_was_taken_together_is_shared_among_the_eligible_items_alone(count: int, seed: int, limit: int) -> None:
    random = np.random.default_rng(seed)
    history = np.array([50, 51, 52])
    eligible = np.sort(random.choice(np.setdiff1d(np.arange(ITEMS), history), size=count, replace=False))
    mixer, _ = leg_with_histories(np.arange(ITEMS))
    query = mixer.query(None, history)
    assert query is not None
    none = ModelCandidates.none()
    filtered = mixer.answer([query], [none], limits=[limit], excluded=[NOTHING], eligible=eligible.astype(np.uint32))[0]
    smaller, _ = leg_with_histories(np.concatenate((eligible, history)))
    alone = smaller.answer([query], [none], limits=[limit], excluded=[history.astype(np.uint32)])[0]
    assert [item.number for item in filtered] == [item.number for item in alone]
    assert [item.score for item in filtered] == pytest.approx([item.score for item in alone], abs=1e-4)


def test_no_item_is_lost_between_the_nearest_and_those_that_were_taken_together() -> None:
    mixer, history = leg_with_histories(np.arange(ITEMS))
    query = mixer.query(None, history)
    assert query is not None
    for limit in (20, 100, 200):
        few = mixer.answer([query], [ModelCandidates.none()], limits=[limit], excluded=[NOTHING])[0]
        every = mixer.answer([query], [ModelCandidates.none()], limits=[ITEMS], excluded=[NOTHING])[0]
        assert [item.number for item in few] == [item.number for item in every[:limit]]


def test_screening_by_leading_directions_loses_nothing_that_was_taken_together() -> None:
    mixer, history = leg_with_histories(np.arange(ITEMS))
    table = ItemVectors(mixer.vectors.space, screened_from=50)
    rows = np.random.default_rng(0).standard_normal((ITEMS, DIMENSION)).astype(np.float32)
    table.put(np.arange(ITEMS), quantise(rows), HASHES)
    query = mixer.query(None, history)
    assert query is not None
    found = [
        DenseLeg(mixer._record, vectors).answer(
            [query], [ModelCandidates.none()], limits=[10], excluded=[history.astype(np.uint32)]
        )[0]
        for vectors in (mixer.vectors, table)
    ]
    assert [item.number for item in found[0]] == [item.number for item in found[1]]
