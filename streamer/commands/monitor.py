"""Commands of the monitor: the process itself, and its alerts for a person to read."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import closing
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Console

from models.terminal import printable, shown, terminal
from streamer.commands.terminal import ascii_json
from streamer.settings import Settings, load_settings

if TYPE_CHECKING:
    from confluent_kafka import Message

    from streamer.events.records import Alert

_COLOURS: Final = {"info": "cyan", "warning": "yellow", "critical": "red"}
_WAIT_SECONDS: Final = 0.5
_AT_ONCE: Final = 1_000


def monitor() -> None:
    """Run the monitor: counts → layouts, alerts, drift. One is active; further ones stand by."""
    from streamer.monitor.process import run_monitor

    run_monitor(load_settings())


def alerts(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep showing alerts as they fire and clear.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a line, as on the topic.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Also those that are over.")] = False,
) -> None:
    """Show the alerts that fire now; with --follow, every change from then on."""
    settings = load_settings()
    console = terminal()
    newest: dict[str, Alert] = {}
    following = False
    try:
        for alert in _read(settings, follow=follow):
            if alert is None:  # everything that was there has been read
                _show(console, newest, json=json, everything=everything, follow=follow)
                following = True
            elif following:
                _show_one(console, alert, json=json)
            else:
                newest[alert.key] = alert
    except KeyboardInterrupt:
        return


def _read(settings: Settings, *, follow: bool) -> Iterator[Alert | None]:
    """Every alert on the topic, then ``None``, then, if followed, those that come."""
    from confluent_kafka import TopicPartition

    from streamer.kafka.admin import require
    from streamer.kafka.gather import drain
    from streamer.kafka.read_to_end import end_reader, read_spans, whole_topics

    topic = settings.topics.alerts
    require(settings.kafka, [topic])
    with closing(end_reader(settings, "alerts")) as consumer:
        spans = whole_topics(consumer, [topic])
        for reading in read_spans(consumer, spans):
            yield from _decoded(reading.records)
        yield None
        if not follow:
            return
        consumer.assign([TopicPartition(*at, span.end) for at, span in spans.items()])
        while True:
            yield from _decoded(drain(consumer, _AT_ONCE, _WAIT_SECONDS))


def _decoded(records: Iterable[Message]) -> Iterator[Alert]:
    from msgspec import DecodeError

    from streamer.events.records import ALERT

    for record in records:
        if (value := record.value()) is not None:
            try:
                yield ALERT.decode(value)
            except (DecodeError, UnicodeError, RecursionError):
                print(
                    f"{printable(record.topic())} at offset {record.offset():d} holds no alert: skipped",
                    file=sys.stderr,
                )


def _show(console: Console, newest: dict[str, Alert], *, json: bool, everything: bool, follow: bool) -> None:
    shown = sorted(
        (alert for alert in newest.values() if everything or alert.state == "firing"), key=lambda alert: alert.at
    )
    if json:
        for alert in shown:
            _show_one(console, alert, json=True)
        return
    if not shown:
        console.print("[green]✓[/] no alert fires" + (", waiting for one …" if follow else ""))
        return
    for alert in shown:
        _show_one(console, alert, json=False)


def _show_one(console: Console, alert: Alert, *, json: bool) -> None:
    if json:
        print(ascii_json(alert), flush=True)
        return
    console.print(
        f"[dim]{_time(alert.at)}[/] {_severity(alert)} [bold]{shown(alert.summary)}[/]\n"
        f"         {shown(alert.cause)} [dim]({shown(alert.key)}, layout {alert.generation:d})[/]"
    )


def _severity(alert: Alert) -> str:
    if alert.state == "resolved":
        return "[green]✓ over[/]"
    return f"[{_COLOURS[alert.severity]}]● {alert.severity}[/]"


def _time(milliseconds: int) -> str:
    try:
        return datetime.fromtimestamp(milliseconds / 1000).strftime("%H:%M:%S")
    except (ValueError, OverflowError, OSError):  # no monitor of ours wrote it
        return f"{milliseconds} ms"
