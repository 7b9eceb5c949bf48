"""The whole life of a second generation, with real processes on a real broker, while items come and go."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from confluent_kafka.admin import AdminClient
from numpy.typing import NDArray

from models.bundles.bundle import Bundle
from models.bundles.store import BundleStore
from store.reading.reader import IndexReader
from streamer.client.publisher import ItemPublisher
from streamer.client.read_your_writes import await_indexed
from streamer.deployments.log import read_serving
from streamer.deployments.pipelines import settings_of
from streamer.deployments.served import served_settings
from streamer.events.records import DRIFT
from streamer.events.serving import Serving
from streamer.indexer.rebuild import rebuild
from streamer.kafka.admin import describe
from streamer.kafka.clients import client_configuration
from streamer.operations.generations.changes import promote, rollback
from streamer.operations.generations.deploy import DeployOptions, deploy
from streamer.operations.generations.retire import retire
from streamer.operations.generations.table import read_deployments
from streamer.operations.verify import examine
from streamer.settings import Settings
from support.patience import PATIENCE_SECONDS
from support.processes import SidstreamProcess, committed_records, wait_until

ITEMS = 300


@contextmanager
def traffic(settings: Settings, embeddings: NDArray[Any]) -> Iterator[None]:
    """Updates and deletions all the while."""
    stop = threading.Event()

    def run() -> None:
        turn = 0
        while not stop.wait(0.05):
            turn += 1
            with ItemPublisher(settings) as publisher:
                for number in range(5):
                    publisher.update(f"item-{(7 * turn + number) % ITEMS}", embeddings[(turn + number) % ITEMS])
                publisher.delete(f"item-{turn % 40}")

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def indexed(settings: Settings, embeddings: NDArray[Any], *, broken: bool = False) -> Any:
    """The outcome of a last wave of updates, which comes after everything else of its items."""
    with ItemPublisher(settings) as publisher:
        for number in range(ITEMS):
            publisher.update(f"item-{number}", embeddings[number])
        if broken:
            publisher.update("broken", embeddings[0][:3])
    return await_indexed(settings, publisher.delivered, seconds=PATIENCE_SECONDS)


def items(settings: Settings) -> int:
    with IndexReader(settings.index) as reader, reader.snapshot() as snapshot:
        return snapshot.item_count


def judged(settings: Settings) -> str | None:
    """The codebook of the newest drift record."""
    drift = committed_records(settings, settings.topics.drift)
    return DRIFT.decode(drift[-1].value()).codebook if drift else None


def of(settings: Settings, serving: Serving, bundle: str) -> Settings:
    pipeline = serving.pipeline_of(bundle)
    assert pipeline is not None
    return settings_of(settings, pipeline)


def test_second_codebook_is_deployed_promoted_rolled_back_and_the_first_retired_while_items_come_and_go(
    settings: Settings, other_bundle: Path, tiny_embeddings: NDArray[np.float32], tmp_path: Path
) -> None:
    first, second = Bundle.open(settings.bundle), Bundle.open(other_bundle)
    judging = settings.monitor.model_copy(
        update={"minimum_items": 50, "baseline_fill": 0.0, "drift_interval_seconds": 0.5}
    )
    settings = settings.model_copy(update={"monitor": judging})
    with SidstreamProcess(settings, "up --no-broker --retrievers 0", tmp_path, name="up"):
        assert indexed(settings, tiny_embeddings).complete
        adopted = read_serving(settings)
        assert adopted is not None
        assert (adopted.bundle, adopted.adopted) == (first.id, True)
        with traffic(settings, tiny_embeddings):
            serving = deploy(settings, str(other_bundle), DeployOptions(share=0.2, seconds=PATIENCE_SECONDS))
            assert (serving.bundle, serving.canary, serving.share) == (first.id, second.id, 0.2)
            assert promote(settings).bundle == second.id
        # One event that nobody takes has a letter of each codebook, and is one event for its producer.
        outcome = indexed(settings, tiny_embeddings, broken=True)
        assert [(one.kind, one.events) for one in outcome.refused] == [("WrongDimension", 1)]
        assert outcome.indexed == ITEMS

        rows = {one.bundle: one for one in read_deployments(settings).generations}
        assert (rows[first.id].role, rows[second.id].role) == ("previous", "serving")
        assert {one.items for one in rows.values()} == {ITEMS}
        own = served_settings(settings)
        assert own.index == settings.indexes / second.layout.codebook_id
        for one in (own, of(settings, serving, first.id)):
            fresh = rebuild(one, tmp_path / f"fresh-{one.pipeline}")
            assert (fresh.digest, fresh.items) == (examine(one.index).digest, ITEMS)

        wait_until(lambda: judged(settings) == second.layout.codebook_id, what="the monitor judges what answers")

        assert rollback(settings).bundle == first.id
        assert rollback(settings).bundle == first.id, "what was done is not done again"
        assert promote(settings, second.id).bundle == second.id
        serving = retire(settings, first.id, force=True, seconds=PATIENCE_SECONDS)
        assert [one.codebook for one in serving.pipelines] == [second.layout.codebook_id]
        assert describe(settings.kafka, [settings.topics.item_codes]) == []
        admin = AdminClient(client_configuration(settings.kafka))  # named: an answer dies with its client
        groups = admin.list_consumer_groups().result(PATIENCE_SECONDS).valid
        assert settings.in_cluster(settings.assigner.group) not in {group.group_id for group in groups}
        assert not settings.index.exists()
        assert first.id not in BundleStore(settings.bundles)
        assert indexed(settings, tiny_embeddings).complete
        assert items(served_settings(settings)) == ITEMS
    # Without the first topic, and whatever lies in the settings' bundle, a restart goes on with what is deployed.
    with SidstreamProcess(settings, "up --no-broker --retrievers 0", tmp_path, name="up"):
        assert indexed(settings, tiny_embeddings).complete
    assert describe(settings.kafka, [settings.topics.item_codes]) == []
