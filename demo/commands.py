"""The command ``sidstream demo``: clean ground, an embedded broker, the story, the summary."""

from __future__ import annotations

import os
import shlex
import shutil
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from streamer.settings import Settings, load_settings
from streamer.settings.load import CONFIGURATION_FILE, CONFIGURATION_VARIABLE


def demo(
    catalog: Annotated[Path | None, typer.Option(help="Tell it on a catalogue folder instead of our own shop.")] = None,
    directory: Annotated[Path, typer.Option(help="Where the demo keeps everything; emptied first.")] = Path(
        ".sidstream/demo"
    ),
) -> None:
    """The whole story on a real Apache Kafka, in a few minutes."""
    from demo.display import show_summary
    from demo.preparation import head_size
    from demo.shop.shop import own_shop, shop_of
    from demo.story import Story
    from streamer.commands.broker import fetch_progress
    from streamer.local.up import Pipeline
    from streamer.process.logs import configure_logging

    started = time.monotonic()
    console = Console()
    console.print(
        "[bold]sidstream[/]: item updates in, answers a moment later. Everything below is measured while it happens."
    )
    _empty(directory)
    shop = own_shop() if catalog is None else shop_of(catalog)
    settings = demo_settings(directory, head_size(shop))
    # The story tells what happens; a log line in between would only disturb it.
    configure_logging(settings.logging.model_copy(update={"level": "error"}), process="demo")
    logs = directory / "logs"
    story = Story(shop, settings, console, logs)
    # Any free port for now; afterwards `sidstream up` takes the usual one, where the other commands look for it.
    here = settings.model_copy(update={"broker": settings.broker.model_copy(update={"port": 0})})
    with ExitStack() as stack:
        progress = stack.enter_context(fetch_progress(console))
        figures = story.tell(lambda: Pipeline(here, embedded_broker=True, log_directory=logs, fetch_progress=progress))
    steps = [
        (
            f"export {CONFIGURATION_VARIABLE}={shlex.quote(str(directory / CONFIGURATION_FILE))}",
            "in every terminal: the demo's settings",
        ),
        (".venv/bin/sidstream up", "the same pipeline again, as you left it; then, in another terminal:"),
        (f".venv/bin/sidstream ask {shlex.quote(shop.queries[0].text or 'gift')}", "anything you like"),
        (".venv/bin/sidstream status", "lag, items, layout, census metrics"),
        (".venv/bin/sidstream alerts --follow", "hourglass drift as it happens"),
    ]
    if catalog is None:
        steps.append(
            (".venv/bin/sidstream demo --catalog DIR", "the same story on your own products (docs/catalogues.md)")
        )
    console.print()
    show_summary(console, figures, time.monotonic() - started, steps)


def _empty(directory: Path) -> None:
    """Only a directory that a demo made is emptied."""
    marker = directory / ".sidstream-demo"
    if directory.exists() and any(directory.iterdir()) and not marker.exists():
        raise typer.BadParameter(f"{directory} is not empty and no demo made it: choose another --directory")
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    marker.touch()


_CONFIGURATION: Final = """\
# Written by `sidstream demo`. Windows of seconds instead of minutes, so that a story of minutes has a beginning and an end.
bundle = "{directory}/bundle"
bundles = "{directory}/bundles"
index = "{directory}/index"
indexes = "{directory}/indexes"

[broker]
directory = "{directory}/broker"
short_lived = true

[monitor]
head_size = {head_size}
bucket_seconds = 2.0
buckets = 5
drift_interval_seconds = 2.0
minimum_interval_seconds = 5.0
reshortened_seconds = 10.0

[retriever]
layout = "live"

[attributes.filterable]
price = "number"
in_stock = "boolean"
"""


def demo_settings(directory: Path, head_size: int) -> Settings:
    """Settings from a file of the demo's own, which the processes that it starts read too."""
    configuration = directory / CONFIGURATION_FILE
    configuration.write_text(_CONFIGURATION.format(directory=directory, head_size=head_size))
    os.environ[CONFIGURATION_VARIABLE] = str(configuration)
    return load_settings()
