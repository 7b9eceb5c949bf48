"""Codes of items whose codebook was fitted on their embeddings beside what histories say of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from models.bundles.building import FitSettings, fit_bundle
from models.bundles.bundle import Bundle
from models.bundles.item_encoder import ItemEncoder
from models.bundles.manifest import MANIFEST_FILE, BundleError
from models.codebooks.codebook import Codebook
from models.errors import SidstreamError

ITEMS, DIMENSION = 200, 8
IDS = [f"sku-{row}" for row in range(ITEMS)]
KEYS = [item.encode() for item in IDS]
SETTINGS = FitSettings(size=8, iterations=5, co_occurrence=1.0)


@pytest.fixture(scope="module")
def embeddings() -> np.ndarray:
    """Of two lots of a hundred items: item 100 + i looks like item i."""
    half = np.random.default_rng(0).standard_normal((ITEMS // 2, DIMENSION)).astype(np.float32)
    return np.concatenate((half, half))


def histories() -> list[list[int]]:
    """Nobody has items of both lots."""
    random = np.random.default_rng(1)
    lots = [np.arange(ITEMS // 2), np.arange(ITEMS // 2, ITEMS)]
    return [random.choice(lots[number % 2], size=5, replace=False).tolist() for number in range(600)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, embeddings: np.ndarray) -> Bundle:
    directory = tmp_path_factory.mktemp("co-occurrence") / "bundle"
    return fit_bundle(embeddings, directory, SETTINGS, ids=IDS, histories=histories()).bundle


def test_items_that_look_alike_and_are_never_bought_together_are_told_apart(
    bundle: Bundle, embeddings: np.ndarray, tmp_path: Path
) -> None:
    codes = ItemEncoder.of(bundle).encode(embeddings, KEYS)
    assert (codes[:100] == codes[100:]).all(axis=1).mean() < 0.5
    plain = fit_bundle(embeddings, tmp_path / "plain", FitSettings(size=8, iterations=5)).bundle
    alike = ItemEncoder.of(plain).encode(embeddings, KEYS)
    assert (alike[:100] == alike[100:]).all()


def test_codes_are_those_of_the_fit_and_the_manifest_speaks_of_embeddings(
    bundle: Bundle, embeddings: np.ndarray
) -> None:
    opened = Bundle.open(bundle.directory)
    codes = ItemEncoder.of(opened).encode(embeddings, KEYS)
    manifest = opened.manifest
    assert (manifest.format, manifest.dimension, ItemEncoder.of(opened).dimension) == (2, DIMENSION, DIMENSION)
    record = manifest.codebook_input
    assert record is not None
    assert (record.weight, record.known, record.beside) == (1.0, ITEMS, 64)
    assert np.array(manifest.census).sum(axis=1).tolist() == [ITEMS] * 3
    codebook = Codebook.load(opened.codebook_path)
    assert codebook.dimension == DIMENSION + 64
    counted = np.stack([np.bincount(codes[:, layer], minlength=8) for layer in range(3)])
    np.testing.assert_array_equal(counted, manifest.census)


def test_codes_of_an_item_do_not_depend_on_what_is_encoded_with_it(bundle: Bundle, embeddings: np.ndarray) -> None:
    encoder = ItemEncoder.of(bundle)
    every = encoder.encode(embeddings, KEYS)
    for row in (0, 57, 199):
        np.testing.assert_array_equal(encoder.encode(embeddings[[row]], [KEYS[row]])[0], every[row])


def test_new_item_and_a_query_get_the_codes_that_their_embedding_speaks_for(
    bundle: Bundle, embeddings: np.ndarray
) -> None:
    encoder = ItemEncoder.of(bundle)
    fresh = encoder.encode(embeddings, [f"new {row}".encode() for row in range(ITEMS)])
    np.testing.assert_array_equal(fresh, encoder.encode_queries(embeddings))
    # Items that look alike are alike until somebody has bought them.
    np.testing.assert_array_equal(fresh[:100], fresh[100:])
    assert (fresh != encoder.encode(embeddings, KEYS)).any()


def test_bundle_of_embeddings_alone_keeps_the_format_that_an_older_sidstream_reads(
    tmp_path: Path, embeddings: np.ndarray, bundle: Bundle
) -> None:
    target = tmp_path / "bundle"
    fit_bundle(embeddings, target, SETTINGS, ids=IDS, histories=histories())
    assert (target / "codebook_input.safetensors").is_file()
    plain = fit_bundle(embeddings, target, FitSettings(size=8, iterations=2), replace=True).bundle
    assert plain.manifest.format == 1
    assert plain.manifest.codebook_input is None
    assert not (target / "codebook_input.safetensors").exists()


def test_input_that_was_changed_is_refused(tmp_path: Path, embeddings: np.ndarray) -> None:
    target = tmp_path / "bundle"
    fit_bundle(embeddings, target, SETTINGS, ids=IDS, histories=histories())
    path = target / "codebook_input.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(BundleError, match="codebook_input"):
        Bundle.open(target)


def test_histories_without_two_items_and_ids_that_do_not_fit_are_refused(
    tmp_path: Path, embeddings: np.ndarray
) -> None:
    with pytest.raises(SidstreamError, match="no two items of the catalogue stand in one history"):
        fit_bundle(embeddings, tmp_path / "bundle", SETTINGS, ids=IDS, histories=[[3], []])
    with pytest.raises(SidstreamError, match="199 item ids, but 200 embeddings"):
        fit_bundle(embeddings, tmp_path / "bundle", SETTINGS, ids=IDS[:-1], histories=histories())
    assert not (tmp_path / "bundle" / MANIFEST_FILE).exists()


def test_manifest_of_the_input_is_small_and_readable(bundle: Bundle) -> None:
    written = json.loads((bundle.directory / MANIFEST_FILE).read_text())["codebook_input"]
    assert written["weight"] == 1.0
    assert written["landmarks"] == ITEMS
