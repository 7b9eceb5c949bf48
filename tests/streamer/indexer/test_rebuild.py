"""A rebuild gives the index that the indexer has, from the topics alone, and an indexer goes on from it."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Message, Producer
from numpy.typing import NDArray

from models.bundles.bundle import Bundle
from models.sids.layout import Layout
from store.errors import IndexMissingError
from store.reading.reader import IndexReader
from store.writing.writer import IndexWriter
from streamer.client.publisher import ItemPublisher
from streamer.client.read_your_writes import await_indexed
from streamer.events.records import ITEM_CODES, LAYOUT, ItemCodes, LayoutRecord
from streamer.indexer.codes import IndexerError, codes_batch
from streamer.indexer.process import Indexer
from streamer.indexer.rebuild import RebuildError, rebuild
from streamer.kafka.clients import producer_configuration
from streamer.kafka.read_to_end import Span, end_reader, read_spans, whole_topics
from streamer.operations.verify import examine
from streamer.process.health import Health
from streamer.settings import Settings
from support.item_stream import FIRST_TIME, Stream, index_has_everything
from support.patience import PATIENCE_SECONDS
from support.processes import SidstreamProcess, wait_until


def transactions(settings: Settings, layout: Layout, *, seed: int, count: int) -> None:
    """Codes and tombstones over few ids in many small transactions, a third of them aborted, and one layout."""
    dice = random.Random(seed)
    producer = Producer(producer_configuration(settings.kafka, transactional_id=f"{settings.topics.prefix}codes"))
    producer.init_transactions(20)
    topic = settings.topics.item_codes
    for number in range(count):
        producer.begin_transaction()
        for _ in range(dice.randrange(1, 30)):
            item = dice.randrange(200)
            codes = ItemCodes(
                codebook=layout.codebook_id,
                codes=tuple(dice.randrange(layout.size) for _ in range(layout.layers)),
                title=f"title {number}",
                weight=1.0,
                updated_at=number,
            )
            value = None if dice.random() < 0.2 else ITEM_CODES.encode(codes)
            producer.produce(topic, key=b"item-%d" % item, value=value, partition=item % 4)
        if number == 5:
            issued = LayoutRecord(
                generation=layout.generation + 1,
                codebook=layout.codebook_id,
                layers=layout.layers,
                size=layout.size,
                head_tokens=(1, 2),
                issued_at=0,
                cause="a test",
            )
            producer.produce(settings.topics.layouts, key=b"layout", value=LAYOUT.encode(issued))
            producer.commit_transaction(20)
        elif dice.random() < 1 / 3:
            producer.flush(PATIENCE_SECONDS)  # so that the aborted records are in the log
            producer.abort_transaction(20)
        else:
            producer.commit_transaction(20)


def stream_into(settings: Settings, layout: Layout, index: Path) -> tuple[str, int]:
    """What the indexer makes of the topics: digest and live generation."""
    stop, health = threading.Event(), Health()
    with IndexWriter.open(index, codebook_id=layout.codebook_id, layers=layout.layers, size=layout.size) as writer:
        writer.put_layout(layout, {})
        indexer = threading.Thread(target=Indexer(settings, writer, layout, health).run, args=(stop,))
        indexer.start()
        try:
            wait_until(lambda: health.ready, what="an indexer that has caught up")
        finally:
            stop.set()
            indexer.join()
        with writer.snapshot() as snapshot:
            live = snapshot.live_layout()
            assert live is not None
            return snapshot.digest(), live.generation


def has_items(settings: Settings) -> bool:
    try:
        with IndexReader(settings.index) as reader, reader.snapshot() as snapshot:
            return snapshot.item_count > 0
    except IndexMissingError:
        return False


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_rebuilt_index_has_the_digest_and_the_layout_of_the_streamed_one(
    settings: Settings, layout: Layout, tmp_path: Path, seed: int
) -> None:
    transactions(settings, layout, seed=seed, count=40)
    digest, generation = stream_into(settings, layout, settings.index)
    heard: list[tuple[int, int]] = []
    built = rebuild(settings, tmp_path / "fresh", progress=lambda done, total: heard.append((done, total)))
    assert (built.digest, built.generation) == (digest, generation)
    assert generation == layout.generation + 1
    found = examine(tmp_path / "fresh", settings.index)
    assert found.sound
    assert found.items == built.items > 0
    assert heard[0][0] == 0
    assert heard[-1][0] == heard[-1][1] == sum(built.position.values()), "every offset was done, markers too"
    assert [done for done, _ in heard] == sorted(done for done, _ in heard)
    # Markers lie behind the last record: the indexer's own position stays below, and means the same.
    assert found.against is not None
    for place, offset in found.against.position.items():
        assert built.position[place] >= offset


def test_indexer_goes_on_from_a_rebuilt_index(settings: Settings, layout: Layout, tmp_path: Path) -> None:
    transactions(settings, layout, seed=4, count=20)
    rebuild(settings, tmp_path / "fresh")
    transactions(settings, layout, seed=5, count=20)
    whole = stream_into(settings, layout, settings.index)
    assert stream_into(settings, layout, tmp_path / "fresh") == whole


def test_rebuild_beside_a_running_indexer_takes_its_place_and_loses_nothing(settings: Settings, tmp_path: Path) -> None:
    fresh, old = tmp_path / "fresh", tmp_path / "index.replaced"
    stream = Stream(settings, 8, events=6_000, ids=1_000, per_second=2_000, seed=6)
    publisher = threading.Thread(target=stream.publish)
    with SidstreamProcess(settings, "assigner", tmp_path), SidstreamProcess(settings, "indexer", tmp_path) as indexer:
        publisher.start()
        wait_until(lambda: has_items(settings), what="an indexer at work")
        with pytest.raises(RebuildError, match=r"indexer \(process \d+ on \S+\) writes.*--into"):
            rebuild(settings, settings.index)
        built = rebuild(settings, fresh)
        assert built.records > 0
        assert indexer.stop() == 0
        settings.index.rename(old)
        fresh.rename(settings.index)
        indexer.start()
        publisher.join()
        wait_until(lambda: index_has_everything(settings, stream), what="every item in the rebuilt index")
        wait_until(lambda: indexer.log().count("caught_up") == 2, what="an indexer that has caught up again")
        assert indexer.stop() == 0
        assert rebuild(settings, tmp_path / "again").digest == examine(settings.index).digest


def test_rebuild_leaves_a_directory_that_holds_something_as_it_is(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    with pytest.raises(RebuildError, match="not empty"):
        rebuild(settings, tmp_path / "taken")
    assert os.listdir(tmp_path / "taken") == ["notes.txt"]


def test_rebuild_that_fails_leaves_nothing_behind(settings: Settings, layout: Layout, tmp_path: Path) -> None:
    transactions(settings, layout, seed=7, count=3)
    producer = Producer(producer_configuration(settings.kafka))
    producer.produce(settings.topics.item_codes, key=b"item", value=b"{", partition=0)
    assert producer.flush(PATIENCE_SECONDS) == 0
    with pytest.raises(IndexerError, match="who else writes"):
        rebuild(settings, tmp_path / "fresh")
    assert not (tmp_path / "fresh").exists()


def test_rebuild_of_empty_topics_is_an_empty_index(settings: Settings, tmp_path: Path) -> None:
    built = rebuild(settings, tmp_path / "fresh")
    assert (built.items, built.records) == (0, 0)
    with IndexReader(tmp_path / "fresh") as reader, reader.snapshot() as snapshot:
        assert snapshot.position == {
            **{(settings.topics.item_codes, partition): 0 for partition in range(4)},
            **{(settings.topics.item_attributes, partition): 0 for partition in range(4)},
            (settings.topics.layouts, 0): 0,
        }


def test_reading_ends_where_the_topic_ended_at_the_start_and_before_an_open_transaction(
    settings: Settings, layout: Layout
) -> None:
    topic = settings.topics.item_codes
    consumer = end_reader(settings, "test")
    plain = Producer(producer_configuration(settings.kafka))

    def send(count: int) -> None:
        for _ in range(count):
            plain.produce(topic, key=b"a", value=b"b", partition=0)
        assert plain.flush(PATIENCE_SECONDS) == 0

    def offsets(spans: dict[tuple[str, int], Span]) -> Iterator[int]:
        for reading in read_spans(consumer, spans):
            yield from (record.offset() for record in reading.records)

    send(5)
    spans = whole_topics(consumer, [topic])
    send(5)
    assert list(offsets(spans)) == list(range(5))

    opened = Producer(producer_configuration(settings.kafka, transactional_id=f"{settings.topics.prefix}open"))
    opened.init_transactions(20)
    opened.begin_transaction()
    opened.produce(topic, key=b"a", value=b"c", partition=0)
    opened.flush(PATIENCE_SECONDS)
    send(5)
    spans = whole_topics(consumer, [topic])
    assert spans[topic, 0] == Span(0, 10), "the end is where the open transaction begins"
    assert list(offsets(spans)) == list(range(10))
    opened.abort_transaction(20)
    # The coordinator has noted the end; the partition hears of it a moment later.
    wait_until(lambda: whole_topics(consumer, [topic])[topic, 0].end > 10, what="the end of the transaction")
    spans = whole_topics(consumer, [topic])
    assert list(offsets(spans)) == [*range(10), *range(11, 16)]
    consumer.close()


def command(settings: Settings, directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    process = SidstreamProcess(settings, "indexer", directory)  # for its environment
    return subprocess.run(
        [sys.executable, "-m", "sidstream", *arguments],
        env=process._environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )


def test_on_call_commands_end_to_end(settings: Settings, tiny_embeddings: NDArray[Any], tmp_path: Path) -> None:
    fresh, copy = tmp_path / "fresh", tmp_path / "backup"
    with SidstreamProcess(settings, "assigner", tmp_path), SidstreamProcess(settings, "indexer", tmp_path):
        with ItemPublisher(settings) as publisher:
            for number in range(300):
                publisher.update(
                    f"item-{number}", tiny_embeddings[number], title="\x1b[2Jkettle", updated_at=FIRST_TIME + number
                )
        await_indexed(settings, publisher.delivered, seconds=PATIENCE_SECONDS)

        backed_up = command(settings, tmp_path, "backup", str(copy))
        assert backed_up.returncode == 0, backed_up.stderr
        assert "300 items" in backed_up.stderr
        refused = command(settings, tmp_path, "rebuild")
        assert refused.returncode == 1
        assert "--into DIR" in refused.stderr
        built = command(settings, tmp_path, "rebuild", "--into", str(fresh), "--json")
        assert built.returncode == 0, built.stderr
        assert f"mv {fresh} {settings.index}" in built.stderr
        refused = command(settings, tmp_path, "restore", str(copy), "--replace")
        assert refused.returncode == 1
        assert "Stop that indexer" in refused.stderr

    verified = command(settings, tmp_path, "verify", "--against", str(fresh), "--json")
    assert verified.returncode == 0, verified.stdout
    found = json.loads(verified.stdout)
    assert (found["items"], found["faults"]) == (300, [])
    assert found["digest"] == json.loads(built.stdout)["digest"] == found["against"]["digest"]

    layout = Bundle.open(settings.bundle).layout
    with IndexWriter.open(
        settings.index, codebook_id=layout.codebook_id, layers=layout.layers, size=layout.size
    ) as writer:
        writer.apply(codes_batch([Message(topic="", partition=2, key=b"item-7", timestamp=(1, 2**50))], layout), {})
    differs = command(settings, tmp_path, "verify", "--against", str(fresh))
    assert differs.returncode == 1
    assert "0 items are here only, 1 there only, 0 differ" in differs.stdout
    assert "item-7" in differs.stdout

    refused = command(settings, tmp_path, "restore", str(copy))
    assert refused.returncode == 1
    assert "--replace" in refused.stderr
    restored = command(settings, tmp_path, "restore", str(copy), "--replace")
    assert restored.returncode == 0, restored.stderr
    assert "index.replaced-" in restored.stderr
    same = command(settings, tmp_path, "verify", "--against", str(fresh))
    assert same.returncode == 0, same.stdout
