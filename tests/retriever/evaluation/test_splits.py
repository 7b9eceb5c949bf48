"""Time splits: what is measured came after what is known, whatever the file looks like."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.catalogue import Catalogue, CatalogueItem
from models.data_files import DataFileError
from models.examples.records import read_examples
from retriever.evaluation.cases import EvaluationError
from retriever.evaluation.splits import (
    Interaction,
    TimeSplit,
    after,
    case_set,
    last_share,
    leave_last_out,
    read_interactions,
    split_by_time,
    write_split,
)

ROWS = [("ada", "i1", "2026-05-01"), ("bob", "i2", "2026-05-02T10:00:00Z"), ("ada", "i3", "2026-05-03")]


def catalogue(**more: object) -> Catalogue:
    items = tuple(CatalogueItem(id=f"i{row}", title=f"thing {row}") for row in range(10))
    return Catalogue(items=items, embeddings=np.ones((10, 4), dtype=np.float32), **more)  # type: ignore[arg-type]


def test_leave_last_out_tests_the_last_item_validates_the_one_before_and_trains_on_the_rest() -> None:
    data = leave_last_out({"ada": ["i1", "i2", "i3", "i4"], "bob": ["i5", "i6"]})
    assert data.training == {"ada": ("i1", "i2"), "bob": ("i5", "i6")}
    assert [(one.history, one.item) for one in data.validation] == [(("i1", "i2"), "i3")]
    assert [(one.history, one.item) for one in data.test] == [(("i1", "i2", "i3"), "i4")]
    with pytest.raises(EvaluationError, match="no history has 3 items"):
        leave_last_out({"bob": ["i5", "i6"]})


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9), st.integers(0, 30)), min_size=3, max_size=40),
    st.integers(1, 29),
    st.integers(1, 29),
)
def test_nothing_known_is_later_than_what_is_asked(rows: list[tuple[str, int, int]], one: int, other: int) -> None:
    interactions = [Interaction(user, f"i{item}", float(time)) for user, item, time in rows]
    split = TimeSplit(float(min(one, other)), float(max(one, other)))
    parts = [
        [row for row in interactions if row.time < split.valid_from],
        [row for row in interactions if split.valid_from <= row.time < split.test_from],
        [row for row in interactions if row.time >= split.test_from],
    ]
    if not parts[0] or not parts[2]:
        with pytest.raises(EvaluationError, match="the interactions run from"):
            split_by_time(interactions, split)
        return
    data = split_by_time(interactions, split)
    assert sum(map(len, data.training.values())) == len(parts[0])
    assert [len(data.validation), len(data.test)] == [len(parts[1]), len(parts[2])]
    for user, items in data.training.items():
        assert list(items) == [row.item for row in sorted(parts[0], key=lambda row: row.time) if row.user == user]
    for example in data.test:
        before = [row.item for row in sorted(interactions, key=lambda row: row.time) if row.user == example.user]
        assert before[: len(example.history)] == list(example.history)
        assert before[len(example.history)] == example.item


def test_last_share_and_after_give_as_large_a_validation_part_before_the_test() -> None:
    interactions = [Interaction("ada", "i1", float(time)) for time in range(100)]
    assert last_share(interactions, 0.1) == TimeSplit(80.0, 90.0)
    assert after(interactions, 95.0) == TimeSplit(90.0, 95.0)
    assert after(interactions, 50.0) == TimeSplit(45.0, 50.0)  # a tenth of what came before, not half of it
    assert after(interactions, 4.0) == TimeSplit(4.0, 4.0)


@pytest.mark.parametrize("form", ["tsv", "csv", "jsonl", "tsv.gz"])
def test_interactions_are_read_in_every_form(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"interactions.{form}"
    if form == "jsonl":
        text = "".join(
            f'{{"user_id": "{user}", "item_id": "{item}", "timestamp": "{time}"}}\n' for user, item, time in ROWS
        )
    else:
        separator = "," if form == "csv" else "\t"
        rows = [("time", "more", "user", "item"), *((time, "x", user, item) for user, item, time in ROWS)]
        text = "".join(separator.join(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if form.endswith("gz") else text.encode())
    found = read_interactions(path)
    assert [(one.user, one.item) for one in found] == [(user, item) for user, item, _ in ROWS]
    assert found[1].time - found[0].time == (24 + 10) * 3600


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.tsv", "user\titem\n", "none called time"),
        ("a.tsv", "user\titem\ttime\n", "holds no interaction"),
        ("a.tsv", "user\titem\ttime\nada\ti1\n", "line 2 has 2 columns"),
        ("a.tsv", "user\titem\ttime\nada\ti1\tyesterday\n", "line 2 has the time 'yesterday'"),
        ("a.tsv", "user\titem\ttime\nada\ti1\tnan\n", "line 2 has the time 'nan'"),
        ("a.jsonl", '{"user": "ada", "item": 3}\n', "line 1 has no time"),
        ("a.jsonl", '{"user": "ada", "item": [3], "time": 4}\n', "line 1 is no interaction"),
    ],
)
def test_bad_interactions_are_named(tmp_path: Path, name: str, text: str, said: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(DataFileError, match=said):
        read_interactions(path)


def test_a_written_split_can_be_trained_and_evaluated_on(tmp_path: Path) -> None:
    data = leave_last_out({"ada": ["i1", "i2", "i3", "i4"], "bob": ["i1", "i6", "elsewhere"]})
    write_split(catalogue(), data, tmp_path / "split")
    training = Catalogue.read(tmp_path / "split" / "training")
    assert training.sequences == {"ada": ("i1", "i2"), "bob": ("i1",)}
    assert [item.weight for item in training.items[:4]] == [0.5, 2.5, 1.5, 0.5]
    assert [one.item for one in read_examples(tmp_path / "split" / "validation.jsonl")] == ["i3", "i6"]
    assert [one.item for one in read_examples(tmp_path / "split" / "test.jsonl")] == ["i4", "elsewhere"]
    with pytest.raises(EvaluationError, match="not empty"):
        write_split(catalogue(), data, tmp_path / "split")


def test_cases_of_a_split_know_what_is_new() -> None:
    found = case_set(catalogue(), leave_last_out({"ada": ["i1", "i2", "i3", "i4"], "bob": ["i1", "i6", "elsewhere"]}))
    assert [case.relevant for case in found.cases] == [(4,)]
    assert "elsewhere" in " ".join(found.remarks.lines())
    assert np.flatnonzero(found.training.seen).tolist() == [1, 2]
    assert [case.relevant for case in found.validation] == [(3,), (6,)]
