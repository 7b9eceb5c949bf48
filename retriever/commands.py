"""Commands of the retriever: the worker process, and asking a question from the terminal."""

from __future__ import annotations

from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from models.terminal import print_table, shown, terminal
from streamer.commands.terminal import ascii_json
from streamer.events.records import Answer
from streamer.settings import load_settings


def retriever() -> None:
    """Run the retriever: queries → answers, by the bundle's language model under the prefix trie's constraint."""
    from retriever.answering.worker import run_retriever

    run_retriever(load_settings())


def ask(
    text: Annotated[str, typer.Argument(help="The query's text.")] = "",
    history: Annotated[list[str] | None, typer.Option(help="An item id; repeat it for several, oldest first.")] = None,
    user: Annotated[str | None, typer.Option(help="The user's id.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many items.")] = 10,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for the answer.")] = 30.0,
    json: Annotated[bool, typer.Option("--json", help="Print the answer record.")] = False,
) -> None:
    """Ask a query and show its answer."""
    if not (text or history or user):
        raise typer.BadParameter("nothing to ask: give a text, --history, --user or several of them")
    from retriever.client import Client

    with Client(load_settings()) as client:
        answer = client.ask(text, history=history or (), user=user, limit=limit, timeout_seconds=timeout)
    if json:
        print(ascii_json(answer, indent=2))
    else:
        show_answer(terminal(), answer)
    if answer.error is not None:
        raise typer.Exit(1)


def show_answer(console: Console, answer: Answer) -> None:
    """The items as a table, and where they come from in a line below."""
    if answer.error is not None:
        console.print(f"[red]✗ {shown(answer.error.kind)}[/]: {shown(answer.error.message)}")
        if answer.layout is None:
            return
    else:
        table = Table(box=box.SIMPLE_HEAD)
        table.add_column("", justify="right", style="dim")
        table.add_column("item")
        table.add_column("id", style="dim")
        table.add_column("SID", style="cyan")
        table.add_column("log P", justify="right")
        for rank, item in enumerate(answer.items, start=1):
            table.add_row(str(rank), shown(item.title), shown(item.item_id), shown(item.sid), f"{item.score:.2f}")
        print_table(console, table)
    if answer.skipped_history:
        console.print(
            f"[yellow]not in the index, left out of the history:[/] {shown(', '.join(answer.skipped_history))}"
        )
    spent = answer.milliseconds.get("decode")
    took = f", decoded in {spent:.0f} ms" if spent is not None else ""
    console.print(
        f"[dim]layout {shown(answer.layout)} ({shown(answer.layout_mode)}), model {shown(answer.model)}{shown(took)}, "
        f"index at {sum(answer.position.values()):,} records[/]"
    )
