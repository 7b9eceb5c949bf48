"""What the demo shows on the terminal: tables, the live panel of the fad, and the summary. Draws; measures nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Final

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from demo.figures import Figures
from demo.live_queries import LiveQueries
from demo.shop.shop import Fad
from models.sids.census import measure_layer
from models.sids.layout import HEAD_LAYER_INDEX, Layout
from models.terminal import print_line, printable, shown
from streamer.events.records import Alert, AnswerItem

_BAR: Final = 24
# A number and its unit are one word: “0.8 L”, “28 x”, “500 ml”.
_WORD: Final = re.compile(r"\d\S*(?: \S{1,2}(?!\S))?|\S+")
_SEVERITY_STYLES: Final = {"info": "cyan", "warning": "yellow", "critical": "bold red"}


def short(text: str, length: int) -> str:
    """The text, cut with an ellipsis."""
    return text if len(text) <= length else text[: length - 1] + "…"


def progress_bar(console: Console) -> Progress:
    """A progress bar with its description and the time spent."""
    columns = (
        TextColumn("  {task.description:<42}"),
        BarColumn(40),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=console)


def census_table(census: NDArray[np.int64]) -> Table:
    """Metrics of every layer; ``census``: counts (L, M)."""
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("layer", "entropy", "Gini", "fullest token", "of all items"):
        table.add_column(column, justify="right")
    for number, counts in enumerate(census, start=1):
        measures = measure_layer(counts)
        style = "bold yellow" if number == HEAD_LAYER_INDEX + 1 else ""
        share = counts.max() / max(1, counts.sum())
        row = (str(number), f"{measures.entropy:.3f}", f"{measures.gini:.3f}", f"{counts.max():,}", f"{share:.1%}")
        table.add_row(*row, style=style)
    return table


def alert_text(alert: Alert) -> Text:
    """One line for one alert."""
    summary = short(printable(alert.summary), 100)
    if alert.state == "resolved":
        return Text(f"✓ resolved  {summary}", "green")
    return Text(f"⚠ {alert.severity:<8}  {summary}", _SEVERITY_STYLES[alert.severity])


def fad_panel(
    seconds: float,
    sent: int,
    fad: Fad,
    token: int,
    counts: NDArray[np.int64],
    items: int,
    layout: Layout,
    queries: LiveQueries,
    news: Sequence[Text],
) -> RenderableType:
    """The flood as it is now. ``counts``: items of each layer-2 token (M,)."""
    rank = int((counts > counts[token]).sum()) + 1
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", justify="right")
    table.add_column()
    table.add_row("published", f"{sent:,} of {len(fad.items):,} after {seconds:.0f} s")
    bar = "█" * max(1, round(_BAR * counts[token] / counts.max()))
    head = "  [green]left out of SIDs[/]" if token in layout.head_tokens else ""
    share = counts[token] / max(1, items)
    markup = f"[yellow]{bar:<{_BAR}}[/] {counts[token]:,} items, {share:.1%}, rank {rank:d}{head}"
    table.add_row(f"token {token:d} of layer 2", markup)
    table.add_row("layout", f"{layout.generation:d}, {len(layout.head_tokens)} head tokens")
    p50 = f", p50 {queries.percentile_ms(50):.0f} ms" if queries.answered else ""
    table.add_row("queries meanwhile", f"{queries.answered:,} answered{shown(p50)}, {queries.unanswered:,} unanswered")
    return Group(table, *news)


def answer_lines(items: Sequence[AnswerItem], width: int) -> list[Text]:
    """A line an item, in their order, with titles of at most ``width`` characters.

    Items that share a SID are often variants of one product with one score: the first of them has its title, the others
    say what sets them apart.
    """
    lines = []
    for sid, group in groupby(items, key=lambda item: item.sid):
        members = list(group)
        titles = told_apart([printable(item.title) for item in members], width)
        for number, (item, title) in enumerate(zip(members, titles, strict=True)):
            name = printable(sid) if number == 0 else "  the same SID"
            what = short(title or printable(item.item_id), width)
            lines.append(
                Text.assemble(
                    (f"    {name:<20} ", "cyan" if number == 0 else "dim"),
                    f"{what:<{width}} ",
                    (f"{item.score:6.2f}", "dim"),
                )
            )
    return lines


def told_apart(titles: Sequence[str], width: int) -> list[str]:
    """Titles of things that belong together, each cut to ``width`` so that the words which the others lack stay visible.

    A later title that has half of its words in common with all others is these words alone, after an ellipsis; it is empty
    if it has none.
    """
    words = [_WORD.findall(title) for title in titles]
    common = set(words[0]).intersection(*words[1:])
    told = []
    for number, (title, own) in enumerate(zip(titles, words, strict=True)):
        different = " ".join(word for word in own if word not in common)
        if len(titles) == 1 or 2 * len(common) < len(set(own)):
            told.append(short(title, width))
        elif number > 0:
            told.append(short(f"… {different}", width) if different else "")
        elif len(title) > width and different and len(different) < width // 2:
            told.append(f"{short(title, width - len(different) - 3)} · {different}")
        else:
            told.append(short(title, width))
    return told


def show_summary(console: Console, figures: Figures, seconds: float, next_steps: Sequence[tuple[str, str]]) -> None:
    """Everything that was measured, a figure a line, and what to try next: (command, what it does).

    The lines fit into 80 columns, and a command is never broken: it is there to be copied.
    """
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", style="bold cyan", no_wrap=True)
    table.add_column()
    for row in _summary_rows(figures):
        table.add_row(*row)
    table.add_row(f"{seconds:.0f} s", "from start to here")
    console.print(Panel(table, title="What happened", border_style="cyan", box=box.ROUNDED))
    console.print(Text("Try next", "bold"))
    for command, what in next_steps:
        print_line(console, f"# {what}", "dim")
        print_line(console, command, "green")


def _summary_rows(figures: Figures) -> Iterator[tuple[str, str]]:
    """(figure, what it is)"""
    rate = figures.burst_items / figures.burst_seconds
    yield f"{figures.products:,}", f"products; codebooks fitted in {figures.fit_seconds:.1f} s"
    yield (
        f"{figures.parameters / 1e6:.1f} M",
        f"parameters fine-tuned in {figures.train_seconds:.0f} s, loss {figures.loss:.2f}",
    )
    if figures.trained_share < 1:
        yield f"{figures.trained_share:.0%}", "of the training's steps done when its time was up"
    yield f"{figures.examples:,}", "queries and histories to learn from"
    yield f"{rate:,.0f}/s", f"item updates, publish → retrievable ({figures.burst_items:,} in a burst)"
    yield f"{figures.fresh_p50_ms:.0f} ms", f"update → retrievable, p50 of {figures.fresh_items:,} updates"
    yield f"{figures.fresh_p99_ms:.0f} ms", "update → retrievable, p99"
    yield (
        f"{figures.found_late:.0%}",
        f"of new products found by their words; of known ones {figures.found_known:.0%}",
    )
    yield f"{figures.sold_out_in_answers:,}", "sold-out items in an answer that asked for what is in stock"
    yield f"{figures.queries:,}", f"queries answered while the fad came and went, {figures.unanswered:,} not"
    yield f"{figures.query_p50_ms:.0f} ms", f"query → answer meanwhile, p50; p95 {figures.query_p95_ms:.0f} ms"
    yield f"{len(figures.layouts):d}", f"layouts answered under: {shown(', '.join(map(str, sorted(figures.layouts))))}"
    yield (
        f"{figures.invalid_items:,}",
        f"answers named no live product; {figures.deleted_in_answers:,} deleted ones came back",
    )
    if figures.reshortened_after_seconds is None:
        yield "[red]none[/]", "new layout: the monitor did not re-shorten in time"
    else:
        yield f"{figures.reshortened_after_seconds:.0f} s", "from the fad's first product to shorter SIDs"
        yield f"{figures.reshortened_items:,}", "items re-shortened, none rewritten"
    yield f"{figures.alerts_fired:,}", f"alerts fired, {figures.alerts_resolved:,} resolved"
    yield f"{figures.refresh_seconds:.0f} s", f"from what was bought to a new bundle: {shown(figures.refresh_outcome)}"
    yield f"{figures.learnt_after:.0%}", f"of what is new found by the model alone, {figures.learnt_before:.0%} before"
    yield (
        f"{figures.refresh_queries:,}",
        f"queries answered meanwhile, {figures.refresh_unanswered:,} not; {figures.refresh_invalid:,} named no product",
    )
