"""Batch sizes: small near the end of the topic, large far from it, and bounded in records and bytes."""

from __future__ import annotations

from typing import cast

import pytest
from confluent_kafka import Consumer, Message

from streamer.indexer import batch_sizes
from streamer.indexer.batch_sizes import batch_size, gather


class Backlog:
    """A consumer with ``count`` records of ``size`` bytes in its queue, as far as ``gather`` looks at one."""

    def __init__(self, count: int, size: int = 10) -> None:
        self.records = [Message(topic="codes", partition=0, offset=n, value=b"x" * size) for n in range(count)]

    def consume(self, count: int, _timeout: float) -> list[Message]:
        given, self.records = self.records[:count], self.records[count:]
        return given

    def poll(self, _timeout: float) -> None:
        return None

    def gather(self, *, live: int, catching_up: int, waiting: int | None = None) -> list[int | None]:
        count = len(self.records) if waiting is None else waiting
        found = gather(
            cast(Consumer, self),
            live,
            catching_up,
            lambda: count,
            wait_seconds=0,
            on_end=lambda _end: None,
            on_progress=lambda: None,
        )
        return [record.offset() for record in found]


@pytest.mark.parametrize(("waiting", "expected"), [(0, 10), (21, 10), (80, 40), (200, 100), (1_000_000, 100)], ids=str)
def test_batch_is_half_of_what_waits_within_its_bounds(waiting: int, expected: int) -> None:
    assert batch_size(waiting, live=10, catching_up=100) == expected


def test_few_records_are_one_batch_as_they_are() -> None:
    assert Backlog(7).gather(live=10, catching_up=100) == list(range(7))


def test_far_behind_a_batch_joins_many_gathered_ones_in_order() -> None:
    assert Backlog(1_000).gather(live=10, catching_up=100) == list(range(100))


def test_batch_ends_where_nothing_more_has_come() -> None:
    """The ends are known before the records are fetched."""
    assert len(Backlog(30).gather(live=10, catching_up=100, waiting=1_000)) == 30


def test_large_records_are_fewer_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_sizes, "BATCH_BYTES", 1_000)
    assert len(Backlog(1_000, size=40).gather(live=10, catching_up=100)) == 30, (
        "the part that passes 1,000 bytes is the last"
    )


def test_a_small_setting_for_catching_up_never_makes_batches_smaller() -> None:
    assert len(Backlog(1_000).gather(live=50, catching_up=1)) == 50
