"""What every table of the report is made of: Markdown, figures with their spread, and the runs that a row is of.

What must hold: what was not run or not measured says so, and is neither left out nor a figure of something else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import mean, stdev
from typing import Final

import msgspec

from study.data.datasets import DatasetName
from study.experiments.configuration import RunChoice
from study.experiments.plan import rows
from study.experiments.results import Results
from study.experiments.run import Measurement
from study.measures.evaluation import SID, SID_WITHOUT_HISTORY

NOT_YET: Final = "not run yet"  # of a section
NOT_MEASURED: Final = "not measured"  # of a row that is planned


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table; numbers right-aligned, the first column left."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *lines)) + "\n"


def number(value: float | None, digits: int = 3) -> str:
    """A figure, or a dash for none."""
    return "–" if value is None else f"{value:.{digits}f}"


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean, and ± the standard deviation of several seeds."""
    if not values:
        return "–"
    return number(mean(values), digits) + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


def methods(dataset: DatasetName) -> Iterator[tuple[str, list[RunChoice]]]:
    """The methods of table 2 and the runs of each, a run a seed, in the order of the paper's table."""
    found: dict[str, list[RunChoice]] = {}
    for row in rows(dataset):
        if row.section == "table 2":
            found.setdefault(row.label, []).append(row.choice)
    order = ["base", "focal loss", "MiLe loss", "without layer 2"]

    def place(method: tuple[str, list[RunChoice]]) -> tuple[int, float, float]:
        label, (choice, *_) = method
        return order.index(label) if label in order else len(order), choice.layout.p, choice.layout.share

    yield from sorted(found.items(), key=place)


def levers(dataset: DatasetName) -> Iterator[tuple[str, list[RunChoice]]]:
    """What was tried to come closer to the references, in the order of the plan, and the runs of each, a run a seed."""
    found: dict[RunChoice, tuple[str, list[RunChoice]]] = {}
    for row in rows(dataset):
        if row.section == "levers":
            found.setdefault(msgspec.structs.replace(row.choice, seed=0), (row.label, []))[1].append(row.choice)
    yield from found.values()


def recalls(
    results: Results, choices: Sequence[RunChoice], measurement: Measurement, group: str, level: str
) -> list[dict[str, float]]:
    """Recall of a group at a level of each run that has it measured."""
    found = []
    for choice in choices:
        result = results.run(choice)
        if result is not None and level in (figures := result.measured.get(measurement.name, {}).get(group, {})):
            found.append(figures[level])
    return found


def is_item_level(level: str) -> bool:
    """Whether a level is of items, by some ranking."""
    return level.startswith("item, ")


def sid_level(results: Results, choices: Sequence[RunChoice], measurement: Measurement) -> str:
    """SIDs without those of the history's items, as item lists are; older runs of sets with histories kept them."""
    measured = [
        result.measured[measurement.name]["all"]
        for choice in choices
        if (result := results.run(choice)) is not None and measurement.name in result.measured
    ]
    return SID_WITHOUT_HISTORY if all(SID_WITHOUT_HISTORY in levels for levels in measured) else SID


def cells_of(found: Sequence[Mapping[str, float]], cutoffs: Sequence[int]) -> list[str]:
    """A cell a cutoff, with the spread of several seeds."""
    return (
        absent(len(cutoffs))
        if not found
        else [spread([recall[str(k)] for recall in found if str(k) in recall]) for k in cutoffs]
    )


def absent(cells: int) -> list[str]:
    """So many cells of a row without figures, which say so."""
    return [NOT_MEASURED, *["–"] * (cells - 1)]


def of_seeds(measured: int, planned: int) -> str:
    """How many of a row's seeds are in it, where that is not all."""
    return str(measured) if measured == planned else f"{measured} of {planned}"


def key_of(choice: RunChoice) -> str:
    """A run's key as the tables show it."""
    return f"`{choice.key}`"
