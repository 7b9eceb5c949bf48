"""Bundles: whole or refused, with what to do; and the way from a catalogue to one with a language model in it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from models.bundles.bundle import (
    CODEBOOK_FILE,
    ENCODER_FILE,
    MANIFEST_FILE,
    Bundle,
    add_language_model,
    create_bundle,
    staging_directory,
)
from models.bundles.manifest import BundleError
from models.codebooks.codebook import Codebook
from models.errors import SidstreamError
from models.language.instruction import parse_instruction
from models.language.prompts import PromptSettings
from models.sids.layout import Layout
from models.sids.vocabulary import SidVocabulary

pytest.importorskip("onnx")

VOCABULARY = SidVocabulary(text_size=10, user_buckets=0, layers=3, size=4)


def make(directory: Path, seed: int = 0, *, replace: bool = False) -> Bundle:
    codebook = Codebook(np.random.default_rng(seed).normal(size=(3, 4, 6)).astype(np.float32))
    layout = Layout(1, codebook.id, 3, 4, (2,))
    return create_bundle(directory, codebook, layout, census=np.ones((3, 4), dtype=np.int64), replace=replace)


def with_model(bundle: Bundle, weights: bytes = b"weights") -> Bundle:
    with staging_directory(bundle) as staged:
        (staged / "model.safetensors").write_bytes(weights)
        (staged / "tokenizer.json").write_text("{}")
        return add_language_model(bundle, staged, vocabulary=VOCABULARY, prompt=PromptSettings(), layer2_dropout=0.25)


@pytest.mark.parametrize(
    ("prompt", "version"),
    [
        (PromptSettings(), 1),
        (PromptSettings(query_codes=True), 2),
        (PromptSettings(history_text=3), 3),
        (PromptSettings(instruction=parse_instruction("[{user}][{history}]{query}")), 3),
    ],
)
def test_format_is_the_oldest_that_says_how_a_prompt_is_written(
    prompt: PromptSettings, version: int, tmp_path: Path
) -> None:
    bundle = make(tmp_path)
    with staging_directory(bundle) as staged:
        (staged / "model.safetensors").write_bytes(b"weights")
        added = add_language_model(bundle, staged, vocabulary=VOCABULARY, prompt=prompt)
    assert added.manifest.format == version
    record = Bundle.open(tmp_path, need_model=True).manifest.language_model
    assert record is not None
    assert record.prompt == prompt


def test_bundle_from_before_words_and_titles_has_bare_prompts(tmp_path: Path) -> None:
    bundle = with_model(make(tmp_path))
    path = bundle.directory / MANIFEST_FILE
    manifest = json.loads(path.read_text())
    prompt = manifest["language_model"]["prompt"]
    del prompt["history_text"], prompt["instruction"]
    assert prompt == {"max_history": 10, "max_text_tokens": 24, "query_codes": False}
    path.write_text(json.dumps(manifest))
    record = Bundle.open(tmp_path, need_model=True).manifest.language_model
    assert record is not None
    assert record.prompt == PromptSettings()


def rewrite(bundle: Bundle, old: str, new: str) -> None:
    path = bundle.directory / MANIFEST_FILE
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def test_a_bundle_opens_as_it_was_written(tmp_path: Path) -> None:
    made = make(tmp_path)
    opened = Bundle.open(tmp_path)
    assert opened.manifest == made.manifest
    assert opened.layout == Layout(1, made.manifest.codebook_id, 3, 4, (2,))
    assert (opened.manifest.dimension, opened.manifest.items, opened.manifest.layer2_dropout) == (6, 4, 0.0)
    assert opened.encoder_path.is_file()
    assert Codebook.load(opened.codebook_path).id == opened.manifest.codebook_id


def test_a_language_model_is_added_and_the_one_before_it_removed(tmp_path: Path) -> None:
    first = with_model(make(tmp_path), b"first")
    second = with_model(first, b"second")
    assert first.manifest.model_id != second.manifest.model_id
    assert (second.manifest.layer2_dropout, second.manifest.language_model.vocabulary) == (0.25, VOCABULARY)  # type: ignore[union-attr]
    assert [path.name for path in sorted(tmp_path.iterdir()) if path.is_dir()] == [second.model_directory.name]
    assert Bundle.open(tmp_path, need_model=True).manifest == second.manifest
    assert with_model(second, b"second").manifest.model_id == second.manifest.model_id


def test_a_directory_without_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="sidstream fit"):
        Bundle.open(tmp_path)


def test_a_bundle_without_model_is_refused_where_one_is_needed(tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(BundleError, match="sidstream train"):
        Bundle.open(tmp_path, need_model=True)


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    bundle = with_model(make(tmp_path))
    encoder = bytearray(bundle.encoder_path.read_bytes())
    encoder[-1] ^= 1
    bundle.encoder_path.write_bytes(encoder)
    with pytest.raises(BundleError, match=r"encoder\.onnx has changed"):
        Bundle.open(tmp_path)


@pytest.mark.parametrize("cut", [True, False])
def test_a_cut_or_missing_model_file_is_refused(tmp_path: Path, cut: bool) -> None:
    weights = with_model(make(tmp_path)).model_directory / "model.safetensors"
    if cut:
        weights.write_bytes(b"wei")
    else:
        weights.unlink()
    with pytest.raises(BundleError, match=r"model\.safetensors"):
        Bundle.open(tmp_path)


def test_weights_changed_at_the_same_size_are_found_when_the_model_is_needed(tmp_path: Path) -> None:
    bundle = with_model(make(tmp_path))
    (bundle.model_directory / "model.safetensors").write_bytes(b"WEIGHTS")
    Bundle.open(tmp_path)  # the assigner does not read them
    with pytest.raises(BundleError, match="has changed"):
        Bundle.open(tmp_path, need_model=True)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../b", "c:evil", "a\\\\b"])
def test_a_name_that_leads_out_of_the_bundle_is_refused(tmp_path: Path, name: str) -> None:
    rewrite(make(tmp_path), f'"{ENCODER_FILE}": {{', f'"{name}": {{"size": 0, "sha256": ""}}, "{ENCODER_FILE}": {{')
    with pytest.raises(BundleError, match="leads out of the bundle"):
        Bundle.open(tmp_path)


def test_a_model_directory_outside_of_the_bundle_is_refused(tmp_path: Path) -> None:
    bundle = with_model(make(tmp_path))
    rewrite(bundle, f'"directory": "{bundle.model_directory.name}"', '"directory": "../other"')
    with pytest.raises(BundleError, match="leads out of the bundle"):
        _ = Bundle.open(tmp_path, need_model=True).model_directory


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pkl", "modeling_evil.py"])
def test_files_that_can_carry_code_are_refused(tmp_path: Path, name: str) -> None:
    bundle = make(tmp_path)
    with staging_directory(bundle) as staged:
        (staged / "model.safetensors").write_bytes(b"weights")
        (staged / name).write_bytes(b"code")
        with pytest.raises(BundleError, match="only safetensors"):
            add_language_model(bundle, staged, vocabulary=VOCABULARY, prompt=PromptSettings())
    assert Bundle.open(tmp_path).manifest == bundle.manifest
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    rewrite(make(tmp_path), '"format": 1', '"format": 99')
    with pytest.raises(BundleError, match="update sidstream"):
        Bundle.open(tmp_path)


def test_a_damaged_manifest_is_refused(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / MANIFEST_FILE).write_text('{"format": 1, "codebook_id"')
    with pytest.raises(BundleError, match="damaged"):
        Bundle.open(tmp_path)


def test_a_bundle_is_replaced_only_on_request(tmp_path: Path) -> None:
    first = with_model(make(tmp_path))
    with pytest.raises(BundleError, match="--replace"):
        make(tmp_path, seed=1)
    assert Bundle.open(tmp_path, need_model=True).manifest == first.manifest
    replaced = make(tmp_path, seed=1, replace=True)
    assert replaced.manifest.codebook_id != first.manifest.codebook_id
    assert replaced.manifest.model_id is None


def test_opening_a_bundle_imports_no_torch(tmp_path: Path) -> None:
    make(tmp_path)
    program = (
        f"import sys; from models.bundles.bundle import Bundle; Bundle.open({str(tmp_path)!r}); "
        "print([name for name in ('torch', 'transformers', 'faiss', 'onnx') if name in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


def test_the_manifest_is_json_for_people(tmp_path: Path) -> None:
    make(tmp_path)
    text = (tmp_path / MANIFEST_FILE).read_text()
    assert text.count("\n") > 10
    assert msgspec.json.decode(text)["census"] == [[1] * 4] * 3


def test_fit_is_refused_before_the_fitting_where_a_bundle_is_or_k_is_too_large(tmp_path: Path) -> None:
    from models.bundles.building import FitSettings, fit_bundle

    unfittable = np.zeros((0, 4), dtype=np.float32)  # reaching the fitting would be another error
    with pytest.raises(SidstreamError, match="at most 16"):
        fit_bundle(unfittable, tmp_path, FitSettings(size=16, head_method="top-k", k=17))
    (tmp_path / "manifest.json").write_text('{"codebook_id": "00"}')
    with pytest.raises(BundleError, match="--replace"):
        fit_bundle(unfittable, tmp_path, FitSettings(size=16))


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"items.jsonl": "{}", "items.npy": ""}, "holds no bundle (items.jsonl is there)"),
        ({CODEBOOK_FILE: "", "notes.txt": "mine"}, "holds no bundle (notes.txt is there)"),
        ({"manifest.json": '{"name": "a web page"}'}, "is not of a bundle"),
        ({"manifest.json": "{", "index.html": ""}, "is not of a bundle"),
    ],
)
def test_directory_that_holds_something_else_is_refused_as_it_is_also_with_replace(
    tmp_path: Path, files: dict[str, str], message: str, replace: bool
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(BundleError, match=re.escape(message)):
        make(tmp_path, replace=replace)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == files


@pytest.mark.parametrize("manifest", [None, "{", '{"format": 99, "codebook_id": "00"}'])
def test_bundle_that_is_unfinished_damaged_or_of_another_version_is_made_anew(
    tmp_path: Path, manifest: str | None
) -> None:
    make(tmp_path)
    (tmp_path / MANIFEST_FILE).unlink()
    (tmp_path / "language_model-00").mkdir()
    (tmp_path / ".staging-00").mkdir()
    if manifest is not None:
        (tmp_path / MANIFEST_FILE).write_text(manifest)
    assert make(tmp_path, replace=True).id == Bundle.open(tmp_path).id


def test_fit_notes_the_norms_of_its_embeddings_and_a_bundle_without_them_is_read(tmp_path: Path) -> None:
    from models.bundles.building import FitSettings, fit_bundle

    rows = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
    norms = np.linalg.norm(rows, axis=1)
    bundle = fit_bundle(rows, tmp_path, FitSettings(size=8, iterations=2)).bundle
    assert bundle.manifest.embedding_norms == pytest.approx(np.quantile(norms, (0, 0.01, 0.5, 0.99, 1)))
    # As an older sidstream wrote it.
    path = tmp_path / "manifest.json"
    older = json.loads(path.read_text())
    del older["embedding_norms"]
    path.write_text(json.dumps(older))
    assert Bundle.open(tmp_path).manifest.embedding_norms is None
