"""The command ``sidstream refresh``, thin."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Annotated, Final

import typer

from models.commands.number_options import finite
from models.errors import SidstreamError
from models.terminal import print_line, shown, terminal
from streamer.settings import load_settings

NOT_TAKEN: Final = 3  # exit status: the bundle that serves stays


def refresh(
    since: Annotated[
        str | None,
        typer.Option(
            help="Learn from what was done since then: ISO 8601, or how long ago, such as 30d.", show_default="90d"
        ),
    ] = None,
    newest: Annotated[
        float,
        typer.Option(
            min=0.01, max=0.5, help="The newest share of that time is not learnt from but measured on.", callback=finite
        ),
    ] = 0.1,
    fit: Annotated[
        str,
        typer.Option(help="A new codebook: auto (if it has drifted past the bounds), always or never."),
    ] = "auto",
    drift_gini: Annotated[
        float,
        typer.Option(min=0, help="With --fit auto: what layer 2's Gini coefficient may have gained.", callback=finite),
    ] = 0.1,
    drift_error: Annotated[
        float,
        typer.Option(
            min=1, help="And how many times that of known items the squared error of new ones may be.", callback=finite
        ),
    ] = 1.25,
    catalogue: Annotated[
        Path | None, typer.Option(help="Catalogue folder to learn from.", show_default="made of item-updates")
    ] = None,
    train: Annotated[str, typer.Option(help="More options of `sidstream train`, in quotes.")] = "",
    evaluate: Annotated[str, typer.Option(help="More options of `sidstream evaluate`, in quotes.")] = "",
    require: Annotated[
        list[str] | None,
        typer.Option(
            help="A bound that the new bundle must keep on the newest slice; repeatable. recall@10-against is its gain.",
            show_default="recall@10-against:low>=-0.02",
        ),
    ] = None,
    share: Annotated[
        float, typer.Option(min=0.001, max=1, help="Share of the users that the canary answers.", callback=finite)
    ] = 0.05,
    canary_minutes: Annotated[
        float, typer.Option(min=0, help="How long the canary answers at least.", callback=finite)
    ] = 60.0,
    canary_queries: Annotated[int, typer.Option(min=0, help="And how many queries.")] = 1_000,
    tolerance: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="What the canary's hit rate @10 may be below that of what serves.", callback=finite
        ),
    ] = 0.01,
    work: Annotated[Path, typer.Option(help="Directory of its state.")] = Path(".sidstream/refresh"),
    anew: Annotated[
        bool, typer.Option("--anew", help="Begin from nothing, also where a refresh was stopped and could go on.")
    ] = False,
) -> None:
    """Learn from what was done: train from the bundle that serves, measure, deploy as a canary, promote or roll back.

    Call it again and again, as from cron: it goes on where it was, and waits for its canary between two calls. Exit status 0:
    promoted, or waiting for the canary; 3: the bundle that serves stays; 1: a step has failed, or there is nothing to learn.
    """
    from models.bundles.codebook_drift import DriftBounds
    from retriever.refreshing.judging import CanaryBounds
    from retriever.refreshing.refresh import DEFAULT_BOUNDS, Refresh, Wanted
    from retriever.refreshing.state import RefreshFolder
    from streamer.interactions.moments import parsed_moment

    if fit not in ("auto", "always", "never"):
        raise SidstreamError(f"--fit {fit!r} is unknown: choose one of auto, always, never")
    settings, console, folder = load_settings(), terminal(stderr=True), RefreshFolder(work)
    if anew:
        folder.clear(folder.root)
    now = time.time_ns() // 1_000_000
    wanted = Wanted(
        since=parsed_moment("90d" if since is None else since, now),
        until=now,
        newest=newest,
        fit=fit,
        drift=DriftBounds(gini=drift_gini, error=drift_error),
        catalogue=catalogue,
        train=tuple(shlex.split(train)),
        evaluate=tuple(shlex.split(evaluate)),
        bounds=tuple(require or DEFAULT_BOUNDS),
        share=share,
        canary=CanaryBounds(seconds=60 * canary_minutes, queries=canary_queries, tolerance=tolerance),
    )
    outcome = Refresh(settings, wanted, folder, lambda said: print_line(console, f"• {said}")).run()
    if outcome is None:
        console.print("the canary is waited for: call the same command again, as from cron")
        return
    console.print(f"[green]✓[/] the refresh has ended: {shown(outcome)}")
    if outcome != "promoted":
        raise typer.Exit(NOT_TAKEN)
