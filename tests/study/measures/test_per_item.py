"""What a method comes to by the item: each figure against a count by hand."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from models.sids.layout import PADDING, Layout
from models.sids.vocabulary import SidVocabulary
from study.data.datasets import TestCase
from study.experiments.configuration import LayoutChoice
from study.measures.catalogue_trie import CatalogueTrie
from study.measures.per_item import BUDGETS, measure_per_item, recall_of_items_listed

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from models.language.language_model import small_causal_lm  # noqa: E402
from retriever.search.beam_search import beam_search  # noqa: E402

SIZE = 6
RANDOM = np.random.default_rng(4)
CODES = RANDOM.integers(SIZE, size=(40, 3)).astype(np.uint16)
CODES[20:30] = CODES[:10]  # items that share all codes
LAYOUT = Layout(1, "codebook", 3, SIZE, (1, 3))
VOCABULARY = SidVocabulary(text_size=0, user_buckets=0, layers=3, size=SIZE)
POPULARITY = np.arange(40)[::-1].copy()


def test_an_item_of_a_sid_that_the_budget_cuts_counts_by_its_chance_to_be_shown() -> None:
    listed = [np.arange(6), np.arange(6, 16), np.array([], dtype=np.int64), np.arange(16, 40)]
    whole = TestCase(0, (3,))
    cut = TestCase(0, (9, 200))  # one of two is in the list
    behind_history = TestCase(0, (9,), history=(0, 1, 2, 6, 7, 39))
    assert BUDGETS[0] == 10
    assert recall_of_items_listed(listed, whole).tolist() == [1.0] * len(BUDGETS)
    np.testing.assert_allclose(recall_of_items_listed(listed, cut), [0.4 / 2, *[0.5] * (len(BUDGETS) - 1)])
    np.testing.assert_allclose(recall_of_items_listed(listed, behind_history)[0], 7 / 8)  # 3 before it, 8 in its SID


def test_nats_of_items_are_those_of_a_softmax_over_sequences_and_the_share_of_the_sid() -> None:
    model = small_causal_lm(VOCABULARY, hidden_size=16, layers=1, heads=2, seed=0).eval()
    prompts = [[VOCABULARY.begin_id, VOCABULARY.sid_base + 2, VOCABULARY.separator_id]] * 2
    prompts[1] = [VOCABULARY.begin_id, VOCABULARY.separator_id]
    cases = [TestCase(0, (7, 12)), TestCase(1, (31,))]
    trie = CatalogueTrie(CODES, LAYOUT)
    decode = partial(beam_search, model, VOCABULARY, trie=trie, beams=40)
    found = measure_per_item(decode, model, VOCABULARY, prompts, cases, trie, CODES, POPULARITY)
    sids = LAYOUT.sid_tokens(CODES)
    by_hand = []
    for prompt, case in zip(prompts, cases, strict=True):
        logs = []
        for item in case.relevant:
            written, log = list(prompt), 0.0
            for token in VOCABULARY.token_ids(sids[item][sids[item] != PADDING]).tolist():
                with torch.inference_mode():
                    log += float(model(torch.tensor([written])).logits[0, -1].double().log_softmax(-1)[token])
                written.append(token)
            same = (sids == sids[item]).all(axis=1)
            logs.append(log + np.log((POPULARITY[item] + 0.5) / (POPULARITY[same] + 0.5).sum()))
        by_hand.append(-np.mean(logs))
    assert found["nats"]["mean"] == pytest.approx(np.mean(by_hand), abs=1e-4)
    assert found["items listed"]["500"] == 1.0  # 40 beams name every SID of 40 items
    assert found["items listed"]["10"] < 1.0
    assert found["processor"]["ms"] > 0


def test_random_tokens_are_as_many_as_the_most_crowded_ones_and_differ_by_draw() -> None:
    census = RANDOM.integers(1, 50, size=(3, 256))
    most = LayoutChoice(heads="top-k", share=0.1).layout("codebook", census)
    drawn = [LayoutChoice(heads="random", share=0.1, draw=draw).layout("codebook", census) for draw in (0, 0, 1)]
    assert {len(layout.head_tokens) for layout in (most, *drawn)} == {26}
    assert drawn[0] == drawn[1] != drawn[2]
    assert LayoutChoice(heads="random", share=0.1).label == "random@10%"
    assert LayoutChoice(heads="top-k", share=0.005).label == "top@0.5%"
