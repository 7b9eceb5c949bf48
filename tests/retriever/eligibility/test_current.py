"""Filters and exclusions are exact: the search over eligible items is the search over an index that holds no others."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.sids.layout import Layout
from retriever.answering.ranking import by_own_probability
from retriever.eligibility.current import CurrentCatalogue
from store.reading.snapshot import Snapshot
from store.topology.layout_trie import SnapshotTrie
from store.writing.writer import IndexWriter
from support.plain_index import Event, batch_of

torch = pytest.importorskip("torch")

from retriever.search.beam_search import beam_search  # noqa: E402
from retriever.search.exact_search import exact_search  # noqa: E402
from retriever.search.marginal_search import marginal_beam_search  # noqa: E402
from support.decoding_cases import CODEBOOK, llama, prompts_of, random_codes, vocabulary_of  # noqa: E402

SIZE = 8
Answer = list[tuple[bytes, tuple[int, ...], float]]


@contextmanager
def index_of(events: list[list[Event]], layers: int = 3) -> Iterator[IndexWriter]:
    with (
        tempfile.TemporaryDirectory() as directory,
        IndexWriter.open(Path(directory), codebook_id=CODEBOOK, layers=layers, size=SIZE) as writer,
    ):
        for batch in events:
            writer.apply(batch_of(batch, layers), {})
        yield writer


def events_of(count: int, layers: int, seed: int) -> list[Event]:
    codes = random_codes(count, layers, SIZE, seed=seed)
    random = np.random.default_rng(seed)
    return [
        Event(b"item-%d" % row, tuple(own.tolist()), float(random.integers(1, 5)), updated_at=row)
        for row, own in enumerate(codes)
    ]


def found(trie: SnapshotTrie, kind: str, prompts: list[list[int]], pinned: Layout, beams: int = 6) -> list[Answer]:
    """The ten first items of each prompt: id, SID, score."""
    vocabulary = vocabulary_of(trie.layout.layers, SIZE)
    model = llama(vocabulary, seed=2)
    if kind == "exact":
        sids = [each.sids for each in exact_search(model, vocabulary, prompts, trie, sids=beams)]
    elif kind == "marginal":
        sids = marginal_beam_search(model, vocabulary, prompts, trie, pinned=pinned, beams=beams)
    else:
        sids = beam_search(model, vocabulary, prompts, trie, beams=beams)
    ranked = [by_own_probability(own, trie, 10) for own in sids]
    return [[(one.item.id, one.sid.tokens, one.score) for one in answer] for answer in ranked]


KINDS = {
    "pinned": ((), ()),
    "short SIDs": ((0, 1, 3), (0, 1, 3)),
    "marginal": ((0, 2), ()),
    "exact": ((0, 1), (0, 1)),
}


def numbers_of(snapshot: Snapshot, ids: list[bytes]) -> np.ndarray:
    return np.array([item.number for item in snapshot.find(ids) if item is not None], np.uint32)


@pytest.mark.parametrize("layers", [3, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_without_excluded_items_is_that_of_an_index_without_them(kind: str, layers: int) -> None:
    heads, pinned_heads = KINDS[kind]
    layout, pinned = Layout(1, CODEBOOK, layers, SIZE, heads), Layout(0, CODEBOOK, layers, SIZE, pinned_heads)
    prompts = prompts_of(vocabulary_of(layers, SIZE), (3, 9))
    events = events_of(120, layers, seed=3)
    random = np.random.default_rng(layers)
    with index_of([events], layers) as writer, writer.snapshot() as snapshot:
        catalogue = CurrentCatalogue({})
        catalogue.roll_to(snapshot)
        for count in (0, 1, 20, 110, 119):
            left_out = random.choice(120, count, replace=False)
            ids = [b"item-%d" % row for row in left_out.tolist()]
            trie = catalogue.trie(snapshot, layout, None, numbers_of(snapshot, ids))
            rest = [event for event in events if event.id not in ids]
            with index_of([rest], layers) as other, other.snapshot() as without:
                expected = found(SnapshotTrie(without, layout), kind, prompts, pinned)
            assert found(trie, kind, prompts, pinned) == expected, f"{count} excluded"


def test_excluding_everything_leaves_an_empty_trie_and_unknown_numbers_change_nothing() -> None:
    layout = Layout(0, CODEBOOK, 3, SIZE, (1,))
    with index_of([events_of(10, 3, 0)]) as writer, writer.snapshot() as snapshot:
        catalogue = CurrentCatalogue({})
        catalogue.roll_to(snapshot)
        everything = np.arange(10, dtype=np.uint32)
        assert len(catalogue.trie(snapshot, layout, None, everything).first_tokens()) == 0
        beyond = catalogue.trie(snapshot, layout, None, np.array([77, 10_000], np.uint32))
        assert len(beyond.topology) == len(SnapshotTrie(snapshot, layout).topology)


history = st.lists(
    st.lists(
        st.builds(
            Event,
            st.integers(0, 12).map(lambda number: b"%d" % number),
            st.one_of(st.none(), st.tuples(*[st.integers(0, 2)] * 3)),
        ),
        min_size=1,
        max_size=8,
    ),
    min_size=1,
    max_size=8,
)


@settings(deadline=None, max_examples=60)
@given(history, st.sets(st.integers(0, 12)))
def test_the_topology_rolled_forward_is_that_of_the_snapshot_after_every_batch(
    batches: list[list[Event]], excluded: set[int]
) -> None:
    layout = Layout(0, CODEBOOK, 3, SIZE, (0, 1))
    catalogue = CurrentCatalogue({})
    with index_of([]) as writer:
        for batch in batches:
            writer.apply(batch_of(batch), {})
            with writer.snapshot() as snapshot:
                catalogue.roll_to(snapshot)
                items = [item for item in snapshot.find([b"%d" % number for number in range(13)]) if item]
                out = np.array([item.number for item in items if int(item.id) in excluded], np.uint32)
                trie = catalogue.trie(snapshot, layout, None, out)
                paths = {item.codes for item in items if int(item.id) not in excluded}
                assert len(trie.topology) == len(paths)
                every = np.array(sorted(paths), np.uint16).reshape(-1, 3)
                assert trie.topology.contains(every).all()
                sids = sorted({layout.sid_of(path) for path in paths})
                for sid, own in zip(sids, trie.items_of(sids), strict=True):
                    expected = {
                        item.number
                        for item in items
                        if layout.sid_of(item.codes) == sid and int(item.id) not in excluded
                    }
                    assert set(own.items.tolist()) == expected
