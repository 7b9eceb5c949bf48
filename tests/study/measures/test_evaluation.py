"""What the study measures: ranks, recall, free beams and the trie in memory, each against brute force."""

from __future__ import annotations

import itertools
import pickle
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from models.sids.layout import Layout
from models.sids.vocabulary import SidVocabulary
from store.reading.reader import IndexReader
from store.records.batch import CodesBatch
from store.records.encoding import StoredItem
from store.topology.layout_trie import SidItems, SnapshotTrie
from store.writing.writer import IndexWriter
from study.data.choices import CodebookChoice
from study.data.datasets import Dataset, TestCase
from study.experiments.configuration import LayoutChoice, RunChoice
from study.measures import evaluation
from study.measures.catalogue_trie import CatalogueTrie
from study.measures.evaluation import Outcome, bucket_sizes, evaluate, recall

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from models.language.language_model import small_causal_lm  # noqa: E402
from retriever.answering.ranking import by_own_probability  # noqa: E402
from retriever.search.search_parts import ScoredSid  # noqa: E402
from study.measures.free_beams import free_beams, invalid_shares  # noqa: E402

SIZE = 6
RANDOM = np.random.default_rng(4)
CODES = RANDOM.integers(SIZE, size=(40, 3)).astype(np.uint16)
CODES[20:30] = CODES[:10]  # items that share all codes
LAYOUT = Layout(1, "codebook", 3, SIZE, (1, 3))
VOCABULARY = SidVocabulary(text_size=0, user_buckets=0, layers=3, size=SIZE)


def dataset(**changes: object) -> Dataset:
    values = {
        "name": "tiny",
        "embeddings": RANDOM.normal(size=(40, 4)).astype(np.float32),
        "titles": ("",) * 40,
        "histories": ((0, 1, 2), (0, 1), (5, 1)),
        "queries": (),
        "cases": (),
        "arrived": np.zeros(40, dtype=bool),
        "popularity": np.arange(40)[::-1].copy(),
    }
    return Dataset(**values | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "layout", [LAYOUT, Layout(1, "codebook", 3, SIZE), Layout(1, "codebook", 3, SIZE, (0, 1, 2, 3, 4, 5))]
)
def test_the_trie_in_memory_has_the_paths_of_an_index_with_the_same_items(layout: Layout, tmp_path: Path) -> None:
    with IndexWriter.open(tmp_path, codebook_id="codebook", layers=3, size=SIZE) as writer:
        ids = [str(row).encode() for row in range(40)]
        writer.apply(
            CodesBatch(ids, CODES, np.ones(40, np.float32), [""] * 40, np.zeros(40, np.int64), np.zeros(40, bool)), {}
        )
    mine = CatalogueTrie(CODES, layout)
    with IndexReader(tmp_path) as reader, reader.snapshot() as snapshot:
        theirs = SnapshotTrie(snapshot, layout)
        np.testing.assert_array_equal(mine.first_tokens(), theirs.first_tokens())
        prefixes = theirs.first_tokens()[:, None]
        for one, other in zip(mine.children(prefixes), theirs.children(prefixes), strict=True):
            np.testing.assert_array_equal(one, other)
        sids = sorted({layout.sid_of(row) for row in CODES.tolist()})
        for one, other in zip(mine.items_of(sids), theirs.items_of(sids), strict=True):
            np.testing.assert_array_equal(one.codes, other.codes)
            names = [int(item.id) for item in snapshot.items(other.items)]
            assert sorted(one.items.tolist()) == sorted(names)


class GivenTrie:
    """SIDs made up of any items, as a search over a trie would have found them."""

    layout = LAYOUT

    def __init__(self) -> None:
        self.found: dict[tuple[int, ...], NDArray[np.int64]] = {}
        self.weights = np.ones(len(CODES), np.float32)

    def sid(self, items: list[int], score: float, left_out: dict[int, float] | None = None) -> ScoredSid:
        """One of these items; ``left_out``: by layer-2 token."""
        tokens = (*(token for token in LAYOUT.sid_tokens(CODES[items])[0].tolist() if token >= 0), 99 + len(self.found))
        self.found[tokens] = np.array(items)
        if left_out is None:
            return ScoredSid(tokens, score, None)
        values = np.full(SIZE, -np.inf, np.float32)
        values[list(left_out)] = list(left_out.values())
        return ScoredSid(tokens, score, values)

    def items_of(self, sids: list[tuple[int, ...]]) -> list[SidItems]:
        return [
            SidItems(self.found[sid].astype(np.uint32), CODES[self.found[sid]], self.weights[self.found[sid]])
            for sid in sids
        ]


def test_item_ranks_follow_sids_then_the_ranking_and_skip_the_history() -> None:
    short = int(np.flatnonzero(LAYOUT.is_head[CODES[:10, 1]])[0])
    other = int(np.flatnonzero(~LAYOUT.is_head[CODES[:10, 1]])[0])
    layout = replace(LAYOUT, head_tokens=tuple(sorted({*LAYOUT.head_tokens, int(CODES[short, 1])})))
    codes = CODES.copy()
    codes[short + 20, 1] = next(token for token in layout.head_tokens if token != CODES[short, 1])
    trie = CatalogueTrie(codes, layout, np.array([other, other + 20, short, short + 20]))
    left_out = np.zeros(SIZE, np.float32)
    left_out[codes[[short, short + 20], 1]] = [-3.0, -1.0]
    answer = [
        ScoredSid(layout.sid_of(codes[other].tolist()), -1.0, None),
        ScoredSid(layout.sid_of(codes[short].tolist()), -2.0, left_out),
    ]
    data = dataset()
    case = TestCase(7, (other + 20, short + 20, short), history=(other,))
    outcome = evaluate(lambda prompts: [answer], [[0]], [case], data, codes, trie, data.embeddings)
    assert outcome.sid_rank.tolist() == [1, 2, 2]
    assert outcome.item_ranks["weight"].tolist() == [1, 3, 2]  # the more popular item has the smaller row
    assert outcome.item_ranks["left-out token"].tolist() == [1, 2, 3]
    near = data.embeddings @ data.embeddings[other]
    expected = [1, 2, 3] if near[short + 20] > near[short] else [1, 3, 2]
    assert outcome.item_ranks["history"].tolist() == expected


def test_recall_is_the_mean_over_cases_of_the_share_found() -> None:
    case = np.array([1, 1, 2, 3])
    ranks = np.array([1, 50, 4, 1_000_000])
    figures = recall(case, ranks)
    assert (figures["cases"], figures["1"], figures["5"], figures["50"]) == (3, 0.16667, 0.5, 0.66667)
    assert all(figures[f"low {k}"] <= figures[str(k)] <= figures[f"high {k}"] for k in (1, 3, 5, 10, 30, 50))
    assert figures["low 50"] < figures["high 50"]
    assert recall(case, ranks, case == 9) == {"cases": 0}
    outcome = Outcome(case, case, ranks, ranks, {"weight": ranks})
    assert outcome.recalls(case < 3)["item, weight"]["50"] == 1.0


def test_a_sid_that_names_nothing_but_history_is_in_no_list_and_one_that_names_more_is() -> None:
    layout = Layout(1, "codebook", 3, SIZE)
    codes = np.array([[0, 0, 0], [0, 0, 0], [1, 1, 1], [2, 2, 2], [2, 2, 2]], dtype=np.uint16)
    data = dataset(embeddings=np.ones((5, 4), dtype=np.float32), popularity=np.ones(5, dtype=np.int64))
    trie = CatalogueTrie(codes, layout)
    answer = [
        ScoredSid(layout.sid_of(codes[row].tolist()), score, None) for row, score in ((2, -1.0), (0, -2.0), (3, -3.0))
    ]
    for history, expected in (((2, 0), 2), ((2, 0, 1), 1), ((0,), 3), ((2, 2), 2), ((), 3)):
        case = TestCase(7, (3,), history=history)
        outcome = evaluate(lambda prompts: [answer], [[0]], [case], data, codes, trie, data.embeddings)
        assert outcome.sid_rank.tolist() == [3]
        assert outcome.sid_rank_without_history.tolist() == [expected], history


def test_bucket_sizes_count_what_an_item_shares_its_sid_with() -> None:
    everything = bucket_sizes(np.zeros((5, 3), np.uint16), LAYOUT)
    assert (everything["SIDs"], everything["largest"], everything["of an item, mean"]) == (1, 5, 5.0)
    assert bucket_sizes(CODES, LAYOUT)["SIDs"] <= bucket_sizes(CODES, Layout(1, "codebook", 3, SIZE))["SIDs"]


@pytest.mark.parametrize("beams", [1, 4, 400])
def test_free_beams_are_the_best_sequences_of_the_whole_vocabulary(beams: int) -> None:
    model = small_causal_lm(VOCABULARY, hidden_size=16, layers=1, heads=2).eval()
    prompts = [[VOCABULARY.begin_id, VOCABULARY.separator_id], [VOCABULARY.begin_id, 5, 9, VOCABULARY.separator_id]]
    found = free_beams(model, VOCABULARY, prompts, beams)
    if beams < 400:  # with few beams the search is no longer exhaustive
        assert all(len(answer) == beams for answer in found)
        return
    for prompt, answer in zip(prompts, found, strict=True):
        scores: dict[tuple[int, ...], float] = {}
        pairs = list(itertools.product(range(VOCABULARY.total), repeat=2))
        with torch.inference_mode():
            logits = model(torch.tensor([[*prompt, *tokens] for tokens in pairs])).logits[:, len(prompt) - 1 :]
        for tokens, logs in zip(pairs, logits.log_softmax(-1).tolist(), strict=True):
            ends = [token in VOCABULARY.layer_range(2) for token in tokens]
            so_far = logs[0][tokens[0]] + logs[1][tokens[1]]
            if ends[0]:
                scores[tokens[:1]] = logs[0][tokens[0]]
            elif ends[1]:
                scores[tokens] = so_far
            else:
                scores |= {(*tokens, last): so_far + logs[2][last] for last in range(VOCABULARY.total)}
        best = sorted(scores.values(), reverse=True)[:50]
        np.testing.assert_allclose([score for _, score in answer[:50]], best, atol=1e-4)


def test_no_answer_is_invalid_if_every_sequence_names_an_item_and_most_are_if_few_do() -> None:
    model = small_causal_lm(VOCABULARY, hidden_size=16, layers=1, heads=2).eval()
    prompts = [[VOCABULARY.begin_id, VOCABULARY.separator_id]] * 3
    every = np.asarray(list(itertools.product(range(SIZE), repeat=3)), dtype=np.uint16)
    free = invalid_shares(model, VOCABULARY, prompts, every, Layout(1, "codebook", 3, SIZE), (1, 10))
    assert all(0 <= share <= 1 for share in free.values())
    one = invalid_shares(model, VOCABULARY, prompts, every[:1], Layout(1, "codebook", 3, SIZE), (10,))
    assert one["10"] >= 0.9
    assert one["10"] >= free["10"]


def test_equal_choices_have_equal_keys_and_a_default_does_not_change_a_key() -> None:
    codebook = CodebookChoice(dataset="tiny")
    assert RunChoice(codebook=codebook).key == RunChoice(codebook=CodebookChoice(dataset="tiny", seed=0), seed=0).key
    assert RunChoice(codebook=codebook).key != RunChoice(codebook=codebook, seed=1).key
    assert LayoutChoice(heads="top-k", share=0.1).key != LayoutChoice(heads="top-k", share=0.2).key
    census = np.tile(np.arange(20), (3, 1))
    assert LayoutChoice(heads="top-k", share=0.1).layout("x", census).head_tokens == (18, 19)


def test_a_key_survives_a_journey_through_another_process() -> None:
    choice = RunChoice(
        codebook=CodebookChoice(dataset="tiny", size=32), epochs=6, layout=LayoutChoice(heads="top-k", share=0.1)
    )
    there_and_back = pickle.loads(pickle.dumps(choice))
    read = msgspec.json.decode(msgspec.json.encode(choice.said()), type=RunChoice)
    assert choice.key == there_and_back.key == read.key == msgspec.structs.replace(choice, epochs=6.0).key


@pytest.mark.parametrize("seed", range(20))
def test_own_probability_in_the_study_puts_items_in_the_order_of_the_retriever(seed: int) -> None:
    random_ = np.random.default_rng(seed)
    data = dataset(popularity=random_.permutation(10_000)[:40])  # no two alike: the two break ties differently
    rows = np.split(random_.permutation(40), np.sort(random_.choice(np.arange(1, 40), 7, replace=False)))
    trie = GivenTrie()
    answer = [
        trie.sid(part.tolist(), score) for part, score in zip(rows, np.sort(random_.normal(size=8))[::-1], strict=True)
    ]
    weights = data.popularity + evaluation.UNSEEN_WEIGHT

    class Source:
        items_of = trie.items_of

        def updated_at(self, numbers: NDArray[np.uint32]) -> NDArray[np.int64]:
            return np.zeros(len(numbers), np.int64)

        def items(self, numbers: NDArray[np.uint32]) -> list[StoredItem]:
            return [
                StoredItem(row, str(row).encode(), tuple(CODES[row].tolist()), float(weights[row]), "", 0)
                for row in numbers.tolist()
            ]

    trie.weights = weights.astype(np.float32)
    served = [item.number for item, _, _ in by_own_probability(answer, Source(), 30)]
    case = TestCase(0, tuple(served), history=())
    outcome = evaluate(lambda prompts: [answer], [[0]], [case], data, CODES, trie, data.embeddings)
    assert outcome.item_ranks["own probability"].tolist() == list(range(1, 31))


@pytest.mark.parametrize("seed", range(10))
def test_own_probability_goes_by_smoothed_counts_and_by_the_left_out_token_first_as_published(seed: int) -> None:
    """The formula that the published results were computed with, written out."""
    random_ = np.random.default_rng(seed)
    data = dataset(popularity=random_.integers(4, size=40))
    short = np.flatnonzero(LAYOUT.is_head[CODES[:, 1]])[:8]
    left_out = {int(token): float(random_.normal()) for token in np.unique(CODES[short, 1])}
    trie = GivenTrie()
    answer = [
        trie.sid(short.tolist(), -1.0, left_out),
        trie.sid(np.flatnonzero(~LAYOUT.is_head[CODES[:, 1]])[:5].tolist(), -1.5),
    ]
    scores: dict[bool, dict[int, float]] = {False: {}, True: {}}
    for one in answer:
        counts = {int(row): data.popularity[row] + 0.5 for row in trie.found[one.tokens]}
        for row, count in counts.items():
            scores[False][row] = one.score + np.log(count / sum(counts.values()))
            if one.left_out is None:
                scores[True][row] = scores[False][row]
                continue
            alike = [other for other in counts if CODES[other, 1] == CODES[row, 1]]
            share = count / sum(counts[other] for other in alike)
            total = sum(np.exp(left_out[token]) for token in left_out)
            scores[True][row] = one.score + np.log(np.exp(left_out[int(CODES[row, 1])]) / total * share)
    case = TestCase(0, tuple(scores[False]), history=())
    outcome = evaluate(lambda prompts: [answer], [[0]], [case], data, CODES, trie, data.embeddings)
    for name, by_left_out in (("own probability", False), ("own probability, left-out token", True)):
        found = scores[by_left_out]
        best_first = sorted(found, key=lambda row: (-round(found[row], 9), row))
        ranks = dict(zip(outcome.item.tolist(), outcome.item_ranks[name].tolist(), strict=True))  # type: ignore[index]
        assert sorted(ranks, key=lambda row: ranks[row]) == best_first
