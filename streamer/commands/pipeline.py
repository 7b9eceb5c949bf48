"""Commands of the streaming half: publish, the assigner and indexer processes, all of them together, and their status."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from models.commands.towers import EmbedOption
from streamer.settings import load_settings

if TYPE_CHECKING:
    from models.towers.text_encoder import TextEncoder


def assigner() -> None:
    """Run the assigner: item updates → codes, exactly once."""
    from streamer.assigner.process import run_assigner

    run_assigner(load_settings())


def indexer() -> None:
    """Run the indexer: codes → LMDB, exactly once; the census' counts → monitor. One per host."""
    from streamer.indexer.process import run_indexer

    run_indexer(load_settings())


def publish(
    source: Annotated[
        Path,
        typer.Argument(help="A catalogue folder, or a JSON-lines file of items (id, title, weight …), gzipped or not."),
    ],
    embeddings: Annotated[
        Path | None, typer.Option(help="The .npy with one row an item; only with a JSON-lines file.")
    ] = None,
    embed: EmbedOption = None,
    delete: Annotated[bool, typer.Option("--delete", help="Send tombstones for these items instead.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many items.")] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Return once the index of this machine has all of them, or fail.")
    ] = False,
    timeout: Annotated[float, typer.Option(min=0, help="How many seconds --wait waits.")] = 60.0,
) -> None:
    """Publish item updates (or deletions) of a catalogue."""
    from models.catalogue import Catalogue, read_items
    from streamer.client.publisher import publish_deletions, publish_items, publish_texts
    from streamer.client.read_your_writes import await_indexed

    if embeddings is not None and embed is not None:
        raise typer.BadParameter("--embeddings brings embeddings and --embed makes them: give one of the two")
    settings = load_settings()
    send: Callable[..., dict[int, int]]
    if delete:
        items = read_items(source)[:limit]
        send = partial(publish_deletions, settings, items)
    elif embed is not None:
        items = read_items(source)[:limit]
        send = partial(publish_texts, settings, items, _item_encoder(embed, settings.bundle))
    else:
        if embeddings is None and source.is_file():
            raise typer.BadParameter(
                f"{source} is a file: name its embeddings with --embeddings FILE.npy, or text towers with --embed DIR"
            )
        catalogue = Catalogue.read(source) if embeddings is None else Catalogue.read_pair(source, embeddings)
        items = catalogue.items[:limit]
        send = partial(publish_items, settings, items, catalogue.embeddings)
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
    ) as progress:
        task = progress.add_task("deleting" if delete else "publishing", total=len(items))
        delivered = send(advance=lambda count: progress.advance(task, count))
    console.print(
        f"[green]✓[/] {len(items):,} {'tombstones' if delete else 'item updates'} are on {settings.topics.item_updates}"
    )
    if wait:
        with console.status("waiting until they are indexed"):
            await_indexed(settings, delivered, seconds=timeout)
        console.print(f"[green]✓[/] the index {settings.index} has them")


def _item_encoder(embed: Path, bundle: Path) -> TextEncoder:
    """The item tower; refused if the bundle on this machine was fitted on other embeddings. Producers may have no bundle."""
    from models.bundles.bundle import Bundle
    from models.bundles.manifest import MANIFEST_FILE
    from models.towers.text_encoder import Towers

    towers = Towers.open(embed)
    if (bundle / MANIFEST_FILE).exists():
        towers.require_fit(Bundle.open(bundle).manifest, bundle)
    return towers.item_encoder()


def up(
    broker: Annotated[
        bool | None,
        typer.Option(
            "--broker/--no-broker",
            help="Start the embedded Apache Kafka.",
            show_default="unless kafka.bootstrap_servers is set",
        ),
    ] = None,
    retrievers: Annotated[int, typer.Option(min=0, help="How many retriever processes.")] = 1,
    logs: Annotated[Path | None, typer.Option(help="Write each process' log here instead of the terminal.")] = None,
) -> None:
    """Run everything on this machine: broker, topics, assigner, indexer, monitor, retriever. A second Ctrl-C ends at once."""
    from models.bundles.bundle import Bundle
    from models.bundles.manifest import BundleError
    from streamer.local.broker_process import STOP_SECONDS
    from streamer.local.supervisor import KILL_MARGIN_SECONDS
    from streamer.local.up import Pipeline
    from streamer.process.logs import configure_logging
    from streamer.process.shutdown import Shutdown

    settings = load_settings()
    # What every process would refuse after its start is refused here, once, before there is a broker.
    opened = Bundle.open(settings.bundle)
    if retrievers and opened.manifest.language_model is None:
        raise BundleError(
            f"the bundle {settings.bundle} has no language model yet: run `sidstream train` on it, or start without "
            "a retriever with `--retrievers 0`"
        )
    configure_logging(settings.logging, process="up")
    console = Console(stderr=True)
    embedded = broker if broker is not None else "bootstrap_servers" not in settings.kafka.model_fields_set
    pipeline = Pipeline(settings, embedded_broker=embedded, retrievers=retrievers, log_directory=logs)
    stop = threading.Event()
    Shutdown(
        stop,
        deadline_seconds=settings.shutdown_seconds + KILL_MARGIN_SECONDS + STOP_SECONDS,
        before_ending_at_once=pipeline.kill,
    ).listen()
    with pipeline:
        servers = pipeline.settings.kafka.bootstrap_servers
        console.print(f"[green]✓[/] sidstream is up on {servers}; Ctrl-C ends it")
        console.print("  [dim]answers come as soon as the retriever has loaded its model[/]")
        if settings.monitor.web_port:
            console.print(f"  the monitor's dashboard: http://{settings.monitor.web_host}:{settings.monitor.web_port}")
        pipeline.watch(stop)
    console.print("[green]✓[/] everything has stopped")


def status(
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show lag, items, layout and census metrics."""
    from streamer.operations.status import read_status

    found = read_status(load_settings())
    if json:
        sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(found)) + b"\n")
    else:
        console = Console()
        lags = Table(box=box.SIMPLE_HEAD, title=f"Broker {found.broker}", title_justify="left")
        for column, justify in (("process", "left"), ("reads", "left"), ("lag", "right")):
            lags.add_column(column, justify=justify)  # type: ignore[arg-type]
        for lag in found.lags:
            amount = "never ran" if lag.records is None else f"{lag.records:,}"
            lags.add_row(lag.process, lag.topic, amount)
        console.print(lags)
        if found.items is None:
            console.print(f"No index at {found.index}: start the indexer (`sidstream indexer` or `sidstream up`).")
            return
        written = datetime.fromtimestamp((found.last_write or 0) / 1000, UTC).isoformat(timespec="seconds")
        console.print(
            f"[bold]{found.items:,} items[/] in {found.index}, last written {written}, codebook {found.codebook}"
        )
        console.print(f"Layout {found.generation}, {found.head_tokens} head tokens")
        census = Table(box=box.SIMPLE_HEAD)
        for column in ("layer", "entropy", "Gini", "standard deviation", "head share"):
            census.add_column(column, justify="right")
        for layer in found.layers:
            head = f"{layer.head_share:.1%}" if layer.layer == 2 else ""
            census.add_row(
                str(layer.layer), f"{layer.entropy:.3f}", f"{layer.gini:.3f}", f"{layer.standard_deviation:.1f}", head
            )
        console.print(census)
