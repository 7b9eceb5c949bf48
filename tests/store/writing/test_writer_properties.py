"""Whatever the history, the index equals the plain model: content, census, trie, digest and every layout's SIDs."""

from __future__ import annotations

import tempfile
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.sids.head_tokens import all_tokens, no_tokens, top_k
from models.sids.layout import Layout
from store.checks.verification import verify
from store.reading import paths
from store.reading.facts import read_state
from store.reading.snapshot import Snapshot
from store.records import change_log, encoding
from store.topology.layout_trie import SnapshotTrie
from store.writing import log_writer
from store.writing.writer import IndexWriter
from support.plain_index import CODEBOOK, Event, PlainIndex, batch_of
from support.trie_walk import sids_of_trie

SIZE = 5
IDS = [b"a", b"b", b"ab", b"a\x00", b"\x00", b"\xff\xfe", "käse".encode(), b"0" * 256, b"1" * 511]
MOST_KEYS = st.sampled_from([1 << 18, SIZE**2, SIZE])  # a key is a whole short path, two tokens of it, or one
SLOW_DISK = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def events(layers: int, partitions: int = 1) -> st.SearchStrategy[Event]:
    """From more than one partition: with times that make some of their keys split ones."""
    codes = st.tuples(*[st.integers(0, SIZE - 1)] * layers)
    return st.builds(
        Event,
        id=st.sampled_from(IDS),
        codes=st.one_of(st.none(), codes, codes, codes),
        weight=st.floats(width=32, allow_nan=False),
        title=st.sampled_from(["", "blue kettle", "Käse 🧀", "half \ud83e pair"]),
        updated_at=st.integers(-(2**62), 2**62),
        vector=st.sampled_from([b"", b"", b"\x00", b"a vector", bytes(range(256)) * 2, b"\xff" * 65_535]),
        partition=st.integers(0, partitions - 1),
        timestamp=st.integers(0, 5) if partitions > 1 else st.just(0),
    )


def histories(layers: int, partitions: int = 1) -> st.SearchStrategy[list[list[Event]]]:
    return st.lists(st.lists(events(layers, partitions), max_size=12), max_size=6)


def any_history(partitions: int = 1) -> st.SearchStrategy[tuple[int, list[list[Event]]]]:
    return st.sampled_from([3, 4, 5]).flatmap(lambda layers: st.tuples(st.just(layers), histories(layers, partitions)))


def build(directory: str, layers: int, batches: list[list[Event]]) -> IndexWriter:
    writer = IndexWriter.open(Path(directory) / "index", codebook_id=CODEBOOK, layers=layers, size=SIZE)
    for number, batch in enumerate(batches):
        writer.apply(batch_of(batch, layers), {("codes", 0): number + 1})
    return writer


@SLOW_DISK
@given(any_history())
def test_every_batch_leaves_what_the_plain_model_has(history: tuple[int, list[list[Event]]]) -> None:
    layers, batches = history
    plain = PlainIndex(layers, SIZE)
    with tempfile.TemporaryDirectory() as directory, build(directory, layers, []) as writer:
        for number, batch in enumerate(batches):
            before, alive = plain.census(), set(plain.items)
            plain.apply(batch)
            outcome = writer.apply(batch_of(batch, layers), {("codes", number % 3): number})
            last = {event.id: event for event in batch}
            after = plain.census()
            assert outcome.upserted == sum(event.codes is not None for event in last.values())
            assert outcome.deleted == sum(event.codes is None and event.id in alive for event in last.values())
            assert outcome.items == len(plain.items)
            assert outcome.changed_tokens == [
                (layer, token, after[layer, token]) for layer, token in np.argwhere(before != after).tolist()
            ]
            assert np.array_equal(writer.census(), after)
            assert writer.offsets()["codes", number % 3] == number
        with writer.snapshot() as snapshot:
            assert verify(snapshot) == []
            assert np.array_equal(snapshot.census(), plain.census())
            assert np.array_equal(snapshot.recount(), plain.census())
            assert snapshot.digest() == plain.digest()
            assert snapshot.item_count == len(plain.items)
            for item_id, item in zip(IDS, snapshot.find(IDS), strict=True):
                event = plain.items.get(item_id)
                assert (item is None) == (event is None)
                if item and event:
                    found = Event(item.id, item.codes, item.weight, item.title, item.updated_at, vector=event.vector)
                    assert found == event
            live = snapshot.find([item_id for item_id in IDS if item_id in plain.items])
            kept = snapshot.vectors([item.number for item in live if item])
            assert kept.numbers.tolist() == sorted(item.number for item in live if item and plain.items[item.id].vector)
            assert dict(zip(kept.ids, kept.values, strict=True)) == {
                item_id: event.vector for item_id, event in plain.items.items() if event.vector
            }
            blocks = list(snapshot.all_vectors())
            assert [item_id for block in blocks for item_id in block.ids] == kept.ids


@SLOW_DISK
@given(any_history(), st.data())
def test_digest_depends_on_neither_batch_split_nor_redelivery(
    history: tuple[int, list[list[Event]]], data: st.DataObject
) -> None:
    layers, batches = history
    flat = [event for batch in batches for event in batch]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(flat)), max_size=4)))
    edges = [0, *cuts, len(flat)]
    split = [flat[start:end] for start, end in pairwise(edges)]
    twice = [batch for batch in batches for _ in range(2)]
    digests = set()
    for variant in (batches, split, twice):
        with (
            tempfile.TemporaryDirectory() as directory,
            build(directory, layers, variant) as writer,
            writer.snapshot() as snapshot,
        ):
            digests.add(snapshot.digest())
            assert verify(snapshot) == []
    assert len(digests) == 1


@SLOW_DISK
@given(any_history())
def test_paths_equal_brute_force_under_every_layout(history: tuple[int, list[list[Event]]]) -> None:
    layers, batches = history
    plain = PlainIndex(layers, SIZE)
    plain.apply(event for batch in batches for event in batch)
    counts = plain.census()[1]
    with (
        tempfile.TemporaryDirectory() as directory,
        build(directory, layers, batches) as writer,
        writer.snapshot() as snapshot,
    ):
        for heads in (no_tokens(), top_k(counts, 1), top_k(counts, 2), all_tokens(SIZE)):
            layout = Layout(1, CODEBOOK, layers, SIZE, tuple(heads))
            trie = SnapshotTrie(snapshot, layout)
            assert trie.first_tokens().tolist() == snapshot.first_tokens().tolist()
            require_paths(trie, plain)


def require_paths(trie: SnapshotTrie, plain: PlainIndex) -> None:
    """Walked as a search does, the trie has every SID once, and of each the items that hold it, in the order of their codes."""
    sids = sids_of_trie(trie)
    assert len(set(sids)) == len(sids)
    found: Counter[tuple[tuple[int, ...], bytes]] = Counter()
    for sid, own in zip(sids, trie.items_of(sids), strict=True):
        items = trie.items(own.items)
        codes = [tuple(row) for row in own.codes.tolist()]
        assert [item.codes for item in items] == codes == sorted(codes)
        padded = (*sid, *[-1] * (trie.layout.layers - len(sid)))
        found.update((padded, item.id) for item in items)
    assert found == plain.paths(trie.layout, range(trie.layout.size))


@dataclass(frozen=True)
class Kept:
    """What somebody made from the index at a commit: who holds which path, by item number, and the live paths."""

    commit: int
    items: dict[int, tuple[bytes, tuple[int, ...]]]
    vectors: dict[int, bytes]

    @classmethod
    def of(cls, snapshot: Snapshot) -> Kept:
        numbers = [number for _, block in snapshot.all_paths() for number in block.tolist()]
        rows = [tuple(row) for codes, _ in snapshot.all_paths() for row in codes.tolist()]
        ids = [item.id for item in snapshot.items(numbers)]
        vectors = {
            number: value
            for block in snapshot.all_vectors()
            for number, value in zip(block.numbers.tolist(), block.values, strict=True)
        }
        return cls(snapshot.commit, dict(zip(numbers, zip(ids, rows, strict=True), strict=True)), vectors)

    @property
    def paths(self) -> set[tuple[int, ...]]:
        return {path for _, path in self.items.values()}


def rows_of(paths: NDArray[np.uint16]) -> list[tuple[int, ...]]:
    return [tuple(row) for row in paths.tolist()]


@SLOW_DISK
@given(
    any_history(partitions=3),
    st.sampled_from([None, (4, 1_000), (1_000, 2), (3, 3)]),  # bounds of the log: item changes, commits
    st.integers(1, 3),
    MOST_KEYS,
)
def test_what_was_kept_and_the_changes_since_are_what_is_there(
    history: tuple[int, list[list[Event]]], bounds: tuple[int, int] | None, trimmed: int, most_keys: int
) -> None:
    layers, batches = history
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "_MOST_KEYS", most_keys)
        if bounds is not None:
            patch.setattr(log_writer, "MINIMUM_LOG_ITEMS", bounds[0])
            patch.setattr(log_writer, "MAXIMUM_LOG_COMMITS", bounds[1])
            patch.setattr(log_writer, "_TRIMMED", trimmed)
            patch.setattr(change_log, "PART_BYTES", 40)
        with build(directory, layers, []) as writer:
            kept: list[Kept] = []
            for batch in [[], *batches, []]:
                outcome = writer.apply(batch_of(batch, layers), {})
                with writer.snapshot() as snapshot:
                    kept.append(Kept.of(snapshot))
                    assert verify(snapshot) == []
                assert outcome.items == len(kept[-1].items)
            now = kept[-1]
            assert [one.commit for one in kept] == sorted(one.commit for one in kept)
            with writer.snapshot() as snapshot:
                floor = read_state(snapshot._read, snapshot._databases).log_floor
                assert snapshot.changes_since(now.commit + 1) is None
                for one in kept:
                    changes = snapshot.changes_since(one.commit)
                    assert (changes is None) == (one.commit < floor)
                    if changes is None:
                        continue
                    assert changes.commit == now.commit
                    entered, left = rows_of(changes.entered), rows_of(changes.left)
                    assert len(set(entered)) == len(entered)
                    assert len(set(left)) == len(left)
                    assert not set(entered) & set(left)
                    assert (one.paths | set(entered)) - set(left) == now.paths
                    numbers = changes.items.tolist()
                    assert numbers == sorted(set(numbers))
                    for number in one.items.keys() | now.items.keys():
                        assert one.items.get(number) == now.items.get(number) or number in numbers
                    named = {*numbers, *changes.vectors.tolist()}
                    for number in one.vectors.keys() | now.vectors.keys():
                        assert one.vectors.get(number) == now.vectors.get(number) or number in named
            if bounds is None:
                assert floor == 0
            else:
                assert now.commit - floor <= bounds[1]


@SLOW_DISK
@given(any_history(), MOST_KEYS, st.data())
def test_items_below_short_paths_equal_brute_force(
    history: tuple[int, list[list[Event]]], most_keys: int, data: st.DataObject
) -> None:
    layers, batches = history
    plain = PlainIndex(layers, SIZE)
    plain.apply(event for batch in batches for event in batch)
    there = [(event.codes[0], *event.codes[2:]) for event in plain.items.values() if event.codes]
    anywhere = st.tuples(*[st.integers(0, SIZE - 1)] * (layers - 1))
    asked = data.draw(st.lists(st.one_of(anywhere, *([st.sampled_from(there)] * bool(there))), max_size=12))
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(encoding, "_MOST_KEYS", most_keys)
        snapshot = stack.enter_context(stack.enter_context(build(directory, layers, batches)).snapshot())
        below = snapshot.items_below(np.array(asked, np.uint16).reshape(-1, layers - 1))
        found = zip(below.owner.tolist(), below.layer2.tolist(), below.items.tolist(), strict=True)
        number_of = {item.id: item.number for item in snapshot.find(list(plain.items)) if item}
        assert list(found) == sorted(
            (row, event.codes[1], number_of[event.id])
            for row, short in enumerate(asked)
            for event in plain.items.values()
            if event.codes and (event.codes[0], *event.codes[2:]) == short
        )
        patch.setattr(paths, "_FIRST_KEYS", 1)
        patch.setattr(paths, "_BLOCK_RECORDS", 3)
        blocks = list(snapshot.all_paths())
        rows = [
            (codes[0], *codes[2:], codes[1], number)
            for block in blocks
            for *codes, number in np.column_stack(block).tolist()
        ]
        assert rows == sorted(
            (event.codes[0], *event.codes[2:], event.codes[1], number_of[event.id])
            for event in plain.items.values()
            if event.codes
        )


@pytest.mark.parametrize(("layers", "size"), [(3, 65_536), (4, 65_536), (8, 300)])
def test_wide_codes_are_found_with_and_without_a_packed_key(tmp_path: Path, layers: int, size: int) -> None:
    random = np.random.default_rng(layers)
    pool = np.array([0, 1, 255, 256, size - 2, size - 1])
    drawn = [tuple(random.choice(pool, layers).tolist()) for _ in range(300)]
    some = [Event(b"%d" % number, codes) for number, codes in enumerate(drawn)]
    plain = PlainIndex(layers, size)
    plain.apply(some)
    with IndexWriter.open(tmp_path / "index", codebook_id=CODEBOOK, layers=layers, size=size) as writer:
        writer.apply(batch_of(some, layers), {})
        with writer.snapshot() as snapshot:
            layout = Layout(1, CODEBOOK, layers, size, (1, size - 1))
            require_paths(SnapshotTrie(snapshot, layout), plain)
            assert np.array_equal(snapshot.census(), plain.census())
            assert verify(snapshot) == []
