"""Whether a codebook still fits: a catalogue that stays, one that crowds onto few tokens, one whose new items lie elsewhere."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from models.bundles.bundle import Bundle
from models.bundles.codebook_drift import FEWEST_NEW, CodebookDrift, DriftBounds, measure_drift
from models.bundles.dense_part import fit_dense_part
from models.catalogue import Catalogue, CatalogueItem

KNOWN = 400


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path, tiny_embeddings: NDArray[np.float32]) -> Bundle:
    copied = Bundle.open(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("drift") / "bundle"))
    return fit_dense_part(copied, tiny_embeddings[:KNOWN], [f"item-{row}" for row in range(KNOWN)])


def shop(embeddings: NDArray[np.float32], first: int = 0) -> Catalogue:
    items = tuple(CatalogueItem(id=f"item-{first + row}", title="") for row in range(len(embeddings)))
    return Catalogue(items=items, embeddings=embeddings)


def test_catalogue_that_stays_as_it_was_fitted_has_not_drifted(
    bundle: Bundle, tiny_embeddings: NDArray[np.float32]
) -> None:
    found = measure_drift(bundle, shop(tiny_embeddings))
    assert (found.items, found.new_items) == (600, 600 - KNOWN)
    assert found.gini == pytest.approx(found.gini_then)  # these 600 are what it was fitted on
    assert found.error_of_new == pytest.approx(found.error, rel=0.2)
    assert not found.past(DriftBounds())


def test_catalogue_that_has_lost_items_at_random_is_not_more_crowded(
    bundle: Bundle, tiny_embeddings: NDArray[np.float32]
) -> None:
    chosen = np.random.default_rng(3).choice(600, size=80, replace=False)
    found = measure_drift(bundle, shop(tiny_embeddings[chosen], first=0))
    assert found.gini > measure_drift(bundle, shop(tiny_embeddings)).gini + 0.05
    assert not [why for why in found.past(DriftBounds()) if "crowded" in why]


def test_new_items_that_no_codeword_is_near_are_a_reason_to_fit(
    bundle: Bundle, tiny_embeddings: NDArray[np.float32]
) -> None:
    far = np.concatenate((tiny_embeddings[:KNOWN], 6 * tiny_embeddings[KNOWN:]))
    found = measure_drift(bundle, shop(far))
    [reason] = [why for why in found.past(DriftBounds(gini=1.0))]
    assert f"{600 - KNOWN} new items are {found.error_of_new / found.error:.2f} times" in reason
    few = msgspec.structs.replace(found, new_items=FEWEST_NEW - 1)
    assert not few.past(DriftBounds(gini=1.0))


def test_items_that_crowd_onto_few_layer_2_tokens_are_a_reason_to_fit(
    bundle: Bundle, tiny_embeddings: NDArray[np.float32]
) -> None:
    crowded = np.concatenate((tiny_embeddings[:KNOWN], np.repeat(tiny_embeddings[:3], 400, axis=0)))
    found = measure_drift(bundle, shop(crowded))
    assert found.gini > found.gini_then + 0.1
    assert "more crowded" in found.past(DriftBounds())[0]


def test_bundle_without_a_dense_part_knows_of_no_new_items(
    tiny_bundle: Path, tiny_embeddings: NDArray[np.float32]
) -> None:
    found = measure_drift(Bundle.open(tiny_bundle), shop(tiny_embeddings))
    assert (found.new_items, found.error_of_new) == (0, 0.0)
    assert found == CodebookDrift(**msgspec.to_builtins(found))
