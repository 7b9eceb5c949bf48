"""A shop's first minutes on a real broker: no language model yet, and a product is found by its vector once it is published."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.bundles.building import FitSettings, fit_bundle
from models.bundles.dense_part import fit_dense_part
from retriever.client import Client
from store.errors import IndexMissingError
from store.reading.reader import IndexReader
from streamer.client.publisher import ItemPublisher
from streamer.settings import Settings
from support.patience import PATIENCE_SECONDS
from support.processes import SidstreamProcess, wait_until

KNOWN = 100


def test_bundle_without_a_model_serves_and_a_newcomer_is_found_and_gone_with_its_deletion(
    pipeline_settings: Settings, tiny_embeddings: NDArray[np.float32], tmp_path: Path
) -> None:
    embeddings = tiny_embeddings[: KNOWN + 2]
    fitted = fit_bundle(embeddings[:KNOWN], tmp_path / "fitted", FitSettings(size=16, iterations=3))
    fit_dense_part(fitted.bundle, embeddings[:KNOWN], [f"item-{number}" for number in range(KNOWN)])
    settings = pipeline_settings.model_copy(update={"bundle": tmp_path / "fitted"})

    def content() -> tuple[int, int]:
        """How many items the index holds, and how many vectors."""
        try:
            with IndexReader(settings.index) as reader, reader.snapshot() as snapshot:
                return snapshot.item_count, sum(len(block.ids) for block in snapshot.all_vectors())
        except IndexMissingError:  # the indexer is still making it
            return 0, 0

    with (
        SidstreamProcess(settings, "assigner", tmp_path),
        SidstreamProcess(settings, "indexer", tmp_path),
        SidstreamProcess(settings, "retriever", tmp_path),
        Client(settings) as client,
        ItemPublisher(settings) as publisher,
    ):
        for number, embedding in enumerate(embeddings[:KNOWN]):
            publisher.update(f"item-{number}", embedding, title=f"thing {number}")
        publisher.flush()
        wait_until(lambda: content() == (KNOWN, KNOWN), what="all items with their vectors in the index")
        answer = client.ask(embedding=embeddings[7].tolist(), timeout_seconds=PATIENCE_SECONDS)
        assert answer.error is None
        assert (answer.items[0].item_id, answer.items[0].found_by, answer.legs) == ("item-7", "dense", ("dense",))
        assert "no language model yet" in answer.note
        by_history = client.ask(history=["item-7"], timeout_seconds=PATIENCE_SECONDS)
        assert by_history.items
        assert by_history.items[0].item_id != "item-7"

        publisher.update("newcomer", embeddings[KNOWN], title="published a second ago")
        publisher.flush()
        wait_until(lambda: content() == (KNOWN + 1, KNOWN + 1), what="the newcomer in the index")
        found = client.ask(embedding=embeddings[KNOWN].tolist(), timeout_seconds=PATIENCE_SECONDS).items[0]
        assert (found.item_id, found.title, found.new) == ("newcomer", "published a second ago", True)

        publisher.delete("newcomer")
        publisher.flush()
        wait_until(lambda: content() == (KNOWN, KNOWN), what="the deletion in the index")
        again = client.ask(embedding=embeddings[KNOWN].tolist(), limit=50, timeout_seconds=PATIENCE_SECONDS)
        assert "newcomer" not in {item.item_id for item in again.items}

        nothing = client.ask("a text, and no tower", timeout_seconds=PATIENCE_SECONDS)
        assert nothing.error is not None
        assert nothing.error.kind == "NothingToGoOn"
