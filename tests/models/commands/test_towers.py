"""`sidstream towers`, then `fit --embed` and `train --embed`: text alone becomes a bundle with a language model."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from models.bundles.bundle import Bundle
from models.codebooks.onnx_encoder import OnnxEncoder
from models.errors import SidstreamError
from models.examples.made_queries import examples_from_catalogue
from models.examples.records import write_examples
from models.sids.census import count_tokens
from models.towers.text_encoder import Towers
from support.planted_shop import planted_items, planted_pairs, write_items

pytest.importorskip("torch")
pytest.importorskip("faiss")
pytest.importorskip("onnx")

from sidstream import app

SMALL = ["--dimension", "16", "--epochs", "2", "--batch-size", "64", "--threads", "1"]


@pytest.fixture
def catalogue(tmp_path: Path) -> Path:
    """A folder with items, queries and judgements, and no embeddings."""
    folder = tmp_path / "catalogue"
    folder.mkdir()
    write_items(folder / "items.jsonl", planted_items())
    (folder / "queries.tsv").write_text("query_id\tquery\nq0\tred kettle\nq1\tlamp\n")
    with gzip.open(folder / "qrels.tsv.gz", "wt") as qrels:
        qrels.write("query_id\titem_id\trating\nq0\tkettle-red-oak\t3\nq0\tlamp-red-oak\t1\n")
    return folder


def run(*arguments: str | Path) -> tuple[str, BaseException | None]:
    answer = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return answer.stderr, answer.exception


def test_catalogue_of_text_becomes_towers_a_bundle_and_a_language_model(catalogue: Path, tmp_path: Path) -> None:
    directory, bundle = tmp_path / "towers", tmp_path / "bundle"
    report, fault = run("towers", catalogue, "--towers", directory, *SMALL)
    assert fault is None
    text = " ".join(report.split())
    assert "pairs of items never seen in training, among all 180 (chance 0.0556)" in text
    assert "on the catalogue's 1 judged queries" in text
    towers = Towers.open(directory)
    assert towers.manifest.training["epochs"] == 2

    _, fault = run("fit", catalogue, "--embed", directory, "--bundle", bundle, "--size", "8", "--iterations", "3")
    assert fault is None
    opened = Bundle.open(bundle)
    codes = OnnxEncoder(opened.encoder_path).encode(towers.item_encoder().encode_items(planted_items()))
    assert (opened.manifest.towers, opened.manifest.dimension) == (towers.id, 16)
    assert opened.manifest.embedding == f"text towers {towers.id}"
    assert np.array_equal(np.array(opened.manifest.census), count_tokens(codes, 8))

    small = ["--epochs", "0.5", "--hidden-size", "16", "--model-layers", "1", "--bundle", bundle]
    _, fault = run("train", catalogue, *small)
    assert isinstance(fault, SidstreamError)
    assert f"text towers {towers.id}: name their directory with --embed" in str(fault)
    _, fault = run("train", catalogue, *small, "--embed", directory)
    assert fault is None
    trained = Bundle.open(bundle, need_model=True)
    assert trained.manifest.towers == towers.id
    _, fault = run("train", catalogue, *small, "--embed", directory, "--neighbours", "3")
    assert fault is None
    assert Bundle.open(bundle, need_model=True).manifest.model_id != trained.manifest.model_id, "other items are learnt"
    assert trained.manifest.format == 1
    _, fault = run("train", catalogue, *small, "--embed", directory, "--query-codes", "--validation-share", "0.1")
    assert fault is None
    reads_codes = Bundle.open(bundle, need_model=True).manifest
    assert reads_codes.language_model is not None
    assert reads_codes.language_model.prompt.query_codes
    assert reads_codes.format == 2, "an older sidstream would leave the codes out of its prompts"
    assert reads_codes.dense is not None
    assert reads_codes.dense.query_tower is not None
    assert reads_codes.dense.weights.keys() == {"embedding"}, "the mixture was chosen on queries with codes"


def test_pairs_of_a_file_are_trained_on_and_a_file_of_items_is_enough(tmp_path: Path) -> None:
    items = write_items(tmp_path / "items.jsonl", planted_items())
    write_examples(tmp_path / "pairs.jsonl", planted_pairs())
    report, fault = run(
        "towers", items, "--examples", tmp_path / "pairs.jsonl", "--towers", tmp_path / "towers", *SMALL
    )
    assert fault is None
    assert "342 pairs" in " ".join(report.split())  # 5 % of 180 items are held out with their two pairs
    _, fault = run("towers", items, "--towers", tmp_path / "towers", *SMALL)
    assert "--replace" in str(fault)


def test_what_was_taken_together_is_learnt_from_the_catalogues_sequences_and_from_files_of_them(
    catalogue: Path, tmp_path: Path
) -> None:
    ids = [item.id for item in planted_items()]
    sequences = [f"u{user}\t{' '.join(ids[user : user + 3])}" for user in range(100)]
    (catalogue / "sequences.tsv").write_text("\n".join(["user_id\titems", *sequences]))
    beside, fault = run("towers", catalogue, "--towers", tmp_path / "beside", *SMALL, "--held-out", "0")
    assert fault is None
    queries = len(examples_from_catalogue(planted_items(), per_item=6, seed=0))
    assert f"{queries + 200:,} pairs" in " ".join(beside.split()), "the queries as ever, and two pairs a sequence"

    lines = [{"user": f"u{user}", "items": ids[user : user + 3]} for user in range(100)]
    lines.append({"user": "u", "items": ["gone", ids[0]]})
    (tmp_path / "taken.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_examples(tmp_path / "pairs.jsonl", planted_pairs())
    files = ["--examples", tmp_path / "taken.jsonl", "--examples", tmp_path / "pairs.jsonl"]
    report, fault = run("towers", catalogue, *files, "--towers", tmp_path / "files", *SMALL, "--held-out", "0")
    assert fault is None
    text = " ".join(report.split())
    assert "560 pairs" in text, "two a sequence, and two an item"
    assert "1 pairs have no query or an item that the catalogue does not have" in text


def test_mistakes_are_told_before_anything_is_trained(tmp_path: Path) -> None:
    items = write_items(tmp_path / "items.jsonl", planted_items())
    np.save(tmp_path / "some.npy", np.zeros((180, 4), np.float32))
    bundle = ["--bundle", tmp_path / "bundle"]
    for arguments, message in (
        (["towers", tmp_path / "none"], "no catalogue folder"),
        (["fit", items, *bundle, "--embed", tmp_path / "none"], "train some with `sidstream towers`"),
        (["fit", tmp_path / "some.npy", *bundle, "--embed", tmp_path], "holds embeddings: give one of the two"),
        (["fit", tmp_path, *bundle], "or let text towers make them"),
    ):
        _, fault = run(*arguments)
        assert isinstance(fault, SidstreamError)
        assert message in str(fault)
    write_items(items, [planted_items()[0], planted_items()[0]])
    _, fault = run("towers", items, "--towers", tmp_path / "towers")
    assert "share the id" in str(fault)
    assert not (tmp_path / "towers").exists()


@pytest.mark.parametrize(
    ("place", "options", "message"),
    [
        ("file", [], "is a file, not a directory"),
        ("file/below", [], "cannot be made: Not a directory"),
        ("blocked", [], "item_tower.onnx is a directory, and a file is to be written"),
        ("catalogue", [], "is not empty and holds no towers"),
        ("catalogue", ["--replace"], "is not empty and holds no towers"),
        ("towers", ["--per-item", "3", "--examples", "pairs.jsonl"], "give one of the two"),
    ],
)
def test_what_cannot_become_towers_is_refused_before_anything_is_read(
    catalogue: Path, tmp_path: Path, place: str, options: list[str], message: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "blocked" / "item_tower.onnx").mkdir(parents=True)
    before = sorted(catalogue.iterdir())
    _, fault = run("towers", tmp_path / "none", "--towers", tmp_path / place, *options, *SMALL)
    assert isinstance(fault, SidstreamError)
    assert message in str(fault)
    assert sorted(catalogue.iterdir()) == before
