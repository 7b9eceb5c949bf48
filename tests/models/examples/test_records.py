"""What training learns from, read from files of three kinds: each kind, and each way in which a file is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.data_files import DataFileError
from models.errors import SidstreamError
from models.examples.records import (
    TrainingData,
    TrainingExample,
    TrainingHistory,
    read_examples,
    read_training_file,
    write_examples,
)

EXAMPLES = [
    TrainingExample("red shoes", user="ada", history=("a", "b"), item="c"),
    TrainingExample("kettle", item="d"),
    TrainingExample(user="bob", history=("a",), item="b"),
]


def file(directory: Path, name: str, *lines: str) -> Path:
    path = directory / name
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_examples_survive_their_file_and_a_bad_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "examples.jsonl"
    assert write_examples(path, EXAMPLES) == 3
    assert list(read_examples(path)) == EXAMPLES
    assert read_training_file(path).data == TrainingData(examples=tuple(EXAMPLES))
    path.write_bytes(path.read_bytes() + b'\n{"query": 3, "item": "x"}\n')
    with pytest.raises(SidstreamError, match="line 5"):
        list(read_examples(path))
    path.write_text('{"query": "shoes"}\n')
    with pytest.raises(SidstreamError, match="names no item"):
        list(read_examples(path))


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("s.jsonl", ['{"user": "ada", "items": ["a", 7]}', '{"items": ["b"]}']),
        ("s.tsv", ["user_id\tsource\titems", "ada\tx\ta 7", "\ty\tb"]),
    ],
)
def test_sequences_are_histories_in_their_order(tmp_path: Path, name: str, lines: list[str]) -> None:
    found = read_training_file(file(tmp_path, name, *lines))
    assert found.kind == "sequences"
    assert [history.items for history in found.data.histories] == [("a", "7"), ("b",)]
    assert [history.user or None for history in found.data.histories] == ["ada", None]
    assert found.data.targets == 1
    assert found.unread == (("source",) if name.endswith("tsv") else ())


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("i.jsonl", ['{"user": "ada", "item": "b", "time": 20}', '{"user": 7, "item": "x", "time": 5}',
                     '{"user_id": "ada", "item_id": "a", "timestamp": 10}', '{"user": "ada", "item": "c", "time": 20}']),
        ("i.tsv", ["user_id\titem_id\ttime", "ada\tb\t2026-01-02", "7\tx\t2026-01-01T00:00:00Z",
                   "ada\ta\t2026-01-01", "ada\tc\t2026-01-02"]),
    ],
)  # fmt: skip
def test_interactions_become_one_history_a_user_by_time_and_then_by_the_files_order(
    tmp_path: Path, name: str, lines: list[str]
) -> None:
    found = read_training_file(file(tmp_path, name, *lines))
    assert found.kind == "interactions"
    assert found.data.histories == (TrainingHistory(("a", "b", "c"), "ada"), TrainingHistory(("x",), "7"))


def test_fields_that_are_not_read_are_named(tmp_path: Path) -> None:
    path = file(tmp_path, "e.jsonl", '{"qurey": "shoes", "item": "a"}', '{"query": "x", "item": "b", "price": 3}')
    assert read_training_file(path).unread == ("qurey", "price")


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("e.jsonl", [], "is empty: a line is an example"),
        ("e.jsonl", ['{"sku": "a"}'], "line 1 has sku: a line is an example"),
        ("e.jsonl", ["[1]"], "line 1 is no training example"),
        ("e.tsv", ["user\tbought"], "has the columns user, bought: a table of sequences needs"),
        ("e.tsv", ["user_id\titems", "ada"], "line 2 has 1 columns, the header 2"),
        ("e.tsv", ["user_id\titems"], "is empty"),
        ("e.jsonl", ['{"items": ["a"]}', '{"item": "a"}'], "line 2 has no items, and the file is one of sequences"),
        ("e.jsonl", ['{"items": "a"}'], "line 1 is no sequence"),
        ("e.jsonl", ['{"user": "a", "item": "b", "time": 1}', '{"user": "a", "time": 2}'], "line 2 has no item"),
        ("e.jsonl", ['{"user": "a", "item": "b", "time": "soon"}'], "line 1 has the time 'soon'"),
        ("e.jsonl", ['{"user": "a", "item": "b", "time": true}'], "line 1 has the time True"),
        ("e.jsonl", ['{"user": "a", "item": "b", "time": NaN}'], "line 1 is no training example"),
        ("e.tsv", ["user_id\titem_id\ttime", "a\tb\tinf"], "line 2 has the time 'inf'"),
        ("e.jsonl", ['{"user": ["a"], "item": "b", "time": 1}'], "line 1 is no interaction"),
    ],
)
def test_a_file_that_is_wrong_is_refused_with_file_line_and_the_right_forms(
    tmp_path: Path, name: str, lines: list[str], message: str
) -> None:
    path = file(tmp_path, name, *lines)
    with pytest.raises(DataFileError) as refused:
        read_training_file(path)
    assert str(refused.value).startswith(str(path))
    assert message in str(refused.value)


def test_a_share_is_held_back_with_all_of_a_user_together_and_the_same_each_time() -> None:
    data = TrainingData(
        histories=tuple(TrainingHistory((f"a{n}", f"b{n}"), f"user-{n % 40}") for n in range(80)),
        examples=tuple(TrainingExample(f"q{n}", user=f"user-{n}" if n < 40 else None, item="x") for n in range(100)),
    )
    kept, held = data.split(0.2, seed=1)
    assert held == data.split(0.2, seed=1)[1] != data.split(0.2, seed=2)[1]
    assert sorted(kept.histories + held.histories, key=repr) == sorted(data.histories, key=repr)
    assert sorted(kept.examples + held.examples, key=repr) == sorted(data.examples, key=repr)
    users = [{row.user for row in (*part.histories, *part.examples)} - {None} for part in (kept, held)]
    assert not users[0] & users[1]
    # 40 users and 60 examples of nobody are 100 groups.
    assert len(users[1]) + sum(example.user is None for example in held.examples) == 20


def test_the_digest_is_of_everything_that_is_said() -> None:
    data = TrainingData((TrainingHistory(("a", "b")),), tuple(EXAMPLES))
    assert data.digest() == TrainingData((TrainingHistory(("a", "b")),), tuple(EXAMPLES)).digest()
    assert data.digest() != TrainingData((TrainingHistory(("b", "a")),), tuple(EXAMPLES)).digest()
    assert data.digest() != TrainingData((), tuple(EXAMPLES)).digest()
