"""Our recall, NDCG and MRR are those of trec_eval, asked through ir-measures, on random lists and gains."""

from __future__ import annotations

import numpy as np
import pytest

from retriever.evaluation.cases import EvaluationCase
from retriever.evaluation.metrics import METRICS, RankedLists, Relevant, measure

AT = (1, 3, 10, 20)
ITEMS = 60


def case(relevant: tuple[int, ...], gains: tuple[float, ...]) -> EvaluationCase:
    return EvaluationCase("", None, (), relevant, gains)


@pytest.mark.parametrize("graded", [False, True])
def test_figures_of_every_case_are_those_of_ir_measures(graded: bool) -> None:
    ir_measures = pytest.importorskip("ir_measures", reason="its evaluator has no wheel for this machine")
    random = np.random.default_rng(5)
    cases, lists = [], []
    for _ in range(200):
        relevant = tuple(random.choice(ITEMS, size=random.integers(1, 8), replace=False).tolist())
        gains = tuple(float(random.integers(1, 4)) if graded else 1.0 for _ in relevant)
        cases.append(case(relevant, gains))
        lists.append(random.permutation(ITEMS)[: random.integers(0, 21)].tolist())
    relevant_rows = Relevant.of(cases)
    ranked = RankedLists.of(lists, 20)
    ours = measure(relevant_rows, relevant_rows.ranks(ranked), AT)
    theirs = {
        "recall": ir_measures.R, "ndcg": ir_measures.nDCG, "mrr": ir_measures.RR,
    }  # fmt: skip
    asked = [theirs[metric] @ k for metric in METRICS for k in AT]
    qrels = {
        str(number): {str(item): int(gain) for item, gain in zip(one.relevant, one.gains, strict=True)}
        for number, one in enumerate(cases)
    }
    run = {
        str(number): {str(item): float(-place) for place, item in enumerate(found)}
        for number, found in enumerate(lists)
    }
    expected = {(str(one.measure), int(one.query_id)): one.value for one in ir_measures.iter_calc(asked, qrels, run)}
    for row, metric in enumerate(asked):
        for number in range(len(cases)):
            # A query without any answer is left out by the library, and counts 0 here.
            value = expected.get((str(metric), number), 0.0)
            assert ours[row, number] == pytest.approx(value, abs=1e-9), (metric, number)
    means = ir_measures.calc_aggregate(asked, qrels, run)
    assert ours.mean(axis=1) == pytest.approx([means[metric] for metric in asked], abs=1e-9)


def test_a_group_takes_its_own_items_alone_as_relevant() -> None:
    relevant = Relevant.of([case((3, 4), (1.0, 1.0)), case((4,), (1.0,))])
    ranks = relevant.ranks(RankedLists.of([[3, 9, 4], [9]], 3))
    rows = np.array([False, True, True])
    group = relevant.chosen(rows)
    assert group.members().tolist() == [True, True]
    recall, ndcg, mrr = measure(group, ranks[rows], (3,))
    assert recall.tolist() == [1.0, 0.0]
    assert ndcg.tolist() == pytest.approx([0.5, 0.0])
    assert mrr.tolist() == pytest.approx([1 / 3, 0.0])
    assert relevant.chosen(np.array([True, False, False])).members().tolist() == [True, False]


def test_coverage_counts_the_catalogues_items_and_no_place_after_a_lists_end() -> None:
    # Row 5 is an item that the catalogue of five does not have.
    lists = RankedLists.of([[0, 1, 5], [1], []], 3)
    assert lists.coverage(1, 5) == pytest.approx(2 / 5)
    assert lists.coverage(3, 5) == pytest.approx(2 / 5)
    assert lists.unanswered().tolist() == [False, False, True]
