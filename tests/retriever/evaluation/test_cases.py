"""Cases of files: what cannot be used is counted and named, and what nobody could answer is no case."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.catalogue import Catalogue, CatalogueItem, CatalogueQuery
from models.data_files import DataFileError
from models.examples.records import TrainingExample, write_examples
from retriever.evaluation.cases import (
    LEFT_OUT_CASES,
    OWNED_TARGET,
    UNKNOWN_HISTORY,
    UNKNOWN_TARGET,
    CaseMaker,
    CaseSet,
    EvaluationError,
    Remarks,
    TrainingData,
    of_example_files,
    of_judgements,
)


def catalogue(**more: object) -> Catalogue:
    items = tuple(CatalogueItem(id=f"i{row}", title=f"thing {row}", weight=row) for row in range(6))
    return Catalogue(items=items, embeddings=np.eye(6, 4, dtype=np.float32) + 1, **more)  # type: ignore[arg-type]


def test_unknown_and_owned_items_are_counted_and_named(tmp_path: Path) -> None:
    path = tmp_path / "test.jsonl"
    write_examples(
        path,
        [
            TrainingExample(history=("i0", "gone"), item="i1"),
            TrainingExample(query="kettle", item="nowhere"),
            TrainingExample(history=("i2", "i3"), item="i2"),
            TrainingExample(query="lamp", item="i4"),
        ],
    )
    found = of_example_files(catalogue(), path, None, None)
    assert [(case.query, case.history, case.relevant) for case in found.cases] == [("", (0,), (1,)), ("lamp", (), (4,))]
    counts = found.remarks.counts
    assert (counts[UNKNOWN_HISTORY], counts[UNKNOWN_TARGET], counts[OWNED_TARGET], counts[LEFT_OUT_CASES]) == (
        1,
        1,
        1,
        2,
    )
    lines = " | ".join(found.remarks.lines())
    assert "such as gone" in lines
    assert "such as nowhere" in lines
    assert "such as i2" in lines


def test_examples_of_one_question_are_one_case_with_several_relevant_items(tmp_path: Path) -> None:
    path = tmp_path / "test.jsonl"
    write_examples(path, [TrainingExample(query="lamp", item=item) for item in ("i4", "i1", "i4")])
    [case] = of_example_files(catalogue(), path, None, None).cases
    assert case.relevant == (4, 1)


def test_an_empty_file_and_one_without_a_usable_case_are_errors_that_say_why(tmp_path: Path) -> None:
    path = tmp_path / "test.jsonl"
    path.write_text("\n")
    with pytest.raises(DataFileError, match="holds no example"):
        of_example_files(catalogue(), path, None, None)
    write_examples(path, [TrainingExample(query="kettle", item="nowhere")])
    with pytest.raises(EvaluationError, match="1 relevant items that the catalogue does not have, such as nowhere"):
        of_example_files(catalogue(), path, None, None).require_some()
    with pytest.raises(EvaluationError, match=r"no example of .* leads to an item of the catalogue"):
        of_example_files(catalogue(), path, None, path)


def test_what_was_known_before_is_the_training_file_or_the_sequences_or_the_weights(tmp_path: Path) -> None:
    path, before = tmp_path / "test.jsonl", tmp_path / "train.jsonl"
    write_examples(path, [TrainingExample(query="lamp", item="i4")])
    write_examples(
        before, [TrainingExample(history=("i0",), item="i1"), TrainingExample(history=("i0", "i1"), item="i1")]
    )
    of_file = of_example_files(catalogue(), path, None, before).training
    assert of_file.popularity.tolist() == [0, 2, 0, 0, 0, 0]
    assert of_file.seen.tolist() == [True, True, False, False, False, False]
    assert (of_file.pairs.first.tolist(), of_file.pairs.distance.tolist()) == ([0, 0, 1], [1, 2, 1])
    of_sequences = of_example_files(catalogue(sequences={"ada": ("i3", "i3", "i5")}), path, None, None).training
    assert of_sequences.popularity.tolist() == [0, 0, 0, 2, 0, 1]
    of_weights = of_example_files(catalogue(), path, None, None).training
    assert of_weights.by_popularity.tolist() == [5, 4, 3, 2, 1, 0]
    assert of_weights.seen.all()
    assert not of_weights.has_histories


def test_judged_queries_keep_their_ratings_as_gains_and_their_rows() -> None:
    shop = catalogue(
        queries=(CatalogueQuery("q0", "lamp"), CatalogueQuery("q1", "rug"), CatalogueQuery("q2", "bed")),
        query_embeddings=np.ones((3, 4), dtype=np.float32),
        qrels={"q0": {"i1": 1, "i2": 0}, "q2": {"i3": 3, "i4": 2, "i5": 1}},
    )
    found = of_judgements(shop, 2, None)
    [case] = found.cases
    assert (case.query, case.relevant, case.gains, case.query_row) == ("bed", (3, 4), (3.0, 2.0), 2)
    assert list(found.remarks.lines()) == ["2 queries without a product rated 2 or more, such as lamp, rug"]


def test_a_sample_is_the_same_for_a_seed_and_in_order() -> None:
    maker = CaseMaker(catalogue(), Remarks())
    cases = maker.of_examples(TrainingExample(query=f"{number}", item="i1") for number in range(50))
    whole = CaseSet(cases, (), TrainingData.of_weights([1.0]), "here", Remarks())
    one, same = whole.sampled(10, 3), whole.sampled(10, 3)
    assert one.cases == same.cases
    assert [int(case.query) for case in one.cases] == sorted(int(case.query) for case in one.cases)
    assert "10 of 50 cases drawn with seed 3" in one.source
    assert whole.sampled(50, 3) is whole
