"""The dual tower learns what texts do not say, the same way each time, and its exported graphs say the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import onnx
import pytest
import torch

from models.bundles.manifest import BundleError
from models.codebooks.codebook import fit_residual_kmeans
from models.codebooks.onnx_encoder import OnnxEncoder
from models.codebooks.onnx_export import export_onnx
from models.examples.records import TrainingExample
from models.towers.dual_tower import (
    DualTower,
    DualTowerError,
    TowerSettings,
    TowersOutcome,
    in_batch_loss,
    train_towers,
)
from models.towers.neighbours import nearest, recall_of_nearest
from models.towers.text_encoder import Towers
from models.towers.text_features import FeatureHasher
from models.towers.tower_export import tower_graph, write_towers
from support.planted_shop import SMALL, planted_items, planted_pairs

Trained = tuple[DualTower, TowersOutcome]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """OpenMP's waiting threads starve a busy two-core machine."""
    faiss.omp_set_num_threads(1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def trained() -> Trained:
    return train_towers(planted_items(), planted_pairs(), SMALL)


@pytest.fixture(scope="module")
def towers(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Towers:
    return write_towers(trained[0].weights(), tmp_path_factory.mktemp("towers"), training=trained[1].to_dict())


def test_towers_find_held_out_items_that_share_no_word_with_their_queries(trained: Trained) -> None:
    _, outcome = trained
    untrained = replace(SMALL, epochs=1, learning_rate=1e-9)
    _, before = train_towers(planted_items(), planted_pairs(), untrained)
    assert outcome.recall is not None
    assert before.recall is not None
    print(f"\nrecall {outcome.recall:.2f}, untrained {before.recall:.2f}, chance {outcome.chance:.2f}", outcome.losses)
    assert outcome.chance == pytest.approx(10 / 180)
    assert before.recall < 0.3
    assert outcome.recall > 0.8
    assert outcome.losses[-1] < 0.3 * outcome.losses[0]
    assert (outcome.pairs, outcome.held_out_pairs, outcome.skipped) == (288, 72, 0)


def test_same_seed_gives_the_same_towers_and_the_callers_random_numbers_stay() -> None:
    settings = replace(SMALL, epochs=2)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, again, other = (
        train_towers(planted_items(), planted_pairs(), replace(settings, seed=seed))[0].weights() for seed in (3, 3, 4)
    )
    assert first.id == again.id != other.id
    assert tower_graph(first, "item") == tower_graph(again, "item")
    assert torch.equal(torch.rand(1), expected)


def test_loss_is_softmax_cross_entropy_both_ways_without_pairs_of_the_same_item_or_query() -> None:
    random = np.random.default_rng(0)
    queries, items = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in random.normal(size=(2, 5, 4)))
    item_numbers, query_numbers = [0, 1, 0, 2, 3], [0, 1, 2, 3, 1]
    scale = 7.0
    total = 0.0
    for own in range(5):
        others = [
            n
            for n in range(5)
            if n == own or (item_numbers[n] != item_numbers[own] and query_numbers[n] != query_numbers[own])
        ]
        for scores in (scale * items @ queries[own], scale * queries @ items[own]):
            total -= (scores[own] - np.log(np.exp(scores[others]).sum())) / 10
    found = in_batch_loss(
        torch.tensor(queries),
        torch.tensor(items),
        torch.tensor(scale),
        torch.tensor(item_numbers),
        torch.tensor(query_numbers),
    )
    assert float(found) == pytest.approx(total, rel=1e-9)


def test_loss_of_a_batch_of_one_item_is_zero_not_nan() -> None:
    rows = torch.nn.functional.normalize(torch.randn(3, 4, generator=torch.Generator().manual_seed(0)))
    alike = torch.zeros(3, dtype=torch.int64)
    assert float(in_batch_loss(rows, rows, torch.tensor(10.0), alike, torch.arange(3))) == 0.0


def test_exported_towers_equal_torch_and_are_valid_onnx(trained: Trained, towers: Towers) -> None:
    tower, _ = trained
    items, queries = planted_items(), [pair.query for pair in planted_pairs()]
    hasher = FeatureHasher(SMALL.rows)
    ours = towers.item_encoder().encode_items(items)
    assert (ours.shape, ours.dtype) == ((180, 32), np.float32)
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(ours, tower.embed(hasher.items(items), "item"), atol=2e-6)
    np.testing.assert_allclose(
        towers.query_encoder().encode(queries), tower.embed(hasher.queries(queries), "query"), atol=2e-6
    )
    for name in ("item_tower.onnx", "query_tower.onnx"):
        onnx.checker.check_model(onnx.load(towers.directory / name), full_check=True)


def test_codes_through_onnx_and_through_torch_are_equal_except_named_ties(
    trained: Trained, towers: Towers, tmp_path: Path
) -> None:
    items = planted_items()
    through_torch = trained[0].embed(FeatureHasher(SMALL.rows).items(items), "item")
    through_onnx = towers.item_encoder().encode_items(items)
    codebook = fit_residual_kmeans(through_torch, layers=3, size=16, iterations=5)
    export_onnx(codebook, tmp_path / "encoder.onnx")
    first, second = codebook.encode(through_torch), OnnxEncoder(tmp_path / "encoder.onnx").encode(through_onnx)
    ties = []
    for row in np.flatnonzero((first != second).any(axis=1)):
        layer_index = int(np.argmax(first[row] != second[row]))
        residual = through_torch[row].astype(np.float64)
        for earlier in range(layer_index):
            residual -= codebook.codewords[earlier, first[row, earlier]].astype(np.float64)
        one, other = (
            float(((residual - codebook.codewords[layer_index, codes[row, layer_index]]) ** 2).sum())
            for codes in (first, second)
        )
        ties.append(f"{items[row].id}, layer index {layer_index}: squared distances {one!r} and {other!r}")
        assert abs(one - other) < 1e-4, f"not a tie: {ties[-1]}"
    print(*ties, sep="\n")
    assert len(ties) <= 4


def test_towers_are_written_with_their_manifest_last_and_replaced_only_when_asked(
    trained: Trained, tmp_path: Path
) -> None:
    weights = trained[0].weights()
    written = write_towers(weights, tmp_path, training={"note": "first"})
    assert (written.id, written.dimension, written.manifest.training) == (weights.id, 32, {"note": "first"})
    with pytest.raises(BundleError, match="--replace"):
        write_towers(weights, tmp_path, training={})
    assert write_towers(weights, tmp_path, training={}, replace=True).manifest.training == {}
    (tmp_path / "manifest.json").write_text('{"format": 1}')
    with pytest.raises(BundleError, match="something else than towers"):
        write_towers(weights, tmp_path, training={}, replace=True)


def test_pairs_without_query_or_with_unknown_items_are_skipped_and_too_few_are_refused() -> None:
    odd = [TrainingExample(query=" ", item="kettle-red-oak"), TrainingExample(query="hat", item="hat")]
    settings = replace(SMALL, epochs=1, held_out=0)
    _, outcome = train_towers(planted_items(), [*planted_pairs(), *odd], settings)
    assert (outcome.skipped, outcome.pairs, outcome.recall) == (2, 360, None)
    with pytest.raises(DualTowerError, match=r"1 of 3 pairs .* at least two items"):
        train_towers(planted_items(), [planted_pairs()[0], *odd], settings)
    with pytest.raises(DualTowerError, match="at least two items"):
        train_towers(planted_items(), [], settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dimension": 0}, "dimension must be at least 1, not 0"),
        ({"batch_size": 1}, "batch_size must be at least 2, not 1"),
        ({"temperature": 0.0}, "temperature at least 0.01"),
        ({"held_out": 1.0}, r"held_out must lie in \[0, 1\), not 1.0"),
    ],
)
def test_impossible_settings_are_refused_with_the_value(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DualTowerError, match=message):
        TowerSettings(**change)


def test_nearest_rows_are_those_of_a_full_sort() -> None:
    random = np.random.default_rng(0)
    queries, items = random.normal(size=(300, 6)).astype(np.float32), random.normal(size=(70, 6)).astype(np.float32)
    expected = np.argsort(-(queries @ items.T), axis=1)
    np.testing.assert_array_equal(nearest(queries, items, 5), expected[:, :5])
    np.testing.assert_array_equal(nearest(queries, items, 100), expected)
    best = [{int(row[0]), int(row[60])} for row in expected]
    assert recall_of_nearest(queries, items, best, 5) == pytest.approx(0.5)


def test_loss_that_is_not_finite_ends_training_with_what_to_do() -> None:
    settings = TowerSettings(dimension=16, rows=512, hidden=16, epochs=20, batch_size=32, learning_rate=1e30)
    with pytest.raises(DualTowerError, match=r"NaN or infinite; nothing was kept.* rate smaller than 1e\+30"):
        train_towers(planted_items(), planted_pairs(), settings)


def test_recall_is_measured_on_pairs_of_every_kind_however_many_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries that find their items come before those that no item answers."""
    monkeypatch.setattr("models.towers.dual_tower._MOST_HELD_OUT_PAIRS", 40)
    settings = replace(SMALL, epochs=1)
    hopeless = [TrainingExample(query="zzz", item=item.id) for item in planted_items()] * 9
    titles = [TrainingExample(query=item.title, item=item.id) for item in planted_items()]
    _, alone = train_towers(planted_items(), titles, settings)
    _, mixed = train_towers(planted_items(), [*titles, *hopeless], settings)
    assert alone.recall is not None
    assert mixed.recall is not None
    assert (alone.held_out_pairs, mixed.held_out_pairs) == (36, 40)
    assert mixed.recall < 0.5 * alone.recall
