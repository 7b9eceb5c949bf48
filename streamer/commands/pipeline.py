"""Commands of the streaming half: publish, the assigner and indexer processes, all of them together, and their status."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import structlog
import typer
from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from models.commands.towers import EmbedOption
from models.errors import SidstreamError
from models.progress import WorkProgress
from models.terminal import print_command, print_line, print_table, printable, shown, terminal
from streamer.commands.terminal import ascii_json
from streamer.settings import Settings, load_settings

if TYPE_CHECKING:
    from models.towers.text_encoder import TextEncoder
    from streamer.client.delivery import Delivery
    from streamer.client.refusals import Outcome
    from streamer.operations.status import Lag, Status

log = structlog.get_logger(__name__)


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
        typer.Argument(
            help="A catalogue folder, or a JSON-lines file of items (id, title, weight …), gzipped or not; with --delete "
            "ids are enough, also one a line."
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
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many items.")] = None,
    wait: Annotated[
        bool,
        typer.Option(
            "--wait", help="Return once the index of this machine has all of them; exit status 1 if not, and why."
        ),
    ] = False,
    timeout: Annotated[float, typer.Option(min=0, help="How many seconds --wait waits.")] = 60.0,
) -> None:
    """Publish item updates (or deletions) of a catalogue."""
    from models.catalogue import Catalogue, read_item_ids, read_items
    from streamer.client.publisher import publish_deletions, publish_items, publish_texts
    from streamer.client.read_your_writes import await_indexed
    from streamer.deployments.served import served_settings

    if embeddings is not None and embed is not None:
        raise typer.BadParameter("--embeddings brings embeddings and --embed makes them: give one of the two")
    if embedding_model is not None and (embed is not None or delete):
        raise typer.BadParameter("--embedding-model goes with embeddings of your own: leave it out")
    settings = load_settings()
    items: Sequence[object]
    send: Callable[..., Delivery]
    if delete:
        items = ids = read_item_ids(source)[:limit]
        send = partial(publish_deletions, settings, ids)
    elif embed is not None:
        items = texts = read_items(source)[:limit]
        send = partial(publish_texts, settings, texts, _item_encoder(embed, settings.bundle))
    else:
        if embeddings is None and source.is_file():
            raise typer.BadParameter(
                f"{source} is a file: name its embeddings with --embeddings FILE.npy, or text towers with --embed DIR"
            )
        catalogue = Catalogue.read(source) if embeddings is None else Catalogue.read_pair(source, embeddings)
        items = rows = catalogue.items[:limit]
        send = partial(publish_items, settings, rows, catalogue.embeddings, embedding_model=embedding_model)
    console = terminal(stderr=True)
    with WorkProgress(console) as work:
        task = work.task("deleting" if delete else "publishing", unit="items", total=len(items))
        sent = 0

        def advance(count: int) -> None:
            nonlocal sent
            sent += count
            task.update(sent)

        delivered = send(advance=advance)
    console.print(
        f"[green]✓[/] {len(items):,} {'tombstones' if delete else 'item updates'} are on "
        f"{shown(settings.topics.item_updates)}"
    )
    if not wait:
        return
    settings = served_settings(settings)
    with console.status("waiting until they are indexed"):
        outcome = await_indexed(settings, delivered, seconds=timeout)
    if outcome.complete:
        console.print(f"[green]✓[/] the index {shown(settings.index)} has them")
        return
    _show_refused(console, settings, outcome)
    raise typer.Exit(1)


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
    preload: Annotated[
        bool,
        typer.Option(
            help="Keep a process that has imported everything, so that one that died is back at once (Linux)."
        ),
    ] = True,
) -> None:
    """Run everything on this machine: broker, topics, assigner, indexer, monitor, retriever. A second Ctrl-C ends at once."""
    from models.bundles.bundle import Bundle
    from models.bundles.store import BundleStore
    from streamer.local.broker_process import STOP_SECONDS
    from streamer.local.supervisor import KILL_MARGIN_SECONDS
    from streamer.local.up import Pipeline, require_answering
    from streamer.process.logs import configure_logging, speaks_json
    from streamer.process.shutdown import Shutdown

    settings = load_settings()
    # What every process would refuse after its start is refused here, once, before there is a broker; unless something is
    # deployed, and answers whatever lies in the settings' bundle.
    if not BundleStore(settings.bundles).ids():
        own = Bundle.open(settings.bundle)
        if retrievers:
            require_answering(own, settings)
    configure_logging(settings.logging, process="up")
    console = terminal(stderr=True)
    embedded = broker if broker is not None else "bootstrap_servers" not in settings.kafka.model_fields_set
    if embedded:
        _require_one_address(settings)
    pipeline = Pipeline(settings, embedded_broker=embedded, retrievers=retrievers, log_directory=logs, preload=preload)
    stop = threading.Event()
    Shutdown(
        stop,
        deadline_seconds=settings.shutdown_seconds + KILL_MARGIN_SECONDS + STOP_SECONDS,
        before_ending_at_once=pipeline.kill,
    ).listen()
    with pipeline:
        dashboard = (
            f"http://{settings.monitor.web_host}:{settings.monitor.web_port}" if settings.monitor.web_port else ""
        )
        _tell_that_it_is_up(console, pipeline.settings.kafka.bootstrap_servers, dashboard)
        pipeline.watch(stop)
    if speaks_json():
        log.info("down")
    else:
        console.print("[green]✓[/] everything has stopped")


def _require_one_address(settings: Settings) -> None:
    """Refuses an embedded broker that the other commands would not find. Raises ``SidstreamError``."""
    named, port = settings.kafka.bootstrap_servers, settings.broker.port
    own = {f"{host}:{port}" for host in ("127.0.0.1", "localhost")}
    if "bootstrap_servers" in settings.kafka.model_fields_set and port and named not in own:
        raise SidstreamError(
            f"--broker starts one at 127.0.0.1:{port}, but kafka.bootstrap_servers names {named}, where `sidstream ask` and the "
            "others would look for it: set broker.port to that address's port, or leave one of the two out"
        )


def _tell_that_it_is_up(console: Console, servers: str, dashboard: str) -> None:
    from streamer.process.logs import speaks_json

    if speaks_json():
        log.info("up", bootstrap_servers=servers, dashboard=dashboard or None)
        return
    console.print(f"[green]✓[/] sidstream is up on {shown(servers)}; Ctrl-C ends it")
    console.print("  [dim]answers come as soon as the retriever has loaded its model[/]")
    if dashboard:
        print_line(console, f"  the monitor's dashboard: {dashboard}")


def status(
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show lag, items, layout and census metrics."""
    from streamer.operations.status import read_status

    found = read_status(load_settings())
    if json:
        print(ascii_json(found, indent=2))
    else:
        _show_status(terminal(), found)


def _show_status(console: Console, found: Status) -> None:
    print_line(console, f"Broker {found.broker}")
    lags = Table(box=box.SIMPLE_HEAD)
    for column, justify in (("process", "left"), ("reads", "left"), ("lag", "right"), ("state", "left")):
        lags.add_column(column, justify=justify)  # type: ignore[arg-type]
    for lag in found.lags:
        lags.add_row(
            shown(lag.process),
            Text(printable(lag.topic)),
            "" if lag.records is None else f"{lag.records:,}",
            _state(lag),
        )
    print_table(console, lags)
    if any(lag.held_back for lag in found.lags):
        console.print(
            "What is held back lies behind a transaction that a producer has open: it can be read once that ends, at the "
            "latest after the transaction's time limit.",
        )
    if found.unknown_fields:
        names = ", ".join(f"{name} in {events:,} events" for name, events in found.unknown_fields.items())
        console.print(f"[yellow]Item updates have fields that nothing reads:[/] {shown(names)}")
    if found.items is None:
        missing = f"No index at {found.index}: start the indexer (`sidstream indexer` or `sidstream up`)."
        print_line(console, found.index_fault or missing)
        return
    written = datetime.fromtimestamp((found.last_write or 0) / 1000, UTC).isoformat(timespec="seconds")
    most = f" of at most {found.maximum_items:,}" if found.maximum_items else ""
    console.print(
        f"[bold]{found.items:,}{shown(most)} items[/], last written {shown(written)}, codebook {shown(found.codebook)}, in"
    )
    print_line(console, f"  {found.index}")
    if found.partitions:
        console.print(f"A shard: the partitions {shown(found.partitions)} of item-codes (docs/scale.md)")
    if found.split_keys:
        console.print(
            f"[yellow]{found.split_keys:,} item ids have records in more than one partition[/] (docs/partitions.md)"
        )
    console.print(f"Layout {shown(found.generation)}, {shown(found.head_tokens)} head tokens")
    census = Table(box=box.SIMPLE_HEAD)
    for column in ("layer", "entropy", "Gini", "standard deviation", "head share"):
        census.add_column(column, justify="right")
    for layer in found.layers:
        census.add_row(
            str(layer.layer),
            f"{layer.entropy:.3f}",
            f"{layer.gini:.3f}",
            f"{layer.standard_deviation:.1f}",
            f"{layer.head_share:.1%}" if layer.layer == 2 else "",
        )
    print_table(console, census)


def _state(lag: Lag) -> str:
    if not lag.running:
        return "not running" if lag.records is not None else "never ran"
    if lag.held_back:
        return f"{lag.held_back:,} held back by an open transaction"
    if lag.waits:
        return "waiting for its first record"
    return "running" if lag.running == 1 else f"{lag.running} running"
