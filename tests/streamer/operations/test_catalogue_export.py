"""The live catalogue as files, read from a real broker as the assigner reads it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from confluent_kafka import Producer
from numpy.typing import NDArray

from models.catalogue import Catalogue, CatalogueItem
from models.errors import SidstreamError
from streamer.client.publisher import publish_deletions, publish_items
from streamer.kafka.clients import producer_configuration
from streamer.operations.catalogue_export import export_catalogue
from streamer.settings import Settings


def items_of(numbers: range, title: str) -> tuple[CatalogueItem, ...]:
    return tuple(
        CatalogueItem(id=f"item-{n}", title=f"{title} {n}", weight=1.0 + n, attributes={"price": n}) for n in numbers
    )


def test_catalogue_has_each_live_item_as_its_newest_usable_update_has_it(
    pipeline_settings: Settings, tiny_embeddings: NDArray[np.float32], tmp_path: Path
) -> None:
    settings = pipeline_settings
    publish_items(settings, items_of(range(60), "old"), tiny_embeddings[:60])
    newer = tiny_embeddings[100:130]
    publish_items(settings, items_of(range(30), "new"), newer)
    publish_deletions(settings, [f"item-{n}" for n in range(20, 40)])
    publish_items(settings, items_of(range(39, 40), "again"), tiny_embeddings[200:201])
    producer = Producer(producer_configuration(settings.kafka))
    producer.produce(settings.topics.item_updates, key="item-50", value=b'{"embedding": [1, 2]}')
    producer.produce(settings.topics.item_updates, key="item-51", value=b"no update")
    producer.flush()

    seen: list[tuple[int, int]] = []
    found = export_catalogue(settings, tmp_path / "shop", dimension=8, progress=lambda *done: seen.append(done))
    assert found.refused.total() == 2
    assert seen[-1][0] == seen[-1][1] > 0
    shop = Catalogue.read(tmp_path / "shop")
    by_id = {item.id: (item, shop.embeddings[row]) for row, item in enumerate(shop.items)}
    assert sorted(by_id) == sorted(f"item-{n}" for n in [*range(20), *range(39, 60)])
    for number in range(20):
        item, embedding = by_id[f"item-{number}"]
        assert (item.title, item.weight, item.attributes) == (f"new {number}", 1.0 + number, {"price": number})
        np.testing.assert_array_equal(embedding, newer[number])
    assert by_id["item-39"][0].title == "again 39"
    np.testing.assert_array_equal(by_id["item-39"][1], tiny_embeddings[200])
    np.testing.assert_array_equal(by_id["item-50"][1], tiny_embeddings[50])

    again = export_catalogue(settings, tmp_path / "again", dimension=8)
    assert again.items == found.items == 41
    for name in ("items.jsonl.gz", "items.f32.npy"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "shop" / name).read_bytes()


def test_updates_of_another_embedding_model_are_passed_over_and_counted(
    pipeline_settings: Settings, tiny_embeddings: NDArray[np.float32], tmp_path: Path
) -> None:
    producer = Producer(producer_configuration(pipeline_settings.kafka))
    for number, model in enumerate((None, "small", "small", "large")):
        update = {"embedding": tiny_embeddings[number].tolist()} | ({} if model is None else {"embedding_model": model})
        producer.produce(pipeline_settings.topics.item_updates, key=f"item-{number}", value=json.dumps(update))
    producer.flush()
    for model, items, others in ((None, 1, 3), ("small", 2, 2), ("large", 1, 3)):
        directory = tmp_path / str(model)
        found = export_catalogue(pipeline_settings, directory, dimension=8, embedding_model=model)
        assert (found.items, found.other_models, found.refused.total()) == (items, others, 0)


def test_directory_that_holds_something_is_refused_and_so_is_a_topic_without_items(
    pipeline_settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SidstreamError, match="not empty"):
        export_catalogue(pipeline_settings, tmp_path, dimension=8)
    with pytest.raises(SidstreamError, match="publish some"):
        export_catalogue(pipeline_settings, tmp_path / "new", dimension=8)
