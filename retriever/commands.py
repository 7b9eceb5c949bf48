"""Commands of the retriever: the worker process, and asking a question from the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
import typer
from rich import box
from rich.console import Console
from rich.table import Table

from models.terminal import print_table, shown, terminal
from streamer.commands.terminal import ascii_json
from streamer.events.records import Answer
from streamer.settings import Settings, load_settings


def retriever() -> None:
    """Run the retriever: queries → answers, by the bundle's language model under the prefix trie's constraint."""
    from retriever.answering.worker import run_retriever

    run_retriever(load_settings())


def ask(
    text: Annotated[str, typer.Argument(help="The query's text.")] = "",
    history: Annotated[list[str] | None, typer.Option(help="An item id; repeat it for several, oldest first.")] = None,
    user: Annotated[str | None, typer.Option(help="The user's id.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many items.")] = 10,
    where: Annotated[
        list[str] | None,
        typer.Option(
            help="A condition on an attribute: 'price<=30', 'brand=Acme|Bosch', 'in_stock=true', 'tags~red'; several are all "
            "meant."
        ),
    ] = None,
    filter_json: Annotated[
        str | None, typer.Option("--filter-json", help="A filter as a query carries it (docs/filters.md).")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="The id of an item that the answer may not name; may be repeated.")
    ] = None,
    keep_history: Annotated[
        bool, typer.Option("--keep-history", help="The answer may name items of the history.")
    ] = False,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for the answer.")] = 30.0,
    json: Annotated[bool, typer.Option("--json", help="Print the answer record.")] = False,
) -> None:
    """Ask a query and show its answer."""
    if not (text or history or user):
        raise typer.BadParameter("nothing to ask: give a text, --history, --user or several of them")
    from retriever.client import Client

    settings = load_settings()
    with Client(settings) as client:
        answer = client.ask(
            text,
            history=history or (),
            user=user,
            limit=limit,
            filter=_filter(settings, where or [], filter_json),
            exclude=exclude or (),
            keep_history=keep_history,
            timeout_seconds=timeout,
        )
    if json:
        print(ascii_json(answer, indent=2))
    else:
        show_answer(terminal(), answer)
    if answer.error is not None:
        raise typer.Exit(1)


def _filter(settings: Settings, where: Sequence[str], filter_json: str | None) -> dict[str, Any] | None:
    """What ``--where`` and ``--filter-json`` mean together; None if neither is there."""
    from streamer.filters.text import parsed_where

    parts = [parsed_where(where, settings.attributes.filterable)] if where else []
    if filter_json is not None:
        try:
            parts.append(msgspec.json.decode(filter_json, type=dict[str, Any]))
        except (msgspec.DecodeError, RecursionError) as error:
            raise typer.BadParameter(
                f'this is no JSON object ({error}): send one such as {{"field": "price", "lte": 30}}',
                param_hint="--filter-json",
            ) from None
    return {"all": parts} if len(parts) > 1 else parts[0] if parts else None


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
        mixed = any(item.found_by for item in answer.items)
        if mixed:
            table.add_column("found by", style="dim")
        for rank, item in enumerate(answer.items, start=1):
            found_by = [f"{shown(item.found_by)}{', new' if item.new is True else ''}"] if mixed else []
            table.add_row(
                str(rank), shown(item.title), shown(item.item_id), shown(item.sid), f"{item.score:.2f}", *found_by
            )
        print_table(console, table)
    if answer.note:
        console.print(f"[dim]{shown(answer.note)}[/]", soft_wrap=True)
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
