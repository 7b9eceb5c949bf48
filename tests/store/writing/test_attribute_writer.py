"""Attributes in the index: the same items whatever order the two topics are read in, exactly once, checked and logged."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.attributes import Attributes, encode_attributes
from store.checks.verification import compare, verify
from store.errors import BatchError
from store.records.split_keys import TOMBSTONES_KEPT_MS
from store.writing.attribute_writer import count_waiting
from store.writing.writer import IndexWriter
from support.plain_index import CODEBOOK, AttributesEvent, Event, attributes_batch_of, batch_of

SIZE = 5
IDS = [b"a", b"b", b"ab", "käse".encode()]
SLOW_DISK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
FIELDS = st.dictionaries(st.sampled_from(["price", "brand", "tags"]), st.sampled_from([1, 2, "x", ["y"]]), max_size=3)
CODES = st.tuples(*[st.integers(0, SIZE - 1)] * 3)
PARTITIONS = st.sampled_from([0, 0, 0, 1])
UPDATES = st.builds(
    Event,
    id=st.sampled_from(IDS),
    codes=st.none() | CODES,
    partition=PARTITIONS,
    timestamp=st.integers(0, 5),
    attributes=st.none() | FIELDS,
)
ALONE = st.builds(
    AttributesEvent,
    id=st.sampled_from(IDS),
    attributes=st.none() | FIELDS,
    partition=PARTITIONS,
    timestamp=st.integers(0, 5),
)
Record = Event | AttributesEvent


@contextmanager
def an_index(clock: list[float] | None = None) -> Iterator[IndexWriter]:
    now = clock or [1_700_000_000.0]
    with (
        tempfile.TemporaryDirectory() as directory,
        IndexWriter.open(
            Path(directory) / "index", codebook_id=CODEBOOK, layers=3, size=SIZE, clock=lambda: now[0]
        ) as writer,
    ):
        yield writer


def feed(writer: IndexWriter, records: Sequence[Record], choose: random.Random) -> None:
    """In batches of some size, each of one topic: as an indexer that finds both in what it has gathered."""
    left = list(records)
    while left:
        size = choose.randrange(1, len(left) + 1)
        some, left = left[:size], left[size:]
        writer.apply(batch_of([one for one in some if isinstance(one, Event)]), {("codes", 0): 1})
        writer.apply_attributes(
            attributes_batch_of([one for one in some if isinstance(one, AttributesEvent)]), {("attributes", 0): 1}
        )


def lanes(records: Sequence[Record]) -> dict[tuple[type, int], list[Record]]:
    """The records of each topic and partition, in order."""
    found: dict[tuple[type, int], list[Record]] = {}
    for record in records:
        found.setdefault((type(record), record.partition), []).append(record)
    return found


def interleaved(records: Sequence[Record], choose: random.Random, *, compacted: bool) -> list[Record]:
    """The same log read in another order; ``compacted``: of each key and partition the last record alone."""
    waiting = []
    for lane in lanes(records).values():
        if compacted:
            last = {record.id: place for place, record in enumerate(lane)}
            lane = [record for place, record in enumerate(lane) if last[record.id] == place]
        waiting.append(lane)
    order = [number for number, lane in enumerate(waiting) for _ in lane]
    choose.shuffle(order)
    readers = [iter(lane) for lane in waiting]
    return [next(readers[number]) for number in order]


def plain(records: Sequence[Record]) -> dict[bytes, Attributes]:
    """Id → attributes of each live item."""
    found: dict[bytes, Attributes] = {}
    for item_id in IDS:
        newest: dict[type, Record] = {}
        for (kind, _), lane in lanes(records).items():
            own = [record for record in lane if record.id == item_id]
            if own:
                last, other = own[-1], newest.get(kind)
                if other is None or (last.timestamp, last.partition) > (other.timestamp, other.partition):
                    newest[kind] = last
        update, alone = newest.get(Event), newest.get(AttributesEvent)
        if not isinstance(update, Event) or update.codes is None:
            continue
        given = update.attributes or {}
        own_fields = (alone.attributes or {}) if isinstance(alone, AttributesEvent) else {}
        later = alone is not None and alone.timestamp >= update.timestamp
        found[item_id] = {**given, **own_fields} if later else {**own_fields, **given}
    return found


def attributes_of(writer: IndexWriter) -> dict[bytes, Attributes]:
    with writer.snapshot() as snapshot:
        items = [item for item in snapshot.find(IDS) if item is not None]
        found = snapshot.attributes([item.number for item in items])
        everything = {
            number: attributes
            for numbers, some in snapshot.all_attributes()
            for number, attributes in zip(numbers.tolist(), some, strict=True)
        }
        assert everything == {item.number: one for item, one in zip(items, found, strict=True)}
        assert snapshot.attribute_count == sum(map(bool, found))
        assert all(one is not None for one in found)
        return {item.id: one for item, one in zip(items, found, strict=True) if one is not None}


@SLOW_DISK
@given(st.lists(UPDATES | ALONE, max_size=14), st.integers(0, 99), st.booleans())
def test_whatever_order_the_topics_are_read_in_the_items_have_the_same_attributes(
    records: list[Record], seed: int, compacted: bool
) -> None:
    choose = random.Random(seed)
    with an_index() as one, an_index() as other:
        feed(one, records, choose)
        assert attributes_of(one) == plain(records)
        feed(other, interleaved(records, choose, compacted=compacted), choose)
        assert attributes_of(other) == plain(records)
        with one.snapshot() as here, other.snapshot() as there:
            assert verify(here) == verify(there) == []
            assert here.digest() == there.digest()
            assert compare(here, there).equal


@SLOW_DISK
@given(st.lists(st.tuples(UPDATES | ALONE, st.sampled_from([0.0, 61.0, TOMBSTONES_KEPT_MS / 1000 + 61])), max_size=14))
def test_ids_that_have_attributes_and_no_item_are_counted_by_every_batch_and_by_whoever_opens_an_index_without_a_count(
    steps: list[tuple[Record, float]],
) -> None:
    """Deletions and removals are forgotten meanwhile."""
    clock = [1_700_000_000.0]
    with an_index(clock) as writer:
        for record, seconds in steps:
            feed(writer, [record], random.Random(0))
            with writer.snapshot() as snapshot:
                assert verify(snapshot) == []
                waiting = snapshot.known_attribute_ids(IDS) - snapshot.known(IDS)
            assert writer.waiting_attributes() == len(waiting)
            clock[0] += seconds
        drop_count(writer)
        with writer.snapshot() as snapshot:
            assert verify(snapshot) == []
        count_waiting(writer._environment, lambda: None)
        assert writer.waiting_attributes() == (len(waiting) if steps else 0)


def drop_count(writer: IndexWriter) -> None:
    """As an older sidstream that writes."""
    databases = writer._environment.databases
    with writer._environment.lmdb.begin(write=True) as transaction:
        state = msgspec.json.decode(transaction.get(b"state", db=databases["meta"]))
        del state["waiting_attributes"]
        transaction.put(b"state", msgspec.json.encode(state), db=databases["meta"])


@SLOW_DISK
@given(st.lists(st.lists(UPDATES | ALONE, max_size=6), min_size=1, max_size=4), st.integers(0, 99))
def test_log_names_every_item_whose_attributes_changed(steps: list[list[Record]], seed: int) -> None:
    choose = random.Random(seed)
    with an_index() as writer:
        for step in steps:
            with writer.snapshot() as snapshot:
                commit = snapshot.commit
                before = dict(snapshot_attributes(writer))
            feed(writer, step, choose)
            after = dict(snapshot_attributes(writer))
            with writer.snapshot() as snapshot:
                changes = snapshot.changes_since(commit)
            assert changes is not None
            named = {*changes.items.tolist(), *changes.attributes.tolist()}
            assert not set(changes.items.tolist()) & set(changes.attributes.tolist())
            different = {number for number in before.keys() | after.keys() if before.get(number) != after.get(number)}
            assert different <= named


def snapshot_attributes(writer: IndexWriter) -> list[tuple[int, Attributes | None]]:
    with writer.snapshot() as snapshot:
        return [
            (number, one)
            for numbers, some in snapshot.all_attributes()
            for number, one in zip(numbers.tolist(), some, strict=True)
        ]


def test_what_comes_again_is_no_commit_and_dirties_no_page() -> None:
    records: list[Record] = [
        Event(b"a", (1, 2, 3), timestamp=5, attributes={"price": 1}),
        AttributesEvent(b"a", {"price": 2}, timestamp=6),
        AttributesEvent(b"b", None, timestamp=6),
    ]
    with an_index() as writer:
        feed(writer, records, random.Random(0))
        with writer.snapshot() as snapshot:
            digest, commit = snapshot.digest(), snapshot.commit
        assert (
            writer.apply_attributes(attributes_batch_of([r for r in records if isinstance(r, AttributesEvent)]), {})
            == 0
        )
        feed(writer, records, random.Random(1))
        with writer.snapshot() as snapshot:
            assert (snapshot.digest(), snapshot.commit) == (digest, commit)


def test_attributes_of_an_item_that_is_not_there_yet_wait_for_it_and_outlive_its_deletion() -> None:
    with an_index() as writer:
        assert writer.apply_attributes(attributes_batch_of([AttributesEvent(b"a", {"price": 2}, timestamp=6)]), {}) == 0
        with writer.snapshot() as snapshot:
            assert snapshot.known_attribute_ids([b"a", b"b"]) == {b"a"}
            assert (snapshot.attribute_record_count, snapshot.attribute_count) == (1, 0)
        for codes in ((1, 2, 3), None, (3, 2, 1)):
            writer.apply(batch_of([Event(b"a", codes, timestamp=7)]), {})
            assert attributes_of(writer) == ({b"a": {"price": 2}} if codes else {})
            with writer.snapshot() as snapshot:
                assert verify(snapshot) == []


def test_number_of_a_deleted_item_gives_its_attributes_to_nobody() -> None:
    with an_index() as writer:
        writer.apply(batch_of([Event(b"a", (1, 2, 3), attributes={"price": 1})]), {})
        writer.apply(batch_of([Event(b"a", None)]), {})
        with writer.snapshot() as snapshot:
            assert snapshot.attributes([0, 77]) == [None, None]
        writer.apply(batch_of([Event(b"b", (1, 2, 3))]), {})
        assert attributes_of(writer) == {b"b": {}}


def test_digest_and_comparison_tell_attributes_apart() -> None:
    with an_index() as one, an_index() as other:
        one.apply(batch_of([Event(b"a", (1, 2, 3), attributes={"price": 1, "brand": "x"})]), {})
        other.apply(batch_of([Event(b"a", (1, 2, 3), attributes={"price": 2})]), {})
        with one.snapshot() as here, other.snapshot() as there:
            assert here.digest() != there.digest()
            [difference] = compare(here, there).examples
            assert difference.what == "attributes.brand: 'x' → 'none', attributes.price: 1 → 2"


def test_verify_finds_a_wrong_count_of_ids_that_have_attributes_and_no_item() -> None:
    with an_index() as writer:
        writer.apply_attributes(attributes_batch_of([AttributesEvent(b"a", {"brand": "x"})]), {})
        with writer._environment.lmdb.begin(write=True) as transaction:
            transaction.put(b"state", b'{"waiting_attributes": 7}', db=writer._environment.databases["meta"])
        with writer.snapshot() as snapshot:
            assert verify(snapshot) == ["1 ids have attributes and no item, and the index counts 7."]


@pytest.mark.parametrize("what", ["other", "missing", "of nobody", "records"])
def test_verify_finds_attributes_that_their_sources_do_not_say(what: str) -> None:
    with an_index() as writer:
        writer.apply(batch_of([Event(b"a", (1, 2, 3), attributes={"price": 1})]), {})
        writer.apply_attributes(attributes_batch_of([AttributesEvent(b"a", {"brand": "x"}, timestamp=6)]), {})
        databases = writer._environment.databases
        key = (0).to_bytes(4, "big")
        with writer._environment.lmdb.begin(write=True) as transaction:
            match what:
                case "other":
                    transaction.put(key, encode_attributes({"price": 9}), db=databases["attributes"])
                case "missing":
                    transaction.delete(key, b"", databases["attributes"])
                case "of nobody":
                    transaction.put((9).to_bytes(4, "big"), encode_attributes({"price": 9}), db=databases["attributes"])
                case "records":
                    transaction.put(b"a", b"\x90", db=databases["attribute_records"])
        with writer.snapshot() as snapshot:
            problems = " ".join(verify(snapshot))
        expected = "contradict each other" if what == "records" else "1 items have other attributes than their updates"
        assert expected in problems


def test_removal_is_forgotten_once_the_broker_has_removed_it() -> None:
    clock = [1_700_000_000.0]
    with an_index(clock) as writer:
        writer.apply_attributes(attributes_batch_of([AttributesEvent(b"a", None), AttributesEvent(b"b", {"x": 1})]), {})
        clock[0] += TOMBSTONES_KEPT_MS / 1000 - 1
        writer.apply(batch_of([]), {})
        with writer.snapshot() as snapshot:
            assert snapshot.attribute_record_count == 2
        clock[0] += 100
        writer.apply(batch_of([]), {})
        with writer.snapshot() as snapshot:
            assert snapshot.attribute_record_count == 1
            assert snapshot.known_attribute_ids([b"a", b"b"]) == {b"b"}


def test_batch_whose_parts_disagree_is_refused() -> None:
    batch = attributes_batch_of([AttributesEvent(b"a", {})])
    wrong = [
        type(batch)(batch.ids, batch.values * 2, batch.partitions, batch.timestamps),
        type(batch)([b""], batch.values, batch.partitions, batch.timestamps),
        type(batch)([b"x" * 512], batch.values, batch.partitions, batch.timestamps),
        type(batch)(batch.ids, batch.values, batch.partitions, np.zeros(2, np.int64)),
    ]
    with an_index() as writer:
        for one in wrong:
            with pytest.raises(BatchError):
                writer.apply_attributes(one, {})
