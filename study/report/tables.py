"""The study's tables as Markdown, from results alone: every row of the plan is there, and one that was not run says so.

What must hold: every row names its run; recall is given with its spread where there are several seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Final

import msgspec

from study.data.choices import CodebookChoice
from study.data.datasets import DatasetName
from study.experiments.configuration import RunChoice
from study.experiments.plan import BEST_TOP_K, FULL, Row, rows, scale
from study.experiments.results import Results, RunResult
from study.experiments.run import FIRST_GIVEN, FREE_BEAMS, OWN, PER_ITEM, Measurement
from study.measures.evaluation import CUTOFFS, RANKINGS, SID, SID_WITHOUT_HISTORY
from study.measures.per_item import BUDGETS
from study.measures.shape import Shape
from study.report.cells import (
    NOT_MEASURED,
    NOT_YET,
    absent,
    cells_of,
    is_item_level,
    key_of,
    markdown,
    methods,
    number,
    of_seeds,
    recalls,
    sid_level,
    spread,
)

_PER_ITEM_HEADER: Final = ["method", *(f"{budget} items" for budget in BUDGETS), "nats an item", "ms a query"]


def best_ranking(results: Results, dataset: DatasetName) -> str:
    """The ranking inside a SID with the best recall@10 where it matters, under top@K; the items' weight until that is
    known.
    """
    row = next(row for row in rows(dataset) if row.choice.layout == BEST_TOP_K)
    result = results.run(row.choice)
    if result is None or OWN.name not in result.measured:
        return f"item, {RANKINGS[0]}"
    levels: dict[str, dict[str, float]] = result.measured[OWN.name]["all"]
    return max(filter(is_item_level, levels), key=lambda level: float(levels[level]["10"]))


def table_1(results: Results, dataset: DatasetName) -> str:
    """Base, head and tail, layers exchanged, first token given (paper table 1): SID-level recall."""
    base = scale(dataset).base
    lines = []
    for architecture in scale(dataset).architectures:
        for exchanged in (False, True):
            choice = msgspec.structs.replace(base, architecture=architecture, exchanged=exchanged)
            for measurement, given in ((OWN, ""), (FIRST_GIVEN, ", first token given")):
                label = f"{architecture}{', layers 1 and 2 exchanged' if exchanged else ''}{given}"
                level = sid_level(results, [choice], measurement)
                label += _level_words(level, dataset).removeprefix(SID)
                for group in ("all", "head", "tail"):
                    found = recalls(results, [choice], measurement, group, level)
                    lines.append([label, group, *cells_of(found, CUTOFFS), key_of(choice)])
    return markdown(["model", "test items", *(f"@{k}" for k in CUTOFFS), "run"], lines)


def table_2(results: Results, dataset: DatasetName) -> str:
    """All methods (paper table 2), at SID level and at item level."""
    lines = []
    ranking = best_ranking(results, dataset)
    for label, choices in methods(dataset):
        for level in (sid_level(results, choices, OWN), ranking):
            found = recalls(results, choices, OWN, "all", level)
            keys = " ".join(key_of(choice) for choice in choices if results.run(choice) or choice == choices[0])
            seeds = of_seeds(len(found), len(choices))
            lines.append([label, _level_words(level, dataset), *cells_of(found, CUTOFFS), seeds, keys])
    return markdown(["method", "level", *(f"@{k}" for k in CUTOFFS), "seeds", "runs"], lines)


def per_item(results: Results, dataset: DatasetName) -> str:
    """Methods by the item: recall at an equal budget of items, nats an item, processor time a query."""
    lines = []
    for label, choices in methods(dataset):
        found = _per_item(results, choices)
        lines.append([label, *_per_item_cells(found), of_seeds(len(found), len(choices))])
    return markdown([*_PER_ITEM_HEADER, "seeds"], lines)


def cost(results: Results, dataset: DatasetName) -> str:
    """What a query costs by each method, one after the other on a core that did nothing else."""
    found = results.record("costs", dataset)
    if found is None:
        return "not measured\n"
    timed = found["methods"]
    base = timed["base"]["processor"]
    lines = [
        [label, f"{one['processor']:.2f}", f"{one['clock']:.2f}", f"{one['processor'] / base:.2f}"]
        for label, _ in methods(dataset)
        if (one := timed.get(label)) is not None
    ]
    return markdown(["method", "processor time, ms a query", "by the clock", "against the base"], lines)


def parameters(results: Results, dataset: DatasetName) -> str:
    """Methods over codebooks of other depths and sizes: recall@10 of SIDs and of items, and by the item."""
    chosen = [row for row in rows(dataset) if row.section == "parameters"]
    if not chosen:
        return "not planned for this set\n"
    codebook = scale(dataset).base.codebook
    for layout in dict.fromkeys(row.choice.layout for row in chosen):
        label = f"{codebook.layers} × {codebook.size}, {layout.label}"
        chosen.append(Row("parameters", label, msgspec.structs.replace(scale(dataset).base, layout=layout), (OWN,)))
    ranking = best_ranking(results, dataset)
    lines = []
    for row in sorted(chosen, key=lambda row: (row.choice.codebook.layers, row.choice.codebook.size)):
        of_sids = sid_level(results, [row.choice], OWN)
        levels = [recalls(results, [row.choice], OWN, "all", level) for level in (of_sids, ranking)]
        cells = [spread([recall["10"] for recall in found]) if found else NOT_MEASURED for found in levels]
        lines.append([row.label, *cells, *_per_item_cells(_per_item(results, [row.choice])), key_of(row.choice)])
    header = ["codebook and layout", "SIDs @10", "items @10", *_PER_ITEM_HEADER[1:], "run"]
    return markdown(header, lines)


def _per_item(results: Results, choices: Sequence[RunChoice]) -> list[dict[str, dict[str, float]]]:
    found = [results.run(choice) for choice in choices]
    return [
        result.measured[PER_ITEM.name] for result in found if result is not None and PER_ITEM.name in result.measured
    ]


def _per_item_cells(found: Sequence[Mapping[str, Mapping[str, float]]]) -> list[str]:
    if not found:
        return absent(len(BUDGETS) + 2)
    cells = [spread([figures["items listed"][str(budget)] for figures in found]) for budget in BUDGETS]
    cells.append(spread([figures["nats"]["mean"] for figures in found], 2))
    return [*cells, spread([figures["processor"]["ms"] for figures in found], 1)]


def rankings(results: Results, dataset: DatasetName) -> str:
    """Rankings inside a SID against each other: item-level recall of each method."""
    lines = []
    for label, choices in methods(dataset):
        measured = [result.measured for choice in choices if (result := results.run(choice)) is not None]
        if not (found := [one[OWN.name] for one in measured if OWN.name in one]):
            lines.append([label, "–", *absent(len(CUTOFFS))])
            continue
        levels = found[0]["all"]
        for level in levels:
            if is_item_level(level):
                values = recalls(results, choices, OWN, "all", level)
                lines.append([label, level.removeprefix("item, "), *cells_of(values, CUTOFFS)])
    return markdown(["method", "items of a SID ordered by", *(f"@{k}" for k in CUTOFFS)], lines)


def buckets(results: Results, dataset: DatasetName) -> str:
    """What shortening does to the buckets."""
    lines: list[list[str]] = []
    header: list[str] = []
    for label, choices in methods(dataset):
        if label in ("focal loss", "MiLe loss"):  # the base's layout
            continue
        result = results.run(choices[0])
        sizes = {} if result is None else result.measured.get(OWN.name, {}).get("buckets", {})
        header = header or ["layout", *sizes] if sizes else header
        lines.append([label, *(f"{value:,.10g}" for value in sizes.values())])
    filled = [line if len(line) > 1 else [*line, *absent(len(header) - 1)] for line in lines]
    return markdown(header, filled) if header else f"{NOT_YET}\n"


def layout_change(results: Results, dataset: DatasetName) -> str:
    """Recall before and after a layout change under a frozen model (section 5)."""
    lines = []
    ranking = best_ranking(results, dataset)
    for row in rows(dataset):
        if row.section != "layout change":
            continue
        for measurement in row.measurements:
            for level in (sid_level(results, [row.choice], measurement), ranking):
                cells = []
                for group in ("all", "head", "tail", "new"):
                    found = recalls(results, [row.choice], measurement, group, level)
                    cells.append(
                        spread([recall["10"] for recall in found if "10" in recall]) if found else NOT_MEASURED
                    )
                words = _level_words(level, dataset)
                lines.append([row.label, _reading(row, measurement), words, *cells, key_of(row.choice)])
    return markdown(["model", "layout when asked", "level", "all", "head", "tail", "new", "run"], lines)


def _reading(row: Row, measurement: Measurement) -> str:
    if measurement == OWN:
        return f"its own: {row.choice.layout.label} (pinned)" if row.choice.layout == FULL else "its own"
    assert measurement.layout is not None
    how = "live, both forms were trained" if row.choice.layer2_dropout else measurement.kind
    return f"{measurement.layout.label}, {how}"


def invalid(results: Results, dataset: DatasetName) -> dict[str, dict[int, float]]:
    """Method → k → share of invalid SIDs under free beams (figure 5)."""
    lines = {}
    for label, choices in methods(dataset):
        result = results.run(choices[0])
        if result is not None and "free beams" in result.measured:
            shares = {int(k): float(share) for k, share in result.measured["free beams"].items()}
            lines[label] = dict(sorted(shares.items()))
    return lines


def invalid_table(shares: Mapping[str, Mapping[int, float]], dataset: DatasetName) -> str:
    """Figure 5 in numbers, a row each method that it is planned for."""
    counts = list(next(iter(shares.values())))
    planned = {row.label for row in rows(dataset) if row.section == "table 2" and FREE_BEAMS in row.measurements}
    lines = [
        [label, *(f"{shares[label][k]:.2%}" for k in counts)] if label in shares else [label, *absent(len(counts))]
        for label, _ in methods(dataset)
        if label in planned | shares.keys()
    ]
    return markdown(["method", *(f"k = {k}" for k in counts)], lines)


def recall_at_10(results: Results, dataset: DatasetName) -> dict[str, dict[str, tuple[float, float]]]:
    """Method → level → (recall@10, standard deviation over seeds), for the bars."""
    bars: dict[str, dict[str, tuple[float, float]]] = {}
    ranking = best_ranking(results, dataset)
    for label, choices in methods(dataset):
        for level, name in (
            (sid_level(results, choices, OWN), "SID level"),
            (ranking, f"item level, ordered by {ranking.removeprefix('item, ')}"),
        ):
            values = [recall["10"] for recall in recalls(results, choices, OWN, "all", level)]
            if values:
                bars.setdefault(label, {})[name] = (mean(values), stdev(values) if len(values) > 1 else 0.0)
    return bars


def shapes(found: Mapping[CodebookChoice, Shape]) -> str:
    """The numbers under figures 1 to 4 and 6: by layer, and of whole codes."""
    lines = []
    for choice, shape in found.items():
        start = "" if choice.start == "shared" else f", {choice.start} start"
        start += "" if choice.embeddings == "own" else f", {choice.embeddings} embeddings"
        by_layer = [
            " / ".join(f"{value:{form}}" for value in values)
            for form, values in (
                (".3f", [layer.entropy for layer in shape.layers]),
                (".3f", [layer.gini for layer in shape.layers]),
                (".0f", [layer.standard_deviation for layer in shape.layers]),
                (".1%", [layer.top_10_share for layer in shape.layers]),
            )
        ]
        lines.append(
            [
                f"{choice.method}{start}, {choice.layers} × {choice.size}",
                *by_layer,
                f"{shape.squared_error:.3f}",
                f"{shape.distinct:,}",
                f"{shape.largest}",
                f"{shape.sparsity:.2g}",
                f"`{choice.key}`",
            ]
        )
    header = ["codebook", "entropy by layer", "Gini", "standard deviation", "top 10 share", "squared error"]
    return markdown([*header, "distinct", "largest", "paths used", "key"], lines)


def curves(results: Results, dataset: DatasetName) -> dict[str, list[tuple[float, float]]]:
    """Label → loss curve of every run of a set."""
    found = {}
    for row in rows(dataset):
        if (result := results.run(row.choice)) is not None:
            found[row.title] = result.curve
    return found


def runs(results: Results, dataset: DatasetName) -> str:
    """Every run: what it was, how long it took."""
    lines = []
    for row in rows(dataset):
        result: RunResult | None = results.run(row.choice)
        label = f"{row.section}: {row.label}{', arrivals' if row.choice.arrivals else ''}"
        facts = [NOT_YET, "", "", ""]
        if result is not None:
            facts = [
                f"{result.parameters / 1e6:.2f} M",
                f"{row.choice.epochs:g} × {result.targets:,}",
                number(result.loss),
                f"{result.seconds / 60:.1f}",
            ]
        lines.append([label, str(row.choice.seed), *facts, key_of(row.choice)])
    return markdown(["run", "seed", "parameters", "epochs × targets", "last loss", "minutes", "key"], lines)


def _level_words(level: str, dataset: DatasetName) -> str:
    if level == SID_WITHOUT_HISTORY:
        return SID
    return f"{SID}, history kept" if level == SID and dataset != "chorus_icecat" else level
