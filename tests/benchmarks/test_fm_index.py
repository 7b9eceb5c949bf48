"""The benchmark's FM-index is the same constraint as the prefix tree, or its figures would compare two things."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.retrieval.fm_index import CODEBOOK, crowded_batch, measure
from benchmarks.retrieval.fm_structure import DynamicFmIndex, FmIndex, WaveletMatrix
from models.sids.head_tokens import top_k
from models.sids.layout import Layout
from store.writing.writer import IndexWriter


@dataclass(frozen=True)
class SidPaths:
    """Items with their SIDs: tokens (R, L) padded with -1, item numbers (R,), codes (R, L)."""

    tokens: NDArray[np.int32]
    items: NDArray[np.uint32]
    codes: NDArray[np.uint16]


def stored_paths(directory: Path, layers: int, size: int, heads: int) -> tuple[Layout, SidPaths]:
    """A layout of a small crowded index, and all its paths."""
    batch = crowded_batch(np.random.default_rng(layers), 700, size, layers)
    with IndexWriter.open(directory, codebook_id=CODEBOOK, layers=layers, size=size) as writer:
        writer.apply(batch, {})
        layout = Layout(1, CODEBOOK, layers, size, tuple(top_k(writer.census()[1], heads)))
        with writer.snapshot() as snapshot:
            codes, items = (np.concatenate(parts) for parts in zip(*snapshot.all_paths(), strict=True))
        return layout, SidPaths(layout.sid_tokens(codes), items, codes)


def children_of(paths: SidPaths) -> dict[tuple[int, ...], dict[int, list[int]]]:
    """Items below each allowed next token of each prefix."""
    found: dict[tuple[int, ...], dict[int, list[int]]] = {}
    for row, item in zip(paths.tokens.tolist(), paths.items.tolist(), strict=True):
        sid = [token for token in row if token >= 0]
        for depth, token in enumerate(sid):
            found.setdefault(tuple(sid[:depth]), {}).setdefault(token, []).append(item)
    return found


@pytest.mark.parametrize(("layers", "size", "heads"), [(3, 12, 0), (3, 12, 3), (4, 7, 2), (3, 12, 12)])
def test_every_prefix_has_the_next_tokens_and_items_of_the_prefix_tree(
    tmp_path: Path, layers: int, size: int, heads: int
) -> None:
    layout, paths = stored_paths(tmp_path, layers, size, heads)
    index = FmIndex.of(paths.codes, paths.items, layout)
    expected = children_of(paths)
    prefixes, low, high = [()], *index.root()
    visited = 0
    while prefixes:
        owner, token, low, high = index.children(low, high)
        longer = [(*prefixes[place], value) for place, value in zip(owner.tolist(), token.tolist(), strict=True)]
        for place, prefix in enumerate(prefixes):
            mine = {
                sid[-1]: end - begin
                for sid, begin, end in zip(longer, low.tolist(), high.tolist(), strict=True)
                if sid[:-1] == prefix
            }
            assert mine == {value: len(items) for value, items in expected[prefix].items()}, place
        visited += len(prefixes)
        whole = token >= (layers - 1) * size
        for row in np.flatnonzero(whole).tolist():
            items = index.items_of(int(low[row]), int(high[row])).tolist()
            assert sorted(items) == sorted(expected[longer[row][:-1]][longer[row][-1]])
        prefixes = [sid for sid, ends in zip(longer, whole.tolist(), strict=True) if not ends]
        low, high = low[~whole], high[~whole]
    assert visited == len(expected)


def test_extending_by_a_token_is_the_childs_range_and_empty_where_it_is_not_allowed(tmp_path: Path) -> None:
    layout, paths = stored_paths(tmp_path, 3, 12, 3)
    index = FmIndex.of(paths.codes, paths.items, layout)
    _, first, low, high = index.children(*index.root())
    owner, token, *expected = index.children(low, high)
    extended = index.extend(low[owner], high[owner], token)
    np.testing.assert_array_equal(extended, expected)
    begin, end = index.extend(low, high, first)  # no SID has a layer-1 token twice
    assert (begin == end).all()


def test_a_search_that_does_not_begin_at_the_separator_finds_the_middle_of_sids(tmp_path: Path) -> None:
    layout, paths = stored_paths(tmp_path, 3, 12, 0)
    index = FmIndex.of(paths.codes, paths.items, layout)
    token = int(paths.tokens[0, 1])
    anywhere = np.zeros(1, np.int64), index.start[-1:] - len(paths.items)
    low, high = index.extend(*anywhere, np.array([token]))
    assert high - low == np.count_nonzero(paths.tokens[:, 1] == token)
    low, high = index.extend(*index.root(), np.array([token]))
    assert high == low


def test_rank_counts_across_words_and_blocks() -> None:
    symbols = np.random.default_rng(0).integers(8, size=5 * 512).astype(np.uint16)
    matrix = WaveletMatrix.of(symbols, 3)
    np.testing.assert_array_equal(
        matrix.ones(0, np.arange(len(symbols) + 1)), np.concatenate(([0], np.cumsum(symbols >> 2)))
    )


def test_a_dynamic_index_that_took_insertions_allows_what_a_rebuilt_one_does(tmp_path: Path) -> None:
    pytest.importorskip("wavelet_matrix")
    layout, paths = stored_paths(tmp_path, 3, 12, 3)
    dynamic = DynamicFmIndex(paths.codes[:400], layout)
    dynamic.insert(layout.sid_of(codes) for codes in paths.codes[400:].tolist())
    static = FmIndex.of(paths.codes, paths.items, layout)
    low, high = (int(bound[0]) for bound in static.root())
    for token, begin, end in dynamic.children(low, high):
        child = static.extend(*static.root(), np.array([token]))
        _, tokens, lows, highs = static.children(*child)
        mine = [(value, last - first) for value, first, last in dynamic.children(begin, end)]
        assert mine == list(zip(tokens.tolist(), (highs - lows).tolist(), strict=True))


def test_the_benchmark_reports_every_figure_beside_the_prefix_tree(tmp_path: Path) -> None:
    results = measure(3_000, 16, tmp_path, beams=4, rounds=2, batch=100)
    assert all(result.value > 0 for result in results)
    figures = {result.name.split(": ", 1)[1].split()[0].rstrip(",") for result in results}
    assert figures == {"memory", "step", "answer", "query", "update", "layout"}
