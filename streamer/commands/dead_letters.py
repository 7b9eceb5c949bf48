"""Commands for dead letters: list them, read one, send the originals again."""

from __future__ import annotations

import base64
import sys
from collections import Counter, deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from models.progress import WorkProgress
from models.terminal import print_line, print_table, printable, printable_bytes, terminal
from streamer.commands.terminal import ascii_json, pretty
from streamer.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Iterable

    from streamer.dead_letters.plan import Letter
    from streamer.dead_letters.reading import DeadLetter

dlq = typer.Typer(help="Read dead letters, and send them again once their cause is gone.", no_args_is_help=True)

_MESSAGE_CHARACTERS: Final = 300
_KEY_CHARACTERS: Final = 40
_LISTED_SKIPS: Final = 20

TopicOption = Annotated[
    list[str] | None,
    typer.Option("--topic", help="Only of this dead-letter topic, or of this source topic; may be repeated."),
]
ClassOption = Annotated[
    list[str] | None, typer.Option("--class", help="Only of this error class (InvalidEvent …); may be repeated.")
]


@dlq.command("list")
def list_letters(
    topic: TopicOption = None,
    kind: ClassOption = None,
    limit: Annotated[int, typer.Option(min=1, help="Show so many of the newest.")] = 50,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object, without values.")] = False,
) -> None:
    """Show the newest dead letters, and how many there are of each class."""
    from streamer.dead_letters.reading import chosen_topics, read_letters

    settings = load_settings()
    topics = chosen_topics(settings, topic or [])
    newest: dict[str, deque[dict[str, Any]]] = {name: deque(maxlen=limit) for name in topics}
    classes: Counter[tuple[str, str, str]] = Counter()
    for letter in read_letters(settings, topics):
        if not kind or letter.kind in kind:
            classes[letter.topic, letter.stage, letter.kind] += 1
            newest[letter.topic].append(_facts(letter))
    listed = sorted((facts for some in newest.values() for facts in some), key=lambda facts: facts["time"])[-limit:]
    if json:
        summary = [{"topic": t, "stage": s, "class": k, "letters": n} for (t, s, k), n in sorted(classes.items())]
        print(ascii_json({"letters": listed, "classes": summary, "total": classes.total()}))
        return
    console = terminal()
    if not listed:
        console.print("[green]✓[/] no dead letters")
        return
    for facts in listed:
        _show_facts(console, facts)
    counts = Table(box=box.SIMPLE_HEAD)
    for column in ("topic", "stage", "class"):
        counts.add_column(column)
    counts.add_column("letters", justify="right")
    for (name, stage, class_), number in sorted(classes.items()):
        counts.add_row(*map(_text, (name, stage, class_)), f"{number:,}")
    print_table(console, counts)
    if classes.total() > len(listed):
        console.print(f"[dim]the newest {len(listed):,} of {classes.total():,}; --limit shows more[/]")


@dlq.command()
def show(
    place: Annotated[
        str,
        typer.Argument(
            help="PARTITION:OFFSET of the letter, or TOPIC/PARTITION:OFFSET of the letter or of its source."
        ),
    ],
    json: Annotated[bool, typer.Option("--json", help="Print JSON, content in base64.")] = False,
) -> None:
    """Show one dead letter whole: headers, key, and the value decoded if it can be."""
    from streamer.dead_letters.reading import DeadLetterError, Place, find_letters

    wanted = Place.parse(place)
    found = find_letters(load_settings(), wanted)
    if not found:
        raise DeadLetterError(
            f"there is no dead letter at {wanted} (any more): `sidstream dlq list` shows what there is; letters stay for "
            "two weeks"
        )
    if wanted.topic is None and len(found) > 1:
        raise DeadLetterError(
            f"{wanted} is in several topics: name one of {', '.join(str(one.place) for one in found)}"
        )
    console = terminal()
    for letter in found:
        if json:
            print(ascii_json(_whole(letter)))
        else:
            _show_letter(console, letter)


@dlq.command()
def replay(
    places: Annotated[
        list[str] | None, typer.Argument(help="Only these letters, as for `show`.", show_default="all of them")
    ] = None,
    topic: Annotated[
        list[str] | None,
        typer.Option(
            "--topic",
            help="Of this dead-letter topic, or source topic; may be repeated. A query's replay gives it another answer.",
            show_default="item updates and attributes",
        ),
    ] = None,
    kind: ClassOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many, the oldest first.")] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Also what was replayed before: start from the beginning.")
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Also events that are out of date, or may be: their item falls back to what they say.",
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
) -> None:
    """Send the originals to their source topic again, each exactly once. Fix the cause first."""
    from streamer.dead_letters.plan import Choice
    from streamer.dead_letters.reading import Place, chosen_topics, topics_of_items
    from streamer.dead_letters.replay import Replay

    settings = load_settings()
    wanted = tuple(Place.parse(place) for place in places or [])
    names = topic or [place.topic for place in wanted if place.topic] or topics_of_items(settings)
    choice = Choice(frozenset(kind or []), wanted, limit, again, overwrite)
    console = terminal(stderr=True)
    with Replay.open(settings, chosen_topics(settings, names)) as replaying:
        with console.status("reading dead letters, and what has come since"):
            plan = replaying.plan(choice, dry_run=dry_run)
        if dry_run:
            for letter in plan.chosen:
                print(_line(letter, "would be replayed"))
            for letter, reason in plan.skipped:
                print(_line(letter, f"would be left: {reason}"))
            console.print(
                f"{len(plan.chosen):,} letters would be replayed, {len(plan.skipped):,} left; {plan.done_before:,} were "
                "replayed before"
            )
            return
        skipped, sent = plan.skipped, 0
        if plan.chosen:
            with WorkProgress(console) as work:
                task = work.task("replaying", unit="letters", total=len(plan.chosen))
                outcome = replaying.send(plan, progress=task.update)
            skipped, sent = outcome.skipped, outcome.sent
    _show_skipped(console, skipped)
    markup = f"[green]✓[/] {sent:,} letters replayed, {len(skipped):,} left"
    if plan.done_before:
        markup += f"; {plan.done_before:,} were replayed before (--again)"
    console.print(markup)


def _show_skipped(console: Console, skipped: Iterable[tuple[Letter, str]]) -> None:
    lines = [_line(letter, reason) for letter, reason in skipped]
    for line in lines[:_LISTED_SKIPS]:
        print_line(console, f"  left: {line}")
    if len(lines) > _LISTED_SKIPS:
        console.print(f"  … and {len(lines) - _LISTED_SKIPS:,} more: --dry-run names them all")
    if any("out of date" in line for line in lines):
        console.print("  [dim]--overwrite replays what is out of date as well[/]")


def _line(letter: DeadLetter, what: str) -> str:
    return f"{letter.place} {printable(letter.kind)} {_cut(printable_bytes(letter.key), _KEY_CHARACTERS)}: {printable(what)}"


def _facts(letter: DeadLetter) -> dict[str, Any]:
    """A line of the list."""
    source = letter.source
    return {
        "time": letter.timestamp,
        "topic": letter.topic,
        "partition": letter.partition,
        "offset": letter.offset,
        "stage": letter.stage,
        "class": letter.kind,
        "message": letter.message,
        "source": None
        if source is None
        else {
            "topic": source.topic,
            "partition": source.partition,
            "offset": source.offset,
            "timestamp": source.timestamp,
        },
        "key": None if letter.key is None else letter.key.decode("utf-8", "backslashreplace"),
        "bytes": len(letter.value or b""),
        "omitted": letter.omitted,
    }


def _whole(letter: DeadLetter) -> dict[str, Any]:
    def encoded(content: bytes | None) -> str | None:
        return None if content is None else base64.b64encode(content).decode()

    return {
        **_facts(letter),
        "key_base64": encoded(letter.key),
        "value_base64": encoded(letter.value),
        "headers": [{"name": name, "base64": encoded(content)} for name, content in letter.headers],
    }


def _show_facts(console: Console, facts: dict[str, Any]) -> None:
    """One letter: what and where it is, where it came from, and why; a place is a word that can be copied."""
    source = facts["source"]
    where = f"{source['topic']}/{source['partition']}:{source['offset']}" if source else "unknown"
    key = "no key" if facts["key"] is None else f"key {_cut(printable(facts['key']), _KEY_CHARACTERS)}"
    letter = f"{facts['topic']}/{facts['partition']}:{facts['offset']}"
    print_line(console, f"{_date(facts['time'])}  {letter}  {facts['stage']}  {facts['class']}", "bold")
    print_line(console, f"  from {where}, {key}")
    console.print(Padding(_text(_cut(facts["message"], _MESSAGE_CHARACTERS)), (0, 0, 0, 2)))


def _show_letter(console: Console, letter: DeadLetter) -> None:
    source = letter.source
    rows = [
        ("letter", f"{letter.place}, {_date(letter.timestamp)}"),
        (
            "source",
            f"{source.topic}/{source.partition}:{source.offset}, {_date(source.timestamp)}" if source else "unknown",
        ),
        ("stage", letter.stage),
        ("class", letter.kind),
        ("message", letter.message),
        ("omitted", letter.omitted),
        ("key", printable_bytes(letter.key) if letter.key is not None else "none"),
    ]
    rows += [(f"header {name}", printable_bytes(content)) for name, content in letter.headers]
    for name, content in rows:
        if content:
            console.print(Text.assemble((f"{printable(name)}: ", "bold"), _text(content)), soft_wrap=True)
    if letter.value is None:
        console.print(Text("no value", "dim"))
    else:
        console.print(Text("value: ", "bold"), end="")
        sys.stdout.flush()
        print(pretty(letter.value))


def _text(content: str) -> Text:
    return Text(printable(content))


def _cut(text: str, characters: int) -> str:
    return text if len(text) <= characters else text[: characters - 1] + "…"


def _date(milliseconds: int) -> str:
    try:
        return (
            datetime.fromtimestamp(milliseconds / 1000, UTC)
            .isoformat(sep=" ", timespec="seconds")
            .removesuffix("+00:00")
        )
    except (ValueError, OverflowError, OSError):  # a producer chose it
        return f"{milliseconds} ms"
