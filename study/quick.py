"""``sidstream study --quick``: the study in small, on a planted hourglass, with what is certain of it checked.

What must hold: each check follows from what is measured being right, not from luck with a seed: shapes that were
planted, counts that can only grow, items that cannot be reached.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from rich.console import Console
from rich.table import Table

from models.terminal import print_table, shown
from study.data.choices import CodebookChoice
from study.experiments.plan import BEST_TOP_K, FULL, TOP_K, WITHOUT, Row, rows
from study.experiments.results import Results, RunResult
from study.experiments.run import FIRST_GIVEN, FREE_BEAMS, OWN, Measurement
from study.experiments.scheduler import run_all
from study.experiments.work import hourglass_choices, references, shape_record
from study.report.report import write_report

_SET: Final = "tiny"


@dataclass(frozen=True)
class Check:
    """One thing that must show: what, the figures, and whether it did."""

    claim: str
    figures: str
    holds: bool


def quick_study(console: Console, jobs: int, output: Path | None = None) -> bool:
    """Runs the small study, writes its report (into ``output`` if given), prints the checks; whether all hold."""
    with TemporaryDirectory(prefix="sidstream-study-") as scratch:
        directory = output or Path(scratch) / "report"
        results = Results(directory / "results", Path(scratch))
        for choice in quick_shapes():
            results.write_record("hourglass", choice.key, shape_record(choice, results.scratch))
        results.write_record("references", _SET, references(_SET, results.scratch))
        chosen = list(quick_rows())
        failed = run_all(chosen, results, jobs, console)
        write_report(results, directory, datasets=(_SET,))
        checks = [Check(f"run {what}", "", False) for what in failed] or list(quick_checks(results))
    table = Table("", "what must show", "measured")
    for check in checks:
        table.add_row("[green]✓[/]" if check.holds else "[red]✗[/]", shown(check.claim), shown(check.figures))
    print_table(console, table)
    return all(check.holds for check in checks)


def quick_shapes() -> Iterator[CodebookChoice]:
    """The planted codebook, and one fitted by each method."""
    for choice in hourglass_choices(_SET):
        if choice.method == "planted" or (choice.layers, choice.size, choice.start) == (3, 64, "shared"):
            yield choice


def quick_rows() -> Iterator[Row]:
    """One row of every kind."""
    layouts = (FULL, TOP_K[1], TOP_K[3], WITHOUT)
    for row in rows(_SET):
        plain = row.choice.loss == "cross-entropy" and not row.choice.exchanged
        if row.section == "layout change" or (row.section == "table 2" and plain and row.choice.layout in layouts):
            yield row


def quick_checks(results: Results) -> Iterator[Check]:
    """What must show in the results."""
    for choice in quick_shapes():
        if choice.method == "planted":
            ginis = [layer["gini"] for layer in results.record("hourglass", choice.key)["shape"]["layers"]]
            yield Check(
                "planted: layer 2 is crowded, layers 1 and 3 are even",
                "Gini " + ", ".join(f"{gini:.2f}" for gini in ginis),
                ginis[1] > 0.5 and max(ginis[0], ginis[2]) < 0.05,
            )
    found = {row.choice.layout: _result(results, row) for row in quick_rows() if row.section == "table 2"}
    base = found[FULL]
    yield Check(
        "training lowers the loss",
        f"{base.curve[0][1]:.2f} → {base.loss:.2f}",
        all(result.curve[0][1] > result.loss for result in found.values()),
    )
    sizes = [found[layout].measured[OWN.name]["buckets"] for layout in (FULL, TOP_K[1], TOP_K[3], WITHOUT)]
    yield Check(
        "the shorter the SIDs, the fewer they are and the fuller",
        " → ".join(f"{size['SIDs']} SIDs, {size['of an item, mean']} items" for size in sizes),
        all(
            one["SIDs"] > other["SIDs"] and one["of an item, mean"] < other["of an item, mean"]
            for one, other in pairwise(sizes)
        ),
    )
    recall = base.measured[OWN.name]["all"]
    chance = 50 / sizes[0]["SIDs"]
    yield Check(
        "the model has learnt: recall@50 of SIDs far above chance",
        f"{recall['SID']['50']:.2f} against {chance:.2f}",
        recall["SID"]["50"] > 3 * chance,
    )
    given = base.measured[FIRST_GIVEN.name]["all"]["SID"]["10"]
    yield Check(
        "with the first token given recall rises",
        f"{recall['SID']['10']:.2f} → {given:.2f}",
        given > recall["SID"]["10"],
    )
    free = base.measured[FREE_BEAMS.name]
    yield Check(
        "without the constraint 50 beams write SIDs of no item", f"{float(free['50']):.1%} of them", free["50"] > 0
    )
    yield from _layout_change_checks(results)


def _layout_change_checks(results: Results) -> Iterator[Check]:
    frozen = next(_result(results, row) for row in quick_rows() if row.section == "layout change")
    pinned, naive, marginal = (
        frozen.measured[measurement.name]
        for measurement in (OWN, Measurement("naive", BEST_TOP_K), Measurement("marginal", BEST_TOP_K))
    )
    before, after, summed = (figures["head"]["SID"]["10"] for figures in (pinned, naive, marginal))
    yield Check(
        "a layout changed under a frozen model erases head items; summing over the left-out tokens brings them back",
        f"recall@10 {before:.2f} → {after:.2f}; summed {summed:.2f}",
        after < before / 2 and summed > after,
    )


def _result(results: Results, row: Row) -> RunResult:
    result = results.run(row.choice)
    assert result is not None, f"{row.label} was run"
    return result
