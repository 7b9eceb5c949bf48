"""The order of the items of an answer, by scenario."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace

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
from support.paths import ROOT


def item(number: int, codes: tuple[int, ...] = (0, 0, 0), weight: float = 1.0, updated_at: int = 0) -> StoredItem:
    return StoredItem(number, f"item-{number}".encode(), codes, weight, "", updated_at)


def sid_of(items: Sequence[StoredItem], left_out: Sequence[float] | None) -> ScoredSid:
    return ScoredSid(
        tokens=(0, 8),
        score=-1.0,
        items=np.array([one.number for one in items], dtype=np.uint32),
        codes=np.array([one.codes for one in items], dtype=np.uint16),
        left_out=None if left_out is None else np.array(left_out, dtype=np.float32),
    )


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
    assert order(LeftOutToken(), BY_WEIGHT, RankingContext(sid_of(BY_WEIGHT, [-1.0, -3.0, -1.0]))) == [3, 1, 2]


@pytest.mark.parametrize("sid", [None, sid_of(BY_WEIGHT, None)])
def test_left_out_token_of_a_sid_that_leaves_nothing_out_is_weight(sid: ScoredSid | None) -> None:
    assert order(LeftOutToken(), BY_WEIGHT, RankingContext(sid)) == [2, 3, 1]


def test_item_whose_left_out_codeword_the_history_shares_comes_first(codebook: Codebook) -> None:
    ranker = HistorySimilarity(reconstructions(codebook))
    for token, first in ((0, 1), (1, 2), (2, 3)):
        history = [item(9, (3, token, 1)), item(8, (2, token, 3)), item(7, (1, 3, 3))]
        context = RankingContext(sid_of(BY_WEIGHT, [-1.0, -2.0, -3.0]), history)
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
    assert order(ranker, BY_WEIGHT, RankingContext(sid_of(BY_WEIGHT, [-1.0, -3.0, -1.0]))) == [3, 1, 2]
    assert order(ranker, BY_WEIGHT) == [2, 3, 1]


def test_equally_similar_items_stand_in_the_order_of_the_other_ranker(codebook: Codebook) -> None:
    items = [item(number, (0, number % 2, 0), weight=number) for number in range(1, 9)]
    context = RankingContext(sid_of(items, [0.0] * 8), [item(9, (0, 1, 0))])
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


def scored(first: int, score: float, *weights: float) -> tuple[ScoredSid, list[StoredItem]]:
    items = [item(first + place, weight=weight) for place, weight in enumerate(weights)]
    return replace(sid_of(items, None), score=score), items


def reader(*pairs: tuple[ScoredSid, list[StoredItem]]) -> tuple[list[ScoredSid], dict[int, StoredItem], list[int]]:
    return [sid for sid, _ in pairs], {one.number: one for _, items in pairs for one in items}, []


def test_a_crowded_sid_does_not_push_the_item_of_a_nearly_as_likely_sid_down() -> None:
    sids, items, _ = reader(scored(0, np.log(0.5), *[1.0] * 10), scored(10, np.log(0.4), 1.0))
    found = by_own_probability(sids, lambda numbers: [items[number] for number in numbers.tolist()], 3)
    assert [one.number for one, _, _ in found] == [10, 0, 1]
    assert [sid.score for _, sid, _ in found] == pytest.approx([np.log(0.4), np.log(0.5), np.log(0.5)])
    assert [score for _, _, score in found] == pytest.approx(np.log([0.4, 0.05, 0.05]))


def test_own_probability_goes_by_the_share_of_the_weight_and_a_weight_of_zero_comes_last() -> None:
    sids, items, _ = reader(scored(0, -1.0, 1.0, 3.0, 0.0), scored(5, -4.0, 0.0))
    found = by_own_probability(sids, lambda numbers: [items[number] for number in numbers.tolist()], 9)
    assert [one.number for one, _, _ in found] == [1, 0, 5, 2]
    assert np.exp([score for _, _, score in found[:2]]).tolist() == pytest.approx([0.75 / np.e, 0.25 / np.e])


@settings(deadline=None)  # a slow machine is no fault of the ranking
@given(
    st.lists(
        st.tuples(st.integers(-40, -1), st.lists(st.sampled_from([0.0, 0.5, 1.0, 4.0]), min_size=1, max_size=6)),
        max_size=8,
    ),
    st.integers(1, 12),
)
def test_buckets_left_unread_never_change_the_answer(buckets: list[tuple[int, list[float]]], limit: int) -> None:
    pairs = [scored(10 * place, score / 8, *weights) for place, (score, weights) in enumerate(sorted(buckets)[::-1])]
    sids, items, read = reader(*pairs)

    def live(numbers: np.ndarray) -> list[StoredItem]:
        read.extend(numbers.tolist())
        return [items[number] for number in numbers.tolist()]

    some = by_own_probability(sids, live, limit)
    everything = by_own_probability(sids, lambda numbers: [items[number] for number in numbers.tolist()], 10_000)
    assert [one.number for one, _, _ in some] == [one.number for one, _, _ in everything][:limit]
    assert len(everything) == len(items)
