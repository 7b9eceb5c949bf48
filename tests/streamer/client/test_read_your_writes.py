"""Read your writes: the wait ends when the index has them, not before; and says which stage is behind if it does not."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from numpy.typing import NDArray

from models.bundles.building import FitSettings, fit_bundle
from models.bundles.bundle import Bundle
from models.sids.layout import Layout
from store.reading.reader import IndexReader
from store.writing.writer import IndexWriter
from streamer.client.delivery import Delivery
from streamer.client.publisher import ItemPublisher, PublishError
from streamer.client.read_your_writes import NotIndexedError, await_indexed
from streamer.client.refusals import Outcome
from streamer.events.dead_letter import Rejection, dead_letter
from streamer.indexer.codes import codes_batch
from streamer.kafka.clients import consumer_configuration, producer_configuration
from streamer.settings import Settings
from support.item_stream import FIRST_TIME
from support.patience import PATIENCE_SECONDS
from support.processes import SidstreamProcess, committed_records, wait_until

ONE = Delivery({0: ((0, 1),)})  # the first event of partition 0


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


def test_updates_that_what_answers_passes_over_are_not_waited_for(
    pipeline_settings: Settings, tiny_embeddings: NDArray[Any], tmp_path: Path
) -> None:
    fit_bundle(tiny_embeddings, tmp_path / "named", FitSettings(size=8, iterations=1), embedding_model="model-b")
    settings = pipeline_settings.model_copy(update={"bundle": tmp_path / "named"})
    with ItemPublisher(settings) as publisher:
        publisher.update("item-0", tiny_embeddings[0])
        publisher.update("item-1", tiny_embeddings[1], embedding_model="model-b")
    with pytest.raises(NotIndexedError, match="takes updates with the embedding_model model-b, and these have none"):
        await_indexed(settings, publisher.delivered, seconds=0)


def test_what_was_waited_for_is_in_the_index_every_time(
    settings: Settings, tiny_embeddings: NDArray[Any], tmp_path: Path
) -> None:
    with SidstreamProcess(settings, "assigner", tmp_path), SidstreamProcess(settings, "indexer", tmp_path):
        for turn in range(15):
            with ItemPublisher(settings) as publisher:
                for number in range(turn + 1):
                    publisher.update(f"item-{number}", tiny_embeddings[number], updated_at=FIRST_TIME + turn)
                if turn:
                    publisher.delete("item-0")
            started = time.monotonic()
            await_indexed(settings, publisher.delivered, seconds=PATIENCE_SECONDS)
            print(f"turn {turn}: {1000 * (time.monotonic() - started):.0f} ms")
            with IndexReader(settings.index) as reader, reader.snapshot() as snapshot:
                found = snapshot.find([b"item-%d" % number for number in range(turn + 1)])
            assert (found[0] is None) == bool(turn)
            assert [item and item.updated_at for item in found[1:]] == [FIRST_TIME + turn] * turn
        # An event that becomes a dead letter has no codes: it is done when the assigner has refused it.
        producer = Producer(producer_configuration(settings.kafka))
        producer.produce(settings.topics.item_updates, key=b"bad", value=b"{", partition=2)
        assert producer.flush(PATIENCE_SECONDS) == 0
        end = publisher.delivered.ends.get(2, 0)
        outcome = await_indexed(settings, Delivery({2: ((end, end + 1),)}), seconds=PATIENCE_SECONDS)
        assert [(one.kind, one.events) for one in outcome.refused] == [("UndecodableEvent", 1)]


def test_nothing_published_is_nothing_to_wait_for(settings: Settings) -> None:
    assert await_indexed(settings, Delivery(), seconds=0) == Outcome(0)


def test_assigner_that_does_not_run_is_named(settings: Settings, tiny_embeddings: NDArray[Any]) -> None:
    with ItemPublisher(settings) as publisher:
        publisher.update("item-0", tiny_embeddings[0])
    with pytest.raises(NotIndexedError, match=r"the assigner is behind.*at 0 of 1.*no process is in its group"):
        await_indexed(settings, publisher.delivered, seconds=0.3)


def test_missing_index_is_named(settings: Settings) -> None:
    assigned(settings, 1)
    transaction(settings, "codes").commit_transaction(20)
    with pytest.raises(NotIndexedError, match=r"there is no index in .*start the indexer"):
        await_indexed(settings, ONE, seconds=0.3)


def test_indexer_that_is_behind_is_named_and_whether_it_runs(settings: Settings, writer: IndexWriter) -> None:
    assigned(settings, 1)
    transaction(settings, "codes").commit_transaction(20)
    with pytest.raises(NotIndexedError, match=r"is behind \(.*item-codes/0 at 0 of 2\); process \d+ on \S+ writes it"):
        await_indexed(settings, ONE, seconds=0.3)
    writer.close()
    with pytest.raises(NotIndexedError, match=r"is behind .*no process writes it: start the indexer"):
        await_indexed(settings, ONE, seconds=0.3)


def test_markers_and_aborted_records_behind_the_last_one_are_not_waited_for(
    settings: Settings, writer: IndexWriter, layout: Layout
) -> None:
    assigned(settings, 1)
    transaction(settings, "codes").commit_transaction(20)
    transaction(settings, "codes").abort_transaction(20)
    writer.apply(codes_batch([], layout), {(settings.topics.item_codes, 0): 1})  # of 4: two markers, one aborted record
    await_indexed(settings, ONE, seconds=PATIENCE_SECONDS)


def test_open_transaction_is_waited_for_and_named(settings: Settings, writer: IndexWriter, layout: Layout) -> None:
    assigned(settings, 1)
    hanging = transaction(settings, "codes")
    with pytest.raises(NotIndexedError, match=r"a transaction is open on .*item-codes/0"):
        await_indexed(settings, ONE, seconds=0.3)

    returned = threading.Event()

    def wait() -> None:
        await_indexed(settings, ONE, seconds=PATIENCE_SECONDS)
        returned.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert not returned.wait(0.5)
    hanging.commit_transaction(20)
    assert not returned.wait(1.0), "its record is committed now, and not in the index"
    writer.apply(codes_batch([], layout), {(settings.topics.item_codes, 0): 1})
    assert returned.wait(PATIENCE_SECONDS)
    waiting.join()


def classes(outcome: Outcome) -> dict[str, int]:
    return {one.kind: one.events for one in outcome.refused}


def test_outcome_tells_what_was_refused_of_what_this_producer_sent_alone(
    settings: Settings, tiny_embeddings: NDArray[Any], tmp_path: Path
) -> None:
    wide = np.concatenate([tiny_embeddings, tiny_embeddings], axis=1)
    with SidstreamProcess(settings, "assigner", tmp_path), SidstreamProcess(settings, "indexer", tmp_path):
        with ItemPublisher(settings) as all_wrong:
            for number in range(300):
                all_wrong.update(f"item-{number}", wide[number])
        outcome = await_indexed(settings, all_wrong.delivered, seconds=60)
        assert (outcome.indexed, classes(outcome)) == (0, {"WrongDimension": 300})
        assert "64 bytes of embedding; this codebook takes 32" in outcome.refused[0].example
        assert not outcome.complete

        with ItemPublisher(settings) as mixed, ItemPublisher(settings) as another:
            for number in range(200):
                mixed.update(f"item-{number}", (tiny_embeddings if number % 4 else wide)[number])
                another.update(f"other-{number}", wide[number])  # on the same partitions, in between
                if number % 50 == 0:
                    mixed.flush()
                    another.flush()
            mixed.update("infinite", np.full(8, np.inf, np.float32))
            mixed.delete("item-1")
            mixed.delete("x" * 300)
        outcome = await_indexed(settings, mixed.delivered, seconds=60)
        assert classes(outcome) == {"WrongDimension": 50, "EmbeddingNotFinite": 1, "IdTooLong": 1}
        assert outcome.indexed == 203 - 52
        with IndexReader(settings.index) as reader, reader.snapshot() as snapshot:
            assert snapshot.item_count == 149


def test_outcome_is_exact_when_the_assigner_is_killed_and_comes_back(
    settings: Settings, tiny_embeddings: NDArray[Any], tmp_path: Path
) -> None:
    small = settings.model_copy(update={"assigner": settings.assigner.model_copy(update={"batch_size": 200})})
    wide = np.concatenate([tiny_embeddings, tiny_embeddings], axis=1)
    outcomes: list[Outcome] = []
    with SidstreamProcess(settings, "indexer", tmp_path), SidstreamProcess(small, "assigner", tmp_path) as assigner:
        with ItemPublisher(settings) as publisher:
            for turn in range(10):
                for number in range(600):
                    publisher.update(f"item-{turn}-{number}", (wide if number % 3 == 0 else tiny_embeddings)[number])
        waiting = threading.Thread(
            target=lambda: outcomes.append(await_indexed(settings, publisher.delivered, seconds=120))
        )
        waiting.start()
        for letters in (1, 1_000):
            wait_until(
                lambda at_least=letters: (  # type: ignore[misc]
                    len(committed_records(settings, settings.topics.item_updates_dead_letters)) >= at_least
                ),
                what="dead letters",
                every=0.02,
            )
            assigner.kill()
            assigner.start()
        waiting.join(120)
    [outcome] = outcomes
    assert (outcome.indexed, classes(outcome)) == (4_000, {"WrongDimension": 2_000})


def test_codes_that_the_indexer_refuses_are_refused_events_of_their_producer(
    settings: Settings, writer: IndexWriter, layout: Layout
) -> None:
    """The indexer's letters name offsets of ``item-codes``; whose they are is known by the item."""
    with ItemPublisher(settings) as publisher:
        publisher.delete("mine")
        publisher.flush()
    [partition] = publisher.delivered.ranges
    producer = Producer(producer_configuration(settings.kafka))
    for key in (b"mine", b"of another"):
        producer.produce(settings.topics.item_codes, key=key, value=b"never decoded", partition=partition)
    assert producer.flush(PATIENCE_SECONDS) == 0
    group = settings.topics.prefix + settings.assigner.group
    consumer = Consumer(consumer_configuration(settings.kafka, group=group))
    consumer.commit(offsets=[TopicPartition(settings.topics.item_updates, partition, 1)], asynchronous=False)
    consumer.close()
    for record in committed_records(settings, settings.topics.item_codes):
        full = dead_letter(
            settings.topics.item_updates_dead_letters, record, Rejection("indexer", "IndexFull", "no room for it")
        )
        producer.produce(full.topic, key=full.key, value=full.value, headers=full.headers)
    assert producer.flush(PATIENCE_SECONDS) == 0
    writer.apply(codes_batch([], layout), {(settings.topics.item_codes, partition): 2})
    outcome = await_indexed(settings, publisher.delivered, seconds=PATIENCE_SECONDS)
    assert (outcome.indexed, classes(outcome)) == (0, {"IndexFull": 1})


def test_what_was_refused_is_told_also_when_the_rest_is_not_indexed_in_time(
    settings: Settings, tiny_embeddings: NDArray[Any], tmp_path: Path
) -> None:
    with SidstreamProcess(settings, "assigner", tmp_path):
        with ItemPublisher(settings) as publisher:
            publisher.update("good", tiny_embeddings[0])
            publisher.update("bad", tiny_embeddings[0][:3])
        letters, codes = settings.topics.item_updates_dead_letters, settings.topics.item_codes
        wait_until(
            lambda: committed_records(settings, letters) and committed_records(settings, codes), what="both done"
        )
        with pytest.raises(NotIndexedError, match=r"no index.*Of the 2 events these were refused: 1 WrongDimension"):
            await_indexed(settings, publisher.delivered, seconds=3)


def test_attributes_are_awaited_too_and_refused_ones_are_said(
    settings: Settings, tiny_embeddings: NDArray[Any], tmp_path: Path
) -> None:
    declared = settings.model_copy(
        update={"attributes": settings.attributes.model_copy(update={"filterable": {"price": "number"}})}
    )

    def attributes_of(name: str) -> Any:
        with IndexReader(settings.index) as reader, reader.snapshot() as snapshot:
            [item] = snapshot.find([name.encode()])
            return None if item is None else snapshot.attributes([item.number])[0]

    with SidstreamProcess(declared, "assigner", tmp_path), SidstreamProcess(declared, "indexer", tmp_path):
        with ItemPublisher(declared) as publisher:
            publisher.update("a", tiny_embeddings[0], attributes={"price": 30, "brand": "Acme"})
            publisher.update("b", tiny_embeddings[1])
            publisher.update_attributes("a", {"price": 19.5})
            publisher.update_attributes("b", {"price": 5})
        delivered = publisher.delivered
        assert delivered.events == 4
        assert await_indexed(declared, delivered, seconds=PATIENCE_SECONDS) == Outcome(4)
        assert attributes_of("a") == {"price": 19.5, "brand": "Acme"}
        assert attributes_of("b") == {"price": 5}

        with ItemPublisher(settings) as publisher:  # of a machine that declares nothing
            publisher.update_attributes("a", {"price": "19.50"})
            publisher.update_attributes("b", {"price": 6})
        outcome = await_indexed(declared, publisher.delivered, seconds=PATIENCE_SECONDS)
        assert outcome.indexed == 1
        [refusal] = outcome.refused
        assert (refusal.kind, refusal.events) == ("InvalidAttributes", 1)
        assert "attributes.price is a string" in refusal.example
        assert attributes_of("b") == {"price": 6}

        with ItemPublisher(declared) as publisher:
            publisher.delete("b")
        assert publisher.delivered.attributes is not None, "an item that comes back has no price of before"
        await_indexed(declared, publisher.delivered, seconds=PATIENCE_SECONDS)
        with ItemPublisher(declared) as publisher:
            publisher.update("b", tiny_embeddings[1])
        await_indexed(declared, publisher.delivered, seconds=PATIENCE_SECONDS)
        assert attributes_of("b") == {}


def test_attributes_that_nothing_would_take_are_refused_before_anything_is_sent(
    settings: Settings, tiny_embeddings: NDArray[Any]
) -> None:
    with ItemPublisher(settings) as publisher:
        for act in (
            lambda: publisher.update_attributes("a", {"size": {"eu": 4}}),  # type: ignore[dict-item]
            lambda: publisher.update("a", tiny_embeddings[0], attributes={"price": None}),  # type: ignore[dict-item]
        ):
            with pytest.raises(PublishError, match=r"'a': attributes\.\w+ is "):
                act()
    assert publisher.delivered.events == 0
