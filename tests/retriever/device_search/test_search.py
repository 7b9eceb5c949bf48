"""The search on the device against the host's, over a catalogue that changes: on the processor, as no card is needed for that."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from models.sids.layout import Layout  # noqa: E402
from models.sids.vocabulary import SidVocabulary  # noqa: E402
from retriever.device_search import search as device_search  # noqa: E402
from retriever.device_search.search import DeviceSearch, Plan  # noqa: E402
from retriever.search.beam_search import beam_search  # noqa: E402
from retriever.search.search_parts import Normaliser, ScoredSid  # noqa: E402
from store.topology.bitmap_topology import BitmapTopology  # noqa: E402
from store.topology.layout_trie import LayoutTrie  # noqa: E402
from store.topology.topology import topology_of  # noqa: E402
from support.decoding_cases import CODEBOOK, assert_same, llama, prompts_of, random_codes, vocabulary_of  # noqa: E402
from support.tiny_families import ATTENTIVE, SCALING, tiny_model  # noqa: E402

SIZE = 12


def assert_as_on_the_host(found: list[list[ScoredSid]], expected: list[list[ScoredSid]]) -> None:
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert_same(ours, [(sid.tokens, sid.score) for sid in theirs])
        for mine, other in zip(ours, theirs, strict=True):
            assert (mine.left_out is None) == (other.left_out is None)
            if mine.left_out is not None:
                np.testing.assert_allclose(mine.left_out, other.left_out, atol=1e-4)


def family_vocabulary() -> SidVocabulary:
    return SidVocabulary(text_size=200, user_buckets=0, layers=3, size=SIZE)


@pytest.fixture
def no_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the host would answer instead, but to probe, is a failure."""

    def refuse(*arguments: Any, **named: Any) -> Any:
        assert not isinstance(arguments[3], list), "the host was asked"
        return beam_search(*arguments, **named)

    monkeypatch.setattr(device_search, "beam_search", refuse)


@pytest.mark.usefixtures("no_fallback")
@pytest.mark.parametrize("normaliser", ["vocabulary", "layers"])
@pytest.mark.parametrize("heads", [(), (0, 1, 3), tuple(range(SIZE))])
@pytest.mark.parametrize("beams", [1, 7, 60])
def test_answers_are_the_hosts_for_any_layout_and_number_of_beams(
    normaliser: Normaliser, heads: tuple[int, ...], beams: int
) -> None:
    vocabulary = vocabulary_of(3, SIZE)
    model, layout = llama(vocabulary), Layout(1, CODEBOOK, 3, SIZE, heads)
    trie = LayoutTrie(topology_of([random_codes(200, 3, SIZE)], 3, SIZE), layout)
    search = DeviceSearch(model, vocabulary)
    for lengths in ((9,), (3, 70, 1), (5, 5, 5, 5, 9)):
        prompts = prompts_of(vocabulary, lengths)
        assert_as_on_the_host(
            search.search(prompts, trie, beams=beams, normaliser=normaliser),
            beam_search(model, vocabulary, prompts, trie, beams=beams, normaliser=normaliser),
        )


@pytest.mark.usefixtures("no_fallback")
@pytest.mark.parametrize("seed", range(4))
def test_answers_follow_a_catalogue_that_changes_between_batches_with_exclusions_of_each_query(seed: int) -> None:
    random = np.random.default_rng(seed)
    vocabulary, layout = vocabulary_of(3, SIZE), Layout(1, CODEBOOK, 3, SIZE, (0, 2) if seed % 2 else ())
    model = llama(vocabulary)
    codes = np.unique(random_codes(400, 3, SIZE, seed), axis=0)
    live = random.random(len(codes)) < 0.5
    topology = BitmapTopology.of([codes[live]], SIZE)
    search = DeviceSearch(model, vocabulary)
    for turn in range(12):
        # A few paths come and go, or, now and then, more than are sent beside a table.
        flipped = random.choice(len(codes), size=150 if turn in (4, 9) else 5, replace=False)
        entered, left = flipped[~live[flipped]], flipped[live[flipped]]
        topology = topology.with_changes(codes[entered], codes[left])
        live[flipped] = ~live[flipped]
        there = np.flatnonzero(live)
        tries = []
        for query in range(int(random.integers(1, 6))):
            if query == 1:  # a filter's items, another set altogether
                own: Any = BitmapTopology.of([codes[there[::3]]], SIZE)
            else:
                without = random.choice(there, size=int(random.integers(0, 9)), replace=False)
                own = topology.with_changes(codes[:0], codes[without])
            tries.append(LayoutTrie(own, layout))
        prompts = prompts_of(vocabulary, tuple(random.integers(1, 20, size=len(tries)).tolist()), seed=turn)
        assert_as_on_the_host(
            search.search(prompts, tries, beams=6), beam_search(model, vocabulary, prompts, tries, beams=6)
        )


def test_host_answers_what_the_device_does_not_cover(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def host(*arguments: Any, **named: Any) -> Any:
        asked.append(arguments)
        return beam_search(*arguments, **named)

    monkeypatch.setattr(device_search, "beam_search", host)
    # More filters in a batch than there are tables.
    vocabulary, layout = vocabulary_of(3, SIZE), Layout(1, CODEBOOK, 3, SIZE, ())
    tries = [LayoutTrie(topology_of([random_codes(60, 3, SIZE, seed)], 3, SIZE), layout) for seed in range(9)]
    prompts = prompts_of(vocabulary, (4,) * 9)
    assert all(DeviceSearch(llama(vocabulary), vocabulary).search(prompts, tries, beams=4))
    # Four layers have no bitmap.
    longer = vocabulary_of(4, SIZE)
    trie = LayoutTrie(topology_of([random_codes(60, 4, SIZE)], 4, SIZE), Layout(1, CODEBOOK, 4, SIZE, ()))
    assert all(DeviceSearch(llama(longer), longer).search(prompts_of(longer, (4,)), trie, beams=4))
    # Attention that goes by the order of the tokens.
    by_order = tiny_model("bloom")
    own = family_vocabulary()
    assert all(DeviceSearch(by_order, own).search(prompts_of(own, (4,)), tries[0], beams=4))
    asked_by_searches = [arguments for arguments in asked if isinstance(arguments[3], list)]  # not by probes
    assert [len(arguments[2]) for arguments in asked_by_searches] == [9, 1, 1]


def test_empty_trie_and_scores_that_are_not_finite_give_empty_lists() -> None:
    vocabulary, layout = vocabulary_of(3, SIZE), Layout(1, CODEBOOK, 3, SIZE, (1,))
    empty = LayoutTrie(topology_of([random_codes(0, 3, SIZE)], 3, SIZE), layout)
    full = LayoutTrie(topology_of([random_codes(40, 3, SIZE)], 3, SIZE), layout)
    model, prompts = llama(vocabulary), prompts_of(vocabulary, (4, 6))
    first, second = DeviceSearch(model, vocabulary).search(prompts, [empty, full], beams=5)
    assert (len(first), len(second)) == (0, 5)
    search = DeviceSearch(model, vocabulary)
    search.search(prompts, full, beams=5)
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(torch.nan)
    assert search.search(prompts, full, beams=5) == [[], []]


@pytest.mark.parametrize("family", sorted(ATTENTIVE | SCALING))
def test_families_that_go_by_masks_are_searched_on_the_device(family: str) -> None:
    assert DeviceSearch(tiny_model(family), family_vocabulary()).works


def test_model_whose_answers_would_be_others_is_searched_on_the_host(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    vocabulary = vocabulary_of(3, SIZE)
    monkeypatch.setattr(Plan, "_fed", lambda self, codeword, score, base: codeword + base + 1)
    trie = LayoutTrie(topology_of([random_codes(60, 3, SIZE)], 3, SIZE), Layout(1, CODEBOOK, 3, SIZE, ()))
    model, prompts = llama(vocabulary), prompts_of(vocabulary, (4,))
    search = DeviceSearch(model, vocabulary)
    assert_as_on_the_host(search.search(prompts, trie, beams=5), beam_search(model, vocabulary, prompts, trie, beams=5))
    assert not search.works
    assert "search_on_the_host" in capsys.readouterr().out
