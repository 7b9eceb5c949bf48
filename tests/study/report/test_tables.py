"""Tables of the report: every row of the plan stands there, measured or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from study.data.datasets import DatasetName
from study.experiments.plan import rows
from study.experiments.results import Results, RunResult
from study.experiments.run import FREE_BEAMS, LEGS, OWN, PER_ITEM, TOGETHER
from study.measures.evaluation import CUTOFFS, SID_WITHOUT_HISTORY
from study.report import reference_tables, tables
from study.report.cells import NOT_MEASURED

RECALL: dict[str, Any] = {"cases": 100} | {f"{end}{k}": 0.25 for k in CUTOFFS for end in ("", "low ", "high ")}


def page(results: Results, dataset: DatasetName) -> str:
    record = {"recalls": {"popularity": RECALL}}
    return "\n".join(
        [
            *(
                table(results, dataset)
                for table in (
                    tables.table_1,
                    tables.table_2,
                    tables.per_item,
                    tables.parameters,
                    tables.rankings,
                    tables.buckets,
                    tables.layout_change,
                )
            ),
            reference_tables.references(results, dataset, record),
            *reference_tables.legs(results, dataset),
            *reference_tables.codebooks(results, dataset),
        ]
    )


@pytest.mark.parametrize("dataset", ["amazon_games", "chorus_icecat"])
def test_row_without_a_result_says_so_and_is_never_left_out(dataset: DatasetName, tmp_path: Path) -> None:
    lines = page(Results(tmp_path, tmp_path), dataset).splitlines()
    for row in rows(dataset):
        if row.section == "new items" or row.choice.seed:
            continue  # a page of their own; further seeds stand in the row of the first
        said = [line for line in lines if row.choice.key in line]
        assert said, f"{row.section}: {row.label}"
        assert all(NOT_MEASURED in line for line in said)
    assert sum("**Legs together**" in line or "**Several codebooks**" in line for line in lines) == sum(
        measurement in row.measurements for row in rows(dataset) for measurement in (LEGS, TOGETHER)
    )


def test_one_seed_of_three_is_said_and_others_stay_not_measured(tmp_path: Path) -> None:
    results = Results(tmp_path, tmp_path)
    first = next(rows("amazon_games"))
    figures = {
        OWN.name: {
            "all": {SID_WITHOUT_HISTORY: RECALL, "item, weight": RECALL},
            "buckets": {"SIDs": 9, "items a SID": 1.5},
        },
        FREE_BEAMS.name: {"1": 0.125, "50": 0.5},
    }
    results.write_run(
        RunResult(choice=first.choice, parameters=1, loss=1.0, seconds=1.0, targets=1, curve=[], measured=figures)
    )
    second = [line for line in tables.table_2(results, "amazon_games").splitlines() if line.startswith("| base |")]
    assert [line.split(" | ")[-2] for line in second] == ["1 of 3", "1 of 3"]
    assert "| base | not measured |" in tables.per_item(results, "amazon_games"), "trained, and this not measured"
    assert "| without layer 2 | not measured | – |" in tables.buckets(results, "amazon_games")
    invalid = tables.invalid_table(tables.invalid(results, "amazon_games"), "amazon_games")
    assert "| base | 12.50% | 50.00% |" in invalid
    assert "| without layer 2 | not measured | – |" in invalid
    assert "random" not in invalid, "not planned for it"


def test_models_of_several_codebooks_have_each_and_all_in_the_report(tmp_path: Path) -> None:
    results = Results(tmp_path, tmp_path)
    row = next(row for row in rows("amazon_games") if TOGETHER in row.measurements)
    found = {TOGETHER.name: {"recalls": {"codebook 1": RECALL, "together": RECALL}}, PER_ITEM.name: {}}
    results.write_run(
        RunResult(choice=row.choice, parameters=1, loss=1.0, seconds=1.0, targets=1, curve=[], measured=found)
    )
    text = "\n".join(reference_tables.codebooks(results, "amazon_games"))
    assert f"| together | {' | '.join(['0.2500 [0.2500, 0.2500]'] * len(CUTOFFS))} |" in text
