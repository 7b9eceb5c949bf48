"""The command line of the local broker and the topics: ``broker``, ``acls``, ``topics create``, ``describe`` and
``repartition``.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Final, NoReturn

import structlog
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from models.progress import WorkProgress, WorkTask
from models.terminal import print_line, print_table, printable, shown, terminal
from streamer.events.topics import TopicSpec, topic_specs
from streamer.kafka.admin import create, describe
from streamer.local.broker import LocalBroker
from streamer.local.broker_process import STOP_SECONDS
from streamer.local.kafka_distribution import KAFKA_VERSION, FetchProgress
from streamer.process.logs import configure_logging, speaks_json
from streamer.process.shutdown import Shutdown
from streamer.settings import Settings, load_settings
from streamer.settings.load import CONFIGURATION_FILE, CONFIGURATION_VARIABLE

log = structlog.get_logger(__name__)
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
    console = terminal(stderr=True)
    signal.signal(signal.SIGTERM, _interrupt)  # while it starts, both signals break off; afterwards they ask to stop
    with fetch_progress(console) as progress, console.status("starting Apache Kafka"):
        running = LocalBroker(
            settings.broker.directory,
            port=settings.broker.port,
            heap=settings.broker.heap,
            short_lived=settings.broker.short_lived,
            progress=progress,
        )
        running.start()
    stop = threading.Event()
    Shutdown(stop, deadline_seconds=STOP_SECONDS + 5, before_ending_at_once=running.kill).listen()
    with running:
        if speaks_json():
            log.info("broker_up", bootstrap_servers=running.bootstrap_servers, directory=str(running.directory))
        else:
            print_line(
                console, f"Apache Kafka {KAFKA_VERSION} on {running.bootstrap_servers}, data in {running.directory}"
            )
            console.print("Next: [bold]sidstream topics create[/bold]. Ctrl-C stops the broker.")
        while not stop.wait(_WATCH_SECONDS):
            running.wait(0)
    if not speaks_json():
        console.print("Apache Kafka has stopped; its data stays.")


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


@topics.command("create")
def create_topics() -> None:
    """Create the topics that are missing; one that exists in another shape is an error and stays as it is.

    With registry.url set, our schemas are registered there.
    """
    settings = load_settings()
    configure_logging(settings.logging, process="topics")
    specs = topic_specs(settings)
    outcome = create(settings.kafka, specs)
    table = _shape_table("")
    for spec in specs:
        state = "[green]created[/green]" if spec.name in outcome.created else "there"
        table.add_row(
            shown(spec.name), str(spec.partitions), str(spec.replication), _cleanup(spec), Text.from_markup(state)
        )
    console = terminal()
    print_line(console, f"topics on {settings.kafka.bootstrap_servers}")
    print_table(console, table)
    if settings.registry.url:
        from streamer.registry.subjects import register_subjects

        for subject, schema_id in register_subjects(settings).items():
            print_line(console, f"schema {schema_id} is {subject} ({settings.registry.format})")


@topics.command("describe")
def describe_topics() -> None:
    """Show the topics as the cluster has them: shape, policy and how many offsets each log spans."""
    settings = load_settings()
    configure_logging(settings.logging, process="topics")
    console = terminal()
    table, missing = _description_table(settings)
    print_line(console, f"topics on {settings.kafka.bootstrap_servers}")
    print_table(console, table)
    if missing:
        print_line(console, "create the missing ones with: sidstream topics create")


def acls(
    settings_file: Annotated[
        Path | None,
        typer.Argument(help="A settings file.", show_default=f"{CONFIGURATION_VARIABLE}, or {CONFIGURATION_FILE}"),
    ] = None,
    user: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=PRINCIPAL, such as assigner=User:indexing; repeat it.", show_default="User:sidstream-NAME"
        ),
    ] = None,
) -> None:
    """Print the lines of kafka-acls that give each process and client the rights that it needs, and no more."""
    from streamer.events.documents.users import topic_users
    from streamer.operations.acls import acl_lines

    if settings_file is not None:
        os.environ[CONFIGURATION_VARIABLE] = str(settings_file)
    settings = load_settings()
    principals = dict(one.partition("=")[::2] for one in user or ())
    known = [one.name for one in topic_users(settings)]
    for name, principal in principals.items():
        if name not in known or ":" not in principal:
            raise typer.BadParameter(
                f"--user takes NAME=TYPE:PRINCIPAL, with a name of {', '.join(known)}; not {name!r}"
            )
    for line in acl_lines(settings, principals):
        print(printable(line))


_WHY_KEYS_STAY: Final = {
    "REFUSED": "their newest records are refused (`sidstream dlq list`). Send these ids anew or delete them, then run this again",
    "OTHER_MODEL": "a codebook passes over their newest update, as its embedding is of another model (`sidstream deployments`). "
    "Retire that codebook or, if it is the only one, send these ids anew with its model; then run this again",
    "WITH_ITEM": "so do their items. Run this again when those can move",
}


@topics.command("repartition")
def repartition_topics(
    partitions: Annotated[
        int | None,
        typer.Option(min=1, help="How many partitions there are to be.", show_default="as many as there are"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say how many items would move.")] = False,
) -> None:
    """Add partitions, and move every item into the partition that its id belongs into. Everything goes on meanwhile."""
    from streamer.operations.key_mover import RepartitionProgress
    from streamer.operations.repartition import repartition

    settings = load_settings()
    configure_logging(settings.logging, process="topics")
    console = terminal(stderr=True)
    tasks: dict[str, WorkTask] = {}
    with WorkProgress(console) as work:

        def show(now: RepartitionProgress) -> None:
            name = f"{now.topic}: {now.step}, look {now.look}"
            if name not in tasks:
                tasks[name] = work.task(name, unit="ids" if now.step == "moving" else "records")
            tasks[name].update(now.done, now.total)

        outcome = repartition(settings, partitions, dry_run=dry_run, progress=show)
    for name in outcome.missing:
        console.print(f"[yellow]![/] {shown(name)} is not there: `sidstream topics create` makes it")
    if dry_run:
        for keys in outcome.topics:
            console.print(
                f"{keys.to_move:,} of the {keys.keys:,} ids on {shown(keys.topic)} would move with {keys.partitions:,} partitions"
            )
        console.print("Nothing was changed")
        return
    for name in outcome.grown:
        console.print(f"[green]✓[/] {shown(name)} has {outcome.partitions:,} partitions now")
    for keys in outcome.topics:
        console.print(
            f"[green]✓[/] {keys.moved:,} of {keys.keys:,} ids on {shown(keys.topic)} moved"
            f"{'' if keys.kept else ': each lies in its own partition'}"
        )
        for why, number in Counter(keys.staying.values()).items():
            console.print(f"[yellow]![/] {number:,} stay where they are: {shown(_WHY_KEYS_STAY[why.name])}")
    # A killed run may have added them.
    if partitions is not None and (outcome.grown or any(keys.moved for keys in outcome.topics)):
        print_line(
            console,
            "Producers hear of the new partitions within five minutes, as a rule, and put ids into the old ones until then: "
            "run `sidstream topics repartition` once more afterwards",
        )
    if outcome.partitions != settings.topics.partitions:
        print_line(console, f"Next: set topics.partitions = {outcome.partitions} (it is {settings.topics.partitions})")


def _description_table(settings: Settings) -> tuple[Table, int]:
    """Every topic of the settings, and how many of them are missing."""
    specs = topic_specs(settings)
    present = {topic.name: topic for topic in describe(settings.kafka, [spec.name for spec in specs])}
    table = _shape_table("offsets")
    for spec in specs:
        topic = present.get(spec.name)
        if topic is None:
            table.add_row(shown(spec.name), "", "", "", "[red]missing[/red]")
            continue
        table.add_row(
            shown(topic.name),
            str(topic.partitions),
            str(topic.replication),
            shown(topic.cleanup_policy),
            f"{topic.records:,}",
        )
    return table, len(specs) - len(present)


def _shape_table(last: str) -> Table:
    table = Table()
    table.add_column("topic")
    table.add_column("partitions", justify="right")
    table.add_column("replicas", justify="right")
    table.add_column("cleanup")
    table.add_column(last, justify="right" if last else "left")
    return table


def _cleanup(spec: TopicSpec) -> str:
    retention = spec.config.get("retention.ms")
    return spec.cleanup_policy if retention is None else f"{spec.cleanup_policy}, {int(retention) // 86_400_000} d"
