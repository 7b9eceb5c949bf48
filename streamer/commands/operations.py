"""Commands for the index on call: rebuild it from Kafka, check it, copy it while it is written, put a copy back."""

from __future__ import annotations

import shlex
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from models.terminal import print_line, printable, shown
from streamer.commands.terminal import ascii_json
from streamer.deployments.served import served_on_this_machine, served_settings
from streamer.settings import Settings, load_settings

if TYPE_CHECKING:
    from store.checks.backup import IndexCopy
    from streamer.operations.verify import Examination

_DAY_MS: Final = 86_400_000


class _Rate(ProgressColumn):
    """Offsets a second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.finished_speed or task.speed or 0:,.0f}/s", style="dim")


def rebuild(
    into: Annotated[
        Path | None, typer.Option(help="Build into this empty directory.", show_default="the index of the settings")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the outcome as one JSON object.")] = False,
) -> None:
    """Build a fresh index from Kafka, beside a running one if you like."""
    from streamer.indexer.rebuild import rebuild as build
    from streamer.indexer.rebuild import require_room
    from streamer.process.run import collect_garbage_rarely

    loaded = load_settings()
    require_room(
        into if into is not None else served_on_this_machine(loaded).index
    )  # before anything is asked of the broker
    settings = served_settings(loaded)
    target = into if into is not None else settings.index
    collect_garbage_rarely()
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    with Progress(
        TextColumn("rebuilding"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f} offsets"),
        _Rate(),
        TimeRemainingColumn(),
        console=console,
    ) as progress:
        task = progress.add_task("rebuilding", total=0)
        outcome = build(
            settings, target, progress=lambda done, total: progress.update(task, completed=done, total=total)
        )
    if json:
        _print_json(outcome)
    rate = outcome.records / outcome.seconds if outcome.seconds else 0
    console.print(
        f"[green]✓[/] {outcome.items:,} items in {shown(target)} from {outcome.records:,} records in {outcome.seconds:.1f} s "
        f"({rate:,.0f}/s), layout {shown(outcome.generation)}",
    )
    console.print(f"  position {shown(_position(outcome.position))}\n  digest   {shown(outcome.digest)}")
    if target.resolve() == settings.index.resolve():
        console.print("  The indexer goes on from there: start it.")
        return
    old = settings.index
    replaced = old.with_name(f"{old.name}.replaced-{datetime.now(UTC):%Y%m%d-%H%M%S}")  # beside those of before
    console.print(
        f"  To put it in the place of {shown(old)}: stop the indexer, run the next line, start the indexer. It goes on from "
        "this position; retrievers change over by themselves.",
    )
    print_line(
        console, f"  {shlex.join(('mv', str(old), str(replaced)))} && {shlex.join(('mv', str(target), str(old)))}"
    )


def verify(
    against: Annotated[Path | None, typer.Option(help="Compare the items with those of this index directory.")] = None,
    examples: Annotated[int, typer.Option(min=0, help="How many differing items of each kind to name.")] = 5,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check the whole index of this machine: recount, orphans, digest. Exit status 1 on a fault or a difference."""
    from streamer.operations.verify import examine

    found = examine(served_on_this_machine(load_settings()).index, against, examples=examples)
    if json:
        _print_json(found)
    else:
        _show_examination(Console(highlight=False, soft_wrap=True), found)
    if not found.sound:
        raise typer.Exit(1)


def backup(
    directory: Annotated[Path, typer.Argument(help="A directory that does not exist yet.")],
    json: Annotated[bool, typer.Option("--json", help="Print the outcome as one JSON object.")] = False,
) -> None:
    """Copy the index while it is written, and check the copy."""
    from store.checks.backup import back_up

    settings = served_on_this_machine(load_settings())
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    started = time.monotonic()
    with console.status("copying and checking the index"):
        copied = back_up(settings.index, directory)
    if json:
        _print_json(copied)
    console.print(
        f"[green]✓[/] {shown(settings.index)} is in {shown(directory)}: {shown(_content(copied))} "
        f"({time.monotonic() - started:.1f} s)",
    )
    _show_copy(console, copied)
    console.print("  [dim]An indexer goes on from it for a week: deletions older than that are compacted away.[/]")


def restore(
    directory: Annotated[Path, typer.Argument(help="What `sidstream backup` or `sidstream rebuild --into` made.")],
    replace: Annotated[
        bool, typer.Option("--replace", help="Move the index that is there aside, and say where it is.")
    ] = False,
) -> None:
    """Put a backup in the place of the index; the indexer must not run."""
    from models.bundles.bundle import Bundle
    from store.checks.backup import restore as put_back

    settings = served_on_this_machine(load_settings())
    layout = Bundle.open(settings.bundle).layout
    console = Console(stderr=True, highlight=False, soft_wrap=True)

    def accept(copied: IndexCopy) -> None:
        _refuse_other_codebook(settings, copied, (layout.codebook_id, layout.layers, layout.size))
        _refuse_stale(copied, directory)
        _refuse_other_logs(settings, copied, directory, console)

    with console.status("copying and checking the backup"):
        copied, aside = put_back(directory, settings.index, replace=replace, accept=accept)
    console.print(f"[green]✓[/] {shown(directory)} is in {shown(settings.index)}: {shown(_content(copied))}")
    _show_copy(console, copied)
    if aside is not None:
        console.print(f"  The index that was there is in {shown(aside)}; delete it when you no longer need it.")
    console.print("  Start the indexer: it reads what came since. Retrievers change over by themselves.")


def _refuse_other_codebook(settings: Settings, copied: IndexCopy, wanted: tuple[str, int, int]) -> None:
    from store.errors import IndexMismatchError
    from store.writing.creation import named_partitions

    if (copied.codebook, copied.layers, copied.size) != wanted:
        raise IndexMismatchError(
            f"the backup is of codebook {copied.codebook} ({copied.layers} layers × {copied.size}), the bundle "
            f"{settings.bundle} of {wanted[0]} ({wanted[1]} × {wanted[2]}); nothing was changed. Name the bundle that "
            "belongs to the backup (--bundle), or use a backup of this codebook"
        )
    if copied.partitions != settings.indexer.partitions:
        raise IndexMismatchError(
            f"the backup holds {named_partitions(copied.partitions)} of item-codes, this host is to hold "
            f"{named_partitions(settings.indexer.partitions)} (indexer.partitions); nothing was changed. Use a backup of this "
            "shard, or set indexer.partitions to what it holds"
        )


def _refuse_stale(copied: IndexCopy, directory: Path) -> None:
    """The indexer would refuse it; better said before the index that is there was moved aside."""
    from store.errors import BackupError
    from streamer.events.topics import TOMBSTONE_RETENTION_MS

    age = time.time() * 1000 - copied.last_commit_at
    if copied.position and age > TOMBSTONE_RETENTION_MS:
        raise BackupError(
            f"the index in {directory} was last written {age / _DAY_MS:.0f} days ago, and the indexer refuses it: deletions "
            f"older than {TOMBSTONE_RETENTION_MS // _DAY_MS} days are compacted away and would be missed. Nothing was "
            "changed. Build a fresh one with `sidstream rebuild`"
        )


def _refuse_other_logs(settings: Settings, copied: IndexCopy, directory: Path, console: Console) -> None:
    """As the indexer would; whether a topic was made anew, if a broker is there to ask."""
    from store.errors import BackupError
    from streamer.indexer.log_watch import others_topics
    from streamer.kafka.admin import ClusterAwayError, require
    from streamer.kafka.partition_watch import topic_states

    read = {place.rpartition("/")[0] for place in copied.position}
    if others := others_topics(settings, read | copied.log_ids.keys()):
        raise BackupError(
            f"the backup {directory} was read from {', '.join(others)}, and the settings name other topics: the indexer refuses "
            "it. Nothing was changed. Set topics.prefix and the topics' names to what they were, or build a fresh index with "
            "`sidstream rebuild`"
        )
    if not copied.log_ids:
        return
    try:
        require(settings.kafka, [], attempt_seconds=(2.0,))
    except ClusterAwayError:
        console.print(
            "  [dim]No broker answers: whether the topics are still the logs that the backup was read from is checked by the "
            "indexer at its start.[/]"
        )
        return
    now = topic_states(settings.kafka, copied.log_ids)
    for topic, log_id in copied.log_ids.items():
        if topic in now and now[topic].topic_id != log_id:
            raise BackupError(
                f"{topic} is not the log that the backup {directory} was read from: it was made anew since. Nothing was "
                "changed. Build a fresh index with `sidstream rebuild`"
            )


def _show_examination(console: Console, found: Examination) -> None:
    written = _date(found.last_write)
    console.print(f"[bold]{found.items:,} items[/] in {shown(found.index)}, last written {shown(written)}")
    console.print(
        f"  codebook {shown(found.codebook)}, layout {shown(found.generation)}{shown(_shard(found.partitions))}\n"
        f"  position {shown(_position(found.position))}\n"
        f"  digest   {shown(found.digest or 'none: the index is damaged')}",
    )
    for fault in found.faults:
        console.print(f"[red]✗[/] {shown(fault)}")
    if not found.faults:
        console.print("[green]✓[/] paths, items, ids, census and commit log agree; nothing is orphaned")
    if found.split_keys:
        console.print(
            f"[yellow]![/] {found.split_keys:,} item ids have records in more than one partition of item-codes: the newest by "
            "Kafka's time counts. Find the producer with another partitioner (docs/runbook.md, SidstreamSplitKeys)",
        )
    for key in found.split_key_examples:
        console.print(Text(f"    {printable(key.id)}  in partitions {', '.join(map(str, key.partitions))}"))
    if found.against is None:
        return
    other, comparison = found.against, found.against.comparison
    if comparison.equal:
        console.print(f"[green]✓[/] {shown(other.index)} holds the same {other.items:,} items")
        return
    console.print(
        f"[red]✗[/] {shown(other.index)} ({other.items:,} items): {comparison.only_here:,} items are here only, "
        f"{comparison.only_there:,} there only, {comparison.different:,} differ",
    )
    for example in comparison.examples:
        console.print(Text(f"    {printable(example.id)}  {printable(example.what)}"))
    if found.position != other.position:
        console.print(
            f"  It stands at {shown(_position(other.position))}: differences are to be expected until both have read as far.",
        )


def _shard(partitions: str) -> str:
    return f", a shard: partitions {partitions}" if partitions else ""


def _show_copy(console: Console, copied: IndexCopy) -> None:
    console.print(f"  position {shown(_position(copied.position))}\n  digest   {shown(copied.digest)}")


def _content(copied: IndexCopy) -> str:
    return f"{copied.items:,} items, {copied.bytes / 1e6:,.1f} MB, last written {_date(copied.last_commit_at)}"


def _position(position: dict[str, int]) -> str:
    return ", ".join(f"{place}: {offset:,}" for place, offset in sorted(position.items())) or "none"


def _date(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")


def _print_json(value: object) -> None:
    print(ascii_json(value, indent=2), flush=True)
