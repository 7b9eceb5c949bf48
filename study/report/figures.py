"""Which figures stand in the report, and the Markdown that shows them.

What must hold: a figure is drawn from records alone; one without records says so instead.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from study.data.choices import CodebookChoice
from study.data.datasets import DatasetName
from study.experiments.plan import scale
from study.experiments.results import Results
from study.experiments.work import hourglass_choices
from study.measures.shape import Shape
from study.report import pictures, tables
from study.report.cells import NOT_YET


def shape_figures(results: Results, dataset: DatasetName, output: Path) -> list[str]:
    """Figures 1 to 4 and 6 of a set, and the numbers under them."""
    shapes: dict[CodebookChoice, Shape] = {}
    for choice in hourglass_choices(dataset):
        record = results.record("hourglass", choice.key)
        if record is not None:
            shapes[choice] = msgspec.convert(record["shape"], Shape)
    if not shapes:
        return [f"{NOT_YET}\n"]
    base = scale(dataset).base.codebook
    named = {_short(choice): shape for choice, shape in shapes.items()}
    folder = output / dataset
    parts = []
    if base in shapes:
        pictures.widths(shapes[base], f"{dataset}, {_short(base)}", folder / "flows.png")
        parts.append(_picture("Items flow from layer to layer (figures 1 and 2).", f"{dataset}/flows.png"))
    pictures.distributions(named, folder / "distributions.png")
    parts.append(_picture("Items a token, by rank, over L × M (figures 1, 2 and 6).", f"{dataset}/distributions.png"))
    pictures.metric_bars(named, folder / "metrics.png")
    parts.append(_picture("Entropy, Gini coefficient, standard deviation (figure 3).", f"{dataset}/metrics.png"))
    pictures.residuals(named, folder / "residuals.png")
    parts.append(_picture("Residual norms (figure 4); an RQ-VAE's in its latent space.", f"{dataset}/residuals.png"))
    return [*parts, tables.shapes(shapes)]


def training_figures(results: Results, dataset: DatasetName, output: Path) -> list[str]:
    """Figure 5, recall by method, and the loss curves of a set."""
    folder = output / dataset
    parts = []
    if shares := tables.invalid(results, dataset):
        series = {label: [(float(k), share) for k, share in points.items()] for label, points in shares.items()}
        pictures.lines(series, folder / "invalid.png", x="k, beams", y="SIDs of no item", percent=True)
        parts += [
            _picture("Share of invalid SIDs (figure 5).", f"{dataset}/invalid.png"),
            tables.invalid_table(shares, dataset),
        ]
    if bars := tables.recall_at_10(results, dataset):
        pictures.recall_bars(bars, folder / "recall.png", y="recall@10")
        parts.append(_picture("Recall@10 by method; bars: ± standard deviation over seeds.", f"{dataset}/recall.png"))
    if curves := tables.curves(results, dataset):
        # The steep first half epoch would press the rest of the curves together.
        tail = {label: [point for point in curve if point[0] >= 0.5] for label, curve in curves.items()}
        pictures.lines(tail, folder / "losses.png", x="epochs", y="loss, nats a token (of its own kind)")
        parts.append(_picture("Loss curves.", f"{dataset}/losses.png"))
    return parts or [f"{NOT_YET}\n"]


def _picture(caption: str, path: str) -> str:
    return f"![{caption}]({path})\n\n*{caption}*\n"


def _short(choice: CodebookChoice) -> str:
    start = "" if choice.start == "shared" else f", {choice.start}"
    embeddings = "" if choice.embeddings == "own" else f", {choice.embeddings}"
    return f"{choice.method}{start}{embeddings} {choice.layers} × {choice.size}"
