"""Counts as the monitor takes them: the greatest ``as_of`` wins, so what is published last must be the whole truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
from confluent_kafka import Producer

from store.writing.writer import IndexWriter
from streamer.events.records import TOKEN_COUNT, TokenCount
from streamer.indexer.census_publisher import CensusPublisher
from support.plain_index import CODEBOOK, Event, batch_of


class Sent:
    """A producer that keeps what it is given."""

    def __init__(self) -> None:
        self.counts: list[TokenCount] = []
        self.deliveries: list[Any] = []

    def produce(self, _topic: str, *, value: bytes, on_delivery: Any, **_more: Any) -> None:
        self.counts.append(TOKEN_COUNT.decode(value))
        self.deliveries.append(on_delivery)

    def poll(self, _seconds: float) -> int:
        return 0


@pytest.fixture
def writer(tmp_path: Path) -> Any:
    with IndexWriter.open(tmp_path / "index", codebook_id=CODEBOOK, layers=3, size=4) as writer:
        yield writer


def newest(counts: list[TokenCount]) -> dict[tuple[int, int], int]:
    """What the monitor has after these."""
    known: dict[tuple[int, int], TokenCount] = {}
    for count in counts:
        earlier = known.get((count.layer, count.token))
        if earlier is None or count.as_of > earlier.as_of:
            known[count.layer, count.token] = count
    return {key: count.n for key, count in known.items()}


def test_whole_census_on_caught_up_overtakes_older_counts_of_a_greater_sum(writer: IndexWriter) -> None:
    """Before: 100 offsets. Anew: partition 0 with a new record first (71), then the rest (101), which changes other tokens."""
    before, sent = Sent(), Sent()
    writer.apply(batch_of([Event(b"a", (1, 1, 1))]), {})
    CensusPublisher(cast(Producer, before), "counts", writer, CODEBOOK, interval_seconds=0).publish(100)
    publisher = CensusPublisher(cast(Producer, sent), "counts", writer, CODEBOOK, interval_seconds=0)
    publisher.add(writer.apply(batch_of([Event(b"b", (1, 1, 1))]), {}).changed_tokens)
    publisher.publish(71)
    publisher.add(writer.apply(batch_of([Event(b"c", (2, 2, 2))]), {}).changed_tokens)
    publisher.publish(101)
    assert newest(before.counts + sent.counts)[1, 1] == 1, "the count of 71 offsets is older than that of 100"
    publisher.publish_everything()
    publisher.publish(102)
    census = writer.census()
    assert newest(before.counts + sent.counts) == {
        (layer + 1, token): census[layer, token] for layer in range(3) for token in range(4)
    }
    assert len(sent.counts) == 12 + 3 + 12


def test_nothing_is_published_twice_unless_it_is_asked_for(writer: IndexWriter) -> None:
    sent = Sent()
    publisher = CensusPublisher(cast(Producer, sent), "counts", writer, CODEBOOK, interval_seconds=0)
    publisher.publish(1)
    publisher.publish(2)
    assert len(sent.counts) == 12
