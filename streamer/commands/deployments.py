"""Commands of generations: deploy a bundle beside the one that answers, promote it, roll back, retire; and what is deployed."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from models.commands.number_options import finite
from models.progress import WorkProgress, WorkTask
from models.terminal import print_line, print_table, printable, shown, terminal
from streamer.commands.terminal import ascii_json
from streamer.settings import load_settings

if TYPE_CHECKING:
    from streamer.events.serving import Serving
    from streamer.operations.generations.readiness import Progress
    from streamer.operations.generations.room import Need

_BundleArgument = Annotated[str, typer.Argument(help="A bundle's directory, its id, or the beginning of its id.")]
_EvaluationOption = Annotated[
    Path | None,
    typer.Option(help="What `sidstream evaluate --bundle NEW --against SERVING --json FILE` wrote; worse is refused."),
]


def deploy(
    bundle: _BundleArgument,
    share: Annotated[
        str | None, typer.Option(help="Share of the users that it answers then, such as 5%.", show_default="none")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Return once its index has caught up.")] = True,
    timeout: Annotated[
        float | None,
        typer.Option(min=0, help="How many seconds --wait waits.", show_default="as long as it takes", callback=finite),
    ] = None,
    evaluation: _EvaluationOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Although memory may be short, or it is not ready to answer its share.")
    ] = False,
) -> None:
    """Put a bundle beside the one that answers: its own index if its codebook is new, then a share of the users."""
    from streamer.operations.generations.deploy import DeployOptions, Telling
    from streamer.operations.generations.deploy import deploy as run

    options = DeployOptions(
        share=None if share is None else _share(share), wait=wait, seconds=timeout, evaluation=evaluation, force=force
    )
    console = terminal(stderr=True)
    with WorkProgress(console) as work:
        bar: list[WorkTask] = []
        most = 0

        def show(now: Progress) -> None:
            nonlocal most
            left = now.updates + now.codes
            most = max(most, left)
            if not bar:
                bar.append(work.task("catching up", unit="records", total=most))
            bar[0].update(most - left, most, note="" if now.assigners else "its assigner does not run")

        def tell_needs(found: tuple[Need, ...]) -> None:
            for need in found:
                work.line(_need(need))

        serving = run(
            load_settings(),
            bundle,
            options,
            Telling(line=lambda line: work.line(line), needs=tell_needs, progress=show),
        )
    _tell(console, serving)


def promote(
    bundle: Annotated[
        str | None, typer.Argument(help="A deployed bundle, by its id or its beginning.", show_default="the canary")
    ] = None,
    evaluation: _EvaluationOption = None,
    force: Annotated[bool, typer.Option("--force", help="Although it is not ready.")] = False,
) -> None:
    """Make the canary, or a deployed bundle, answer all queries."""
    from streamer.operations.generations.changes import promote as run

    console = terminal(stderr=True)
    serving = run(
        load_settings(), bundle, evaluation=evaluation, force=force, tell=lambda line: print_line(console, line)
    )
    _tell(console, serving)


def rollback() -> None:
    """End the canary; without one, go back to the bundle that answered before."""
    from streamer.operations.generations.changes import rollback as run

    console = terminal(stderr=True)
    serving = run(load_settings())
    _tell(console, serving)
    if serving.previous is not None:
        console.print(f"  further back: sidstream promote {shown(serving.previous)}")


def retire(
    bundle: _BundleArgument,
    force: Annotated[bool, typer.Option("--force", help="Also the one that a rollback would go back to.")] = False,
    timeout: Annotated[
        float,
        typer.Option(min=0, help="How many seconds to wait for the processes of its pipeline to end.", callback=finite),
    ] = 60.0,
) -> None:
    """Remove a bundle that does not answer; with the last one of its codebook its processes, topic and index."""
    from streamer.operations.generations.retire import retire as run

    console = terminal(stderr=True)
    serving = run(load_settings(), bundle, force=force, seconds=timeout, tell=lambda line: print_line(console, line))
    _tell(console, serving)


def deployments(
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what is deployed: what answers, for which share of the users, how far each index is."""
    from streamer.operations.generations.table import read_deployments

    found = read_deployments(load_settings())
    if json:
        print(ascii_json(found, indent=2))
        return
    console = terminal()
    if not found.generations:
        print_line(console, "Nothing was ever deployed: the settings' bundle answers (docs/deployments.md).")
        return
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("bundle", "codebook", "role", "share", "items", "lag", "since", "model"):
        table.add_column(column, justify="right" if column in ("share", "items", "lag") else "left")
    for one in found.generations:
        table.add_row(
            shown(one.bundle),
            shown(one.codebook),
            shown(one.role),
            f"{one.share:.1%}" if one.share else "",
            "" if one.items is None else f"{one.items:,}",
            "" if one.lag is None else f"{one.lag:,}",
            shown(_date(one.since)),
            shown(one.model or "none"),
        )
    print_table(console, table)
    for fault in dict.fromkeys(one.fault for one in found.generations if one.fault):
        print_line(console, printable(fault))
    print_line(console, f"Last change {_date(found.since or 0)}: {printable(found.cause or '')}")


def _share(text: str) -> float:
    """5%, 5 % or 0.05, as a number from above 0 to 1."""
    number = text.strip().removesuffix("%").strip()
    try:
        value = float(number) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 < value <= 1:
        raise typer.BadParameter(f"{text!r} is no share of the users: give 5%, or 0.05", param_hint="--share")
    return value


def _need(need: Need) -> str:
    from streamer.operations.generations.room import megabytes

    free = "free is not known" if need.free is None else f"{megabytes(need.free)} free"
    return f"{need.what} needs about {megabytes(need.needed)} ({need.where}; {free})"


def _tell(console: Console, serving: Serving) -> None:
    console.print(f"[green]✓[/] {shown(serving.bundle)} answers")
    if serving.canary is not None:
        console.print(f"  and {shown(serving.canary)} {shown(f'{serving.share:.1%}')} of the users")


def _date(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")
