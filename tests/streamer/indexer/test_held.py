"""Two indexers that hold half of the partitions each: together they are the whole index, and count as it does."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from models.sids.layout import Layout
from store.checks.verification import compare
from store.errors import IndexFormatError, IndexMismatchError
from store.reading.reader import IndexReader
from streamer.events.records import TOKEN_COUNT
from streamer.indexer.codes import IndexerError
from streamer.indexer.held import held_of_added, held_places
from streamer.indexer.rebuild import rebuild
from streamer.monitor.token_state import TokenState, WindowShape, apply_count
from streamer.operations.status import read_status
from streamer.operations.verify import examine
from streamer.settings import Settings, load_settings
from support.processes import committed_records, wait_until
from support.running_indexer import running_indexer, send_codes, with_indexer

ITEMS = 200
SHAPE = WindowShape(bucket_ms=1_000, buckets=5)


def shard_of(settings: Settings, name: str, partitions: str) -> Settings:
    own = with_indexer(settings, partitions=partitions)
    return own.model_copy(update={"index": settings.index.with_name(name)})


def send_items(settings: Settings, layout: Layout) -> None:
    """Items of random codes over four partitions; every tenth is deleted again."""
    dice = random.Random(5)
    records = [
        {
            "key": f"item-{number}".encode(),
            "partition": number % 4,
            "codes": tuple(dice.randrange(layout.size) for _ in range(layout.layers)),
        }
        for number in range(ITEMS)
    ]
    gone = [
        {"key": f"item-{number}".encode(), "partition": number % 4, "codes": None} for number in range(0, ITEMS, 10)
    ]
    send_codes(settings, layout, *records, *gone)


def counted(settings: Settings, layout: Layout) -> NDArray[np.int64]:
    """The census that a monitor makes of all counts so far."""
    states: dict[tuple[int, int], TokenState] = {}
    for record in committed_records(settings, settings.topics.token_counts):
        count = TOKEN_COUNT.decode(record.value())
        place = count.layer - 1, count.token
        state = apply_count(states.get(place), count, None, SHAPE, now=1_700_000_000_000)
        if state is not None:
            states[place] = state
    census = np.zeros((layout.layers, layout.size), np.int64)
    for place, state in states.items():
        census[place] = state.n
    return census


def test_shards_together_hold_and_count_what_one_index_does(settings: Settings, layout: Layout, tmp_path: Path) -> None:
    send_items(settings, layout)
    one, two = shard_of(settings, "one", "0,2"), shard_of(settings, "two", "1,3")
    with running_indexer(one, layout) as first, running_indexer(two, layout) as second:
        wait_until(lambda: first.health.ready and second.health.ready, what="both shards have caught up")
        whole = rebuild(settings, tmp_path / "whole")

        with IndexReader(tmp_path / "whole") as reader, reader.snapshot() as all_of_it:
            census = all_of_it.census()
        wait_until(lambda: np.array_equal(counted(settings, layout), census), what="the counts of both add up")
        assert first.writer.census().sum() + second.writer.census().sum() == census.sum()

        found = [examine(shard.index) for shard in (one, two)]
        assert [each.faults for each in found] == [(), ()]
        assert [each.partitions for each in found] == ["0,2", "1,3"]
        assert sum(each.items for each in found) == whole.items == ITEMS - ITEMS // 10

        # Lag is of the shard's own partitions.
        [lag, _] = [lag for lag in read_status(one).lags if lag.process == "indexer"]
        assert (lag.records, read_status(one).partitions) == (0, "0,2")

        # A rebuild with the same settings makes the same shard.
        again = rebuild(two, tmp_path / "again")
        assert again.digest == found[1].digest
        assert again.position == found[1].position
        with (
            IndexReader(two.index) as here,
            IndexReader(tmp_path / "again") as there,
            here.snapshot() as before,
            there.snapshot() as after,
        ):
            assert compare(before, after).equal
            assert (after.partitions, after.partition_count) == ("1,3", 4)


def test_index_of_other_partitions_is_refused_with_what_to_do_and_left_as_it_is(
    settings: Settings, layout: Layout
) -> None:
    shard = with_indexer(settings, partitions="0-1")
    with running_indexer(shard, layout):
        pass
    before = examine(settings.index)
    for other in ("0", "", "0-3"):
        with (
            pytest.raises(IndexMismatchError, match=r"holds the partitions 0-1.*indexer\.partitions.*its own"),
            running_indexer(with_indexer(settings, partitions=other), layout),
        ):
            pytest.fail("it was opened")
    assert examine(settings.index) == before


def test_whole_index_is_no_shard(settings: Settings, layout: Layout) -> None:
    with running_indexer(settings, layout):
        pass
    with (
        pytest.raises(IndexMismatchError, match="holds all partitions"),
        running_indexer(with_indexer(settings, partitions="1"), layout),
    ):
        pytest.fail("it was opened")


def test_sidstream_of_before_refuses_a_shard_as_an_index_of_a_newer_format(
    settings: Settings, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_indexer(with_indexer(settings, partitions="0-1"), layout):
        pass
    monkeypatch.setattr("store.reading.facts.OF_SOME_PARTITIONS", 10**9)  # which it does not know
    with pytest.raises(IndexFormatError, match="format 103"), IndexReader(settings.index) as reader, reader.snapshot():
        pytest.fail("it was read")


def partitions(**counts: int) -> dict[str, list[int]]:
    topics = load_settings().topics
    given = {"item_codes": 4, "item_attributes": 4, "item_updates": 4, "layouts": 1} | counts
    return {getattr(topics, name): list(range(count)) for name, count in given.items()}


def test_places_are_those_of_the_setting_in_both_topics_and_all_layouts() -> None:
    settings = load_settings(indexer={"partitions": "1,3"})
    assert held_places(settings, partitions().__getitem__) == [
        ("item-codes", 1),
        ("item-codes", 3),
        ("item-attributes", 1),
        ("item-attributes", 3),
        ("layouts", 0),
    ]
    assert len(held_places(load_settings(), partitions().__getitem__)) == 9


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"item_codes": 2, "item_updates": 2, "item_attributes": 2}, r"take 3 out of it"),
        ({"item_attributes": 8}, r"item-attributes has 8 partitions and item-updates 4.* repartition --partitions 8`"),
        ({"item_attributes": 2}, r"item-attributes has 2 partitions and item-updates 4.* repartition --partitions 4`"),
    ],
)
def test_topics_that_a_shard_cannot_be_made_of_are_refused_with_what_to_do(
    counts: dict[str, int], message: str
) -> None:
    settings = load_settings(indexer={"partitions": "1,3"})
    with pytest.raises(IndexerError, match=message):
        held_places(settings, partitions(**counts).__getitem__)


def test_added_partitions_of_other_shards_are_left_alone() -> None:
    settings = load_settings(indexer={"partitions": "1,4"})
    added = [("item-codes", 4), ("item-codes", 5), ("item-attributes", 4), ("layouts", 1)]
    assert held_of_added(settings, added) == [("item-codes", 4), ("item-attributes", 4), ("layouts", 1)]
    assert held_of_added(load_settings(), added) == added
