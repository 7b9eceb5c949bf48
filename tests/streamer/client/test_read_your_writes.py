"""Read your writes: the wait ends when the index has them, not before; and says which stage is behind if it does not."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from numpy.typing import NDArray

from models.bundles.bundle import Bundle
from models.sids.layout import Layout
from store.reader import IndexReader
from store.writer import IndexWriter
from streamer.client.publisher import ItemPublisher
from streamer.client.read_your_writes import NotIndexedError, await_indexed
from streamer.indexer.codes import codes_batch
from streamer.kafka.clients import consumer_configuration, producer_configuration
from streamer.settings import Settings
from support.patience import PATIENCE_SECONDS
from support.processes import SidstreamProcess


@pytest.fixture
def settings(pipeline_settings: Settings, tiny_bundle: Path) -> Settings:
    return pipeline_settings.model_copy(update={"bundle": tiny_bundle})


@pytest.fixture
def layout(tiny_bundle: Path) -> Layout:
    return Bundle.open(tiny_bundle).layout


@pytest.fixture
def writer(settings: Settings, layout: Layout) -> Iterator[IndexWriter]:
    with IndexWriter.open(
        settings.index, codebook_id=layout.codebook_id, layers=layout.layers, size=layout.size
    ) as writer:
        yield writer


def assigned(settings: Settings, offset: int) -> None:
    """As if the assigner had read partition 0 of the updates that far."""
    group = settings.topics.prefix + settings.assigner.group
    consumer = Consumer(consumer_configuration(settings.kafka, group=group))
    consumer.commit(offsets=[TopicPartition(settings.topics.item_updates, 0, offset)], asynchronous=False)
    consumer.close()


def transaction(settings: Settings, name: str) -> Producer:
    """A producer with an open transaction that has one record on partition 0 of the codes."""
    producer = Producer(producer_configuration(settings.kafka, transactional_id=f"{settings.topics.prefix}{name}"))
    producer.init_transactions(20)
    producer.begin_transaction()
    producer.produce(settings.topics.item_codes, key=b"a", value=b"never decoded", partition=0)
    assert producer.flush(PATIENCE_SECONDS) == 0
    return producer


def test_what_was_waited_for_is_in_the_index_every_time(
    settings: Settings, tiny_embeddings: NDArray[Any], tmp_path: Path
) -> None:
    with SidstreamProcess(settings, "assigner", tmp_path), SidstreamProcess(settings, "indexer", tmp_path):
        for turn in range(15):
            with ItemPublisher(settings) as publisher:
                for number in range(turn + 1):
                    publisher.update(f"item-{number}", tiny_embeddings[number], updated_at=turn)
                if turn:
                    publisher.delete("item-0")
            started = time.monotonic()
            await_indexed(settings, publisher.delivered, seconds=PATIENCE_SECONDS)
            print(f"turn {turn}: {1000 * (time.monotonic() - started):.0f} ms")
            with IndexReader(settings.index) as reader, reader.snapshot() as snapshot:
                found = snapshot.find([b"item-%d" % number for number in range(turn + 1)])
            assert (found[0] is None) == bool(turn)
            assert [item and item.updated_at for item in found[1:]] == [turn] * turn
        # An event that becomes a dead letter has no codes: it is done when the assigner has refused it.
        producer = Producer(producer_configuration(settings.kafka))
        producer.produce(settings.topics.item_updates, key=b"bad", value=b"{", partition=2)
        assert producer.flush(PATIENCE_SECONDS) == 0
        await_indexed(settings, {2: publisher.delivered.get(2, 0) + 1}, seconds=PATIENCE_SECONDS)


def test_nothing_published_is_nothing_to_wait_for(settings: Settings) -> None:
    await_indexed(settings, {}, seconds=0)


def test_assigner_that_does_not_run_is_named(settings: Settings, tiny_embeddings: NDArray[Any]) -> None:
    with ItemPublisher(settings) as publisher:
        publisher.update("item-0", tiny_embeddings[0])
    with pytest.raises(NotIndexedError, match=r"the assigner is behind.*at 0 of 1.*no process is in its group"):
        await_indexed(settings, publisher.delivered, seconds=0.3)


def test_missing_index_is_named(settings: Settings) -> None:
    assigned(settings, 1)
    transaction(settings, "codes").commit_transaction(20)
    with pytest.raises(NotIndexedError, match=r"there is no index in .*start the indexer"):
        await_indexed(settings, {0: 1}, seconds=0.3)


def test_indexer_that_is_behind_is_named_and_whether_it_runs(settings: Settings, writer: IndexWriter) -> None:
    assigned(settings, 1)
    transaction(settings, "codes").commit_transaction(20)
    with pytest.raises(NotIndexedError, match=r"is behind \(.*item-codes/0 at 0 of 2\); process \d+ writes it"):
        await_indexed(settings, {0: 1}, seconds=0.3)
    writer.close()
    with pytest.raises(NotIndexedError, match=r"is behind .*no process writes it: start the indexer"):
        await_indexed(settings, {0: 1}, seconds=0.3)


def test_markers_and_aborted_records_behind_the_last_one_are_not_waited_for(
    settings: Settings, writer: IndexWriter, layout: Layout
) -> None:
    assigned(settings, 1)
    transaction(settings, "codes").commit_transaction(20)
    transaction(settings, "codes").abort_transaction(20)
    writer.apply(codes_batch([], layout), {(settings.topics.item_codes, 0): 1})  # of 4: two markers, one aborted record
    await_indexed(settings, {0: 1}, seconds=PATIENCE_SECONDS)


def test_open_transaction_is_waited_for_and_named(settings: Settings, writer: IndexWriter, layout: Layout) -> None:
    assigned(settings, 1)
    hanging = transaction(settings, "codes")
    with pytest.raises(NotIndexedError, match=r"a transaction is open on .*item-codes/0"):
        await_indexed(settings, {0: 1}, seconds=0.3)

    returned = threading.Event()

    def wait() -> None:
        await_indexed(settings, {0: 1}, seconds=PATIENCE_SECONDS)
        returned.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert not returned.wait(0.5)
    hanging.commit_transaction(20)
    assert not returned.wait(1.0), "its record is committed now, and not in the index"
    writer.apply(codes_batch([], layout), {(settings.topics.item_codes, 0): 1})
    assert returned.wait(10)
    waiting.join()
