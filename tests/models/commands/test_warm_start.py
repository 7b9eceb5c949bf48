"""`sidstream train --from`: goes on from another bundle's model, keeps what that reads, and refuses what contradicts it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from models.bundles.bundle import Bundle, LanguageModelRecord, checkpoint_directory
from models.bundles.store import BundleStore
from models.catalogue import Catalogue, CatalogueItem
from models.errors import SidstreamError

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("faiss")
pytest.importorskip("onnx")

from sidstream import app

ITEMS = 40
SMALL = ["--hidden-size", 16, "--model-layers", 1, "--user-buckets", 3, "--max-history", 4]


def invoke(*words: object) -> str:
    """What a command prints; whatever it raises."""
    answer = CliRunner().invoke(app, list(map(str, words)))
    if answer.exception is not None:
        raise answer.exception
    return " ".join(answer.output.split())


def record_of(bundle: Path) -> LanguageModelRecord:
    record = Bundle.open(bundle, need_model=True).manifest.language_model
    assert record is not None
    return record


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalogue folder of forty things, and a bundle with a small model of them."""
    root = tmp_path_factory.mktemp("made")
    embeddings = np.random.default_rng(0).normal(size=(ITEMS, 8)).astype(np.float32)
    items = tuple(CatalogueItem(id=f"item-{number}", title=f"thing {number}") for number in range(ITEMS))
    Catalogue(items=items, embeddings=embeddings).write(root / "catalogue")
    fit(root, "bundle", "--size", 8)
    walks = [
        {"user": f"user-{user}", "items": [f"item-{(user + 3 * step) % ITEMS}" for step in range(6)]}
        for user in range(20)
    ]
    (root / "walks.jsonl").write_text("".join(json.dumps(walk) + "\n" for walk in walks))
    train(root, "bundle", *SMALL, "--epochs", 2, "--layer2-dropout", 0.2)
    return root


@pytest.fixture
def shop(made: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    shutil.copytree(made, tmp_path / "shop")
    return tmp_path / "shop"


def fit(shop: Path, bundle: str, *options: object) -> None:
    invoke("fit", shop / "catalogue", "--bundle", shop / bundle, "--iterations", 2, *options)


def train(shop: Path, bundle: str, *options: object) -> str:
    return invoke("train", shop / "catalogue", "--bundle", shop / bundle, "--examples", shop / "walks.jsonl", *options)


def test_new_codebook_goes_on_from_a_bundle_of_the_store_and_keeps_what_its_model_reads(shop: Path) -> None:
    old = BundleStore(shop / "bundles").add(shop / "bundle")
    fit(shop, "next", "--size", 12, "--layers", 4, "--seed", 1)
    printed = train(
        shop,
        "next",
        "--from",
        old.id[:6],
        "--bundles",
        shop / "bundles",
        "--validation",
        shop / "walks.jsonl",
        "--epochs",
        1,
    )
    found, kept = record_of(shop / "next"), record_of(shop / "bundle")
    assert f"goes on from the model {kept.id} of the bundle {old.id}" in printed
    assert "of 48 SID tokens begin at the old tokens of their items" in printed
    assert "without --validation" not in printed
    assert found.prompt == kept.prompt
    assert (found.vocabulary.text_size, found.vocabulary.user_buckets) == (kept.vocabulary.text_size, 3)
    assert (found.vocabulary.layers, found.vocabulary.size) == (4, 12)
    assert found.layer2_dropout == 0.2
    assert found.base is not None
    assert (found.base.bundle, found.base.id) == (old.id, kept.id)
    assert f"fine-tuned from {old.id[:6]} (llama, {kept.id})" in printed


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--max-history", 5], r"--max-history is not what .* keeps \(--max-history 4\)"),
        (["--max-text", 3], r"--max-text .*\(--max-text 24\)"),
        (["--user-buckets", 4], r"--user-buckets 3"),
        (["--query-codes"], r"--query-codes is not what .* keeps \(no query codes\)"),
        (["--history-text", 2], r"\(no history text\)"),
        (["--prompt", "instruction"], r"\(--prompt bare\)"),
        (["--instruction", "Find {query}"], r"--instruction is not what"),
        (["--hidden-size", 32], r"\(--hidden-size 16\)"),
        (["--model-layers", 2], r"\(--model-layers 1\)"),
        (["--architecture", "qwen"], r"\(--architecture llama\)"),
        (["--checkpoint", "somewhere"], r"give one of the two"),
    ],
)
def test_option_that_contradicts_what_is_kept_is_refused_and_the_bundle_stays(
    made: Path, options: list[object], says: str
) -> None:
    before = (made / "bundle" / "manifest.json").read_bytes()
    with pytest.raises(SidstreamError, match=says):
        train(made, "bundle", "--from", made / "bundle", *options)
    assert (made / "bundle" / "manifest.json").read_bytes() == before


def test_options_that_say_what_is_kept_are_taken(shop: Path) -> None:
    before = record_of(shop / "bundle")
    printed = train(shop, "bundle", "--from", shop / "bundle", *SMALL, "--architecture", "llama", "--epochs", 1)
    assert "without --validation what is held back is drawn from all examples" in printed
    after = record_of(shop / "bundle")
    assert after.id != before.id
    assert after.vocabulary == before.vocabulary
    assert after.base is not None
    assert after.base.id == before.id


def test_validation_ends_a_warm_start_early(shop: Path) -> None:
    other = [
        {"user": "x", "items": [f"item-{(7 * user + 11 * step) % ITEMS}" for step in range(5)]} for user in range(9)
    ]
    (shop / "held.jsonl").write_text("".join(json.dumps(walk) + "\n" for walk in other))
    held = ["--validation", shop / "held.jsonl", "--early-stop", 2]
    printed = train(shop, "bundle", "--from", shop / "bundle", "--epochs", 300, "--learning-rate", 0.01, *held)
    assert record_of(shop / "bundle").training["validation"]["stopped_early"]
    assert "without --validation" not in printed


@pytest.mark.parametrize("whole", [True, False])
def test_checkpoint_that_is_a_bundle_of_ours_is_gone_on_from_without_a_second_range_of_tokens(
    shop: Path, whole: bool
) -> None:
    old = Bundle.open(shop / "bundle")
    fit(shop, "next", "--size", 8, "--seed", 1)
    given = old.directory if whole else old.model_directory
    printed = train(shop, "next", "--checkpoint", given, "--epochs", 1)
    assert f"is of the bundle {old.directory}: training goes on from it, as with --from" in printed
    found, kept = record_of(shop / "next"), record_of(shop / "bundle")
    assert found.vocabulary == kept.vocabulary
    assert found.base is not None
    assert found.base.bundle == old.id


def test_bundle_that_is_not_there_or_has_no_model_is_refused(shop: Path) -> None:
    with pytest.raises(SidstreamError, match="is neither a bundle's directory nor an id"):
        train(shop, "bundle", "--from", "nowhere", "--bundles", shop / "bundles")
    fit(shop, "empty", "--size", 8)
    with pytest.raises(SidstreamError, match="has no language model yet"):
        train(shop, "bundle", "--from", shop / "empty")


def test_bundle_of_another_embedding_model_goes_on_by_the_older_catalogue(shop: Path) -> None:
    read = Catalogue.read(shop / "catalogue")
    shutil.copytree(shop / "catalogue", shop / "older")
    shutil.rmtree(shop / "catalogue")
    Catalogue(items=read.items, embeddings=np.ascontiguousarray(read.embeddings[:, :6])).write(shop / "catalogue")
    fit(shop, "next", "--size", 8)
    with pytest.raises(SidstreamError, match="--from-catalogue with the items' older embeddings"):
        train(shop, "next", "--from", shop / "bundle")
    with pytest.raises(SidstreamError, match="give --from, too"):
        train(shop, "next", "--from-catalogue", shop / "older")
    train(shop, "next", "--from", shop / "bundle", "--from-catalogue", shop / "older", "--epochs", 1)
    assert record_of(shop / "next").vocabulary == record_of(shop / "bundle").vocabulary


def test_older_catalogue_beside_the_same_codebook_is_not_read_and_that_is_said(shop: Path) -> None:
    again = ["--from", shop / "bundle", "--from-catalogue", shop / "catalogue", "--epochs", 1]
    assert "of --from-catalogue is not read" in train(shop, "bundle", *again)


@pytest.mark.parametrize("in_place", [True, False])
def test_warm_start_whose_time_was_up_goes_on_when_it_is_asked_again(shop: Path, in_place: bool) -> None:
    old = record_of(shop / "bundle")
    origin, bundle = shop / "bundle", "bundle"
    if not in_place:
        fit(shop, "next", "--size", 8, "--seed", 1)
        bundle = "next"
    long = ["--from", origin, "--epochs", 4_000, "--batch-size", 10, "--minutes", 0.02]
    printed = train(shop, bundle, *long)
    first = record_of(shop / bundle)
    assert "the time was up" in printed
    printed = train(shop, bundle, *long, "--resume")
    second = record_of(shop / bundle)
    assert second.training["resumed_at"] == first.training["steps"] < second.training["steps"]
    for record in (first, second):
        assert record.base is not None
        assert record.base.id == old.id
    fit(shop, "other", "--size", 8, "--seed", 2)
    train(shop, "other", *SMALL, "--epochs", 1)
    with pytest.raises(
        SidstreamError, match=r"it is another one: model the model \w+ of a bundle .* there, the model \w+ of"
    ):
        train(shop, bundle, *long[2:], "--from", shop / "other")
    train(shop, bundle, "--from", origin, "--epochs", 1, "--anew")
    assert not checkpoint_directory(shop / bundle).exists()
