"""The order of the items of an answer, by scenario."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.codebooks.codebook import Codebook
from models.codebooks.dense_network import DenseNetwork
from retriever.answering.ranking import (
    HistorySimilarity,
    LeftOutToken,
    Ranker,
    RankingContext,
    WeightAndRecency,
    by_own_probability,
    reconstructions,
)
from retriever.search.search_parts import ScoredSid
from store.records.encoding import StoredItem
from store.topology.layout_trie import SidItems
from support.paths import ROOT


def item(number: int, codes: tuple[int, ...] = (0, 0, 0), weight: float = 1.0, updated_at: int = 0) -> StoredItem:
    return StoredItem(number, f"item-{number}".encode(), codes, weight, "", updated_at)


def sid_of(left_out: Sequence[float] | None) -> ScoredSid:
    """``left_out``: of the layer-2 tokens 0, 1, …"""
    return ScoredSid((0, 8), -1.0, None if left_out is None else np.array(left_out, dtype=np.float32))


def order(ranker: Ranker, items: Sequence[StoredItem], context: RankingContext | None = None) -> list[int]:
    return [one.number for one in ranker.rank(items, context or RankingContext())]


@pytest.fixture
def codebook() -> Codebook:
    """Layer 1 says nothing; layer 2 token n points along axis n; layer 3 is a little of everything."""
    codewords = np.zeros((3, 4, 4), dtype=np.float32)
    codewords[1] = np.eye(4)
    codewords[2] = 0.1
    return Codebook(codewords)


BY_WEIGHT = [item(1, (0, 0, 0), weight=1.0), item(2, (0, 1, 0), weight=3.0), item(3, (0, 2, 0), weight=2.0)]


def test_weight_then_the_newest_update_then_the_id() -> None:
    items = [item(4), item(3, updated_at=5), item(2, weight=2.0), item(1)]
    assert order(WeightAndRecency(), items) == [2, 3, 1, 4]


def test_left_out_token_goes_before_weight() -> None:
    assert order(LeftOutToken(), BY_WEIGHT, RankingContext(sid_of([-1.0, -3.0, -1.0]))) == [3, 1, 2]


@pytest.mark.parametrize("sid", [None, sid_of(None)])
def test_left_out_token_of_a_sid_that_leaves_nothing_out_is_weight(sid: ScoredSid | None) -> None:
    assert order(LeftOutToken(), BY_WEIGHT, RankingContext(sid)) == [2, 3, 1]


def test_item_whose_left_out_codeword_the_history_shares_comes_first(codebook: Codebook) -> None:
    ranker = HistorySimilarity(reconstructions(codebook))
    for token, first in ((0, 1), (1, 2), (2, 3)):
        history = [item(9, (3, token, 1)), item(8, (2, token, 3)), item(7, (1, 3, 3))]
        context = RankingContext(sid_of([-1.0, -2.0, -3.0]), history)
        assert order(ranker, BY_WEIGHT, context)[0] == first


def test_similarity_is_the_cosine_with_the_mean_of_the_history(codebook: Codebook) -> None:
    embed = reconstructions(codebook)
    history = [item(9, (0, 0, 0)), item(8, (0, 2, 0)), item(7, (0, 2, 0))]
    assert order(HistorySimilarity(embed), BY_WEIGHT, RankingContext(history=history)) == [3, 1, 2]
    vectors, taste = embed(BY_WEIGHT), embed(history).mean(axis=0)
    cosines = vectors @ taste / np.linalg.norm(vectors, axis=1)
    assert [BY_WEIGHT[place].number for place in np.argsort(-cosines)] == [3, 1, 2]


def test_without_a_history_the_left_out_token_decides_then_weight(codebook: Codebook) -> None:
    ranker = HistorySimilarity(reconstructions(codebook))
    assert order(ranker, BY_WEIGHT, RankingContext(sid_of([-1.0, -3.0, -1.0]))) == [3, 1, 2]
    assert order(ranker, BY_WEIGHT) == [2, 3, 1]


def test_equally_similar_items_stand_in_the_order_of_the_other_ranker(codebook: Codebook) -> None:
    items = [item(number, (0, number % 2, 0), weight=number) for number in range(1, 9)]
    context = RankingContext(sid_of([0.0] * 8), [item(9, (0, 1, 0))])
    assert order(HistorySimilarity(reconstructions(codebook)), items, context) == [7, 5, 3, 1, 8, 6, 4, 2]
    lightest = HistorySimilarity(reconstructions(codebook), otherwise=LightestFirst())
    assert order(lightest, items, context) == [1, 3, 5, 7, 2, 4, 6, 8]


class LightestFirst:
    def rank(self, items: Sequence[StoredItem], context: RankingContext) -> list[StoredItem]:
        return sorted(items, key=lambda one: one.weight)


def test_true_embeddings_may_stand_in_for_the_codes() -> None:
    true: NDArray[np.float32] = np.eye(10, dtype=np.float32)
    true[9] = true[3]

    def embed(items: Sequence[StoredItem]) -> NDArray[np.float32]:
        return true[[one.number for one in items]]

    assert order(HistorySimilarity(embed), BY_WEIGHT, RankingContext(history=[item(9)])) == [3, 2, 1]


def test_items_without_length_are_no_error() -> None:
    silent = HistorySimilarity(lambda items: np.zeros((len(items), 4), dtype=np.float32))
    assert order(silent, BY_WEIGHT, RankingContext(history=[item(9)])) == [2, 3, 1]


def test_codebook_with_an_encoder_is_compared_where_its_decoder_leads(codebook: Codebook) -> None:
    """The decoder exchanges axes 0 and 1 and drops the rest."""
    exchange = np.zeros((4, 4), dtype=np.float32)
    exchange[0, 1] = exchange[1, 0] = 1.0
    network = DenseNetwork.from_tensors([exchange, np.zeros(4, dtype=np.float32)])
    latent = Codebook(codebook.codewords, network, network)
    ranker = HistorySimilarity(reconstructions(latent))
    assert order(ranker, BY_WEIGHT, RankingContext(history=[item(9, (0, 0, 0))]))[0] == 1


def test_ranking_imports_neither_faiss_nor_torch() -> None:
    code = (
        "import sys, retriever.answering.ranking; print(*sorted({'faiss', 'torch', 'transformers'} & set(sys.modules)))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert answer.stdout.split() == []


class Source:
    """SIDs, one for each list of weights, with numbered items; notes which SIDs were read."""

    def __init__(self, *sids: tuple[float, Sequence[float]], updated_at: Sequence[int] = ()) -> None:
        self.sids = [ScoredSid((place, 8), score, None) for place, (score, _) in enumerate(sids)]
        self.rows: list[list[StoredItem]] = []
        number = 0
        for _, weights in sids:
            self.rows.append([])
            for weight in weights:
                moment = updated_at[number] if updated_at else 0
                self.rows[-1].append(item(number, weight=weight, updated_at=moment))
                number += 1
        self.all = [one for row in self.rows for one in row]
        self.read: list[int] = []

    def items_of(self, sids: Sequence[Sequence[int]]) -> list[SidItems]:
        self.read += [sid[0] for sid in sids]
        found = [self.rows[sid[0]] for sid in sids]
        return [
            SidItems(
                np.array([one.number for one in row], np.uint32),
                np.zeros((len(row), 3), np.uint16),
                np.array([one.weight for one in row], np.float32),
            )
            for row in found
        ]

    def updated_at(self, numbers: NDArray[np.uint32]) -> NDArray[np.int64]:
        return np.array([self.all[number].updated_at for number in numbers.tolist()], np.int64)

    def items(self, numbers: NDArray[np.uint32]) -> list[StoredItem]:
        return [self.all[number] for number in numbers.tolist()]


def test_a_crowded_sid_does_not_push_the_item_of_a_nearly_as_likely_sid_down() -> None:
    source = Source((np.log(0.5), [1.0] * 10), (np.log(0.4), [1.0]))
    found = by_own_probability(source.sids, source, 3)
    assert [one.number for one, _, _ in found] == [10, 0, 1]
    assert [sid.score for _, sid, _ in found] == pytest.approx([np.log(0.4), np.log(0.5), np.log(0.5)])
    assert [score for _, _, score in found] == pytest.approx(np.log([0.4, 0.05, 0.05]))


def test_own_probability_goes_by_the_share_of_the_weight_and_a_weight_of_zero_comes_last() -> None:
    source = Source((-1.0, [1.0, 3.0, 0.0]), (-4.0, [0.0]))
    found = by_own_probability(source.sids, source, 9)
    assert [one.number for one, _, _ in found] == [1, 0, 3, 2]
    assert np.exp([score for _, _, score in found[:2]]).tolist() == pytest.approx([0.75 / np.e, 0.25 / np.e])


def test_equal_items_stand_newest_first_then_by_id_however_many_they_are() -> None:
    source = Source((-1.0, [1.0] * 6), updated_at=[3, 9, 3, 9, 5, 3])
    assert [one.number for one, _, _ in by_own_probability(source.sids, source, 4)] == [1, 3, 4, 0]
    assert by_own_probability([], source, 4) == []


@settings(deadline=None)  # a slow machine is no fault of the ranking
@given(
    st.lists(
        st.tuples(st.integers(-40, -1), st.lists(st.sampled_from([0.0, 0.5, 1.0, 4.0]), min_size=1, max_size=6)),
        max_size=30,
    ),
    st.integers(1, 12),
)
def test_sids_left_unread_never_change_the_answer(buckets: list[tuple[int, list[float]]], limit: int) -> None:
    source = Source(*((score / 8, weights) for score, weights in sorted(buckets)[::-1]))
    some = by_own_probability(source.sids, source, limit)
    read = list(source.read)
    everything = by_own_probability(source.sids, source, 10_000)
    assert [one.number for one, _, _ in some] == [one.number for one, _, _ in everything][:limit]
    assert len(everything) == len(source.all)
    assert read == sorted(set(read))  # each at most once, best first
