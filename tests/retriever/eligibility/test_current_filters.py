"""Filters over an index that changes: after every batch the trie of a filter is that of an index with its items alone."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.attributes import Attributes
from models.sids.layout import Layout
from retriever.answering.ranking import by_own_probability
from retriever.eligibility.current import CurrentCatalogue
from store.reading.snapshot import Snapshot
from store.topology.layout_trie import SnapshotTrie
from store.writing.writer import IndexWriter
from streamer.filters.meaning import matches
from streamer.filters.reading import parsed_filter
from support.filter_cases import ATTRIBUTES, FILTERS, LIMITS, TYPES
from support.plain_index import AttributesEvent, Event, attributes_batch_of, batch_of

torch = pytest.importorskip("torch")

from retriever.search.beam_search import beam_search  # noqa: E402
from retriever.search.exact_search import exact_search  # noqa: E402
from retriever.search.marginal_search import marginal_beam_search  # noqa: E402
from support.decoding_cases import CODEBOOK, llama, prompts_of, random_codes, vocabulary_of  # noqa: E402

SIZE = 8
IDS = [b"%d" % number for number in range(12)]
UPDATES = st.builds(
    Event,
    st.sampled_from(IDS),
    st.one_of(st.none(), st.tuples(*[st.integers(0, 2)] * 3), st.tuples(*[st.integers(0, 2)] * 3)),
    timestamp=st.integers(0, 3),
    attributes=st.none() | ATTRIBUTES,
)
ALONE = st.builds(AttributesEvent, st.sampled_from(IDS), st.none() | ATTRIBUTES, timestamp=st.integers(0, 3))
STEPS = st.lists(st.lists(UPDATES | ALONE, min_size=1, max_size=8), min_size=1, max_size=6)


@contextmanager
def an_index() -> Iterator[IndexWriter]:
    with (
        tempfile.TemporaryDirectory() as directory,
        IndexWriter.open(Path(directory), codebook_id=CODEBOOK, layers=3, size=SIZE) as writer,
    ):
        yield writer


def feed(writer: IndexWriter, records: Sequence[Event | AttributesEvent]) -> None:
    writer.apply(batch_of([one for one in records if isinstance(one, Event)]), {})
    writer.apply_attributes(attributes_batch_of([one for one in records if isinstance(one, AttributesEvent)]), {})


def eligible_items(snapshot: Snapshot, asked: Any) -> dict[int, tuple[int, ...]]:
    """Number → codes of the items that the plain meaning lets through."""
    wanted = parsed_filter(asked, TYPES, LIMITS)
    items = [item for item in snapshot.find(IDS) if item is not None]
    attributes = snapshot.attributes([item.number for item in items])
    return {
        item.number: item.codes
        for item, own in zip(items, attributes, strict=True)
        if own is not None and matches(wanted, own, TYPES)
    }


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS, st.lists(FILTERS, min_size=1, max_size=3), st.sets(st.sampled_from(IDS), max_size=4))
def test_filters_in_use_follow_updates_deletions_and_attributes_that_come_alone(
    steps: list[list[Event | AttributesEvent]], filters: list[Any], excluded: set[bytes]
) -> None:
    layout = Layout(0, CODEBOOK, 3, SIZE, (0, 1))
    catalogue = CurrentCatalogue(TYPES)
    with an_index() as writer:
        for step in steps:
            feed(writer, step)
            with writer.snapshot() as snapshot:
                catalogue.roll_to(snapshot)
                out = [item.number for item in snapshot.find(sorted(excluded)) if item is not None]
                for asked in filters:
                    wanted = parsed_filter(asked, TYPES, LIMITS)
                    let_through = eligible_items(snapshot, asked)
                    assert catalogue.eligible_count(wanted) == len(let_through)
                    eligible = {number: codes for number, codes in let_through.items() if number not in out}
                    trie = catalogue.trie(snapshot, layout, wanted, np.array(sorted(out), np.uint32))
                    paths = sorted(set(eligible.values()))
                    assert len(trie.topology) == len(paths)
                    assert trie.topology.contains(np.array(paths, np.uint16).reshape(-1, 3)).all()
                    sids = sorted({layout.sid_of(path) for path in paths})
                    for sid, own in zip(sids, trie.items_of(sids), strict=True):
                        expected = {number for number, codes in eligible.items() if layout.sid_of(codes) == sid}
                        assert set(own.items.tolist()) == expected


@pytest.mark.parametrize("kind", ["pinned", "short SIDs", "marginal", "exact"])
def test_answer_under_a_filter_is_that_of_an_index_of_its_items_alone(kind: str) -> None:
    heads = {"pinned": (), "short SIDs": (0, 1, 3), "marginal": (0, 2), "exact": (0, 1)}[kind]
    layout, pinned = Layout(1, CODEBOOK, 3, SIZE, heads), Layout(0, CODEBOOK, 3, SIZE, ())
    if kind != "marginal":
        pinned = Layout(0, CODEBOOK, 3, SIZE, heads)
    vocabulary = vocabulary_of(3, SIZE)
    model, prompts = llama(vocabulary, seed=2), prompts_of(vocabulary, (3, 9))
    random = np.random.default_rng(5)

    def attributes() -> Attributes:
        return {"price": int(random.integers(0, 100)), "in_stock": bool(random.random() < 0.7)}

    events = [
        Event(
            b"item-%d" % row, tuple(own.tolist()), float(random.integers(1, 5)), updated_at=row, attributes=attributes()
        )
        for row, own in enumerate(random_codes(150, 3, SIZE, seed=7))
    ]
    alone = [AttributesEvent(event.id, attributes(), timestamp=1) for event in events[::3]]
    effective = {event.id: {**(event.attributes or {})} for event in events}
    for one in alone:
        effective[one.id].update(one.attributes or {})

    def found(trie: SnapshotTrie) -> list[list[tuple[bytes, tuple[int, ...], float]]]:
        if kind == "exact":
            sids = [each.sids for each in exact_search(model, vocabulary, prompts, trie, sids=6)]
        elif kind == "marginal":
            sids = marginal_beam_search(model, vocabulary, prompts, trie, pinned=pinned, beams=6)
        else:
            sids = beam_search(model, vocabulary, prompts, trie, beams=6)
        return [[(one.item.id, one.sid.tokens, one.score) for one in by_own_probability(own, trie, 10)] for own in sids]

    filters: list[dict[str, Any]] = [
        {"field": "price", "lt": 2},
        {"field": "price", "lte": 20, "ne": 7},
        {"all": [{"field": "in_stock", "eq": True}, {"not": {"field": "price", "gte": 90}}]},
        {"field": "brand", "exists": False},
    ]
    with an_index() as writer:
        feed(writer, [*events, *alone])
        with writer.snapshot() as snapshot:
            catalogue = CurrentCatalogue(TYPES)
            catalogue.roll_to(snapshot)
            for asked in filters:
                wanted = parsed_filter(asked, TYPES, LIMITS)
                kept = [event for event in events if matches(wanted, effective[event.id], TYPES)]
                assert len(kept) > 0
                with an_index() as other:
                    feed(other, kept)
                    with other.snapshot() as without:
                        expected = found(SnapshotTrie(without, layout))
                assert found(catalogue.trie(snapshot, layout, wanted)) == expected, asked
