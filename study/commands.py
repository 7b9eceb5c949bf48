"""The command ``sidstream study``: the paper's tables and figures on public data, rebuilt from what is already computed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from models.errors import SidstreamError
from models.terminal import shown, terminal


def study(
    quick: Annotated[
        bool, typer.Option("--quick", help="A few minutes on a small planted hourglass, checked, without data.")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help='Only what has this in its name or key: "amazon_games", "table 2", "figure 4", a run\'s key.'
        ),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="With --only: forget its results first.")] = False,
    report: Annotated[
        bool, typer.Option("--report", help="Compute nothing: write the report from what is there.")
    ] = False,
    jobs: Annotated[int, typer.Option(help="Models side by side, one core each.", min=1)] = 2,
    output: Annotated[Path, typer.Option(help="Report, figures and results.")] = Path("docs/study"),
    scratch: Annotated[Path, typer.Option(help="Trained models and checkpoints.")] = Path(".sidstream/study"),
) -> None:
    """The paper's tables and figures on public data; goes on where it was stopped."""
    from study.experiments.results import Results
    from study.experiments.work import do_work
    from study.quick import quick_study
    from study.report.report import write_report

    console = terminal()
    if quick and (only or again or report):
        raise SidstreamError("--quick runs a study of its own: leave --only, --again and --report out")
    if report and only:
        raise SidstreamError("--report computes nothing: leave --only out, or --report")
    if quick:
        raise typer.Exit(0 if quick_study(console, jobs) else 1)
    if again and not only:
        raise SidstreamError("--again forgets results: say which ones with --only")
    results = Results(output / "results", scratch)
    failed = [] if report else do_work(results, only or [], jobs, console, again=again)
    console.print(f"[bold]{shown(write_report(results, output))}[/]", soft_wrap=True)
    if failed:
        raise SidstreamError(f"{len(failed)} of the runs failed, the others are kept: {'; '.join(failed)}")
