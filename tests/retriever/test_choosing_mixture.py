"""`sidstream train` ends with the mixture: chosen on held-out examples by the retriever's own answers, and said in words."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from models.bundles.bundle import Bundle
from models.bundles.dense_part import dense_space_of
from models.dense.part import UNMEASURED
from models.dense.space import id_hashes
from sidstream import app

pytest.importorskip("torch")
pytest.importorskip("faiss")
pytest.importorskip("onnx")

ITEMS, GROUPS = 240, 12


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Products of 12 kinds, buyers who stay with one kind, and a bundle fitted on them."""
    folder = tmp_path_factory.mktemp("mixture")
    random = np.random.default_rng(0)
    embeddings = random.standard_normal((GROUPS, 12))[np.arange(ITEMS) % GROUPS]
    np.save(folder / "items.npy", (embeddings + 0.4 * random.standard_normal((ITEMS, 12))).astype(np.float32))
    items = [json.dumps({"id": f"sku-{row}", "title": f"kind {row % GROUPS} number {row}"}) for row in range(ITEMS)]
    (folder / "items.jsonl").write_text("\n".join(items) + "\n")
    for name, users in (("train", range(300)), ("validation", range(300, 420))):
        with (folder / f"{name}.jsonl").open("w") as file:
            for user in users:
                own = np.random.default_rng(user).choice(np.arange(user % GROUPS, ITEMS, GROUPS), 5, replace=False)
                file.write(json.dumps({"user": f"u{user}", "items": [f"sku-{row}" for row in own]}) + "\n")
    answer = CliRunner().invoke(app, ["fit", str(folder), "--bundle", str(folder / "bundle"), "--size", "16"])
    assert answer.exit_code == 0, answer.exception
    return folder


def train(shop: Path, *more: str) -> tuple[Bundle, str]:
    answer = CliRunner().invoke(
        app,
        [
            "train", str(shop), "--bundle", str(shop / "bundle"), "--examples", str(shop / "train.jsonl"), "--epochs", "1",
            "--hidden-size", "16", "--model-layers", "1", "--anew", *more,
        ],
    )  # fmt: skip
    assert answer.exit_code == 0, (answer.exception, answer.output)
    return Bundle.open(shop / "bundle", need_model=True), " ".join(answer.output.split())


def test_weights_are_chosen_on_validation_data_written_into_the_bundle_and_said(shop: Path) -> None:
    bundle, output = train(shop, "--validation", str(shop / "validation.jsonl"))
    record, space = bundle.manifest.dense, dense_space_of(bundle)
    assert record is not None
    assert space is not None
    chosen = record.figures["history"]
    assert chosen["cases"] == 120
    assert 0 < chosen["new_cases"] < 40
    # A model that has seen its data once knows little; the vectors know the kind, and the mixture loses nothing of it.
    assert chosen["dense_alone"]["all"] > chosen["model_alone"]["all"]
    assert chosen["mixture"]["all"] >= chosen["dense_alone"]["all"] - 0.02
    assert record.weights["history"].share == chosen["weights"]["share"] > 0
    assert record.known == ITEMS
    assert record.beside == 64
    assert not space.is_new(id_hashes([b"sku-7"])).any()
    weights = chosen["weights"]
    assert f"α {weights['share']:.2f}, β {weights['boost_of_new']:.1f}, chosen on 120 held-out examples" in output
    assert "dense leg alone" in output


def test_nothing_held_out_leaves_the_weights_unmeasured_and_says_what_to_give(shop: Path) -> None:
    bundle, output = train(shop)
    record = bundle.manifest.dense
    assert record is not None
    assert record.weights == {}
    assert record.weights_of("history") == UNMEASURED
    assert "give more examples, or --validation" in output
