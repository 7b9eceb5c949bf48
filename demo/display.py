"""What the demo shows on the terminal: tables, the live panel of the fad, and the summary. Draws; measures nothing."""

from __future__ import annotations

from collections.abc import Sequence
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
from models.terminal import printable, shown
from streamer.events.records import Alert

_BAR: Final = 24
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


def summary(figures: Figures, seconds: float, next_steps: Sequence[tuple[str, str]]) -> RenderableType:
    """Everything that was measured, and what to try next: (command, what it does)."""
    table = Table.grid(padding=(0, 3))
    table.add_column(justify="right", style="bold cyan", no_wrap=True)
    table.add_column()
    rate = figures.burst_items / figures.burst_seconds
    table.add_row(f"{figures.products:,}", f"products; codebooks fitted in {figures.fit_seconds:.1f} s")
    table.add_row(
        f"{figures.parameters / 1e6:.1f} M",
        f"parameters fine-tuned on {figures.examples:,} examples in {figures.train_seconds:.0f} s, loss {figures.loss:.2f}",
    )
    table.add_row(f"{rate:,.0f}/s", f"item updates from publish to retrievable ({figures.burst_items:,} in a burst)")
    table.add_row(
        f"{figures.fresh_p50_ms:.0f} ms",
        f"update → retrievable, p50; [bold]{figures.fresh_p99_ms:.0f} ms[/] p99 ({figures.fresh_items:,} updates)",
    )
    table.add_row(
        f"{figures.queries:,}",
        f"queries answered while the fad came and went, {figures.unanswered:,} not; p50 {figures.query_p50_ms:.0f} ms, "
        f"p95 {figures.query_p95_ms:.0f} ms, over layouts {shown(', '.join(map(str, sorted(figures.layouts))))}",
    )
    table.add_row(
        f"{figures.invalid_items:,}",
        f"answers that named no live product; {figures.deleted_in_answers:,} deleted ones came back",
    )
    if figures.reshortened_after_seconds is None:
        table.add_row("[red]none[/]", "new layout: the monitor did not re-shorten in time")
    else:
        table.add_row(
            f"{figures.reshortened_after_seconds:.0f} s",
            f"from the fad's first product to shorter SIDs; {figures.reshortened_items:,} items re-shortened, none rewritten",
        )
    table.add_row(f"{figures.alerts_fired:,}", f"alerts fired, {figures.alerts_resolved:,} resolved")
    table.add_row(f"{seconds:.0f} s", "from start to here")
    steps = Table.grid(padding=(0, 2))
    steps.add_column(style="green")
    for command, what in next_steps:
        steps.add_row(Text.assemble((f"# {what}\n", "dim"), command))
    return Panel(
        Group(table, Text(), Text("Try next", "bold"), steps),
        title="What happened",
        border_style="cyan",
        box=box.ROUNDED,
    )
