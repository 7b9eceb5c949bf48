"""An evaluation as one HTML file: tables, and plots as SVG inside of it; no script, nothing fetched.

What must hold: every text that came from outside is escaped; the same result gives the same page; colours are told apart by
colour-blind readers (Okabe and Ito 2008).
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

import msgspec

from models.directories import require_writable_file
from models.errors import SidstreamError
from models.terminal import printable
from retriever.evaluation.evaluation import Evaluation, Interval
from retriever.evaluation.groups import ALL
from retriever.evaluation.metrics import METRICS
from retriever.evaluation.report.tables import verdict

_COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKS: Final = ("o", "s", "^", "D", "v", "P")
_MOST_GROUPS: Final = 30  # of bars in one plot
_STYLE: Final = """\
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem;
       color: #1a1a1a; background: #fff }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; display: block; overflow-x: auto }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #ddd; vertical-align: top }
th:first-child, td:first-child { text-align: left } tbody tr.own td { font-weight: 600 }
small { color: #666; font-weight: 400; white-space: nowrap } svg { max-width: 100%; height: auto }
.ahead { color: #00704f } .behind { color: #b03a00 } .note { color: #8a5a00 }
"""


def require_writable(json: Path | None, page: Path | None) -> None:
    """Return if both files can be written, and the page be drawn: before anything is measured. Raises ``SidstreamError``."""
    for path in (json, page):
        if path is not None:
            require_writable_file(path)
    if page is not None:
        _require_matplotlib()


def write_page(result: Evaluation, path: Path) -> None:
    """Writes the page. Raises ``SidstreamError`` where Matplotlib is not installed, or the file cannot be written."""
    _require_matplotlib()
    _write(path, "\n".join(_parts(result)).encode())


def _require_matplotlib() -> None:
    try:
        import matplotlib
    except ImportError as error:
        raise SidstreamError(
            "--page draws with Matplotlib: `pip install 'sidstream[study]'`, or take --json"
        ) from error
    matplotlib.use("Agg")


def write_json(result: Evaluation, path: Path) -> None:
    """Writes the whole result, a figure without a case as null. Raises ``SidstreamError`` if the file cannot be written."""
    _write(path, msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise SidstreamError(f"{path} cannot be written: {error.strerror or error}") from error


def _parts(result: Evaluation) -> Iterator[str]:
    yield '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>sidstream: evaluation</title>'
    yield '<meta name="viewport" content="width=device-width">'
    yield f"<style>{_STYLE}</style></head><body>"
    yield f"<h1>How well items are found: {result.cases[ALL]:,} cases</h1>"
    about = ", ".join(f"{name} {value}" for name, value in result.about.items())
    yield f"<p>{_text(result.source)}. Known before them: {_text(result.training)}. {_text(about)}</p>"
    for remark in [
        *(f"{count:,} queries had no answer: {why}" for why, count in result.unanswered.items()),
        *result.remarks,
    ]:
        yield f'<p class="note">{_text(remark)}</p>'
    yield "<h2>All cases</h2>"
    yield _figure(lambda axes: _curves(axes, result), (8.6, 3.6), columns=3)
    yield _all_cases(result)
    yield f"<h2>Difference to the references, @{result.main}</h2>"
    if len(result.systems) > 1:
        yield _figure(lambda axes: _differences(axes[0], result), (7.6, 1.2 + 0.75 * (len(result.systems) - 1)))
    yield _difference_table(result)
    if len(result.cases) > 1:
        yield f"<h2>recall@{result.main} by group of relevant items</h2>"
        groups = list(result.cases)[:_MOST_GROUPS]
        yield _figure(lambda axes: _bars(axes[0], result, groups), (8.6, 1.0 + 0.5 * len(groups)))
        yield _group_table(result)
    yield "<h2>How</h2><ul>"
    yield (
        f"<li>Intervals: {result.level:.0%}, paired bootstrap over cases, {result.resamples:,} draws, seed {result.seed}. "
        "Items of a case's history are in no list.</li>"
    )
    for system in result.systems[1:]:
        how = f", chosen on {system.tuned_on:,} validation cases" if system.tuned_on else ""
        yield f"<li><b>{_text(system.name)}</b>: {_text(system.settings + how)}</li>"
    if len(result.found_by) > 1:
        legs = ", ".join(f"{leg} {share:.1%}" for leg, share in result.found_by.items())
        yield f"<li>Of the relevant items in the lists were found by: {_text(legs)}</li>"
    yield "</ul></body></html>"


def _all_cases(result: Evaluation) -> str:
    names = [f"{metric}@{k}" for metric in METRICS for k in result.at]
    header = ["", *names, *(f"coverage@{k}" for k in result.at), "unanswered"]
    rows = [
        [
            _text(system.name),
            *(_cell(system.figures[ALL][name]) for name in names),
            *(f"{system.coverage[k]:.1%}" for k in result.at),
            f"{system.unanswered:.1%}",
        ]
        for system in result.systems
    ]
    return _table(header, rows)


def _difference_table(result: Evaluation) -> str:
    names = [f"{metric}@{k}" for metric in METRICS for k in result.at]
    rows = [
        [f"less {_text(system.name)}", *(_difference(system.differences[ALL][name]) for name in names)]
        for system in result.systems[1:]
    ]
    return _table(["", *names], rows, own=False)


def _group_table(result: Evaluation) -> str:
    name = f"recall@{result.main}"
    rows = [
        [
            f"{_text(group)}<br><small>{_text(result.groups[group] if result.groups[group] != group else '')}</small>",
            f"{count:,}",
            *(_cell(system.figures[group][name]) for system in result.systems),
            *(_difference(system.differences[group][name]) for system in result.systems[1:]),
        ]
        for group, count in result.cases.items()
    ]
    names = [_text(system.name) for system in result.systems]
    return _table(["relevant items", "cases", *names, *(f"less {name}" for name in names[1:])], rows, own=False)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], *, own: bool = True) -> str:
    head = "".join(f"<th>{cell}</th>" for cell in header)
    body = "".join(
        f"<tr{' class=own' if own and number == 0 else ''}>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>"
        for number, row in enumerate(rows)
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(interval: Interval) -> str:
    value, low, high = interval
    return f"{value:.4f}<br><small>{low:.3f}-{high:.3f}</small>"


def _difference(interval: Interval) -> str:
    value, low, high = interval
    says = verdict(interval)
    return f'<span class="{says.partition(" ")[0]}">{value:+.4f}</span><br><small>{low:+.3f} to {high:+.3f}: {says}</small>'


def _text(text: str) -> str:
    return escape(printable(text))


def _figure(draw: Callable[[Sequence[Any]], None], size: tuple[float, float], *, columns: int = 1) -> str:
    from matplotlib import pyplot

    style: Mapping[Any, Any] = {
        "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
        "svg.hashsalt": "sidstream", "svg.fonttype": "none", "text.parse_math": False,
    }  # fmt: skip
    with pyplot.rc_context(dict(style)):
        figure, axes = pyplot.subplots(1, columns, figsize=size, layout="constrained", squeeze=False)
        draw(list(axes[0]))
        held = io.StringIO()
        # Without a date the same result gives the same page.
        figure.savefig(held, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})
        pyplot.close(figure)
    # Without prologue and metadata, which name addresses.
    return re.sub(r"^.*?(?=<svg)|<metadata>.*?</metadata>", "", held.getvalue(), flags=re.DOTALL)


def _curves(axes: Sequence[Any], result: Evaluation) -> None:
    for axis, metric in zip(axes, METRICS, strict=True):
        for number, system in enumerate(result.systems):
            points = [system.figures[ALL][f"{metric}@{k}"] for k in result.at]
            values, low, high = zip(*points, strict=True)
            colour, mark = _COLOURS[number % len(_COLOURS)], _MARKS[number % len(_MARKS)]
            axis.plot(result.at, values, color=colour, marker=mark, markersize=4, linewidth=2 if number == 0 else 1.2,
                      label=printable(system.name))  # fmt: skip
            axis.fill_between(result.at, low, high, color=colour, alpha=0.15, lw=0)
        axis.set(xlabel="k, places of the list", title=f"{metric}@k", ylim=(0, None), xticks=result.at)
    handles, labels = axes[0].get_legend_handles_labels()
    axes[0].figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False)


def _differences(axis: Any, result: Evaluation) -> None:
    references = result.systems[1:]
    for number, metric in enumerate(METRICS):
        places = [row + 0.22 * (number - 1) for row in range(len(references))]
        points = [system.differences[ALL][f"{metric}@{result.main}"] for system in references]
        values = [value for value, _, _ in points]
        ends = _lengths(points)
        axis.errorbar(values, places, xerr=ends, fmt=_MARKS[number], color=_COLOURS[number], capsize=3, markersize=5,
                      label=f"{metric}@{result.main}")  # fmt: skip
    axis.axvline(0, color="#333333", linewidth=1)
    axis.set(yticks=range(len(references)), xlabel="sidstream less the reference: right of 0 it is ahead")
    axis.set_yticklabels([printable(system.name) for system in references])
    axis.invert_yaxis()
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def _lengths(points: Sequence[Interval]) -> list[list[float]]:
    """Of error bars to both sides; a percentile interval of few cases may lie beside its figure."""
    return [[max(0.0, value - low) for value, low, _ in points], [max(0.0, high - value) for value, _, high in points]]


def _bars(axis: Any, result: Evaluation, groups: Sequence[str]) -> None:
    height = 0.8 / len(result.systems)
    for number, system in enumerate(result.systems):
        points = [system.figures[group][f"recall@{result.main}"] for group in groups]
        places = [row + height * (number - (len(result.systems) - 1) / 2) for row in range(len(groups))]
        values = [value for value, _, _ in points]
        ends = _lengths(points)
        axis.barh(places, values, height=height, color=_COLOURS[number % len(_COLOURS)], label=printable(system.name),
                  xerr=ends, error_kw={"ecolor": "#333333", "elinewidth": 0.8, "capsize": 1.5})  # fmt: skip
    axis.set(yticks=range(len(groups)), xlabel=f"recall@{result.main}", xlim=(0, None))
    axis.set_yticklabels([f"{printable(group)[:40]} ({result.cases[group]:,})" for group in groups])
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
