"""`sidstream ask --batch`: each line of a file has its answer or its reason, also when the run was stopped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from models.catalogue import Catalogue, CatalogueItem
from models.errors import SidstreamError
from retriever.batch_answers import answer_file
from retriever.evaluation.answers import offline, temporary_index
from sidstream import app
from streamer.events.records import Answer, Query
from streamer.settings import Settings, load_settings

pytest.importorskip("torch")
pytest.importorskip("faiss")


@pytest.fixture(scope="module")
def settings(tiny_model_bundle: Path, tiny_embeddings: NDArray[np.float32]) -> Iterator[Settings]:
    items = tuple(CatalogueItem(id=f"item-{row}", title=f"thing {row}") for row in range(len(tiny_embeddings)))
    own = load_settings(bundle=tiny_model_bundle, retriever={"batch_size": 4, "user_queries_per_second": 0.001})
    with temporary_index(own, Catalogue(items=items, embeddings=tiny_embeddings), np.ones(len(items))) as index:
        yield own.model_copy(update={"index": index})


LINES: list[dict[str, Any]] = [
    {"query_id": "a", "text": "thing number 3"},
    {"text": "thing number 4", "history": ["item-1", "gone"], "limit": 2, "user": "ada"},
    {"query_id": "c", "text": ""},
    {"query_id": "d", "text": "x", "colour": "red"},
    {"query_id": "e", "text": "x", "filter": {"field": "price", "lte": 3}},
    {"query_id": "f", "history": ["item-7"], "user": "ada", "asked_at": 1, "timeout_ms": 1},
]


@pytest.fixture
def queries(tmp_path: Path) -> Path:
    path = tmp_path / "queries.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES) + "no object\n\n")
    return path


def answers_of(path: Path) -> list[Answer]:
    return [msgspec.json.decode(line, type=Answer) for line in path.read_bytes().splitlines()]


def without_times(answers: list[Answer]) -> list[Answer]:
    return [msgspec.structs.replace(answer, answered_at=0, milliseconds={}, query_id="") for answer in answers]


def test_each_line_is_answered_as_the_retriever_does_or_refused_with_its_reason(
    settings: Settings, queries: Path, tmp_path: Path
) -> None:
    out = tmp_path / "answers.jsonl"
    outcome = answer_file(settings, queries, out, limit=5)
    found = answers_of(out)
    assert [answer.query_id for answer in found] == ["a", "2", "c", "d", "e", "f", "7"]
    kinds = [None if answer.error is None else answer.error.kind for answer in found]
    assert kinds == [None, None, "EmptyQuery", "UnknownField", "InvalidFilter", None, "UndecodableEvent"]
    assert (outcome.answered, sum(outcome.refused.values()), outcome.before) == (3, 4, 0)
    assert [len(answer.items) for answer in found] == [5, 2, 0, 0, 0, 5, 0]
    assert found[1].skipped_history == ("gone",)
    with offline(settings, settings.index) as ask:
        same = ask(
            [
                Query(text="thing number 3", limit=5),
                Query(text="thing number 4", history=("item-1", "gone"), limit=2, user="ada"),
                Query(history=("item-7",), user="ada", limit=5),
            ]
        )
    assert without_times([found[0], found[1], found[5]]) == without_times([one for one in same if one is not None])
    assert not (tmp_path / "answers.jsonl.parts").exists()


def test_run_that_was_stopped_goes_on_and_its_parquet_is_whole(
    settings: Settings, queries: Path, tmp_path: Path
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    out = tmp_path / "answers.parquet"

    class Stopped(Exception):
        pass

    def stop(done: int) -> None:
        if done == 4:
            raise Stopped

    with pytest.raises(Stopped):
        answer_file(settings, queries, out, lines_a_part=2, progress=stop)
    assert not out.exists()
    with pytest.raises(SidstreamError, match="has answers of another run"):
        answer_file(settings, queries, out, lines_a_part=2, limit=3)
    outcome = answer_file(settings, queries, out, lines_a_part=2)
    assert (outcome.answered, sum(outcome.refused.values()), outcome.before) == (3, 4, 4)
    rows = parquet.read_table(out).to_pylist()
    assert [row["query_id"] for row in rows] == ["a", "2", "c", "d", "e", "f", "7"]
    assert [len(row["items"]) for row in rows] == [10, 2, 0, 0, 0, 10, 0]
    assert rows[0]["items"][0].keys() == {"item_id", "title", "sid", "score", "found_by"}
    assert (rows[2]["error"], rows[0]["error"]) == ("EmptyQuery", None)
    assert dict(rows[0]["position"]) == {"item-codes/0": 600}


def test_command_tells_reasons_and_refuses_what_does_not_go_together(
    settings: Settings, queries: Path, tmp_path: Path
) -> None:
    environment = {"SIDSTREAM_BUNDLE": str(settings.bundle), "SIDSTREAM_INDEX": str(settings.index), "COLUMNS": "200"}
    out = tmp_path / "answers.jsonl"
    told = CliRunner().invoke(app, ["ask", "--batch", str(queries), "--out", str(out)], env=environment)
    assert told.exit_code == 0, told.output
    assert "3 queries are answered, 4 have a reason why not" in told.stderr
    assert "1 × UnknownField" in told.stderr
    for arguments in (["--batch", "x.jsonl"], ["kettle", "--batch", "x", "--out", "y.jsonl"], ["--out", "y.jsonl"]):
        assert CliRunner().invoke(app, ["ask", *arguments], env=environment).exit_code == 2
    shard = settings.model_copy(update={"indexer": settings.indexer.model_copy(update={"partitions": "0"})})
    with pytest.raises(SidstreamError, match="is a shard"):
        answer_file(shard, queries, out)
    (tmp_path / "none.jsonl").touch()
    for source, wanted, why in (
        ("none.jsonl", "y.jsonl", "has no query"),
        ("none.jsonl", "y.csv", "as .parquet or .jsonl"),
    ):
        with pytest.raises(SidstreamError, match=why):
            answer_file(settings, tmp_path / source, tmp_path / wanted)
