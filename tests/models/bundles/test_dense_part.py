"""A dense part in a bundle: added, replaced, removed with the codebook, and absent in bundles of before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.bundles.building import FitSettings, fit_bundle
from models.bundles.bundle import Bundle
from models.bundles.dense_part import add_dense_part, dense_space_of, fit_dense_part
from models.bundles.manifest import BundleError
from models.dense.mixture import MixtureWeights
from models.dense.space import DenseSpace, KnownItems, fit_space, id_hashes
from models.errors import SidstreamError

ITEMS, DIMENSION = 120, 6
EMBEDDINGS = np.random.default_rng(0).standard_normal((ITEMS, DIMENSION)).astype(np.float32)
HASHES = id_hashes(str(row).encode() for row in range(ITEMS))
SMALL = FitSettings(size=8, iterations=2)


def bundle(path: Path) -> Bundle:
    return fit_bundle(EMBEDDINGS, path / "bundle", SMALL).bundle


def test_part_is_read_back_with_its_weights_and_figures(tmp_path: Path) -> None:
    histories = [np.random.default_rng(number).choice(ITEMS, 4, replace=False).tolist() for number in range(80)]
    space, _ = fit_space(EMBEDDINGS, HASHES, histories)
    tower = tmp_path / "tower.onnx"
    tower.write_bytes(b"a graph")
    weights = MixtureWeights(sharpness=11.0, share=0.7)
    added = add_dense_part(
        bundle(tmp_path), space, weights={"history": weights}, figures={"cases": 7}, query_tower=tower
    )
    opened = Bundle.open(added.directory)
    record = opened.manifest.dense
    assert record is not None
    assert (record.known, record.beside, record.weights, record.figures) == (
        ITEMS,
        64,
        {"history": weights},
        {"cases": 7},
    )
    assert record.query_tower is not None
    assert opened.path(record.query_tower).read_bytes() == b"a graph"
    read = dense_space_of(opened)
    assert read is not None
    np.testing.assert_array_equal(read.items(EMBEDDINGS, HASHES), space.items(EMBEDDINGS, HASHES))


def test_new_part_takes_the_place_of_the_old_one_and_leaves_no_file_behind(tmp_path: Path) -> None:
    first = add_dense_part(bundle(tmp_path), DenseSpace(DIMENSION, KnownItems.of(HASHES[:10])))
    second = add_dense_part(first, DenseSpace(DIMENSION, KnownItems.of(HASHES)))
    assert second.manifest.dense is not None
    assert second.manifest.dense.known == ITEMS
    assert [path.name for path in second.directory.glob("*dense-*")] == [second.manifest.dense.file]
    fitted_anew = fit_bundle(EMBEDDINGS, second.directory, SMALL, replace=True).bundle
    assert fitted_anew.manifest.dense is None
    assert not list(fitted_anew.directory.glob("*dense-*"))


def test_part_before_any_training_knows_the_catalogue_and_its_histories(tmp_path: Path) -> None:
    ids = [f"sku {row}" for row in range(ITEMS)]
    histories = [[row, (row * 7 + 1) % ITEMS] for row in range(ITEMS)]
    fitted = fit_dense_part(bundle(tmp_path), EMBEDDINGS, ids, histories)
    record, space = fitted.manifest.dense, dense_space_of(fitted)
    assert record is not None
    assert space is not None
    assert (record.known, record.beside, record.weights) == (ITEMS, 64, {})
    assert not space.is_new(id_hashes(item.encode() for item in ids)).any()
    alone = fit_dense_part(fitted, EMBEDDINGS, [], [])
    assert alone.manifest.dense is not None
    assert (alone.manifest.dense.known, alone.manifest.dense.beside) == (0, 0)


def test_changed_file_is_refused(tmp_path: Path) -> None:
    added = add_dense_part(bundle(tmp_path), DenseSpace(DIMENSION, KnownItems.of(HASHES)))
    assert added.manifest.dense is not None
    path = added.path(added.manifest.dense.file)
    path.write_bytes(path.read_bytes()[:-8] + bytes(8))
    with pytest.raises(BundleError, match="SHA-256"):
        Bundle.open(added.directory)


def test_part_of_other_embeddings_is_refused_and_a_bundle_without_one_has_no_space(tmp_path: Path) -> None:
    plain = bundle(tmp_path)
    assert dense_space_of(plain) is None
    with pytest.raises(SidstreamError, match="dimensions"):
        add_dense_part(plain, DenseSpace(DIMENSION + 1, KnownItems.of(HASHES)))
