"""Commands for what users did: send it, make training examples of it, and see how often answers were chosen."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table

from models.progress import WorkProgress
from models.terminal import print_line, print_table, shown, terminal
from streamer.commands.terminal import ascii_json
from streamer.events.interactions import KINDS
from streamer.settings import load_settings

if TYPE_CHECKING:
    from rich.console import Console

    from streamer.interactions.examples import MadeExamples
    from streamer.interactions.hit_rates import HitRates
    from streamer.interactions.letters import Checked


def interactions(
    file: Annotated[
        Path | None,
        typer.Argument(
            help="JSON lines of {user, item, kind, query, text, at}, gzipped or not; the last three may be left out, kind is "
            "view, click, cart or purchase, at is in milliseconds.",
            show_default=False,
        ),
    ] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Look at what came since the last look: what cannot be used becomes a dead letter."
        ),
    ] = False,
) -> None:
    """Send what users did with items; a wrong line is named, and nothing is sent then."""
    from streamer.client.interactions import publish_interactions
    from streamer.interactions.letters import check_interactions

    if file is None and not check:
        raise typer.BadParameter("nothing to do: name a file of interactions to send, or give --check")
    settings, console = load_settings(), terminal(stderr=True)
    if file is not None:
        with WorkProgress(console) as work:
            task = work.task("sending", unit="interactions")
            sent = 0

            def advance(count: int) -> None:
                nonlocal sent
                sent += count
                task.update(sent)

            publish_interactions(settings, file, advance=advance)
        console.print(f"[green]✓[/] {sent:,} interactions are on {shown(settings.topics.interactions)}")
    if check:
        with console.status("looking at interactions"):
            checked = check_interactions(settings)
        _show_checked(console, checked)


def _show_checked(console: Console, checked: Checked) -> None:
    console.print(f"[green]✓[/] {checked.records:,} records looked at, {checked.refused.total():,} of them refused")
    for kind, count in checked.refused.most_common():
        print_line(console, f"  {count:,} × {kind}: sidstream dlq list --topic interactions --class {kind}")
    if checked.elsewhere:
        console.print("  another command has taken over, and looks at the rest")


def examples(
    since: Annotated[
        str, typer.Option(help="Examples of interactions from then on: ISO 8601, or how long ago, such as 24h or 30d.")
    ],
    output: Annotated[Path, typer.Option(help="The file of JSON lines to write; gzipped where it ends in .gz.")],
    until: Annotated[str | None, typer.Option(help="And before then, in the same forms.", show_default="now")] = None,
    kinds: Annotated[
        str, typer.Option(help="What examples lead to: one or several of view, click, cart, purchase, with commas.")
    ] = ",".join(KINDS),
    history_kinds: Annotated[
        str | None, typer.Option(help="What histories hold, in the same form.", show_default="as --kinds")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print what was made as one JSON object.")] = False,
) -> None:
    """Make training examples of interactions, each with what was known before its moment and nothing of what came after.

    For `sidstream train --examples` and `sidstream evaluate --examples`.
    """
    from streamer.interactions.examples import make_examples
    from streamer.interactions.moments import MomentError, parsed_moment
    from streamer.interactions.point_in_time import Window

    settings, console, now = load_settings(), terminal(stderr=True), time.time_ns() // 1_000_000
    wanted = _kinds(kinds, "--kinds")
    window = Window(
        since=parsed_moment(since, now),
        until=now if until is None else parsed_moment(until, now, "--until"),
        kinds=wanted,
        history_kinds=wanted if history_kinds is None else _kinds(history_kinds, "--history-kinds"),
        most=settings.retriever.maximum_history,
    )
    if window.since >= window.until:
        raise MomentError(f"--since {since!r} is not before --until {until!r}: there is no time between them")
    with WorkProgress(console) as work:
        task = work.task("reading interactions", unit="interactions")
        made = make_examples(settings, window, output, progress=task.update)
        task.end()
    if json:
        print(ascii_json(made))
    else:
        _show_made(console, made)


def _kinds(text: str, option: str) -> tuple[str, ...]:
    named = [kind.strip() for kind in text.split(",") if kind.strip()]
    unknown = [kind for kind in named if kind not in KINDS]
    if unknown or not named:
        raise typer.BadParameter(
            f"{', '.join(unknown) or 'nothing'} is no kind of interaction: name some of {', '.join(KINDS)}",
            param_hint=option,
        )
    return tuple(kind for kind in KINDS if kind in named)


def _show_made(console: Console, made: MadeExamples) -> None:
    from streamer.interactions.moments import written_moment
    from streamer.interactions.point_in_time import MOST_OF_A_USER

    console.print(
        f"[green]✓[/] {made.examples:,} examples of {made.users:,} users are in {shown(made.output)}", soft_wrap=True
    )
    print_line(
        console,
        f"  of interactions from {written_moment(made.since)} to before {written_moment(made.until)}; {made.interactions:,} were "
        "read",
    )
    if made.named:
        print_line(
            console,
            f"  {made.named:,} name a query; {made.joined:,} of the queries are still on their topic and were joined",
        )
    for count, why in (
        (made.repeated, "of an item that had an example of the user's before"),
        (made.twice, "were sent twice, or beside another one of the same item and moment"),
        (made.nothing, "had neither a text nor a history before them"),
    ):
        if count:
            print_line(console, f"  left out: {count:,} {why}")
    if made.crowded:
        print_line(
            console,
            f"  of {made.crowded:,} users the newest {MOST_OF_A_USER:,} interactions alone count: are they guests under one id?",
        )
    if made.refused:
        print_line(console, f"  {made.refused:,} records cannot be used: sidstream dlq list --topic interactions")


def hit_rates(
    since: Annotated[
        str, typer.Option(help="Of answers from then on: ISO 8601, or how long ago, such as 90m or 24h.")
    ] = "24h",
    until: Annotated[str | None, typer.Option(help="And before then, in the same forms.", show_default="now")] = None,
    at: Annotated[
        list[int] | None, typer.Option(min=1, help="Among the first so many; may be repeated.", show_default="1, 5, 10")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show, bundle by bundle, how often an item of an answer was clicked, put into a cart or bought."""
    from streamer.interactions.hit_rates import RANKS
    from streamer.interactions.hit_rates import hit_rates as count_hits
    from streamer.interactions.moments import parsed_moment

    settings, now = load_settings(), time.time_ns() // 1_000_000
    begin = parsed_moment(since, now)
    end = now if until is None else parsed_moment(until, now, "--until")
    with terminal(stderr=True).status("reading answers and interactions"):
        found = count_hits(settings, begin, end, at=tuple(sorted(set(at or RANKS))))
    if json:
        print(ascii_json(found, indent=2))
    else:
        _show_rates(terminal(), found)


def _show_rates(console: Console, found: HitRates) -> None:
    from streamer.interactions.moments import written_moment

    print_line(console, f"Answers from {written_moment(found.since)} to before {written_moment(found.until)}")
    if not found.bundles:
        console.print("no query was answered in that time")
        return
    if found.first_answer is not None:
        print_line(console, f"  the first of them that is still on its topic: {written_moment(found.first_answer)}")
    ranks = tuple(next(iter(found.bundles[0].hits.values())))
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("bundle", "kind"):
        table.add_column(column)
    for column in ("answered", *(f"hit@{k:d}" for k in ranks)):
        table.add_column(column, justify="right")
    for one in found.bundles:
        for kind in one.hits:
            if any(one.hits[kind].values()) or kind == "any":
                low_high = {k: one.interval(k, kind) for k in ranks}
                table.add_row(
                    shown(one.bundle or "not named"),
                    shown(kind),
                    f"{one.answered:,d}",
                    *(f"{one.rate(k, kind):.2%} ({low_high[k][0]:.2%}-{low_high[k][1]:.2%})" for k in ranks),
                )
    print_table(console, table)
    console.print(
        f"[dim]{found.interactions:,} interactions name a query; of {found.unmatched:,} there is no answer of that time[/]"
    )
