"""Commands of the streaming half: publish, the assigner and indexer processes, all of them together, and their status."""

from __future__ import annotations

import threading
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import structlog
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from models.errors import SidstreamError
from models.terminal import print_line, print_table, printable, shown, terminal
from streamer.commands.terminal import ascii_json
from streamer.settings import Settings, load_settings

if TYPE_CHECKING:
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


def up(
    broker: Annotated[
        bool | None,
        typer.Option(
            "--broker/--no-broker",
            help="Start the embedded Apache Kafka.",
            show_default="unless kafka.bootstrap_servers names another cluster",
        ),
    ] = None,
    retrievers: Annotated[int, typer.Option(min=0, help="How many retriever processes.")] = 1,
    gateway: Annotated[
        bool, typer.Option("--gateway", help="Serve HTTP too, with a page to try queries (gateway.host, gateway.port).")
    ] = False,
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
    from streamer.local.up import Pipeline, StartStopped, require_answering
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
    embedded = broker if broker is not None else settings.brings_broker
    if embedded:
        _require_one_address(settings)
    stop = threading.Event()
    pipeline = Pipeline(
        settings,
        embedded_broker=embedded,
        retrievers=retrievers,
        gateway=gateway,
        log_directory=logs,
        preload=preload,
        stop=stop,
    )
    Shutdown(
        stop,
        deadline_seconds=settings.shutdown_seconds + KILL_MARGIN_SECONDS + STOP_SECONDS,
        before_ending_at_once=pipeline.kill,
    ).listen()
    dashboard = f"http://{settings.monitor.web_host}:{settings.monitor.web_port}" if settings.monitor.web_port else ""
    with suppress(StartStopped), pipeline:
        _tell_that_it_is_up(
            console, pipeline.settings.kafka.bootstrap_servers, dashboard, settings.gateway.address if gateway else ""
        )
        pipeline.watch(stop)
    if speaks_json():
        log.info("down")
    else:
        console.print("[green]✓[/] everything has stopped")


def _require_one_address(settings: Settings) -> None:
    """Refuses an embedded broker that the other commands would not find. Raises ``SidstreamError``."""
    named, port = settings.kafka.bootstrap_servers, settings.broker.port
    if "bootstrap_servers" in settings.kafka.model_fields_set and port and not settings.names_own_broker:
        raise SidstreamError(
            f"--broker starts one at 127.0.0.1:{port}, but kafka.bootstrap_servers names {named}, where `sidstream ask` and the "
            "others would look for it: set broker.port to that address's port, or leave one of the two out"
        )


def _tell_that_it_is_up(console: Console, servers: str, dashboard: str, gateway: str) -> None:
    from streamer.process.logs import speaks_json

    if speaks_json():
        log.info("up", bootstrap_servers=servers, dashboard=dashboard or None, gateway=gateway or None)
        return
    console.print(f"[green]✓[/] sidstream is up on {shown(servers)}; Ctrl-C ends it")
    console.print("  [dim]answers come as soon as the retriever has loaded its model[/]")
    if dashboard:
        print_line(console, f"  the monitor's dashboard: {dashboard}")
    if gateway:
        print_line(console, f"  queries by hand, and HTTP: {gateway}")


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
