"""Both forms of a topology against the definition of a SID, after any changes and under any layout."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.sids.layout import Layout
from store.topology.bitmap_topology import BitmapTopology
from store.topology.sorted_topology import SortedTopology
from store.topology.topology import Topology, topology_of
from support.plain_index import CODEBOOK

Path = tuple[int, ...]


def array(paths: Iterable[Path], layers: int) -> np.ndarray:
    return np.array(sorted(paths), np.uint16).reshape(-1, layers)


def topologies(paths: set[Path], layers: int, size: int) -> list[Topology]:
    """Every form that a codebook can have, built of two blocks."""
    rows = array(paths, layers)
    blocks = [rows[::2], rows[1::2], rows[:1]]
    forms: list[Topology] = [SortedTopology.of(blocks, layers, size)]
    return [*forms, BitmapTopology.of(blocks, size)] if layers == 3 else forms


def continuations(paths: set[Path], layout: Layout) -> dict[Path, set[int]]:
    """SID token numbers that may follow each prefix of a live SID."""
    found: dict[Path, set[int]] = {}
    for path in paths:
        sid = layout.sid_of(path)
        for depth in range(len(sid)):
            found.setdefault(sid[:depth], set()).add(sid[depth])
    return found


def require_equal(topology: Topology, paths: set[Path], layout: Layout, seed: int) -> None:
    assert len(topology) == len(paths)
    expected = continuations(paths, layout)
    assert topology.first_tokens().tolist() == sorted(expected.get((), set()))
    random = np.random.default_rng(seed)
    for depth in range(1, layout.layers):
        prefixes = [prefix for prefix in expected if len(prefix) == depth]
        if not prefixes:
            continue
        chosen = [prefixes[row] for row in random.integers(len(prefixes), size=2 * len(prefixes))]
        owner, token = topology.children(layout, np.array(chosen, np.int32))
        assert (np.diff(owner) >= 0).all()
        for row, prefix in enumerate(chosen):
            assert token[owner == row].tolist() == sorted(expected[prefix])


@st.composite
def cases(draw: st.DrawFn) -> tuple[int, int, list[tuple[set[Path], set[Path]]], list[tuple[int, ...]]]:
    """Layers, size, batches of (entered, left), and head tokens of two layouts."""
    layers, size = draw(st.sampled_from([(3, 1), (3, 4), (3, 9), (4, 4), (5, 3), (6, 3), (7, 2)]))
    path = st.tuples(*[st.integers(0, size - 1)] * layers)
    batches = draw(st.lists(st.tuples(st.sets(path, max_size=25), st.sets(path, max_size=12)), min_size=1, max_size=6))
    heads = st.sets(st.integers(0, size - 1)).map(lambda tokens: tuple(sorted(tokens)))
    return layers, size, batches, [draw(heads), draw(heads), ()]


@given(cases(), st.integers(0, 100))
@settings(max_examples=150, deadline=None)
def test_children_are_those_of_every_live_path_after_any_changes_and_under_any_layout(
    case: tuple[int, int, list[tuple[set[Path], set[Path]]], list[tuple[int, ...]]], seed: int
) -> None:
    layers, size, batches, heads = case
    layouts = [Layout(number, CODEBOOK, layers, size, tokens) for number, tokens in enumerate(heads)]
    live: set[Path] = set()
    forms = topologies(live, layers, size)
    history = [(list(forms), set(live))]
    for number, (entered, left) in enumerate(batches):
        left = left - entered
        live = (live | entered) - left
        forms = [form.with_changes(array(entered, layers), array(left, layers)) for form in forms]
        history.append((list(forms), set(live)))
        for form in forms:
            require_equal(form, live, layouts[number % 3], seed)
    for form in topologies(live, layers, size):
        require_equal(form, live, layouts[0], seed)
    for forms, paths in history:  # earlier ones are as they were
        for form in forms:
            require_equal(form, paths, layouts[1], seed)
            every = array(paths | {(0,) * layers}, layers)
            assert form.contains(every).tolist() == [tuple(row) in paths for row in every.tolist()]


@pytest.mark.parametrize(
    ("layers", "size", "form"),
    [(3, 256, BitmapTopology), (3, 320, BitmapTopology), (3, 4096, SortedTopology), (4, 16, SortedTopology)],
)
def test_small_codebooks_of_three_layers_are_bits_and_others_sorted_keys(layers: int, size: int, form: type) -> None:
    topology = topology_of([np.array([[1] * layers, [size - 1] * layers], np.uint16)], layers, size)
    assert isinstance(topology, form)
    assert len(topology) == 2
    assert topology.first_tokens().tolist() == [1, size - 1]
    assert topology.nbytes <= 4 << 20


@pytest.mark.parametrize("size", [16, 4096])
def test_no_prefixes_have_no_continuations(size: int) -> None:
    topology = topology_of([np.array([[1, 2, 3]], np.uint16)], 3, size)
    for depth in (1, 2):
        owner, token = topology.children(Layout(0, CODEBOOK, 3, size, (2,)), np.empty((0, depth), np.int32))
        assert (len(owner), len(token)) == (0, 0)


def test_tokens_up_to_the_largest_codebook_keep_their_order() -> None:
    size = 65_536
    paths = {(65_535, 65_535, 65_535), (65_535, 0, 65_535), (65_535, 65_535, 0), (0, 1, 2)}
    layout = Layout(0, CODEBOOK, 3, size, (0,))
    require_equal(SortedTopology.of([array(paths, 3)], 3, size), paths, layout, 0)


def test_many_small_changes_to_a_segment_that_no_search_comes_to_are_merged_in_between() -> None:
    topology = SortedTopology.of([], 3, 16)
    live: set[Path] = set()
    random = np.random.default_rng(1)
    for _ in range(100):
        entered = {(3, *random.integers(16, size=2).tolist())}
        left = {(3, *random.integers(16, size=2).tolist())} - entered
        live = (live | entered) - left
        topology = topology.with_changes(array(entered, 3), array(left, 3))
    require_equal(topology, live, Layout(0, CODEBOOK, 3, 16, (1, 5)), 0)
