"""What every benchmark prints: one table for people and, with ``--json PATH``, the same rows for machines.

A figure stands beside its baseline, measured in the same process or minute: machines differ, ratios travel.

    arguments = benchmark_arguments(__doc__).parse_args()
    results = [Result("encode", 51_000, "items/s", "bare GEMM", 58_000, Target.ratio_at_least(0.8))]
    raise SystemExit(report("Assignment", results, arguments.json))
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from rich.console import Console
from rich.table import Table

_COLUMNS: Final = 5  # and the floors, where a result has one


@dataclass(frozen=True)
class Target:
    """What a result must reach: its ``value`` or its ``ratio`` to the baseline, at least or at most ``bound``."""

    of: Literal["value", "ratio"]
    direction: Literal["at least", "at most"]
    bound: float

    @classmethod
    def value_at_least(cls, bound: float) -> Target:
        return cls("value", "at least", bound)

    @classmethod
    def value_at_most(cls, bound: float) -> Target:
        return cls("value", "at most", bound)

    @classmethod
    def ratio_at_least(cls, bound: float) -> Target:
        return cls("ratio", "at least", bound)

    @classmethod
    def ratio_at_most(cls, bound: float) -> Target:
        return cls("ratio", "at most", bound)

    def __str__(self) -> str:
        return f"{self.of} {'≥' if self.direction == 'at least' else '≤'} {_figure(self.bound)}"


@dataclass(frozen=True)
class Result:
    """One measured figure; without a baseline there is no ratio, without a target nothing to miss.

    ``floor``: what no implementation gets below: bytes, products, syncs, round trips.
    """

    name: str
    value: float
    unit: str
    baseline_name: str | None = None
    baseline_value: float | None = None
    target: Target | None = None
    floor: str = ""

    @property
    def ratio(self) -> float | None:
        """value / baseline value."""
        return self.value / self.baseline_value if self.baseline_value else None

    @property
    def reached(self) -> bool | None:
        """Whether the target is met; None without one."""
        if self.target is None:
            return None
        measured = self.value if self.target.of == "value" else self.ratio
        if measured is None:
            raise ValueError(f"{self.name}: its target is on the ratio, but it has no baseline value")
        reached = (
            measured >= self.target.bound if self.target.direction == "at least" else measured <= self.target.bound
        )
        return bool(reached)  # numpy's own is none that JSON knows

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "baseline_name": self.baseline_name,
            "baseline_value": self.baseline_value,
            "ratio": self.ratio,
            "target": str(self.target) if self.target else None,
            "reached": self.reached,
            "floor": self.floor or None,
        }


def benchmark_arguments(description: str | None) -> argparse.ArgumentParser:
    """A parser with ``--json PATH``; the benchmark adds its own options."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the results as JSON")
    return parser


def report(title: str, results: Sequence[Result], json_path: Path | None = None) -> int:
    """Prints the results, writes them under ``json_path`` if given; returns 1 if a target is missed, else 0."""
    table = Table(title=title, title_justify="left")
    for heading, justify in (("", "left"), ("measured", "right"), ("baseline", "right"), ("ratio", "right")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    table.add_column("target")
    if any(result.floor for result in results):
        table.add_column("floor")
    for result in results:
        baseline = f"{_figure(result.baseline_value)} {result.baseline_name}" if result.baseline_value else ""
        mark = {None: "", True: " [green]reached[/]", False: " [red]missed[/]"}[result.reached]
        table.add_row(
            result.name,
            f"{_figure(result.value)} {result.unit}",
            baseline,
            "" if result.ratio is None else f"{result.ratio:.2f}",
            f"{result.target}{mark}" if result.target else "",
            *([result.floor] if len(table.columns) > _COLUMNS else []),
        )
    console = Console()
    if not console.is_terminal:
        console = Console(
            width=200 if len(table.columns) > _COLUMNS else 140
        )  # a file or a pipe has no width: rows stay on one line
    console.print(table)
    if json_path is not None:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        document = {"title": title, **_circumstances(), "results": [result.to_dict() for result in results]}
        json_path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return int(any(result.reached is False for result in results))


def write_markdown(path: Path, title: str, notes: Sequence[str], results: Sequence[Result]) -> None:
    """The results as a page of their own: what they were measured on, when, and the table."""
    circumstances = _circumstances()
    lines = [
        f"# {title}",
        "",
        f"Measured at {circumstances['measured_at']}, load average {circumstances['load_average']:.2f}, "
        f"{circumstances['cores']} cores.",
        "",
        *(f"- {note}" for note in notes),
        "",
        "| | measured | baseline | ratio |",
        "|---|---|---|---|",
    ]
    for result in results:
        baseline = f"{_figure(result.baseline_value)} {result.baseline_name}" if result.baseline_value else ""
        ratio = "" if result.ratio is None else f"{result.ratio:.2f}"
        lines.append(f"| {result.name} | {_figure(result.value)} {result.unit} | {baseline} | {ratio} |")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _circumstances() -> dict[str, Any]:
    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_average": os.getloadavg()[0],
    }


def _processor() -> str | None:
    """The processor's name; None where there is no /proc."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)


def _figure(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"
