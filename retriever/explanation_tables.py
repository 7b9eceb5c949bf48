"""How the explanations of an answer look on a terminal.

What must hold: whatever the answer's record explains is shown, and ids and names as they are.
"""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

from models.terminal import print_table, shown
from streamer.events.records import Answer, AnswerExplanation, ItemExplanation


def show_explanations(console: Console, answer: Answer) -> None:
    """A row an item and sentences on the whole answer; nothing where nothing is explained."""
    explained = [item for item in answer.items if item.explanation]
    if explained:
        table = Table(box=box.SIMPLE_HEAD, title="why", title_justify="left")
        table.add_column("id", style="dim")
        table.add_column("log P by layer", style="cyan")
        for heading in ("log P of SID", "its items", "share", "model", "dense", "cosine"):
            table.add_column(heading, justify="right")
        for item in explained:
            assert isinstance(item.explanation, ItemExplanation)
            table.add_row(shown(item.item_id), *_cells(item.explanation))
        print_table(console, table)
    for missing in answer.why_not or ():
        console.print(
            f"[bold]{shown(missing.item_id)}[/] {shown(missing.reason.replace('_', ' '))}: {shown(missing.message)}",
            soft_wrap=True,
        )
    if answer.explanation:
        for line in _sentences(answer.explanation):
            console.print(f"[dim]{shown(line)}[/]", soft_wrap=True)


def _cells(why: ItemExplanation) -> tuple[str, ...]:
    by_layer = " ".join(f"{token} {value:.2f}" for token, value in why.by_layer.items()) if why.by_layer else ""
    return (
        shown(by_layer),
        _number(why.log_sid),
        f"{why.sid_items:,}",
        f"{why.share:.3g}",
        _number(why.log_model),
        _number(why.log_dense),
        _number(why.cosine, 3),
    )


def _number(value: object, digits: int = 2) -> str:
    return f"{value:.{digits}f}" if isinstance(value, float) else ""


def _sentences(why: AnswerExplanation) -> list[str]:
    lines = [why.layout_reason]
    chosen = f"{why.let_through:,} of {why.live_items:,} live items were let through, {why.excluded:,} of them excluded"
    if isinstance(why.sids, int):
        chosen += f"; the model searched for {why.sids:,} SIDs"
    if isinstance(why.expansions, int):
        chosen += f" exactly, in {why.expansions:,} expansions"
    lines.append(chosen)
    if isinstance(why.sharpness, float):
        lines.append(
            f"mixture: sharpness λ {why.sharpness:g}, dense share α {why.share_of_dense:g}, of new items "
            f"{why.share_of_dense_new:g}, boost of new items β {why.boost_of_new:g}"
            + (f", of what was taken together γ {why.share_of_together:g}" if why.share_of_together else "")
        )
    return lines
