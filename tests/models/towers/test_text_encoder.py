"""Text → embedding without torch: repeatable features, no neighbour's influence, and refusals that say what to do."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from models.bundles.building import FitSettings, fit_bundle
from models.bundles.manifest import BundleError
from models.catalogue import CatalogueItem
from models.towers.text_encoder import TextEncoder, TextEncoderError, Towers
from models.towers.text_features import FIELDS, MAXIMUM_WORDS, FeatureHasher
from support.paths import ROOT
from support.planted_shop import SMALL, planted_items, planted_pairs

pytest.importorskip("torch")
pytest.importorskip("onnx")

from models.towers.dual_tower import train_towers
from models.towers.tower_export import write_towers


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> Towers:
    tower, _ = train_towers(planted_items(), planted_pairs(), replace(SMALL, epochs=2))
    return write_towers(tower.weights(), tmp_path_factory.mktemp("towers"), training={})


@pytest.fixture
def copied(towers: Towers, tmp_path: Path) -> Path:
    return shutil.copytree(towers.directory, tmp_path / "towers")


def test_features_stay_the_same_in_every_version() -> None:
    """Changed features make every trained tower wrong: change these numbers only together with the towers' format."""
    bags = FeatureHasher(65_536).items([CatalogueItem(id="1", title="Red  KETTLE", brand="Ålta")])
    assert bags.features.tolist() == PINNED
    assert bags.groups.tolist() == [3, 3, 4, *[5] * 9, 6, *[8] * 4]
    assert bags.shares[3] == pytest.approx(1 / 3)
    assert FIELDS == ("query", "title", "brand", "type", "description")


PINNED = [
    31229,
    23155,
    12154,
    19867,
    22865,
    25871,
    58499,
    53706,
    57296,
    36545,
    44604,
    28609,
    4500,
    43030,
    60708,
    180,
    22541,
]


@pytest.mark.parametrize(
    ("one", "other"),
    [("Glass KETTLE", "glass, kettle!"), ("ﬁlter ①", "filter 1"), ("kettle kettle", "kettle  kettle kettle")],
)
def test_spelling_that_means_the_same_gives_the_same_features(one: str, other: str) -> None:
    bags = FeatureHasher(65_536).queries([one, other])
    first, second = (set(bags.take(np.array([row])).features.tolist()) for row in (0, 1))
    assert first == second


def test_every_text_but_white_space_has_features_and_an_endless_one_is_cut() -> None:
    texts = ["!?", "🎁", "电热水壶", "__", "a", "\ud800", "x" * 10_000, "word " * 10_000, " \n\t", ""]
    lengths = FeatureHasher(512).queries(texts).lengths
    assert (lengths[:-2] > 0).all()
    assert lengths[-2:].tolist() == [0, 0]
    assert lengths.max() < 30
    many = FeatureHasher(65_536).queries([" ".join(f"w{number}" for number in range(1_000))]).lengths[0]
    assert many < 5 * MAXIMUM_WORDS


def test_embedding_does_not_depend_on_the_texts_beside_it(towers: Towers) -> None:
    random = np.random.default_rng(0)
    words = [f"word{number}" for number in range(300)]
    items = [
        CatalogueItem(id=str(n), title=" ".join(random.choice(words, random.integers(1, 40))), brand="Alta")
        for n in range(500)
    ]
    encoder = towers.item_encoder()
    together = encoder.encode_items(items)
    for count in (1, 2, 15, 16, 17, 100):
        chosen = random.choice(len(items), count, replace=False)
        assert np.array_equal(encoder.encode_items([items[row] for row in chosen]), together[chosen])
    assert np.array_equal(Towers.open(towers.directory).item_encoder().encode_items(items[:50]), together[:50])
    queries = towers.query_encoder()
    titles = [item.title for item in items]
    assert np.array_equal(queries.encode(titles)[7:9], queries.encode(titles[7:9]))


def test_shapes_and_the_item_tower_reads_a_text_as_a_title(towers: Towers) -> None:
    items, queries = towers.item_encoder(), towers.query_encoder()
    assert items.encode([]).shape == queries.encode([]).shape == (0, 32)
    assert items.encode_items([]).shape == (0, 32)
    assert np.array_equal(items.encode(["red kettle"]), items.encode_items([CatalogueItem(id="1", title="red kettle")]))
    assert (items.towers_id, items.side, queries.side) == (towers.id, "item", "query")


def test_text_without_anything_to_embed_is_refused(towers: Towers) -> None:
    with pytest.raises(TextEncoderError, match="text 2 of 3 is empty: there is nothing to embed"):
        towers.query_encoder().encode(["kettle", " \n", "lamp"])
    with pytest.raises(TextEncoderError, match=r"item 'sku-9' has no text.*give it a title"):
        towers.item_encoder().encode_items([CatalogueItem(id="1", title="x"), CatalogueItem(id="sku-9", title=" ")])
    with pytest.raises(TextEncoderError, match="take the item tower"):
        towers.query_encoder().encode_items(planted_items())


def test_tampered_torn_or_foreign_files_are_refused_with_what_to_do(towers: Towers, copied: Path) -> None:
    path = copied / "item_tower.onnx"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(BundleError, match=r"has changed since it was written.*sidstream towers"):
        Towers.open(copied)
    path.write_bytes(whole[:-9])
    with pytest.raises(BundleError, match="bytes, the manifest says"):
        Towers.open(copied)
    path.unlink()
    with pytest.raises(BundleError, match="is missing: copy the towers again"):
        Towers.open(copied)
    (copied / "manifest.json").write_text("{}")
    with pytest.raises(BundleError, match="not the manifest of text towers"):
        Towers.open(copied)
    manifest = msgspec.structs.replace(towers.manifest, format=99)
    (copied / "manifest.json").write_bytes(msgspec.json.encode(manifest))
    with pytest.raises(BundleError, match=r"has format 99.*update sidstream"):
        Towers.open(copied)
    (copied / "manifest.json").unlink()
    with pytest.raises(BundleError, match="train some with `sidstream towers`"):
        Towers.open(copied)
    with pytest.raises(TextEncoderError, match=r"no tower .* make it with `sidstream towers`"):
        TextEncoder(path)
    path.write_bytes(b"no graph")
    with pytest.raises(TextEncoderError, match=r"cannot load .* train them again"):
        TextEncoder(path)


def test_codebooks_graph_is_no_tower(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    bundle = fit_bundle(rows, tmp_path / "bundle", FitSettings(size=8, iterations=2)).bundle
    with pytest.raises(TextEncoderError, match="is no tower of format 1"):
        TextEncoder(bundle.encoder_path)
    with pytest.raises(BundleError, match="not the manifest of text towers"):
        Towers.open(bundle.directory)


def test_bundle_of_other_embeddings_is_refused(towers: Towers, tmp_path: Path) -> None:
    def manifest(dimension: int, made_by: str | None) -> None:
        rows = np.random.default_rng(0).normal(size=(50, dimension)).astype(np.float32)
        settings = FitSettings(size=8, iterations=2)
        fitted = fit_bundle(rows, tmp_path, settings, towers=made_by, replace=True)
        towers.require_fit(fitted.bundle.manifest, tmp_path)

    manifest(32, towers.id)
    with pytest.raises(TextEncoderError, match=r"make 32 numbers, but the bundle .* was fitted on 8.*--embed"):
        manifest(8, None)
    with pytest.raises(TextEncoderError, match="fitted on towers 0123456789abcdef, not on the towers"):
        manifest(32, "0123456789abcdef")
    with pytest.raises(TextEncoderError, match="fitted on embeddings that no towers made"):
        manifest(32, None)


def test_text_is_embedded_without_torch_or_a_tokenizer(towers: Towers) -> None:
    code = (
        "import sys; from models.towers.text_encoder import Towers; "
        f"Towers.open({str(towers.directory)!r}).item_encoder().encode(['red kettle']); "
        "print(*sorted(set(sys.modules) & {'torch', 'transformers', 'tokenizers', 'onnx', 'faiss', 'safetensors'}))"
    )
    root = ROOT
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert answer.stdout.split() == []
