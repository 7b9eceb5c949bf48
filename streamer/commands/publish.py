"""`sidstream publish`: the items of a catalogue, of whatever kind, as item updates or deletions."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.console import Console
from rich.padding import Padding

from models.commands.columns import with_columns
from models.commands.number_options import finite
from models.commands.towers import EmbedOption
from models.progress import WorkProgress
from models.tables.columns import ColumnNames
from models.terminal import print_command, print_line, shown, terminal
from streamer.settings import Settings, load_settings
from streamer.tracing.start import tracing_started

if TYPE_CHECKING:
    from models.tables.item_table import Faults
    from models.towers.text_encoder import TextEncoder
    from streamer.client.delivery import Delivery
    from streamer.client.follow import FollowedLook, Follower
    from streamer.client.refusals import Outcome

_Found = TypeVar("_Found")


class PublishFormat(StrEnum):
    """What item updates are sent in."""

    MESSAGEPACK = "messagepack"
    REGISTRY = "registry"


@with_columns
def publish(
    source: Annotated[
        str,
        typer.Argument(
            help="A catalogue folder; a table with an embedding in each row (Parquet, Arrow, CSV, JSON lines, a folder of them, "
            "what Hugging Face's datasets saved, or an address such as s3://…); or a file of items with --embeddings or "
            "--embed. With --delete ids are enough, also one a line."
        ),
    ],
    embeddings: Annotated[
        Path | None, typer.Option(help="The .npy with one row an item; only with a JSON-lines file.")
    ] = None,
    embed: EmbedOption = None,
    embedding_model: Annotated[
        str | None,
        typer.Option(help="The name of what made the embeddings, as of fit.", show_default="none"),
    ] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Send tombstones for these items instead.")] = False,
    form: Annotated[
        PublishFormat | None,
        typer.Option(
            "--format",
            help="registry: in registry.format, in the frame of a schema of registry.url.",
            show_default="messagepack, or what registry.publish says",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many items.")] = None,
    wait: Annotated[
        bool,
        typer.Option(
            "--wait", help="Return once the index of this machine has all of them; exit status 1 if not, and why."
        ),
    ] = False,
    timeout: Annotated[float, typer.Option(min=0, help="How many seconds --wait waits.", callback=finite)] = 60.0,
    follow: Annotated[
        bool,
        typer.Option(
            "--follow",
            help="Go on: publish what changes in the table, a file or a folder, each change exactly once, also after a restart.",
        ),
    ] = False,
    state: Annotated[
        Path | None,
        typer.Option(
            help="Directory of what was published; without --follow, publish what has changed since and end.",
            show_default=".sidstream/publish, with --follow",
        ),
    ] = None,
    every: Annotated[
        float, typer.Option(min=0.05, help="Seconds between two looks of --follow.", callback=finite)
    ] = 5.0,
    delete_missing: Annotated[
        bool,
        typer.Option("--delete-missing", help="With --follow or --state: delete items that no file has any more."),
    ] = False,
    columns: ColumnNames = ColumnNames(),
) -> None:
    """Publish item updates (or deletions) of a catalogue. Exit status 1 if a row could not be taken; the others are sent."""
    from streamer.client.follow import Follower, FollowOptions
    from streamer.client.read_your_writes import await_indexed
    from streamer.deployments.served import served_settings

    if embeddings is not None and embed is not None:
        raise typer.BadParameter("--embeddings brings embeddings and --embed makes them: give one of the two")
    if embedding_model is not None and (embed is not None or delete):
        raise typer.BadParameter("--embedding-model goes with embeddings of your own: leave it out")
    if embeddings is not None and columns.given():
        raise typer.BadParameter("--embeddings goes with a file of items, which has no columns to name")
    settings = load_settings() if form is None else load_settings(registry={"publish": form is PublishFormat.REGISTRY})
    console = terminal(stderr=True)
    with tracing_started(settings, "publish"):
        if follow or state is not None:
            if delete or embeddings is not None or limit is not None or wait:
                raise typer.BadParameter(
                    "--follow and --state go with a table: leave --delete, --embeddings, --limit and --wait away"
                )
            options = FollowOptions(columns, embedding_model, delete_missing)
            encoder = None if embed is None else _item_encoder(embed, settings.bundle)
            with Follower.open(settings, source, state or Path(".sidstream/publish"), options, encoder) as follower:
                whole = _follow(console, settings, follower, every if follow else None)
            if not whole:
                raise typer.Exit(1)
            return
        if delete_missing:
            raise typer.BadParameter("--delete-missing goes with --follow or --state")
        if delete:
            delivered, whole = _delete(console, settings, source, columns, limit), True
        else:
            delivered, whole = _publish(console, settings, source, columns, embeddings, embed, embedding_model, limit)
        if wait:
            settings = served_settings(settings)
            with console.status("waiting until they are indexed"):
                outcome = await_indexed(settings, delivered, seconds=timeout)
            if outcome.complete:
                console.print(f"[green]✓[/] the index {shown(settings.index)} has them")
            else:
                _show_refused(console, settings, outcome)
                whole = False
        if not whole:
            raise typer.Exit(1)


def _delete(console: Console, settings: Settings, source: str, columns: ColumnNames, limit: int | None) -> Delivery:
    from models.tables.catalogues import read_item_ids
    from streamer.client.publisher import publish_deletions

    ids = read_item_ids(source, columns)[:limit]
    delivered = _with_progress(console, "deleting", len(ids), partial(publish_deletions, settings, ids))
    _tell_sent(console, settings, len(ids), "tombstones")
    return delivered


def _publish(
    console: Console,
    settings: Settings,
    source: str,
    columns: ColumnNames,
    embeddings: Path | None,
    embed: Path | None,
    embedding_model: str | None,
    limit: int | None,
) -> tuple[Delivery, bool]:
    """What was delivered, and whether every row was taken."""
    from models.catalogue import Catalogue, read_items
    from models.tables.catalogues import is_table, reads_as_table
    from streamer.client.publisher import publish_items, publish_texts

    encoder = None if embed is None else _item_encoder(embed, settings.bundle)
    if embeddings is None and (reads_as_table(source, columns) if encoder is not None else is_table(source, columns)):
        return _publish_table(console, settings, source, columns, encoder, embedding_model, limit)
    items: Sequence[object]
    send: Callable[..., Delivery]
    if encoder is not None:
        items = texts = read_items(source)[:limit]
        send = partial(publish_texts, settings, texts, encoder)
    else:
        if embeddings is None and Path(source).is_file():
            raise typer.BadParameter(
                f"{source} is a file without embeddings: name them with --embeddings FILE.npy, their column with --embedding, or "
                "text towers with --embed DIR"
            )
        catalogue = Catalogue.read(source) if embeddings is None else Catalogue.read_pair(source, embeddings)
        items = rows = catalogue.items[:limit]
        send = partial(publish_items, settings, rows, catalogue.embeddings, embedding_model=embedding_model)
    delivered = _with_progress(console, "publishing", len(items), send)
    _tell_sent(console, settings, len(items), "item updates")
    return delivered, True


def _publish_table(
    console: Console,
    settings: Settings,
    source: str,
    columns: ColumnNames,
    encoder: TextEncoder | None,
    embedding_model: str | None,
    limit: int | None,
) -> tuple[Delivery, bool]:
    from models.tables.item_table import ItemTable
    from streamer.client.table_publishing import publish_table

    table = ItemTable.open(source, columns)
    tell_unread(console, table.chosen(embeddings=encoder is None).unread)
    rows = table.rows(embeddings=encoder is None)
    send = partial(publish_table, settings, rows, encoder=encoder, embedding_model=embedding_model, limit=limit)
    found = _with_progress(console, "publishing", None, send)
    _tell_sent(console, settings, found.items, "item updates")
    if found.repeated:
        console.print(f"[yellow]![/] {found.repeated:,} rows have an id that came before: the last row of each counts")
    tell_faults(console, found.faults)
    return found.delivered, not found.faults.count


def _follow(console: Console, settings: Settings, follower: Follower, every: float | None) -> bool:
    """Looks every so many seconds, or once; whether everything was taken in the last look. Ctrl-C ends it."""
    try:
        while True:
            found = follower.look(settled=every is not None)
            if found.told or every is None:
                _tell_look(console, settings, found)
            if every is None:
                return found.whole
            time.sleep(every)
    except KeyboardInterrupt:
        console.print("[green]✓[/] it goes on from here when it is started again")
        return True


def _tell_look(console: Console, settings: Settings, found: FollowedLook) -> None:
    deleted = f", {found.deleted:,} deleted" if found.deleted else ""
    console.print(
        f"[green]✓[/] {len(found.files):,} files: {found.new:,} new items, {found.changed:,} changed, {found.as_before:,} as "
        f"before{shown(deleted)}; on {shown(settings.topics.item_updates)}",
        soft_wrap=True,
    )
    if found.missing:
        console.print(
            f"[yellow]![/] {found.missing:,} items are in no file any more and stay (--delete-missing deletes them)"
        )
    for why in found.unreadable:
        print_line(console, f"! {why}", "red")
    tell_faults(console, found.faults)


def _with_progress(console: Console, doing: str, total: int | None, send: Callable[..., _Found]) -> _Found:
    with WorkProgress(console) as work:
        task = work.task(doing, unit="items", total=total)
        sent = 0

        def advance(count: int) -> None:
            nonlocal sent
            sent += count
            task.update(sent)

        return send(advance=advance)


def _tell_sent(console: Console, settings: Settings, count: int, what: str) -> None:
    console.print(f"[green]✓[/] {count:,} {shown(what)} are on {shown(settings.topics.item_updates)}")


def tell_unread(console: Console, columns: Sequence[str]) -> None:
    """Columns that mean nothing to sidstream."""
    if columns:
        print_line(console, f"  not read: {', '.join(columns)} (--attribute NAME makes one an attribute)", "dim")


def tell_faults(console: Console, faults: Faults) -> None:
    """The rows that were not taken; the first ones one by one."""
    if not faults.count:
        return
    console.print(f"[red]✗[/] {faults.count:,} rows were not taken:")
    for fault in faults.first:
        print_line(console, f"  {fault}")
    if faults.count > len(faults.first):
        console.print(f"  … and {faults.count - len(faults.first):,} more")


def _show_refused(console: Console, settings: Settings, outcome: Outcome) -> None:
    refused = sum(one.events for one in outcome.refused)
    console.print(
        f"[red]✗[/] {refused:,} of {refused + outcome.indexed:,} were refused; the index {shown(settings.index)} has "
        f"{outcome.indexed:,} of them"
    )
    for one in outcome.refused:
        console.print(Padding(f"{one.events:,} × [bold]{shown(one.kind)}[/]: {shown(one.example)}", (0, 0, 0, 2)))
        print_command(console, "sidstream", "dlq", "show", one.letter)


def _item_encoder(embed: Path, bundle: Path) -> TextEncoder:
    """The item tower; refused if the bundle on this machine was fitted on other embeddings. Producers may have no bundle."""
    from models.bundles.bundle import Bundle
    from models.bundles.manifest import MANIFEST_FILE
    from models.towers.text_encoder import Towers

    towers = Towers.open(embed)
    if (bundle / MANIFEST_FILE).exists():
        towers.require_fit(Bundle.open(bundle).manifest, bundle)
    return towers.item_encoder()
