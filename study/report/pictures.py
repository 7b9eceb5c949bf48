"""The study's figures: plain functions from records to PNG files.

What must hold: axes have labels and units; colours are told apart by colour-blind readers (Okabe and Ito 2008); the same
data gives the same picture; white ground, so that the figures read in light and dark pages.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from study.measures.shape import Shape

_COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
_DASHES: Final = ("-", "--", ":", "-.")
_DPI: Final = 110


@contextmanager
def _figure(path: Path, columns: int = 1, rows: int = 1, size: tuple[float, float] = (6.4, 3.6)) -> Iterator[Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    style: dict[Any, Any] = {
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.25,
    }
    with pyplot.rc_context(style):
        figure, axes = pyplot.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
        yield figure, axes
        path.parent.mkdir(parents=True, exist_ok=True)
        # Without software version and date the same data gives the same file.
        figure.savefig(path, dpi=_DPI, facecolor="white", metadata={"Software": None})
        pyplot.close(figure)


def distributions(shapes: Mapping[str, Shape], path: Path) -> None:
    """Share of the items by rank of the token, one panel a codebook, one line a layer (figures 1, 2 and 6)."""
    with _grid(shapes, path) as panels:
        for axis, (name, shape) in panels:
            for number, layer in enumerate(shape.layers):
                ranks, shares = zip(*layer.ranks, strict=True)
                axis.plot(
                    ranks, [max(share, 0.01) for share in shares], color=_COLOURS[number], label=f"layer {number + 1}"
                )
            axis.axhline(1, color="#666666", linewidth=0.8, linestyle=":")
            axis.set(title=name, yscale="log", ylim=(0.008, 200))
        _outer_labels(panels, "token, by rank (0: most crowded)", "items, 1 = even share")


def widths(shape: Shape, title: str, path: Path) -> None:
    """The hourglass itself: each layer as wide as the number of tokens that an even spread would need for the same
    entropy, between them the flows of items from groups of tokens to groups of tokens (figures 1 and 2).
    """
    with _figure(path, size=(7.2, 4.2)) as (_, axes):
        axis = axes[0, 0]
        axis.grid(False)
        groups = len(shape.flows[0].shares)
        layers = len(shape.layers)
        for number, flow in enumerate(shape.flows):
            left = [sum(row) for row in flow.shares]
            right = [sum(row[column] for row in flow.shares) for column in range(groups)]
            start_left = [sum(left[:place]) for place in range(groups)]
            start_right = [sum(right[:place]) for place in range(groups)]
            for one in range(groups):
                for other in range(groups):
                    share = flow.shares[one][other]
                    _ribbon(axis, (number + 0.06, start_left[one]), (number + 0.94, start_right[other]), share, other)
                    start_left[one] += share
                    start_right[other] += share
        for number in range(layers):
            shares = shape.flows[number].shares if number < layers - 1 else None
            sizes = (
                [sum(row) for row in shares]
                if shares is not None
                else [sum(row[column] for row in shape.flows[-1].shares) for column in range(groups)]
            )
            bottom = 0.0
            for group, size in enumerate(sizes):
                axis.bar(number, size, width=0.12, bottom=bottom, color=_shade(group, groups), edgecolor="white")
                if size > 0.06:
                    axis.text(
                        number, bottom + size / 2, f"{size:.0%}", ha="center", va="center", fontsize=7, color="white"
                    )
                bottom += size
            axis.text(
                number, 1.02, f"layer {number + 1}\nGini {shape.layers[number].gini:.2f}", ha="center", va="bottom"
            )
        axis.set(xlim=(-0.3, layers - 0.7), ylim=(0, 1.16), xticks=[], ylabel="share of the items")
        axis.set_title(f"{title}: tokens in {groups} groups by rank, the most crowded eighth at the bottom", fontsize=9)


def _ribbon(axis: Any, left: tuple[float, float], right: tuple[float, float], width: float, group: int) -> None:
    if width < 1e-3:
        return
    import numpy as np

    x = np.linspace(0, 1, 24)
    bend = x**2 * (3 - 2 * x)
    bottom = left[1] + (right[1] - left[1]) * bend
    axis.fill_between(
        left[0] + (right[0] - left[0]) * x, bottom, bottom + width, color=_shade(group, 8), alpha=0.3, lw=0
    )


def _shade(group: int, groups: int) -> str:
    import matplotlib

    return str(matplotlib.colors.to_hex(matplotlib.colormaps["viridis"](0.05 + 0.8 * group / groups)))


def metric_bars(shapes: Mapping[str, Shape], path: Path) -> None:
    """Entropy, Gini coefficient and standard deviation of each layer, by codebook (figure 3)."""
    names = list(shapes)
    metrics = (
        ("entropy", "entropy, 1 = even"),
        ("gini", "Gini coefficient, 0 = even"),
        ("relative_standard_deviation", "standard deviation / mean"),
    )
    with _figure(path, columns=3, size=(10.5, 3.4)) as (figure, axes):
        for axis, (field, label) in zip(axes[0], metrics, strict=True):
            for number in range(max(len(shape.layers) for shape in shapes.values())):
                places, values = [], []
                for place, shape in enumerate(shapes.values()):
                    if number < len(shape.layers):
                        places.append(place + 0.2 * (number - (len(shape.layers) - 1) / 2))
                        values.append(getattr(shape.layers[number], field))
                axis.bar(places, values, width=0.19, color=_COLOURS[number], label=f"layer {number + 1}")
            axis.set(xticks=range(len(names)), ylabel=label)
            axis.set_xticklabels(names, rotation=45, ha="right", fontsize=7)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False)


def residuals(shapes: Mapping[str, Shape], path: Path) -> None:
    """Norm of the residual after each layer: median, quartiles, 5 and 95 % (figure 4)."""
    with _grid(shapes, path) as panels:
        for axis, (name, shape) in panels:
            steps = list(range(len(shape.residual_norms)))
            low, lower, middle, upper, high = zip(*shape.residual_norms, strict=True)
            axis.fill_between(steps, low, high, color=_COLOURS[0], alpha=0.15, lw=0, label="5-95 %")
            axis.fill_between(steps, lower, upper, color=_COLOURS[0], alpha=0.3, lw=0, label="25-75 %")
            axis.plot(steps, middle, color=_COLOURS[0], marker="o", markersize=3, label="median")
            axis.set(title=name, xticks=steps, ylim=(0, None))
        _outer_labels(panels, "layers taken off", "norm of the residual")


class _Panels(list[tuple[Any, tuple[str, Shape]]]):
    figure: Any
    columns: int


@contextmanager
def _grid(shapes: Mapping[str, Shape], path: Path) -> Iterator[_Panels]:
    columns = min(3, len(shapes))
    rows = -(-len(shapes) // columns)
    with _figure(path, columns, rows, (1.0 + 3.0 * columns, 0.5 + 2.1 * rows)) as (figure, axes):
        flat = list(axes.flat)
        panels = _Panels(zip(flat, shapes.items(), strict=False))
        panels.figure, panels.columns = figure, columns
        for axis in flat[len(shapes) :]:
            axis.set_visible(False)
        yield panels


def _outer_labels(panels: _Panels, x: str, y: str) -> None:
    handles: dict[str, Any] = {}
    for axis, _ in panels:
        axis.title.set_fontsize(9)
        handles |= {label: handle for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    panels.figure.supxlabel(x, fontsize=9)
    panels.figure.supylabel(y, fontsize=9)
    panels.figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=4, frameon=False)


def lines(
    series: Mapping[str, Sequence[tuple[float, float]]], path: Path, *, x: str, y: str, percent: bool = False
) -> None:
    """Several lines in one picture, named beside it: loss curves, invalid shares over k (figure 5)."""
    with _figure(path, size=(8.2, 4.0)) as (figure, axes):
        axis = axes[0, 0]
        methods = list(dict.fromkeys(name.split(", seed")[0] for name in series))
        for name, points in series.items():
            number = methods.index(name.split(", seed")[0])  # the seeds of a method share its colour
            axis.plot(
                *zip(*points, strict=True),
                color=_COLOURS[number % len(_COLOURS)],
                linestyle=_DASHES[number // len(_COLOURS) % len(_DASHES)],
                linewidth=1.3,
                label=name if name in methods else None,
            )
        if percent:
            from matplotlib.ticker import PercentFormatter

            axis.set_ylim(0, None)
            axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0 if axis.get_ylim()[1] > 0.05 else 2))
        axis.set(xlabel=x, ylabel=y)
        figure.legend(loc="outside right upper", frameon=False, fontsize=8)


def recall_bars(bars: Mapping[str, Mapping[str, tuple[float, float]]], path: Path, *, y: str) -> None:
    """Grouped bars: method → level → (recall, spread over seeds); the spread 0 draws no error bar."""
    levels = list(dict.fromkeys(level for values in bars.values() for level in values))
    with _figure(path, size=(8.2, 3.8)) as (figure, axes):
        axis = axes[0, 0]
        width = 0.8 / len(levels)
        for number, level in enumerate(levels):
            places = [place + width * (number - (len(levels) - 1) / 2) for place in range(len(bars))]
            values = [pair.get(level, (0.0, 0.0)) for pair in bars.values()]
            axis.bar(places, [value for value, _ in values], width=width, color=_COLOURS[number], label=level)
            with_spread = [(place, *value) for place, value in zip(places, values, strict=True) if value[1]]
            if with_spread:
                at, heights, spreads = zip(*with_spread, strict=True)
                axis.errorbar(at, heights, yerr=spreads, fmt="none", ecolor="#333333", capsize=3, linewidth=1)
        axis.set(xticks=range(len(bars)), ylabel=y)
        axis.set_xticklabels(list(bars), rotation=25, ha="right")
        figure.legend(loc="outside upper center", ncols=3, frameon=False)
