"""The command line of the local broker and the topics: ``broker``, ``topics create`` and ``topics describe``."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Final, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from streamer.events.topics import TopicSpec, topic_specs
from streamer.kafka.admin import create, describe
from streamer.local.broker import LocalBroker
from streamer.local.broker_process import STOP_SECONDS
from streamer.local.kafka_distribution import KAFKA_VERSION, FetchProgress
from streamer.process.logs import configure_logging
from streamer.process.shutdown import Shutdown
from streamer.settings import Settings, load_settings

_WATCH_SECONDS: Final = 0.5

topics = typer.Typer(help="Create and describe the topics on any cluster.", no_args_is_help=True)


@contextmanager
def fetch_progress(console: Console) -> Iterator[FetchProgress]:
    """A progress bar that shows itself only if jars have to be fetched."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(f"fetching Apache Kafka {KAFKA_VERSION} (first use only)", visible=False)

        def report(_file_name: str, there: int, total: int) -> None:
            bar.update(task, completed=there, total=total, visible=there < total)

        yield report


def broker(
    directory: Annotated[
        Path | None, typer.Option(help="Data, logs and configuration.", show_default="broker.directory")
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="0 takes a free one.", show_default="broker.port")
    ] = None,
    heap: Annotated[str | None, typer.Option(help="Of the JVM, like 768m.", show_default="broker.heap")] = None,
) -> None:
    """Run a real single-node Apache Kafka on this machine until Ctrl-C; its data stays for the next time."""
    given = {"directory": directory, "port": port, "heap": heap}
    overrides = {name: value for name, value in given.items() if value is not None}
    settings = load_settings(broker=overrides) if overrides else load_settings()
    configure_logging(settings.logging, process="broker")
    console = Console(stderr=True)
    signal.signal(signal.SIGTERM, _interrupt)  # while it starts, both signals break off; afterwards they ask to stop
    with fetch_progress(console) as progress, console.status("starting Apache Kafka"):
        running = LocalBroker(
            settings.broker.directory, port=settings.broker.port, heap=settings.broker.heap, progress=progress
        )
        running.start()
    stop = threading.Event()
    Shutdown(stop, deadline_seconds=STOP_SECONDS + 5, before_ending_at_once=running.kill).listen()
    with running:
        console.print(f"Apache Kafka {KAFKA_VERSION} on [bold]{running.bootstrap_servers}[/bold], data in", end=" ")
        console.print(str(running.directory), highlight=False, soft_wrap=True)
        console.print("Next: [bold]sidstream topics create[/bold]. Ctrl-C stops the broker.")
        while not stop.wait(_WATCH_SECONDS):
            running.wait(0)
    console.print("Apache Kafka has stopped; its data stays.")


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


@topics.command("create")
def create_topics() -> None:
    """Create the topics that are missing; one that exists in another shape is an error and stays as it is."""
    settings = load_settings()
    configure_logging(settings.logging, process="topics")
    specs = topic_specs(settings)
    outcome = create(settings.kafka, specs)
    table = Table(title=f"topics on {settings.kafka.bootstrap_servers}", title_justify="left")
    _add_shape_columns(table)
    table.add_column("cleanup")
    table.add_column("")
    for spec in specs:
        state = "[green]created[/green]" if spec.name in outcome.created else "there already"
        table.add_row(spec.name, str(spec.partitions), str(spec.replication), _cleanup(spec), state)
    Console().print(table)


@topics.command("describe")
def describe_topics() -> None:
    """Show the topics as the cluster has them: shape, policy and how many offsets each log spans."""
    settings = load_settings()
    configure_logging(settings.logging, process="topics")
    Console().print(description_table(settings))


def description_table(settings: Settings) -> Table:
    """Every topic of the settings, the missing ones included."""
    specs = topic_specs(settings)
    present = {topic.name: topic for topic in describe(settings.kafka, [spec.name for spec in specs])}
    table = Table(title=f"topics on {settings.kafka.bootstrap_servers}", title_justify="left")
    _add_shape_columns(table)
    table.add_column("cleanup")
    table.add_column("offsets", justify="right")
    for spec in specs:
        topic = present.get(spec.name)
        if topic is None:
            table.add_row(spec.name, "", "", "", "[red]missing: sidstream topics create[/red]")
            continue
        table.add_row(
            topic.name,
            str(topic.partitions),
            str(topic.replication),
            topic.cleanup_policy,
            f"{topic.records:,}",
        )
    return table


def _add_shape_columns(table: Table) -> None:
    table.add_column("topic", no_wrap=True)
    table.add_column("partitions", justify="right")
    table.add_column("replicas", justify="right")


def _cleanup(spec: TopicSpec) -> str:
    retention = spec.config.get("retention.ms")
    return spec.cleanup_policy if retention is None else f"delete after {int(retention) // 86_400_000} d"
