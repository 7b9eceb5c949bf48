"""Commands that take what the topics hold out into files."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from models.commands.number_options import finite
from models.progress import WorkProgress
from models.terminal import print_line, shown, terminal
from streamer.deployments.served import served_on_this_machine, served_settings
from streamer.settings import load_settings

if TYPE_CHECKING:
    from rich.console import Console

    from streamer.feeds.feed import Feed, FeedLook, FeedPosition
    from streamer.feeds.items import LayoutChoice

_LAYOUTS: tuple[LayoutChoice, ...] = ("pinned", "live", "full")


def catalogue(
    directory: Annotated[Path, typer.Argument(help="The folder to write; it must not be there yet, or be empty.")],
) -> None:
    """Write the live catalogue as files: every item of item-updates with title, weight, attributes and embedding.

    Attributes are those of the updates; those of item-attributes are not among them.
    """
    from models.bundles.bundle import Bundle
    from streamer.operations.catalogue_export import export_catalogue

    settings, console = served_settings(load_settings()), terminal(stderr=True)
    manifest = Bundle.open(settings.bundle).manifest
    with WorkProgress(console) as work:
        task = work.task("reading item updates", unit="records")
        found = export_catalogue(
            settings,
            directory,
            dimension=manifest.dimension,
            norms=manifest.embedding_norms,
            embedding_model=manifest.embedding_model,
            progress=task.update,
        )
        task.end()
    console.print(f"[green]✓[/] {found.items:,} items are in {shown(directory)}", soft_wrap=True)
    if found.other_models:
        print_line(console, f"  {found.other_models:,} updates are passed over: another model made their embeddings")
    for kind, count in found.refused.most_common():
        print_line(console, f"  {count:,} updates could not be used: {kind} (`sidstream dlq list` has them)")


def export(
    directory: Annotated[Path, typer.Argument(help="The directory of the feed; its older snapshots are replaced.")],
    format: Annotated[
        str, typer.Option("--format", help="nvidia-jsonl, flashrec, xllm, static-csr or parquet (docs/feeds.md).")
    ],
    layout: Annotated[
        str,
        typer.Option(
            help="How SIDs are read: pinned (as the bundle's model was trained), live, or full (every layer's token)."
        ),
    ] = "pinned",
    token_base: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Token id of the first codeword of layer 1 in the engine's vocabulary.",
            show_default="that of the bundle's model, or 0",
        ),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on: write what changes after the snapshot, as it happens.")
    ] = False,
    every: Annotated[
        float, typer.Option(min=0.05, help="Seconds between two looks of --follow.", callback=finite)
    ] = 1.0,
    rewrite_every: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            help="With --follow: seconds after which a catalogue that changed is written anew.",
            show_default="never",
            callback=finite,
        ),
    ] = None,
) -> None:
    """Write the live catalogue of this machine's index as (SID, items), as another engine loads it."""
    from models.bundles.bundle import Bundle
    from models.commands.choices import one_of
    from store.reading.reader import IndexReader
    from streamer.feeds.feed import Feed
    from streamer.feeds.formats import format_named

    to, settings, console = format_named(format), served_on_this_machine(load_settings()), terminal(stderr=True)
    bundle = Bundle.open(settings.bundle)
    model = bundle.manifest.language_model
    if token_base is None:
        token_base = 0 if model is None else model.vocabulary.sid_base
    with IndexReader(settings.index) as reader:
        feed = Feed(
            reader,
            bundle.layout,
            directory,
            to,
            layout=one_of("--layout", layout, _LAYOUTS),
            token_base=token_base,
            followed=follow,
        )
        _tell_snapshot(console, directory, feed.write())
        if follow:
            _follow(console, directory, feed, every, rewrite_every)


def _follow(console: Console, directory: Path, feed: Feed, every: float, rewrite_every: float | None) -> None:
    written, changed = time.monotonic(), False
    try:
        while True:
            time.sleep(every)
            found = feed.look()
            changed |= bool(found.changed or found.gone)
            if changed and rewrite_every is not None and time.monotonic() - written >= rewrite_every:
                found.snapshot = feed.write()
            if found.snapshot is not None:
                written, changed = time.monotonic(), False
            _tell_look(console, directory, found)
    except KeyboardInterrupt:
        console.print("[green]✓[/] the feed ends here; started again, it begins with a new snapshot")


def _tell_look(console: Console, directory: Path, found: FeedLook) -> None:
    if found.changed or found.gone:
        console.print(f"  {found.changed:,} items are new or other, {found.gone:,} are gone")
    if found.snapshot is not None:
        _tell_snapshot(console, directory, found.snapshot)


def _tell_snapshot(console: Console, directory: Path, written: FeedPosition) -> None:
    at = ", ".join(f"{name} {offset:,}" for name, offset in written.position.items())
    console.print(
        f"[green]✓[/] {written.items:,} items of {written.sids:,} SIDs are in {shown(directory / written.files[0])} "
        f"(commit {written.commit:d}; {shown(at)})",
        soft_wrap=True,
    )
