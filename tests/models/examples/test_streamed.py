"""Training data divided by user into parts on the disk: nothing is lost, a user stays whole, and memory is bounded."""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from models.data_files import DataFileError
from models.errors import SidstreamError
from models.examples import streamed
from models.examples.records import TrainingData, read_training_file
from models.examples.streamed import StreamedData, divided
from support.patience import PATIENCE_SECONDS


def write(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def files(directory: Path) -> list[Path]:
    users = [f"user-{number}" for number in range(60)]
    return [
        write(
            directory / "examples.jsonl",
            *(
                {"query": f"q{at}", "user": user, "history": ["a"] * at, "item": "b"}
                for at in range(3)
                for user in users
            ),
            *({"query": "alone", "item": f"item-{number}", "embedding": [1.0]} for number in range(50)),
        ),
        write(
            directory / "sequences.jsonl",
            *({"user": user, "items": ["a", "b", "c"]} for user in users),
            {"items": ["x"]},
        ),
        write(
            directory / "clicks.jsonl",
            *({"user": user, "item": f"i{time}", "time": 9 - time} for time in range(4) for user in users[:20]),
        ),
    ]


def parts(data: StreamedData) -> list[TrainingData]:
    return [data.part(number) for number in range(data.parts)]


def said(data: list[TrainingData]) -> Counter[object]:
    """All that is said, but for embeddings."""
    examples = [(one.query, one.user, one.history, one.item) for part in data for one in part.examples]
    return Counter([*examples, *((one.user, one.items) for part in data for one in part.histories)])


def test_nothing_is_lost_and_all_of_a_user_is_in_one_part_in_order(tmp_path: Path) -> None:
    paths = files(tmp_path)
    data = divided(paths, tmp_path / "parts", bytes_a_part=2_000)
    assert data.parts > 5
    found = parts(data)
    assert said(found) == said([read_training_file(path).data for path in paths])
    homes: dict[str, set[int]] = {}
    for number, part in enumerate(found):
        for one in (*part.examples, *part.histories):
            if one.user is not None:
                homes.setdefault(one.user, set()).add(number)
        assert [example.query for example in part.examples if example.user == "user-7"] in ([], ["q0", "q1", "q2"])
    assert len(homes) == 60
    assert all(len(numbers) == 1 for numbers in homes.values())
    assert (data.records, data.asked) == (180 + 50 + 61 + 80, 230)
    assert data.unread == {
        str(paths[0]): ("examples", ()),
        str(paths[1]): ("sequences", ()),
        str(paths[2]): ("interactions", ()),
    }
    assert ("user-3", ("i3", "i2", "i1", "i0")) in said(found), "interactions by their time"


def test_who_is_held_back_is_not_trained_on_and_no_more_is_kept_than_memory_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streamed, "MOST_HELD", 60)
    monkeypatch.setattr(streamed, "MOST_SAMPLED", 40)
    data = divided(files(tmp_path), tmp_path / "parts", held_share=0.4, bytes_a_part=2_000)
    trained = {one.user for part in parts(data) for one in (*part.examples, *part.histories)} - {None}
    held = {one.user for one in (*data.held.examples, *data.held.histories)} - {None}
    assert held
    assert trained
    assert not held & trained
    assert data.records + data.held_back == 371
    assert data.held_back > 100
    assert 0 < len(data.held.examples) <= 60
    assert 0 < len(data.sample.examples) + len(data.sample.histories) <= 40
    assert all(example.embedding is None for example in data.sample.examples)
    assert {example.embedding for example in data.held.examples if example.user is None} <= {b"\x00\x00\x80\x3f"}


def test_few_records_are_all_trained_on(tmp_path: Path) -> None:
    data = divided(files(tmp_path), tmp_path / "parts", held_share=0.4, fewest_held_of=1_000)
    assert (data.records, data.held_back, data.held.targets) == (371, 0, 0)
    assert said(parts(data)) == said([read_training_file(path).data for path in files(tmp_path)])


def test_files_that_were_divided_are_found_again_and_others_are_divided_anew(tmp_path: Path) -> None:
    paths = files(tmp_path)
    seen: list[int] = []
    first = divided(paths, tmp_path / "parts")
    [part] = (tmp_path / "parts").glob("records-*")
    part.write_bytes(b"")
    assert divided(paths, tmp_path / "parts", progress=seen.append) == first, "and not read"
    assert not part.read_bytes()
    write(paths[1], {"user": "ada", "items": ["a", "b"]})
    again = divided(paths, tmp_path / "parts")
    assert again.digest != first.digest
    assert again.records == first.records - 60
    assert part.read_bytes()
    assert divided(paths, tmp_path / "parts", seed=1).digest != again.digest


def test_parts_that_were_moved_are_read_where_they_are_now_and_a_wrong_name_costs_none(tmp_path: Path) -> None:
    paths = files(tmp_path)
    first = divided(paths, tmp_path / "parts")
    (tmp_path / "parts").rename(tmp_path / "moved")
    moved = divided(paths, tmp_path / "moved")
    assert said(parts(moved)) == said([read_training_file(path).data for path in paths])
    with pytest.raises(DataFileError, match="no file"):
        divided([*paths, tmp_path / "typo.jsonl"], tmp_path / "moved")
    assert divided(paths, tmp_path / "moved") == moved
    assert moved.digest == first.digest


def test_one_user_with_most_of_the_records_is_in_the_sample_with_many_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streamed, "MOST_SAMPLED", 100)
    guest = [{"query": f"q{number}", "user": "guest", "item": "b"} for number in range(500)]
    data = divided([write(tmp_path / "guests.jsonl", *guest)], tmp_path / "parts")
    assert len(data.sample.examples) == 100


def test_other_processes_wait_until_the_first_has_divided_the_files(tmp_path: Path) -> None:
    paths = files(tmp_path)
    with ThreadPoolExecutor() as others:
        waiting = others.submit(divided, paths, tmp_path / "parts", first=False)
        first = divided(paths, tmp_path / "parts")
        assert waiting.result(PATIENCE_SECONDS) == first


def test_a_wrong_line_and_a_missing_file_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "examples.jsonl", {"query": "a", "item": "b"}, {"query": "a"})
    with pytest.raises(DataFileError, match="line 2 names no item"):
        divided([path], tmp_path / "parts")
    with pytest.raises(DataFileError, match="no file"):
        divided([tmp_path / "gone.jsonl"], tmp_path / "parts")
    blocked = tmp_path / "blocked"
    blocked.write_text("a file")
    with pytest.raises(SidstreamError, match=r"could not be divided into .*blocked"):
        divided(files(tmp_path), blocked)
