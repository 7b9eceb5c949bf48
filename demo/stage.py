"""What all acts of the demo stand on: the shop, the running pipeline, and how things are said, shown and waited for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from demo.display import answer_lines
from demo.figures import Figures
from demo.shop.shop import Shop
from models.catalogue import CatalogueItem
from models.errors import SidstreamError
from models.terminal import shown
from retriever.client import Client
from store.errors import IndexMissingError
from store.reading.reader import IndexReader
from streamer.client.publisher import publish_items
from streamer.events.records import Answer
from streamer.local.up import Pipeline
from streamer.settings import Settings

# Limits for a machine that is slow or busy; none is waited for when all is well.
READY_SECONDS: Final = 300.0
ARRIVAL_SECONDS: Final = 300.0
SHOWN_ITEMS: Final = 3


class DemoError(SidstreamError):
    """The story cannot go on; the message says what did not happen and where the logs are."""


class Stage:
    """``live``: id → title of what was published; ``deleted``: id → when it was seen to be gone. ``client``, ``reader`` and
    ``pipeline`` are there once the pipeline runs.
    """

    client: Client
    reader: IndexReader
    pipeline: Pipeline

    def __init__(self, shop: Shop, settings: Settings, console: Console, log_directory: Path) -> None:
        self.shop = shop
        self.settings = settings
        self.console = console
        self.log_directory = log_directory
        self.live: dict[str, str] = {}
        self.deleted: dict[str, float] = {}
        self.figures = Figures(products=len(shop.known) + len(shop.late), examples=len(shop.examples))

    def act(self, title: str, markup: str) -> None:
        """A new act: its title, and what it is about."""
        self.console.print()
        self.console.rule(f"[bold]{shown(title)}[/]", align="left", style="dim")
        self.say(f"[dim]{markup}[/]")

    def say(self, markup: str) -> None:
        """Indented, also where the terminal is too narrow for one line."""
        self.console.print(Padding(Text.from_markup(markup), (0, 0, 0, 2)))

    def show(self, answer: Answer) -> None:
        """An answer, a line an item."""
        if answer.error is not None:
            self.console.print(f"    [red]{shown(answer.error.kind)}: {shown(answer.error.message)}[/]")
        width = max(30, self.console.width - 34)
        for line in answer_lines(answer.items, width):
            self.console.print(line)

    def publish(self, items: Sequence[CatalogueItem], embeddings: NDArray[np.float32]) -> None:
        """Publishes items and remembers them."""
        for item in items:
            self.live[item.id] = item.title
        publish_items(self.settings, items, embeddings)

    def first_answer(self) -> None:
        """The retriever loads its model meanwhile."""
        deadline = time.monotonic() + READY_SECONDS
        while True:
            self.pipeline.supervisor.check()
            try:
                self.client.ask("first", timeout_seconds=5)
                return
            except SidstreamError:
                if time.monotonic() > deadline:
                    raise DemoError(f"the retriever did not answer; see its log in {self.log_directory}") from None

    def wait_for_items(self, reader: IndexReader, count: int, advance: Callable[[int], None]) -> None:
        """Until the index holds so many items; ``advance`` is told how many there are."""

        def arrived() -> bool:
            with reader.snapshot() as snapshot:
                items = snapshot.item_count
            advance(items)
            return items >= count

        self.wait(arrived, ARRIVAL_SECONDS, f"not all of {count} items arrived")

    def wait(self, condition: Callable[[], bool], seconds: float, otherwise: str) -> None:
        """Until a condition holds; ``DemoError`` with ``otherwise`` if it does not."""
        deadline = time.monotonic() + seconds
        while not condition():
            self.pipeline.supervisor.check()
            if time.monotonic() > deadline:
                raise DemoError(f"{otherwise} within {seconds:.0f} s; see the logs in {self.log_directory}")
            time.sleep(0.005)

    def index_exists(self) -> bool:
        """Whether the indexer has made the index."""
        try:
            IndexReader(self.settings.index).close()
        except IndexMissingError:
            return False
        return True

    def paced(self, count: int, per_second: float) -> Iterator[int]:
        """Numbers up to ``count``, so many a second."""
        started = time.monotonic()
        for number in range(count):
            time.sleep(max(0.0, started + number / per_second - time.monotonic()))
            yield number

    def holds(self, item_id: str, title: str | None) -> bool:
        """Whether the index has the item with this title; None: whether it has left."""
        with self.reader.snapshot() as snapshot:
            [item] = snapshot.find([item_id.encode()])
        return (item.title if item is not None else None) == title
