"""An evaluation as tables in a terminal: all cases, the differences, the groups; and what could not be used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich import box
from rich.console import Console
from rich.table import Table

from models.terminal import print_line, print_table, shown
from retriever.evaluation.evaluation import Evaluation, Interval
from retriever.evaluation.groups import ALL

_MOST_REMARKS: Final = 20


def show_evaluation(console: Console, result: Evaluation) -> None:
    """Everything that a person needs to judge the figures."""
    about = ", ".join(f"{name} {value}" for name, value in result.about.items())
    print_line(console, f"{result.cases[ALL]:,} cases: {result.source}", "bold")
    print_line(console, f"{about}; known before them: {result.training}" if about else result.training, "dim")
    _systems(console, result)
    _differences(console, result)
    if len(result.cases) > 1:
        _groups(console, result)
    print_line(
        console,
        f"intervals: {result.level:.0%}, paired bootstrap over cases, {result.resamples:,} draws, seed {result.seed}; items of "
        "the history are in no list",
        "dim",
    )
    for system in result.systems:
        if system.settings:
            how = f", chosen on {system.tuned_on:,} validation cases" if system.tuned_on else ""
            print_line(console, f"{system.name}: {system.settings}{how}", "dim")
    if len(result.found_by) > 1:
        shares = ", ".join(f"{leg} {share:.0%}" for leg, share in result.found_by.items())
        print_line(console, f"of the relevant items in the lists were found by: {shares}", "dim")
    for reason, count in result.unanswered.items():
        print_line(console, f"! {count:,} queries had no answer: {reason}", "yellow")
    for remark in result.remarks[:_MOST_REMARKS]:
        print_line(console, f"! {remark}", "yellow")


def _systems(console: Console, result: Evaluation) -> None:
    columns = [f"recall@{k}" for k in result.at] + [f"ndcg@{result.main}", f"mrr@{result.main}"]
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("")
    for name in (*columns, f"coverage@{result.main}", "unanswered"):
        table.add_column(name, justify="right")
    for number, system in enumerate(result.systems):
        cells = [f"{system.figures[ALL][name][0]:.3f}\n[dim]{_ends(system.figures[ALL][name])}[/]" for name in columns]
        table.add_row(
            shown(system.name),
            *cells,
            f"{system.coverage[result.main]:.1%}",
            f"{system.unanswered:.1%}",
            style="bold" if number == 0 else "",
        )
    print_table(console, table)


def _differences(console: Console, result: Evaluation) -> None:
    metrics = [f"recall@{k}" for k in result.at if k >= result.main] + [f"ndcg@{result.main}", f"mrr@{result.main}"]
    table = Table(box=box.SIMPLE_HEAD, title="difference to the references", title_justify="left")
    table.add_column("less")
    for name in metrics:
        table.add_column(name, justify="right")
    for system in result.systems[1:]:
        table.add_row(shown(system.name), *(_difference(system.differences[ALL][name]) for name in metrics))
    print_table(console, table)


def _groups(console: Console, result: Evaluation) -> None:
    metric = f"recall@{result.main}"
    table = Table(box=box.SIMPLE_HEAD, title=f"{metric} by group", title_justify="left")
    table.add_column("relevant items")
    table.add_column("cases", justify="right")
    for system in result.systems:
        table.add_column(shown(system.name), justify="right")
    for group, count in result.cases.items():
        own, *others = (system.figures[group][metric] for system in result.systems)
        cells = [f"{own[0]:.3f} [dim]{shown(_ends(own))}[/]", *(f"{value:.3f}" for value, _, _ in others)]
        table.add_row(shown(group), f"{count:,}", *cells)
    print_table(console, table)
    for group, words in result.groups.items():
        if words not in (group, "all relevant items"):
            print_line(console, f"{group}: {words}", "dim")


def _ends(interval: Interval) -> str:
    """
    >>> _ends((0.1, 0.05, 0.125))
    '.050–.125'
    """
    return "–".join(f"{end:.3f}".removeprefix("0") for end in interval[1:])


def _difference(interval: Interval) -> str:
    value, low, high = interval
    colour = "green" if low > 0 else "red" if high < 0 else "dim"
    return f"[{colour}]{value:+.3f}\n{low:+.3f}…{high:+.3f}[/]"


def verdict(interval: Interval) -> str:
    """What an interval of a difference says.

    >>> verdict((0.02, 0.01, 0.03)), verdict((0.0, -0.01, 0.01)), verdict((-0.02, -0.03, -0.01))
    ('ahead', 'not proven', 'behind')
    """
    _, low, high = interval
    return "ahead" if low > 0 else "behind" if high < 0 else "not proven"


def show_bounds(console: Console, kept: Sequence[str], missed: Sequence[str]) -> None:
    """The bounds, one a line."""
    for text in kept:
        print_line(console, f"✓ {text}", "green")
    for text in missed:
        print_line(console, f"✗ {text}", "red")
