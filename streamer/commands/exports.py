"""Commands that take what the topics hold out into files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from models.progress import WorkProgress
from models.terminal import print_line, shown, terminal
from streamer.deployments.served import served_settings
from streamer.settings import load_settings


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
