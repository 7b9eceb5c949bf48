"""The tables in a terminal: every figure with its interval, what could not be used, nothing of a stranger's as markup."""

from __future__ import annotations

import msgspec
from rich.console import Console

from retriever.evaluation.evaluation import Evaluation, SystemFigures
from retriever.evaluation.metrics import METRICS
from retriever.evaluation.report.tables import show_evaluation, verdict


def result() -> Evaluation:
    groups = ("all", "brand=[red]x[/]\x1b[2J")
    figures = {group: {f"{metric}@{k}": (0.3, 0.2, 0.4) for metric in METRICS for k in (1, 10)} for group in groups}
    product = SystemFigures(name="sidstream", figures=figures, coverage={1: 0.1, 10: 0.5}, unanswered=0.25)
    behind = {group: {name: (-0.1, -0.2, -0.05) for name in values} for group, values in figures.items()}
    reference = msgspec.structs.replace(product, name="co-occurrence", differences=behind, settings="decay", tuned_on=7)
    return Evaluation(
        source="examples", training="histories", cases=dict.fromkeys(groups, 4), groups={name: name for name in groups},
        at=[1, 10], main=10, systems=[product, reference], unanswered={"NothingFound": 1},
        found_by={"dense": 0.25, "model": 0.75},
        remarks=["2 relevant items that the catalogue does not have, such as a, b"], about={"model": "abc"}, seconds=1.0,
        resamples=100, level=0.95, seed=0,
    )  # fmt: skip


def test_everything_that_a_person_needs_is_there() -> None:
    console = Console(record=True, width=200, emoji=False, highlight=False)
    show_evaluation(console, result())
    text = console.export_text()
    for said in (
        "4 cases: examples", "0.300", ".200–.400", "50.0%", "25.0%", "-0.200…-0.050", "decay, chosen on 7 validation cases",
        "1 queries had no answer: NothingFound", "2 relevant items that the catalogue does not have", "dense 25%, model 75%",
        "brand=[red]x[/]\\x1b[2J", "100 draws, seed 0",
    ):  # fmt: skip
        assert said in text, said


def test_verdict_needs_an_interval_that_leaves_out_nothing_at_all() -> None:
    assert [verdict(interval) for interval in ((0.1, 0.0, 0.2), (0.1, 0.01, 0.2), (-0.1, -0.2, -0.01))] == [
        "not proven", "ahead", "behind",
    ]  # fmt: skip
