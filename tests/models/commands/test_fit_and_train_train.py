"""`sidstream train`: its choices reach the manifest, and choices that make no sense are refused before anything runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from models.bundles.bundle import Bundle
from models.catalogue import Catalogue, CatalogueItem
from models.errors import SidstreamError

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("faiss")
pytest.importorskip("onnx")

from sidstream import app


def test_loss_gamma_and_architecture_are_recorded(tmp_path: Path) -> None:
    catalogue, bundle = str(tmp_path / "catalogue"), str(tmp_path / "bundle")
    embeddings = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    items = tuple(CatalogueItem(id=f"item-{number}", title=f"thing {number}") for number in range(40))
    Catalogue(items=items, embeddings=embeddings).write(catalogue)
    run = CliRunner().invoke
    assert run(app, ["fit", catalogue, "--bundle", bundle, "--size", "8", "--iterations", "2"]).exit_code == 0
    small = ["--epochs", "1", "--hidden-size", "16", "--model-layers", "1"]
    choices = ["--loss", "focal", "--gamma", "2", "--architecture", "baichuan"]
    answer = run(app, ["train", catalogue, "--bundle", bundle, *small, *choices])
    assert answer.exit_code == 0, answer.exception
    record = Bundle.open(bundle, need_model=True).manifest.language_model
    assert record is not None
    facts = record.training
    assert (facts["loss_function"], facts["gamma"], facts["architecture"]) == ("focal", 2.0, "baichuan")


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (["--loss", "hinge"], "choose one of cross-entropy, focal, mile"),
        (["--gamma", "2"], "cross-entropy has no gamma"),
        (["--architecture", "gpt"], "choose one of llama, qwen, baichuan"),
        (["--architecture", "qwen", "--checkpoint", "somewhere"], "give one of the two"),
    ],
)
def test_choices_that_make_no_sense_are_refused(choices: list[str], message: str, tmp_path: Path) -> None:
    answer = CliRunner().invoke(app, ["train", str(tmp_path), *choices])
    assert isinstance(answer.exception, SidstreamError)
    assert message in str(answer.exception)
