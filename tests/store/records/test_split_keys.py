"""One key in several partitions: whatever order the partitions are read in, the index ends in the same items."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from store.checks.verification import verify
from store.files import environment
from store.records.batch import CodesBatch
from store.records.split_keys import TOMBSTONES_KEPT_MS
from store.writing.writer import IndexWriter
from streamer.events.topics import TOMBSTONE_RETENTION_MS
from support.plain_index import CODEBOOK, Event, PlainIndex, batch_of

OpenWriter = Callable[..., IndexWriter]
IDS = [b"a", b"b", b"c", b"d"]
PARTITIONS = 3
UNHURRIED = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])

Logs = list[list[Event]]


@st.composite
def logs(draw: st.DrawFn) -> Logs:
    """The records of each partition in the order of their offsets; Kafka timestamps may go back and be equal."""
    made: Logs = []
    for partition in range(PARTITIONS):
        records = draw(
            st.lists(
                st.builds(
                    Event,
                    id=st.sampled_from(IDS),
                    codes=st.one_of(st.none(), st.tuples(*[st.integers(0, 4)] * 3)),
                    title=st.sampled_from(["", "kettle"]),
                    updated_at=st.integers(0, 6),
                    partition=st.just(partition),
                    timestamp=st.integers(0, 6),
                ),
                max_size=8,
            )
        )
        made.append(records)
    return made


def compacted(records: Sequence[Event], kept: Sequence[bool]) -> list[Event]:
    """Without those superseded records that ``kept`` does not name."""
    last = {event.id: place for place, event in enumerate(records)}
    return [event for place, event in enumerate(records) if kept[place] or last[event.id] == place]


def expected(partitions: Logs) -> PlainIndex:
    """The definition: per key and partition the last record; of these the greatest (timestamp, partition)."""
    last: dict[bytes, dict[int, Event]] = {}
    for records in partitions:
        for event in records:
            last.setdefault(event.id, {})[event.partition] = event
    plain = PlainIndex(3, 5)
    plain.apply(max(of_key.values(), key=lambda event: (event.timestamp, event.partition)) for of_key in last.values())
    return plain


@st.composite
def readings(draw: st.DrawFn, partitions: Logs) -> list[list[Event]]:
    """The partitions in any order, each in its own, cut into batches."""
    waiting = [list(records) for records in partitions]
    batches: list[list[Event]] = [[]]
    while any(waiting):
        records = draw(st.sampled_from([records for records in waiting if records]))
        batches[-1].append(records.pop(0))
        if draw(st.booleans()):
            batches.append([])
    return batches


@UNHURRIED
@given(st.data())
def test_any_order_of_partitions_any_batches_and_any_compaction_end_in_the_same_items(data: st.DataObject) -> None:
    whole = data.draw(logs())
    kept = [data.draw(st.lists(st.booleans(), min_size=len(log), max_size=len(log))) for log in whole]
    plain = expected(whole)
    for partitions in (whole, [compacted(log, keep) for log, keep in zip(whole, kept, strict=True)]):
        with tempfile.TemporaryDirectory() as directory:
            batches = data.draw(readings(partitions))
            with IndexWriter.open(Path(directory) / "index", codebook_id=CODEBOOK, layers=3, size=5) as writer:
                for batch in batches:
                    writer.apply(batch_of(batch), {})
                    with writer.snapshot() as snapshot:
                        assert verify(snapshot) == []
                with writer.snapshot() as snapshot:
                    assert snapshot.digest() == plain.digest()
                    assert np.array_equal(snapshot.census(), plain.census())
                    split = {
                        item_id
                        for item_id in IDS
                        if sum(any(event.id == item_id for event in log) for log in partitions) > 1
                    }
                    assert snapshot.split_keys == len(split)
                    assert {item_id for item_id, _ in snapshot.split_key_examples(9)} == split


def fold_by_updated_at(partitions: Logs) -> PlainIndex:
    """``order = "updated_at"``: in a partition an update gives way to none that is older, unless a deletion came between."""
    last: dict[bytes, dict[int, Event]] = {}
    for records in partitions:
        for event in records:
            of_key = last.setdefault(event.id, {})
            earlier = of_key.get(event.partition)
            if not (earlier and earlier.codes and event.codes and event.updated_at < earlier.updated_at):
                of_key[event.partition] = event

    def rank(event: Event) -> tuple[int, int, int]:
        return (event.updated_at if event.codes else event.timestamp, event.timestamp, event.partition)

    plain = PlainIndex(3, 5)
    plain.apply(max(of_key.values(), key=rank) for of_key in last.values())
    return plain


@UNHURRIED
@given(st.data())
def test_ordered_by_updated_at_any_order_of_partitions_ends_in_the_same_items(data: st.DataObject) -> None:
    whole = data.draw(logs())
    plain = fold_by_updated_at(whole)
    with (
        tempfile.TemporaryDirectory() as directory,
        IndexWriter.open(
            Path(directory) / "index", codebook_id=CODEBOOK, layers=3, size=5, order="updated_at"
        ) as writer,
    ):
        for batch in data.draw(readings(whole)):
            writer.apply(batch_of(batch), {})
        with writer.snapshot() as snapshot:
            assert snapshot.digest() == plain.digest()
            assert verify(snapshot) == []


def test_older_updated_at_wins_by_arrival_and_gives_way_by_updated_at(open_writer: OpenWriter, tmp_path: Path) -> None:
    newer, older = Event(b"a", (1, 1, 1), updated_at=20), Event(b"a", (2, 2, 2), updated_at=10)
    for order, winner, stale in (("arrival", older, 0), ("updated_at", newer, 1)):
        for batches in ([[newer, older]], [[newer], [older]]):
            directory = tmp_path / f"{order}-{len(batches)}"
            with open_writer(path=directory, order=order) as writer:
                outcomes = [writer.apply(batch_of(batch), {}) for batch in batches]
                assert sum(outcome.stale for outcome in outcomes) == stale
                with writer.snapshot() as snapshot:
                    (item,) = snapshot.find([b"a"])
                    assert item is not None
                    assert item.codes == winner.codes


def test_an_update_after_a_deletion_is_taken_whatever_its_updated_at(open_writer: OpenWriter) -> None:
    writer = open_writer(order="updated_at")
    for event in (Event(b"a", (1, 1, 1), updated_at=20), Event(b"a", None), Event(b"a", (2, 2, 2), updated_at=10)):
        writer.apply(batch_of([event]), {})
    with writer.snapshot() as snapshot:
        assert snapshot.item_count == 1


def test_what_compaction_leaves_decides_a_rebuild_by_updated_at_as_the_settings_text_says(
    open_writer: OpenWriter, tmp_path: Path
) -> None:
    """Kafka keeps the last record by offset: once it has removed the newer one, nothing can bring it back."""
    newer, older = Event(b"a", (1, 1, 1), updated_at=20), Event(b"a", (2, 2, 2), updated_at=10)
    digests = []
    for number, log in enumerate(([newer, older], [newer, older], [older])):
        writer = open_writer(path=tmp_path / str(number), order="updated_at")
        writer.apply(batch_of(log), {})
        with writer.snapshot() as snapshot:
            digests.append(snapshot.digest())
    assert digests[0] == digests[1] != digests[2]


DAY_MS = 24 * 60 * 60 * 1000
WEEK = TOMBSTONES_KEPT_MS / 1000 + 61  # seconds after which a deletion is forgotten at the next batch


def keys_of(writer: IndexWriter, database: str) -> list[bytes]:
    with environment.acquire(writer.path, write=False).read() as transaction:
        found = [key for key, _ in transaction.cursor(writer._environment.databases[database])]
    environment.release(writer._environment)
    return found


class Change(NamedTuple):
    """What happens to an item: ``codes`` None deletes it, and "move" takes it as it is into ``partition``.

    ``then``: seconds until whatever comes next; None: that is of the same batch.
    """

    id: bytes
    codes: tuple[int, int, int] | Literal["move"] | None
    partition: int
    then: float | None
    halved: bool


CHANGES = st.builds(
    Change,
    id=st.sampled_from(IDS[:2]),
    codes=st.one_of(st.none(), st.just("move"), st.tuples(*[st.integers(0, 4)] * 3)),
    partition=st.integers(0, PARTITIONS - 1),
    then=st.sampled_from([None, 0.0, 61.0, 3 * DAY_MS / 1000, WEEK]),
    halved=st.booleans(),
)


def records_of(change: Change, live: Event | None, now_ms: int) -> list[Event]:
    """What a producer sends, or `sidstream topics repartition`: that dates the tombstone in the old partition to 1970."""
    if change.codes != "move":
        return [Event(change.id, change.codes, partition=change.partition, timestamp=now_ms)]
    if live is None or live.partition == change.partition:
        return []
    moved = replace(live, partition=change.partition, timestamp=now_ms)
    return [Event(change.id, None, partition=live.partition, timestamp=1), moved]


@settings(UNHURRIED, max_examples=200)
@given(st.lists(CHANGES, max_size=14))
@example([Change(b"a", (1, 1, 1), 0, 0, False), Change(b"a", "move", 1, WEEK, False), Change(b"a", None, 1, 0, False)])
@example(
    [
        Change(b"a", None, 0, 0, False),
        Change(b"a", None, 1, 3 * DAY_MS / 1000, False),
        Change(b"a", None, 2, WEEK - 2 * DAY_MS / 1000, False),
        Change(b"a", (1, 1, 1), 0, 0, False),
    ]
)
def test_index_is_sound_after_every_batch_while_deletions_are_forgotten_under_moves_deletions_and_returns(
    changes: list[Change],
) -> None:
    """One day follows the other, so that the last change of an item says what it is, whatever was forgotten since."""
    now_ms, plain = 1_700_000_000_000, PlainIndex(3, 5)
    batch: list[Event] = []
    with (
        tempfile.TemporaryDirectory() as directory,
        IndexWriter.open(
            Path(directory) / "index", codebook_id=CODEBOOK, layers=3, size=5, clock=lambda: now_ms / 1000
        ) as writer,
    ):

        def write() -> None:
            writer.apply(batch_of(batch), {})
            batch.clear()
            with writer.snapshot() as snapshot:
                assert verify(snapshot) == []

        for change in [*changes, Change(b"end", None, 0, 0, False)]:
            now_ms += 1
            for record in records_of(change, plain.items.get(change.id), now_ms):
                if batch and batch[-1].timestamp == 1 and change.halved:
                    write()
                plain.apply([record])
                batch.append(record)
            if change.then is not None:
                write()
                with writer.snapshot() as snapshot:
                    assert snapshot.digest() == plain.digest()
                    assert np.array_equal(snapshot.census(), plain.census())
                now_ms += int(change.then * 1000)


def test_markers_of_deletions_stay_as_long_as_the_broker_keeps_deletions(open_writer: OpenWriter) -> None:
    assert TOMBSTONES_KEPT_MS == TOMBSTONE_RETENTION_MS
    now = [1_700_000_000.0]
    writer = open_writer(clock=lambda: now[0])
    writer.apply(batch_of([Event(b"a", None, timestamp=5), Event(b"b", None, partition=1, timestamp=9)]), {})
    writer.apply(batch_of([Event(b"b", None, timestamp=3)]), {})
    assert (keys_of(writer, "deleted"), keys_of(writer, "elsewhere")) == ([b"a"], [b"b"])
    now[0] += 6 * DAY_MS / 1000
    writer.apply(batch_of([]), {})
    assert (keys_of(writer, "deleted"), keys_of(writer, "elsewhere")) == ([b"a"], [b"b"])
    writer.apply(batch_of([Event(b"a", (1, 1, 1), partition=2, timestamp=4)]), {})
    with writer.snapshot() as snapshot:
        assert snapshot.item_count == 0, "an older record of another partition does not bring the item back"
    now[0] += 2 * DAY_MS / 1000
    writer.apply(batch_of([]), {})
    assert keys_of(writer, "deleted") == []
    # The deletion of ``a`` hides an update that Kafka still has; without it a later record could not tell.
    assert keys_of(writer, "elsewhere") == [b"a"]
    with writer.snapshot() as snapshot:
        assert verify(snapshot) == []
    writer.apply(batch_of([Event(b"a", None, partition=2, timestamp=6)]), {})
    now[0] += 8 * DAY_MS / 1000
    writer.apply(batch_of([]), {})
    assert (keys_of(writer, "deleted"), keys_of(writer, "elsewhere")) == ([], [])


def test_older_deletions_beside_an_item_are_forgotten_with_time(open_writer: OpenWriter) -> None:
    now = [1_700_000_000.0]
    writer = open_writer(clock=lambda: now[0])
    writer.apply(batch_of([Event(b"a", (1, 1, 1), timestamp=9), Event(b"a", None, partition=1, timestamp=5)]), {})
    with writer.snapshot() as snapshot:
        assert (snapshot.split_keys, snapshot.item_count) == (1, 1)
        assert snapshot.split_key_examples(5) == [(b"a", [0, 1])]
    now[0] += 8 * DAY_MS / 1000
    writer.apply(batch_of([]), {})
    with writer.snapshot() as snapshot:
        assert (snapshot.split_keys, snapshot.item_count) == (0, 1)
        assert verify(snapshot) == []


def test_every_marker_is_looked_at_in_turn_however_many_there_are(
    open_writer: OpenWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("store.records.split_keys._MARKERS_LOOKED_AT", 10)
    now = [1_700_000_000.0]
    writer = open_writer(clock=lambda: now[0])
    writer.apply(batch_of([Event(b"%03d" % number, None) for number in range(95)]), {})
    now[0] += 8 * DAY_MS / 1000
    for _ in range(12):
        now[0] += 61
        writer.apply(batch_of([]), {})
    assert keys_of(writer, "deleted") == []


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_item_deleted_in_one_partition_and_older_in_another_stays_deleted(
    open_writer: OpenWriter, order: tuple[int, ...]
) -> None:
    events = [
        Event(b"a", (1, 1, 1), partition=0, timestamp=1),
        Event(b"a", None, partition=1, timestamp=3),
        Event(b"a", (2, 2, 2), partition=2, timestamp=2),
    ]
    writer = open_writer()
    for place in order:
        writer.apply(batch_of([events[place]]), {})
    with writer.snapshot() as snapshot:
        assert (snapshot.item_count, snapshot.split_keys) == (0, 1)
        assert not snapshot.census().any()


def test_verify_finds_split_keys_that_do_not_fit_to_their_items(open_writer: OpenWriter) -> None:
    writer = open_writer()
    writer.apply(batch_of([Event(b"a", (1, 1, 1), timestamp=9), Event(b"a", None, partition=1, timestamp=5)]), {})
    shared: Any = writer._environment
    with shared.lmdb.begin(write=True) as transaction:
        entry = transaction.get(b"a", db=shared.databases["elsewhere"])
        transaction.put(b"nobody", entry, db=shared.databases["elsewhere"])
        transaction.put(b"a", b"\0" * 20, db=shared.databases["deleted"])
    with writer.snapshot() as snapshot:
        assert verify(snapshot) == [
            "1 items are noted as deleted and are there.",
            "1 keys with records in several partitions disagree with their items.",
        ]


def test_batches_that_name_no_partitions_are_of_one(open_writer: OpenWriter) -> None:
    events = [Event(b"a", (1, 1, 1)), Event(b"a", None)]
    batch = batch_of(events)
    plain = CodesBatch(batch.ids, batch.codes, batch.weights, batch.titles, batch.updated_at, batch.deleted)
    writer = open_writer()
    assert writer.apply(plain, {}).split_keys == 0
    with writer.snapshot() as snapshot:
        assert snapshot.item_count == 0


def test_deletion_of_an_id_is_told_as_far_as_it_is_known(open_writer: OpenWriter) -> None:
    writer = open_writer()
    writer.apply(
        batch_of(
            [
                Event(b"a", (1, 1, 1), partition=0, timestamp=1),
                Event(b"a", None, partition=1, timestamp=3),
                Event(b"b", None, partition=2, timestamp=7),
                Event(b"c", (1, 1, 1), partition=0, timestamp=9),
                Event(b"c", None, partition=1, timestamp=5),
            ]
        ),
        {},
    )
    with writer.snapshot() as snapshot:
        of_a, of_b = snapshot.deletion(b"a"), snapshot.deletion(b"b")
        assert of_a is not None
        assert of_b is not None
        assert (of_a.partition, of_a.timestamp) == (1, 3), "the update of another partition is older"
        assert (of_b.partition, of_b.timestamp) == (2, 7)
        assert snapshot.deletion(b"c") is None, "the item lives"
        assert snapshot.deletion(b"never") is snapshot.deletion(b"") is None
