"""A set in the space of text towers of our own, trained on its training part alone (``sidstream towers``).

What must hold: towers learn from training queries, or from what was taken next in training histories; test queries are embedded
by them and never learnt from, nor are items that arrive after training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from models.bundles.manifest import MANIFEST_FILE
from models.catalogue import CatalogueItem
from models.examples.records import TrainingData, TrainingExample
from models.towers.text_encoder import Towers
from models.towers.training_pairs import queries_and_sequences, training_pairs
from study.data.datasets import Dataset, Space, described_items


def in_their_space(data: Dataset, space: Space, seed: int, scratch: Path) -> Dataset:
    """The set with the towers' embeddings of its items and test queries; the towers are trained, or read from ``scratch``.

    ``space``: "towers", or "towers and queries", which learn from queries made of the items' texts beside histories.
    """
    towers = _towers(data, space, seed, scratch)
    queries = None
    if data.query_embeddings is not None:
        queries = np.zeros((len(data.query_embeddings), towers.dimension), dtype=np.float32)
        queries[[case.case for case in data.cases]] = towers.query_encoder().encode([case.query for case in data.cases])
    items = towers.item_encoder().encode_items(described_items(data.name))
    return replace(data, embeddings=items, query_embeddings=queries, space=space)


def embed_queries(data: Dataset, seed: int, scratch: Path, texts: Sequence[str]) -> npt.NDArray[np.float32]:
    """Their embeddings (T, D) of texts."""
    return _towers(data, data.space, seed, scratch).query_encoder().encode(texts)


def pairs_of(data: Dataset, space: Space = "towers") -> list[TrainingExample]:
    """What the towers learn from: queries with their items, or an item's title with the item that was taken after it; beside the
    latter queries made of the texts, as ``sidstream towers`` learns from a catalogue with sequences, if the space is of both.
    """
    titles = {str(row): title for row, title in enumerate(data.titles)}
    histories = [map(str, history) for history in data.histories]
    if space == "towers and queries":
        return list(training_pairs(queries_and_sequences(_items(data), histories), titles))
    queries = TrainingData(examples=tuple(TrainingExample(query=query, item=str(item)) for query, item in data.queries))
    return list(training_pairs(queries + TrainingData.of_sequences(histories), titles))


def _items(data: Dataset) -> list[CatalogueItem]:
    return [item for item in described_items(data.name) if not data.arrived[int(item.id)]]


def _towers(data: Dataset, space: Space, seed: int, scratch: Path) -> Towers:
    kind = "" if space == "towers" else "-with-queries"
    directory = scratch / f"towers-{data.name}-{seed}{kind}{f'-{data.held_back}' if data.held_back else ''}"
    if not (directory / MANIFEST_FILE).is_file():
        from models.towers.dual_tower import TowerSettings, train_towers
        from models.towers.tower_export import write_towers

        tower, outcome = train_towers(_items(data), pairs_of(data, space), TowerSettings(seed=seed))
        write_towers(tower.weights(), directory, training=outcome.to_dict())
    return Towers.open(directory)
