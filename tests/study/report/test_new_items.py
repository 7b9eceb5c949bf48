"""The page of arrivals says what the results say, and where there are none yet, that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from study.experiments.plan import rows
from study.experiments.results import Results, RunResult
from study.experiments.run import ARRIVALS, ARRIVALS_RULE
from study.report.new_items import RULES, write_new_items


def figures(recall: float) -> dict[str, Any]:
    return {"cases": 1_200, "recall@10": recall, "low": recall - 0.01, "high": recall + 0.01}


def test_page_has_each_seed_its_interval_and_the_mean(tmp_path: Path) -> None:
    results = Results(tmp_path / "results", tmp_path)
    assert write_new_items(results, tmp_path).read_text().count("not run yet") == 2
    for row in rows("chorus_icecat"):
        if row.section != "new items":
            continue
        seed = row.choice.seed
        chosen = {
            "weights": {"sharpness": 29.04, "share": 0.55 + seed / 10, "boost_of_new": 0.3, "together": seed / 2},
            "cases": 2_000,
            "new_cases": 196,
            "mixture": {"all": 0.6, "old": 0.61, "new": None},
        }
        by_rule = {rule: {group: figures(0.3 + seed / 10) for group in ("all", "old", "new")} for rule in RULES}
        measured = (
            {ARRIVALS_RULE.name: {"new items by P_dense alone": chosen}}
            if row.choice.choosing
            else {ARRIVALS.name: {"chosen": chosen, **by_rule}}
        )
        results.write_run(
            RunResult(choice=row.choice, parameters=1, loss=1.0, seconds=1.0, targets=1, curve=[], measured=measured)
        )
    text = write_new_items(results, tmp_path).read_text()
    assert "| mixture | 1 | 0.400 [0.390, 0.410] |" in text
    assert "λ 29.0, γ 1.0, α 0.75, β 0.3" in text
    assert "| **mixture** | mean | **0.400** | **0.400** | **0.400** |" in text
    assert "Cases: all 1,200, old 1,200, new 1,200." in text
    assert "| new items by P_dense alone | 0.600 | 0.610 | – | λ 29.0, α 0.55, β 0.3 | 2,000, 196 new |" in text
    assert text.count("not run yet") == 1
